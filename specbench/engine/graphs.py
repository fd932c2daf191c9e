"""Steps captured once and replayed: the launches of a step cost the host one call.

A graph repeats the same operations on the same memory. Whatever changes between steps therefore lives in tensors that
never move (`pins`), and nothing of a step may depend on a value the host would have to know.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, KeysView
from contextlib import suppress
from typing import Any, Literal, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from specbench.engine import stamps
from specbench.engine.phase_events import PhaseEvents, cuda_event
from specbench.lm.cached_lm import CachedLM
from specbench.method import Drafter

MOST_GRAPHS = 256
"""Per drafter. None is ever given up for another. Batches of 64 come in 7 sizes, drafts from the host that are chains
of up to 16 tokens in 6 shapes: with the 6 spans of 8 k slots that is 252 graphs. Where more are possible, with trees
above all, the most useful come first, and steps of other shapes run in larger ones."""

Step = Callable[[], Any]
Capturing = Literal["all", "met", "none"]
"""What may be captured in a generation: every shape the engine can come to, those it meets, or none, because it is
timed."""


class Graph(Protocol):
    def replay(self) -> Any:
        """The captured step once more -> what it returned, in the same tensors."""
        ...


class Backend(Protocol):
    """How steps are captured on one kind of device, and how their phases are timed."""

    why_phased: str
    """Why a step is one graph per phase and not one; '' where it is one."""

    def run_and_capture(self, step: Step) -> tuple[Any, Graph | None, str]:
        """Runs `step` exactly once -> (what it returned, its graph or None, why there is none)."""
        ...

    def mark(self, out: Tensor, slot: int) -> None:
        """A phase of a step ends here, captured or not: whoever reads the numbers that `send` brings finds the time at
        this slot, in nanoseconds."""
        ...

    def send(self, out: Tensor) -> Callable[[], list[int]]:
        """Start copying int64 `out` to the host; the call that comes back waits and returns the numbers. out: from the
        first slot on."""
        ...

    def forget(self) -> None:
        """No graph captured so far is used again."""
        ...


class CudaGraphs:
    """CUDA graphs that share one memory pool: no two of them ever run at a time, and what a step leaves is copied into
    tensors outside the pool.

    `torch.cuda.graph` would do for captures that succeed. After one that fails it leaves its stream the current one,
    the pool marked as being captured into (every later capture is then refused) and the random generator waiting for
    the capture's end; and what it raises is that its end was invalid, not why.
    """

    NUM_BUFFERS = 4
    """Copies to the host that may be under way; a step's is read before the second one after it starts."""

    def __init__(self, device: torch.device, *, why_phased: str = "") -> None:
        """why_phased: why the device's timer cannot be read, where it cannot; phases are then timed by events."""
        self.why_phased = why_phased
        self._phases = PhaseEvents(cuda_event) if why_phased else None
        self._capturing: _Parts | None = None
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None
        self._keeper: torch.cuda.CUDAGraph | None = None
        """Holds the pool: with its last graph a pool is freed, and torch refuses to capture into it again."""
        self._failed: list[torch.cuda.CUDAGraph] = []
        """Never destroyed: torch's host allocator may go on asking them whose capture a stream belongs to."""
        self._host: list[Tensor] = []
        self._next = 0

    def run_and_capture(self, step: Step) -> tuple[Any, Graph | None, str]:
        # The real step doubles as warm-up: kernels are compiled and workspaces made before anything is captured.
        returned = step()
        if self._keeper is None:
            self._open_pool()
        try:
            graph = self._capture(step)
        except RuntimeError as error:
            # The first capture into a fresh pool also takes the random generator out of the failed one.
            self._open_pool()
            return returned, None, (str(error).strip() or type(error).__name__).splitlines()[0]
        return returned, graph, ""

    def forget(self) -> None:
        self._pool = self._keeper = None

    def _open_pool(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._keeper = self._capture(lambda: torch.zeros(1, device=self._device)).last

    def _capture(self, step: Step) -> _CudaGraph:
        """A step's graphs and what it returned. Raises what the step raised, or what its capture did; the device is
        then as it was before."""
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()  # a pool cannot use what is cached outside it
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
        parts = _Parts(self._pool)
        with torch.cuda.stream(self._stream):
            try:
                parts.begin()
                self._capturing = parts
                kept = step()
                parts.end()
            except BaseException:
                self._abandon(parts.graph)
                raise
            finally:
                self._capturing = None
        return _CudaGraph(parts, kept, self._phases)

    def mark(self, out: Tensor, slot: int) -> None:
        if self._phases is None:
            stamps.stamp(out, slot)
        elif self._capturing is None:
            self._phases.mark(slot)
        else:
            self._capturing.cut(slot)

    def _abandon(self, graph: torch.cuda.CUDAGraph) -> None:
        """End a capture that failed, in whatever state it is, on the stream and in the allocator.

        What is suppressed here says that this end was reached already (torch 2.12 and later reach more of them by
        themselves); why the capture failed is on its way up. The pool stays one reference too high, so its memory is
        kept: giving it back by hand would free it under its graphs where a later torch does so too.
        """
        with suppress(RuntimeError):
            graph.capture_end()  # takes the stream out of its capture even where it then says that nothing came of it
        with suppress(RuntimeError):
            graph.reset()
        index = torch.cuda.current_device() if self._device.index is None else self._device.index
        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(index, self._pool)
        self._failed.append(graph)

    def send(self, out: Tensor) -> Callable[[], list[int]]:
        if not self._host or self._host[0].numel() < out.numel():
            self._host = [torch.empty(out.numel(), dtype=torch.int64, pin_memory=True) for _ in range(self.NUM_BUFFERS)]
        buffer = self._host[self._next][: out.numel()]
        self._next = (self._next + 1) % self.NUM_BUFFERS
        buffer.copy_(out, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        put_times = None if self._phases is None else self._phases.reader()

        def wait() -> list[int]:
            copied.synchronize()
            numbers: list[int] = buffer.tolist()
            if put_times is not None:
                put_times(numbers)
            return numbers

        return wait


class _Parts:
    """The graphs of one capture: where phases are timed by events it is cut at every mark, into graphs of one pool that
    are only ever replayed one behind the other."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self.graph = torch.cuda.CUDAGraph()
        """Being captured."""
        self.cuts: list[tuple[torch.cuda.CUDAGraph, int]] = []
        """Graphs that have ended, and the slot of the mark behind each."""

    def begin(self) -> None:
        # With its first graph torch makes tensors for the random generator, and fills them at every later capture:
        # those of an inference mode could not be filled outside one.
        with torch.inference_mode(False):
            self.graph.capture_begin(pool=self._pool)

    def cut(self, slot: int) -> None:
        self.end()
        self.cuts.append((self.graph, slot))
        self.graph = torch.cuda.CUDAGraph()
        self.begin()

    def end(self) -> None:
        with warnings.catch_warnings():
            # Plain decoding has a phase without a draft, and nothing stands behind the last mark.
            warnings.filterwarnings("ignore", message="The CUDA Graph is empty")
            self.graph.capture_end()


class _CudaGraph:
    def __init__(self, parts: _Parts, kept: Any, phases: PhaseEvents | None) -> None:
        self._cuts = parts.cuts
        self.last = parts.graph
        self._kept = kept
        self._phases = phases

    def replay(self) -> Any:
        for graph, slot in self._cuts:
            graph.replay()
            assert self._phases is not None, "captures are cut for the sake of events alone"
            self._phases.mark(slot)
        self.last.replay()
        return self._kept


class Graphs:
    """The graphs of one engine, by drafter and by the shape they were captured for."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.cache: object = None
        self._kept: WeakKeyDictionary[Drafter, dict[Hashable, Graph]] = WeakKeyDictionary()
        self._refused: WeakKeyDictionary[Drafter, str] = WeakKeyDictionary()
        self._num_single: WeakKeyDictionary[Drafter, int] = WeakKeyDictionary()

    def run(
        self, drafter: Drafter, shape: Hashable, step: Step, *, may_capture: bool, before: Callable[[], None]
    ) -> Any:
        """Replay the graph of this shape; without one, run the step as it is and capture it where that is allowed now.

        before: called whenever Python code of the step is going to run, so that it finds its surroundings.
        """
        kept = self._kept.setdefault(drafter, {})
        graph = kept.get(shape)
        if graph is not None:
            return graph.replay()
        before()
        if not may_capture or self.is_full(drafter):
            return self.run_single(drafter, step)
        returned, graph, why = self.backend.run_and_capture(step)
        if graph is None:
            self._refused[drafter] = why
            return returned
        kept[shape] = graph
        return returned

    def run_single(self, drafter: Drafter, step: Step) -> Any:
        """Run a step that no graph is for, and count it."""
        self._num_single[drafter] = self._num_single.get(drafter, 0) + 1
        return step()

    def shapes(self, drafter: Drafter) -> KeysView[Hashable]:
        """Those there are graphs for."""
        return self._kept.get(drafter, {}).keys()

    def is_full(self, drafter: Drafter) -> bool:
        """Whether no other step of it will be captured: there are as many as may be, or one was refused."""
        return drafter in self._refused or self.num_graphs(drafter) >= MOST_GRAPHS

    def refusal(self, drafter: Drafter) -> str:
        """Why its steps could not be captured; '' where nothing stood in the way."""
        return self._refused.get(drafter, "")

    def num_graphs(self, drafter: Drafter) -> int:
        """Captured so far and still kept."""
        return len(self._kept.get(drafter, ()))

    def num_single(self, drafter: Drafter) -> int:
        """Steps so far that were replayed from no graph and captured into none."""
        return self._num_single.get(drafter, 0)

    def forget(self, cache: object) -> None:
        """Drop every graph: the memory they were captured on has moved. cache: what the next ones are captured on."""
        self._kept.clear()
        self.backend.forget()
        self.cache = cache


def why_not(device: torch.device) -> str:
    """Why no steps can be captured on this device; '' where they can."""
    return "" if device.type == "cuda" else f"CUDA graphs need a CUDA device, this is {device.type}"


def cuda_graphs(device: torch.device) -> CudaGraphs:
    """One graph per step where the device's timer can be read from inside it, otherwise one per phase."""
    return CudaGraphs(device, why_phased=stamps.why_missing(device))


def graphs_for(lm: CachedLM) -> CudaGraphs | None:
    """For whoever decodes without being asked how: graphs where target and device allow them, otherwise none."""
    return None if why_not(lm.device) or not lm.is_capturable else cuda_graphs(lm.device)
