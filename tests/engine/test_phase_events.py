"""Where no kernel reads the device's timer a step is one graph per phase, timed by events between them: the text, the
counts and the order of times are those of one graph per step."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from specbench.bench.execution import describe
from specbench.engine import graphs, stamps
from specbench.engine.answer import GroupResult
from specbench.engine.decode import Engine
from specbench.engine.phase_events import PhaseEvents
from specbench.engine.recorded import RecordedGraphs
from specbench.engine.run import Run
from specbench.engine.stop import Stop
from specbench.lm.chain import ChainDrafter
from specbench.method import Drafter, Rule
from specbench.sampling import Sampling
from tests.helpers import NoDrafter, RefDrafter, requests_for, tiny_lm

WHY = "Triton is not installed"


def _engine(*, backend: RecordedGraphs | None, rule: Rule = "coupled", has_stamps: bool = True) -> Engine:
    return Engine(
        tiny_lm(), sampling=Sampling(temperature=1.0), rule=rule, max_batch=4, max_len=64, max_nodes=12,
        stop=Stop(ids=frozenset({3, 17, 31, 40})), graphs=backend, has_stamps=has_stamps,
    )  # fmt: skip


def _chain(engine: Engine) -> Drafter:
    return ChainDrafter(tiny_lm(seed=1), engine.view(), num_tokens=3, num_shared=engine.lm.vocab_size)


def _counts(result: GroupResult) -> list[list[tuple[int, ...]]]:
    return [[(s.num_nodes, s.num_accepted, s.num_truncated) for s in each.steps] for each in result.generations]


@pytest.mark.parametrize("rule", ["coupled", "rejection"])
def test_one_graph_per_phase_writes_the_text_of_the_plain_loop(rule: Rule) -> None:
    """A chain drafted inside the graphs and trees drafted outside of them, replayed in the second generation."""
    plain, phased = (_engine(backend=each, rule=rule) for each in (None, RecordedGraphs(why_phased=WHY)))
    answers = [each.tokens for each in plain.generate(NoDrafter(), requests_for()).generations]
    for make in (_chain, lambda _: RefDrafter(answers, kind="tree", seed=1)):
        one, other = make(plain), make(phased)
        assert phased.graphs is not None
        for _ in range(2):
            wanted, found = plain.generate(one, requests_for()), phased.generate(other, requests_for())
            assert [each.tokens for each in found.generations] == [each.tokens for each in wanted.generations]
        assert phased.graphs.num_graphs(other) and not phased.graphs.refusal(other)
    assert _counts(found) == _counts(wanted)


def test_every_phase_has_its_time_also_where_its_graphs_are_replayed() -> None:
    engine = _engine(backend=RecordedGraphs(why_phased=WHY))
    chain, tree = _chain(engine), RefDrafter([(5, 6, 7, 8) * 6], kind="tree")
    for drafter in (chain, tree, chain):
        engine.generate(drafter, requests_for()[:1])
        result = engine.generate(drafter, requests_for()[:1], capturing="none")
        [generation] = result.generations
        assert len(generation.steps) > 3
        for step in generation.steps:
            assert min(step.draft_s, step.verify_s, step.accept_s, step.commit_s) > 0
        assert 0 < result.draft_s + result.verify_s + result.accept_s + result.commit_s < result.decode_s
        ends = [step.end_s for step in generation.steps]
        assert ends == sorted(ends) and ends[0] > 0 and ends[-1] < result.total_s


@pytest.mark.parametrize("why_phased", ["", WHY])
def test_a_step_ends_within_the_generation_whatever_came_before_it(
    why_phased: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Run.run

    def late(run: Run) -> GroupResult:
        time.sleep(0.02)
        return runs(run)

    monkeypatch.setattr(Run, "run", late)
    engine = _engine(backend=RecordedGraphs(why_phased=why_phased))
    for drafter in (_chain(engine), RefDrafter([(5, 6, 7, 8) * 6], kind="tree")):
        result = engine.generate(drafter, requests_for()[:1])
        assert result.generations[0].steps[-1].end_s < result.total_s


def test_a_step_whose_times_are_not_wanted_is_one_graph() -> None:
    engine = _engine(backend=RecordedGraphs(why_phased=WHY), has_stamps=False)
    result = engine.generate(_chain(engine), requests_for()[:1])
    assert all(step.draft_s == 0 for step in result.generations[0].steps)


class Ticks:
    """Events of a device whose clock the test holds. Differences are float32 milliseconds, as CUDA gives them."""

    now_ns = 0
    num_made = 0

    def __init__(self) -> None:
        Ticks.num_made += 1
        self.at_ns = -1

    def record(self) -> None:
        self.at_ns = Ticks.now_ns

    def elapsed_time(self, end_event: Ticks) -> float:
        return float(np.float32((end_event.at_ns - self.at_ns) / 1e6))


@pytest.fixture
def ticks() -> Iterator[type[Ticks]]:
    Ticks.now_ns = Ticks.num_made = 0
    yield Ticks


def test_times_of_a_long_generation_are_as_fine_as_those_of_its_first_step(ticks: type[Ticks]) -> None:
    """In float32 milliseconds since the beginning, two events a microsecond apart are one after some seconds."""
    events = PhaseEvents(ticks)
    for step in range(2000):
        for slot in (1, 2):
            ticks.now_ns = step * 100_000_000 + slot * 1000
            events.mark(slot)
        numbers = [0, 0, 0]
        events.reader()(numbers)
        assert numbers[2] - numbers[1] == 1000


def test_a_step_s_times_are_those_it_left_with_and_its_events_are_used_again(ticks: type[Ticks]) -> None:
    """Read one step late, when the next step has marked the same slots."""
    events, waiting = PhaseEvents(ticks), None
    for step in range(50):
        for slot in (1, 2):
            ticks.now_ns = step * 1_000_000 + slot * 1000
            events.mark(slot)
        if waiting is not None:
            numbers = [7, 0, 0]
            waiting(numbers)
            assert numbers == [7, (step - 1) * 1_000_000, (step - 1) * 1_000_000 + 1000], "since the first mark"
        waiting = events.reader()
    assert ticks.num_made <= 6


def test_why_the_timer_is_missing_is_tried_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, zeros = torch.device("cuda", 0), torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, dtype, device: zeros(*size, dtype=dtype))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert stamps.why_missing(cuda).startswith("Triton is not installed")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert stamps.why_missing(cuda) == ""

    def raises(slots: torch.Tensor, index: int) -> None:
        raise RuntimeError("ptxas: unknown register %globaltimer\nmore")

    def stands_still(slots: torch.Tensor, index: int) -> None:
        slots[index] = 5 - index

    monkeypatch.setattr(stamps, "stamp", raises)
    assert stamps.why_missing(cuda) == (
        "the device's timer cannot be read: RuntimeError: ptxas: unknown register %globaltimer"
    )
    assert graphs.cuda_graphs(cuda).why_phased == stamps.why_missing(cuda)
    monkeypatch.setattr(stamps, "stamp", stands_still)
    assert "does not go forward: 5 ns, then 4 ns" in stamps.why_missing(cuda)


def test_rows_timed_by_events_are_not_compared_with_rows_of_one_launch() -> None:
    lm = tiny_lm()
    assert describe(lm, RecordedGraphs()) == "graphs"
    assert describe(lm, RecordedGraphs(why_phased=WHY)) == "graphs, one per phase"
