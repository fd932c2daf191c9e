"""Phase times of captured steps where no kernel reads the device's timer: one graph per phase, and events between them.

A captured event has no time that a host could ask for, so a step is captured in as many graphs as it has phases, and
events are recorded between their launches. What a reader of the step's numbers finds is what the timer would have left
there: nanoseconds, by slot. Events come from a pool: a step's are used again once its numbers have been read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import torch


class Event(Protocol):
    """What is used of `torch.cuda.Event`; resolution about half a microsecond."""

    def record(self) -> None: ...

    def elapsed_time(self, end_event: Any) -> float:
        """Milliseconds from this event to `end_event`, both over."""
        ...


class _Mark:
    def __init__(self, event: Event) -> None:
        self.event = event
        self.ns: int | None = None
        """Since the first mark of all; None until it is asked for."""


class PhaseEvents:
    """The marks of one device, in the order of its stream."""

    def __init__(self, make: Callable[[], Event]) -> None:
        self._make = make
        self._free: list[Event] = []
        self._last: _Mark | None = None
        """The last one whose time is known."""
        self._open: deque[_Mark] = deque()
        """Recorded behind it, oldest first."""
        self._by_slot: dict[int, _Mark] = {}

    def mark(self, slot: int) -> None:
        """The device comes by here now."""
        mark = _Mark(self._free.pop() if self._free else self._make())
        mark.event.record()
        self._open.append(mark)
        self._by_slot[slot] = mark

    def reader(self) -> Callable[[list[int]], None]:
        """What puts the times of every slot, as they are marked by now, into a step's numbers. Called when the device
        is known to have passed them."""
        newest, by_slot = (self._open[-1] if self._open else None), dict(self._by_slot)

        def put(numbers: list[int]) -> None:
            self._settle(newest)
            for slot, mark in by_slot.items():
                assert mark.ns is not None, "every slot's mark is older than the newest"
                numbers[slot] = mark.ns

        return put

    def _settle(self, newest: _Mark | None) -> None:
        """Times up to `newest`. From each mark to the next: a difference of milliseconds in float32 over a whole
        generation would be worth microseconds."""
        while newest is not None and newest.ns is None:
            mark, last = self._open.popleft(), self._last
            mark.ns = 0
            if last is not None:
                assert last.ns is not None, "marks are settled in their order"
                mark.ns = last.ns + round(last.event.elapsed_time(mark.event) * 1e6)
                self._free.append(last.event)
            self._last = mark


def cuda_event() -> Event:
    """On the current stream."""
    event: Event = torch.cuda.Event(enable_timing=True)
    return event
