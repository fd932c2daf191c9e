"""Progress of a training, drawn between steps: a bar on a terminal, complete lines everywhere else. No thread draws."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from specbench.cli.failures import note
from specbench.cli.progress import duration
from specbench.cli.text import visible
from specbench.training.request import TrainProgress

if TYPE_CHECKING:
    from rich.progress import Progress as RichBar
    from rich.progress import TaskID

_BAR_INTERVAL_S = 0.25
_LINE_INTERVAL_S = 10.0


@contextmanager
def open_train_progress() -> Iterator[TrainProgress]:
    """A bar where stderr is a terminal, plain lines otherwise."""
    if sys.stderr.isatty():
        with _rich_bar() as bar:
            yield TrainBar(bar)
    else:
        yield TrainLines()


def step_text(step: int, loss: float, tokens_per_s: float) -> str:
    """`step 120  loss 2.3411  5,120 tokens/s`."""
    return f"step {step:,}  loss {loss:.4f}  {tokens_per_s:,.0f} tokens/s"


class TrainLines:
    """One complete line at most every ten seconds: for logs, pipes and CI."""

    def __init__(self) -> None:
        self._last_s = time.monotonic()

    def plan(self, *, title: str, share_done: float) -> None:
        self._last_s = time.monotonic()
        self.say(f"{title}: {share_done:.0%} done before" if share_done else title)

    def step(self, *, step: int, share: float, loss: float, tokens_per_s: float, eta_s: float | None) -> None:
        now = time.monotonic()
        if now - self._last_s < _LINE_INTERVAL_S:
            return
        self._last_s = now
        left = "" if eta_s is None else f", about {duration(eta_s)} left"
        self.say(f"{share:.0%}  {step_text(step, loss, tokens_per_s)}{left}")

    def say(self, text: str) -> None:
        note(visible(text))


class TrainBar:
    """rich's bar, moved by hand at most four times a second."""

    def __init__(self, bar: RichBar) -> None:
        self._bar = bar
        self._task: TaskID | None = None
        self._last_s = -_BAR_INTERVAL_S

    def plan(self, *, title: str, share_done: float) -> None:
        self._task = self._bar.add_task(visible(title), total=1.0, left="")
        self._bar.update(self._task, completed=share_done)
        self._bar.refresh()

    def step(self, *, step: int, share: float, loss: float, tokens_per_s: float, eta_s: float | None) -> None:
        assert self._task is not None, "plan() comes first"
        now = time.monotonic()
        if now - self._last_s < _BAR_INTERVAL_S and share < 1:
            return
        self._last_s = now
        left = "" if eta_s is None else f"{duration(eta_s)} left"
        text = step_text(step, loss, tokens_per_s)
        self._bar.update(self._task, completed=share, description=text, left=left)
        self._bar.refresh()

    def say(self, text: str) -> None:
        from rich.text import Text

        self._bar.console.print(Text(visible(text)))


def _rich_bar() -> RichBar:
    # 50 ms, only on a terminal.
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichBar

    return RichBar(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}", markup=False),
        console=Console(stderr=True, markup=False, emoji=False, highlight=False),
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    )
