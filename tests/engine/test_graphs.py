"""What becomes of CUDA's state when a capture fails, on a stand-in that keeps torch's books: streams, pools and their
graphs, the allocator's captures under way, the random generator. And what an engine lets go of."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from specbench.engine.decode import Engine
from specbench.engine.graphs import CudaGraphs, Graphs
from specbench.engine.recorded import RecordedGraphs
from specbench.lm.chain import ChainDrafter
from specbench.method import Drafter
from specbench.sampling import Sampling
from tests.helpers import NoDrafter, requests_for, tiny_lm

CUDA = torch.device("cuda", 0)


class Books:
    """As torch 2.8 to 2.13 keep them (CUDAGraph.cpp, CUDACachingAllocator.cpp)."""

    def __init__(self, *, ends_by_itself: bool) -> None:
        self.ends_by_itself = ends_by_itself
        """Whether an end of a capture that failed tells the allocator: since torch 2.12."""
        self.stream = "default"
        self.capturing: FakeGraph | None = None
        self.is_invalid = False
        self.num_users: dict[tuple[int, int], int] = {}
        self.underway: set[tuple[int, int]] = set()
        self.is_generator_waiting = False
        self.replayed: list[FakeGraph | FakeEvent] = []
        """Graphs and the events recorded between them."""

    def handle(self) -> tuple[int, int]:
        return (0, len(self.num_users) + 1)

    def end_pool(self, index: int, pool: tuple[int, int]) -> None:
        if pool not in self.underway:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self.underway.discard(pool)

    @contextmanager
    def on(self, stream: str) -> Iterator[None]:
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    def read(self) -> None:
        """What the host may not do while a stream is captured."""
        if self.capturing is not None:
            self.is_invalid = True
            raise RuntimeError("operation not permitted when stream is capturing\nmore of it")

    def draw(self) -> None:
        """A random number, drawn as ever."""
        if self.capturing is None and self.is_generator_waiting:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")


class FakeGraph:
    def __init__(self, books: Books) -> None:
        self.books = books
        self.has_ended = False
        self.of: tuple[int, int] | None = None

    def capture_begin(self, pool: tuple[int, int] | None = None, **_: object) -> None:
        books = self.books
        pool = books.handle() if pool is None else pool
        assert books.stream != "default", "CUDA graphs must be captured on a non-default stream"
        assert not torch.is_inference_mode_enabled(), "the generator's tensors would be of that mode"
        if pool in books.underway:
            raise RuntimeError("beginAllocateToPool: already recording to mempool_id")
        if books.num_users.get(pool, 1) == 0:
            raise RuntimeError("INTERNAL ASSERT FAILED: use_count > 0")
        books.num_users[pool] = books.num_users.get(pool, 0) + 1
        books.underway.add(pool)
        books.capturing, books.is_invalid, books.is_generator_waiting = self, False, True
        self.of = pool

    def capture_end(self) -> None:
        books = self.books
        assert self.of is not None
        if books.capturing is not self:
            raise RuntimeError("no capture is under way on this stream")
        books.capturing = None
        if books.is_invalid:
            if books.ends_by_itself:
                books.underway.discard(self.of)
            raise RuntimeError("operation failed due to a previous error during capture")
        books.underway.discard(self.of)
        books.is_generator_waiting = False
        self.has_ended = True

    def pool(self) -> tuple[int, int]:
        if not self.has_ended or self.of is None:
            raise RuntimeError("Called CUDAGraph::pool() without a preceding successful capture.")
        return self.of

    def reset(self) -> None:
        if self.has_ended and self.of is not None:
            self.books.num_users[self.of] -= 1
        self.has_ended = False

    def replay(self) -> None:
        assert self.has_ended
        self.books.replayed.append(self)

    def __del__(self) -> None:
        self.reset()


class FakeEvent:
    def __init__(self, books: Books) -> None:
        self.books = books

    def record(self) -> None:
        assert self.books.capturing is None, "an event of a capture has no time"
        self.books.replayed.append(self)


@pytest.fixture(params=[False, True], ids=["torch 2.8", "torch 2.12"])
def books(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Books:
    kept = Books(ends_by_itself=request.param)
    zeros = torch.zeros
    for name, stand_in in {
        "synchronize": lambda device=None: kept.read(),
        "empty_cache": lambda: None,
        "Stream": lambda device=None: "side",
        "stream": kept.on,
        "CUDAGraph": lambda: FakeGraph(kept),
        "Event": lambda enable_timing: FakeEvent(kept),
        "graph_pool_handle": kept.handle,
    }.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", kept.end_pool, raising=False)
    # So that `torch.cuda.graph` runs on the stand-in as well.
    monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)
    monkeypatch.setattr(torch.cuda.graph, "default_capture_stream", "side")
    monkeypatch.setattr(torch, "zeros", lambda *size, **rest: zeros(*size, **{**rest, "device": "cpu"}))
    return kept


def fails_when_captured(books: Books) -> Callable[[], int]:
    """A step that runs, and reads a value."""

    def step() -> int:
        books.read()
        return 7

    return step


def test_a_failed_capture_says_why_and_leaves_nothing_of_itself_behind(books: Books) -> None:
    backend = CudaGraphs(CUDA)
    returned, graph, why = backend.run_and_capture(fails_when_captured(books))
    assert (returned, graph) == (7, None)
    assert why == "operation not permitted when stream is capturing", "not that its end was invalid"
    assert books.stream == "default" and books.capturing is None and not books.underway
    books.draw()


def test_later_steps_are_captured_after_a_failure(books: Books) -> None:
    backend = CudaGraphs(CUDA)
    _, before, _ = backend.run_and_capture(lambda: 1)
    backend.run_and_capture(fails_when_captured(books))
    for _ in range(2):
        returned, graph, why = backend.run_and_capture(lambda: 2)
        assert returned == 2 and why == "" and graph is not None
        assert graph.replay() == 2
    assert before is not None and before.replay() == 1


def test_a_capture_inside_inference_mode_begins_outside_it(books: Books) -> None:
    """Its books refuse one that does not: what torch makes there is filled by captures in any mode."""
    with torch.inference_mode():
        returned, graph, why = CudaGraphs(CUDA).run_and_capture(lambda: torch.ones(1))
    assert why == "" and graph is not None and returned.is_inference(), "the step itself runs as it was asked to"


def test_a_fault_of_ours_inside_a_capture_comes_out_and_ends_the_capture(books: Books) -> None:
    backend, num = CudaGraphs(CUDA), 0

    def step() -> None:
        nonlocal num
        num += 1
        assert num < 2, "a bug"

    with pytest.raises(AssertionError, match="a bug"):
        backend.run_and_capture(step)
    assert books.stream == "default" and books.capturing is None and not books.underway


def test_a_pool_whose_graphs_are_gone_can_be_captured_into_or_is_replaced(books: Books) -> None:
    backend = CudaGraphs(CUDA)
    graphs = Graphs(backend)
    for cache in ("first", "second"):
        graphs.forget(cache)
        drafter: Drafter = NoDrafter()
        for shape in (1, 2):
            graphs.run(drafter, shape, lambda: 3, may_capture=True, before=lambda: None)
        assert graphs.num_graphs(drafter) == 2
        # Drafters go and take all of their graphs with them.
        other: Drafter = NoDrafter()
        del drafter
        gc.collect()
        graphs.run(other, 1, lambda: 3, may_capture=True, before=lambda: None)
        assert graphs.num_graphs(other) == 1 and not graphs.refusal(other)
    graphs.forget("third")
    gc.collect()
    assert all(num == 0 for num in books.num_users.values()), "memory of graphs that are forgotten is given back"


def _phases(backend: CudaGraphs, books: Books, *, reads_in: int = 0) -> Callable[[], int]:
    """A step of two phases; while it is captured it reads a value in the phase asked for."""

    def step() -> int:
        for phase in (1, 2):
            if phase == reads_in:
                books.read()
            backend.mark(torch.zeros(3), phase)
        return 5

    return step


def test_where_events_time_the_phases_a_replay_records_one_behind_each_graph(books: Books) -> None:
    backend = CudaGraphs(CUDA, why_phased="Triton is not installed")
    returned, graph, why = backend.run_and_capture(_phases(backend, books))
    assert (returned, why) == (5, "") and graph is not None
    assert [type(each) for each in books.replayed] == [FakeEvent, FakeEvent], "the step itself, before its capture"
    books.replayed.clear()
    assert graph.replay() == 5
    assert [type(each) for each in books.replayed] == [FakeGraph, FakeEvent, FakeGraph, FakeEvent, FakeGraph]
    assert len({each.of for each in books.replayed if isinstance(each, FakeGraph)}) == 1, "of one pool"
    assert not books.underway and books.stream == "default"


@pytest.mark.parametrize("reads_in", [1, 2])
def test_a_capture_that_fails_in_a_later_phase_leaves_nothing_behind_either(books: Books, reads_in: int) -> None:
    backend = CudaGraphs(CUDA, why_phased="Triton is not installed")
    returned, graph, why = backend.run_and_capture(_phases(backend, books, reads_in=reads_in))
    assert (returned, graph) == (5, None) and why == "operation not permitted when stream is capturing"
    assert books.stream == "default" and books.capturing is None and not books.underway
    books.draw()
    _, graph, why = backend.run_and_capture(_phases(backend, books))
    assert graph is not None and graph.replay() == 5 and why == ""
    del graph
    backend.forget()
    gc.collect()


def test_an_engine_lets_go_of_a_drafter_that_nobody_else_holds() -> None:
    """A tuning builds dozens of them on one engine; each holds weights and graphs."""
    lm = tiny_lm("llama")
    engine = Engine(lm, sampling=Sampling(), max_len=64, max_nodes=4, graphs=RecordedGraphs())
    drafter: Any = ChainDrafter(tiny_lm("llama"), engine.view(), num_tokens=3, num_shared=lm.vocab_size)
    engine.generate(drafter, requests_for()[:1])
    assert engine.graphs is not None and engine.graphs.num_graphs(drafter) > 0
    gone = weakref.ref(drafter)
    del drafter
    gc.collect()
    assert gone() is None
    assert not list(engine.graphs._kept), "its graphs went with it"
