"""Progress of a run, drawn between questions only: a bar on a terminal, complete lines everywhere else.

No thread ever draws (rich's own refresh thread would run inside timed regions): the bar moves when a group is done, at
most four times a second.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from specbench.bench.request import Progress
from specbench.cli.failures import note
from specbench.cli.text import visible

if TYPE_CHECKING:
    from rich.progress import Progress as RichBar
    from rich.progress import TaskID

_BAR_INTERVAL_S = 0.25
_LINE_INTERVAL_S = 10.0


@contextmanager
def open_progress(*, quiet: bool = False) -> Iterator[Progress]:
    """A bar where stderr is a terminal, plain lines otherwise; `quiet` keeps narration and drops the counting."""
    if sys.stderr.isatty() and not quiet:
        with _rich_bar() as bar:
            yield Bar(bar)
    else:
        yield Lines(quiet=quiet)


class Lines:
    """One complete line at most every ten seconds, and one at the end: for logs, pipes and CI.

    Failures are counted; what failed and why, the run says itself.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._num_groups = 0
        self._num_before = 0
        self._num_done = 0
        self._num_failed = 0
        self._begin_s = self._last_s = time.monotonic()

    def plan(self, *, num_groups: int, num_done: int, title: str) -> None:
        self._num_groups, self._num_before, self._num_done, self._num_failed = num_groups, num_done, num_done, 0
        self._begin_s = self._last_s = time.monotonic()
        earlier = f", {num_done} done before" if num_done else ""
        self.say(f"{title}: {num_groups} generations{earlier}")

    def group_done(self, *, method: str, question: str, seconds: float, num_tokens: int, failed: bool) -> None:
        self._num_done += 1
        now = time.monotonic()
        is_last = self._num_done == self._num_groups
        self._num_failed += failed
        if self._quiet or (now - self._last_s < _LINE_INTERVAL_S and not is_last):
            return
        self._last_s = now
        left = self._num_groups - self._num_done
        each_s = (now - self._begin_s) / (self._num_done - self._num_before)
        rest = f", about {duration(left * each_s)} left" if left else f" in {duration(now - self._begin_s)}"
        failures = f", {self._num_failed} failed" if self._num_failed else ""
        self.say(f"{self._num_done}/{self._num_groups} generations{rest}{failures}")

    def say(self, text: str) -> None:
        note(visible(text))


class Bar:
    """rich's bar, moved by hand."""

    def __init__(self, bar: RichBar) -> None:
        self._bar = bar
        self._task: TaskID | None = None
        self._title = ""
        self._num_failed = 0
        self._last_s = -_BAR_INTERVAL_S

    def plan(self, *, num_groups: int, num_done: int, title: str) -> None:
        self._title = visible(title)
        self._task = self._bar.add_task(self._title, total=num_groups, completed=num_done)
        self._bar.refresh()

    def group_done(self, *, method: str, question: str, seconds: float, num_tokens: int, failed: bool) -> None:
        assert self._task is not None, "plan() comes first"
        if failed:
            self._num_failed += 1
            self._bar.update(self._task, description=f"{self._title}, {self._num_failed} failed")
        self._bar.advance(self._task)
        now = time.monotonic()
        if now - self._last_s >= _BAR_INTERVAL_S or self._bar.finished:
            self._last_s = now
            self._bar.refresh()

    def say(self, text: str) -> None:
        from rich.text import Text

        self._bar.console.print(Text(visible(text)))


def duration(seconds: float) -> str:
    """`42 s`, `3 min 5 s`, `2 h 10 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _rich_bar() -> RichBar:
    # 50 ms, only for runs on a terminal.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichBar

    return RichBar(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("elapsed, left"),
        TimeRemainingColumn(),
        console=Console(stderr=True, markup=False, emoji=False, highlight=False),
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    )
