"""What the host asks of a CUDA device around its graphs, on a stand-in for a stream: copies that arrive when they like,
and events that have a time once they are over."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from specbench.engine.clock import EventClock, clock_for
from specbench.engine.graphs import CudaGraphs

CUDA = torch.device("cuda", 0)


class Stream:
    """What is launched runs in its order: at once, or not before somebody waits for it."""

    def __init__(self, *, is_prompt: bool) -> None:
        self._is_prompt = is_prompt
        self._waiting: list[Callable[[], object]] = []
        self._num_launched = self._num_run = 0
        self.now_ms = 0.0

    def launch(self, work: Callable[[], object]) -> int:
        """-> how many are launched by now."""
        self._waiting.append(work)
        self._num_launched += 1
        if self._is_prompt:
            self.synchronize()
        return self._num_launched

    def wait_for(self, num: int) -> None:
        while self._num_run < num:
            self._waiting.pop(0)()
            self._num_run += 1

    def has_run(self, num: int) -> bool:
        return self._num_run >= num

    def synchronize(self) -> None:
        self.wait_for(self._num_launched)

    def works_for(self, ms: float) -> None:
        def work() -> None:
            self.now_ms += ms

        self.launch(work)


class Pinned(Tensor):
    """Host memory that a device writes to."""

    stream: Stream

    def copy_(self, src: Tensor, non_blocking: bool = False) -> Pinned:
        assert non_blocking, "a copy that waits for the device costs the step that is launched behind it"
        self.stream.launch(lambda: self.as_subclass(Tensor).copy_(src))
        return self


class Event:
    def __init__(self, stream: Stream, *, enable_timing: bool) -> None:
        self._stream, self._is_timed = stream, enable_timing
        self._place: int | None = None
        self.at_ms = 0.0

    def record(self) -> None:
        def note() -> None:
            self.at_ms = self._stream.now_ms

        self._place = self._stream.launch(note)

    def synchronize(self) -> None:
        assert self._place is not None, "an event that was not recorded"
        self._stream.wait_for(self._place)

    def elapsed_time(self, end_event: Event) -> float:
        """Milliseconds, as torch says them."""
        for each in (self, end_event):
            if not each._is_timed or each._place is None or not self._stream.has_run(each._place):
                raise RuntimeError(
                    "Both events must be completed, recorded with timing on, before calculating elapsed time"
                )
        return end_event.at_ms - self.at_ms


@pytest.fixture(params=[True, False], ids=["runs at once", "runs when waited for"])
def stream(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Stream:
    found, empty = Stream(is_prompt=request.param), torch.empty

    def pinned(*size: Any, pin_memory: bool = False, **rest: Any) -> Tensor:
        made = empty(*size, **rest)
        return made.as_subclass(Pinned) if pin_memory else made

    monkeypatch.setattr(Pinned, "stream", found, raising=False)
    monkeypatch.setattr(torch, "empty", pinned)
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing=False: Event(found, enable_timing=enable_timing))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: found)
    return found


def test_a_step_s_numbers_are_its_own_while_three_more_are_on_their_way(stream: Stream) -> None:
    """Copied behind the step that made them, waited for behind the copy, and kept from the copies of later steps: the
    host would go on with tokens of another step."""
    backend, out = CudaGraphs(CUDA), torch.zeros(3, dtype=torch.long)
    for first in range(0, 12, 4):
        waits = []
        for step in range(first, first + 4):
            made = torch.tensor([step, step + 100, -step])
            stream.launch(partial(out.copy_, made))
            waits.append(backend.send(out))
        assert [wait() for wait in waits] == [[step, step + 100, -step] for step in range(first, first + 4)]


def test_a_longer_table_leaves_shorter_ones_under_way_alone(stream: Stream) -> None:
    backend = CudaGraphs(CUDA)
    sent = [torch.arange(num) + 10 * num for num in (2, 3, 7, 1, 7)]
    waits = [backend.send(each) for each in sent[:4]]
    assert [wait() for wait in waits] == [each.tolist() for each in sent[:4]]
    assert backend.send(sent[4])() == sent[4].tolist()


def test_phases_timed_by_events_are_seconds_of_the_device(stream: Stream) -> None:
    """Events give milliseconds, and none before they are over."""
    clock = clock_for(CUDA)
    assert isinstance(clock, EventClock)
    marks = [clock.mark()]
    for ms in (2500.0, 4.0):
        stream.works_for(ms)
        marks.append(clock.mark())
    assert clock.seconds(marks[0], marks[1]) == 2.5
    assert clock.seconds(marks[1], marks[2]) == pytest.approx(0.004, rel=1e-12)
    stream.works_for(1.0)
    clock.finish()
    assert stream.now_ms == 2505.0, "all that was launched is done"
