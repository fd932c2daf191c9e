"""Captured steps on a CPU: a graph that does what a CUDA graph does, slowly, so that capturing can be tested anywhere.

The operators of one step are written down with their tensors while it runs. A replay calls the same operators on the
same memory, and puts what they make where the first run put it: no Python of the step runs again, and whatever it kept
in Python is as frozen as it would be on a GPU. CUDA's graphs share one pool of memory: what a step returned is void as
soon as another graph runs, and here it is made void. Cut into one graph per phase, times are taken between them by
events of the host's clock.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any
from weakref import ReferenceType, ref

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from specbench.engine import stamps
from specbench.engine.graphs import Graph, Step
from specbench.engine.phase_events import PhaseEvents

_NOT_CAPTURED = frozenset(
    {
        "item", "_local_scalar_dense", "is_nonzero", "equal", "allclose", "nonzero", "argwhere", "masked_select",
        "unique_consecutive", "_unique", "_unique2", "unique_dim", "bincount",
    }
)  # fmt: skip
"""Operators whose result the host reads, or whose shape depends on values: an error inside a CUDA graph."""


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.cuts: list[tuple[int, int]] = []
        """Before which call a graph ends, and the slot of the mark there."""
        self.refused = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in _NOT_CAPTURED and not self.refused:
            self.refused = f"{name} reads a value on the host, or makes a shape that depends on values"
        out = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, out))
        return out


class RecordedGraph:
    """The calls of one step."""

    def __init__(self, recorder: _Recorder, returned: Any, backend: RecordedGraphs) -> None:
        self._calls = [(func, args, kwargs, _made(args, kwargs, out)) for func, args, kwargs, out in recorder.calls]
        self._cuts = recorder.cuts
        self._returned = returned
        self._backend = backend

    def spoil(self) -> None:
        """Its results are another graph's memory now."""
        for each in _tensors(self._returned):
            each.fill_(float("nan") if each.is_floating_point() else 0)

    def replay(self) -> Any:
        self._backend.runs(self)
        begin = 0
        for end, slot in self._cuts:
            self._repeat(begin, end)
            self._backend.passes(slot)
            begin = end
        self._repeat(begin, len(self._calls))
        return self._returned

    def _repeat(self, begin: int, end: int) -> None:
        for func, args, kwargs, made in self._calls[begin:end]:
            again = func(*args, **kwargs)
            if made:
                leaves = tree_leaves(again)
                for place, old in made:
                    old.copy_(leaves[place])


def _made(args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> list[tuple[int, Tensor]]:
    """Place among the results and tensor of everything that a call made anew. What shares an input's memory is there
    already: a view, or the operand of an in-place operator."""
    inputs = {_storage(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
    return [
        (place, old)
        for place, old in enumerate(tree_leaves(out))
        if isinstance(old, Tensor) and _storage(old) not in inputs
    ]


def _tensors(returned: Any) -> Iterator[Tensor]:
    for each in tree_leaves(returned):
        if isinstance(each, Tensor):
            yield each
        elif dataclasses.is_dataclass(each):
            yield from _tensors([getattr(each, field.name) for field in dataclasses.fields(each)])


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class _HostEvent:
    def record(self) -> None:
        self._ns = time.perf_counter_ns()

    def elapsed_time(self, end_event: _HostEvent) -> float:
        return (end_event._ns - self._ns) / 1e6


class RecordedGraphs:
    """`graphs.Backend` for the CPU."""

    def __init__(self, *, why_phased: str = "") -> None:
        self.why_phased = why_phased
        self._phases = PhaseEvents(_HostEvent) if why_phased else None
        self._capturing: _Recorder | None = None
        self._last: ReferenceType[RecordedGraph] | None = None

    def runs(self, graph: RecordedGraph) -> None:
        """What the graph before it returned is void."""
        last = None if self._last is None else self._last()
        if last is not None and last is not graph:
            last.spoil()
        self._last = ref(graph)

    def passes(self, slot: int) -> None:
        """A replay comes by the end of one of its graphs."""
        assert self._phases is not None, "captures are cut for the sake of events alone"
        self._phases.mark(slot)

    def run_and_capture(self, step: Step) -> tuple[Any, Graph | None, str]:
        recorder = _Recorder()
        self._capturing = recorder
        try:
            with recorder:
                returned = step()
        finally:
            self._capturing = None
        if recorder.refused:
            return returned, None, recorder.refused
        graph = RecordedGraph(recorder, returned, self)
        self.runs(graph)
        return returned, graph, ""

    def mark(self, out: Tensor, slot: int) -> None:
        if self._phases is None:
            stamps.stamp(out, slot)
            return
        # What is captured here runs at the same time.
        self._phases.mark(slot)
        if self._capturing is not None:
            self._capturing.cuts.append((len(self._capturing.calls), slot))

    def send(self, out: Tensor) -> Callable[[], list[int]]:
        numbers: list[int] = out.tolist()
        put_times = None if self._phases is None else self._phases.reader()

        def wait() -> list[int]:
            if put_times is not None:
                put_times(numbers)
            return numbers

        return wait

    def forget(self) -> None:
        return
