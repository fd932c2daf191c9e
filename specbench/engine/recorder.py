"""Steps of one generation on their way from the loop to the journal (measurement 20).

In the timed region a step costs one tuple on a list; at most every 100 ms, for every method alike, what has gathered
becomes StepRows and goes to the sink. All of it is on the clock and reported as `journal_s`.
"""

from __future__ import annotations

import time
from typing import Any

from specbench.engine.answer import StepSink
from specbench.engine.clock import Clock
from specbench.engine.readback import HostRead
from specbench.events import StepRow

FLUSH_S = 0.1
"""Steps reach the sink at most this often."""


class Recorder:
    """rows: StepRows by index of the generation, complete after `finish`."""

    def __init__(self, clock: Clock, sink: StepSink | None, *, num_rows: int) -> None:
        self.rows: list[list[StepRow]] = [[] for _ in range(num_rows)]
        self.draft_s = self.verify_s = self.accept_s = self.commit_s = 0.0
        self.journal_s = 0.0
        """Seconds of the timed region spent in here."""
        self._seconds = clock.seconds
        self._sink = sink
        self._begin_mark: Any = None
        self._last_flush = 0.0
        # Plain tuples: a named one costs as much to make as all the rest of `step`.
        self._pending: list[tuple[int, list[int], HostRead, list[int], list[Any]]] = []

    def begin(self, mark: object, *, now_s: float) -> None:
        """The generation begins: `end_s` counts from this mark, the first flush from this moment (perf_counter)."""
        self._begin_mark = mark
        self._last_flush = now_s

    def step(self, step: int, live: list[int], read: HostRead, num_cut: list[int], marks: list[Any]) -> None:
        """Take one step. live: indices of the rows that were in it; marks: before and after each of the four phases.

        The lists are kept, not copied: the caller makes new ones every step.
        """
        now = time.perf_counter()
        self._pending.append((step, live, read, num_cut, marks))
        if now - self._last_flush >= FLUSH_S:
            self._flush()
            self._last_flush = time.perf_counter()
        self.journal_s += time.perf_counter() - now

    def finish(self) -> None:
        """Hand on what is left; called after the timed region."""
        self._flush()

    def _flush(self) -> None:
        seconds, begin, made = self._seconds, self._begin_mark, []
        for step, live, read, num_cut, marks in self._pending:
            start, drafted, verified, accepted, end = marks
            phases = (
                seconds(start, drafted), seconds(drafted, verified), seconds(verified, accepted), seconds(accepted, end)
            )  # fmt: skip
            self.draft_s += phases[0]
            self.verify_s += phases[1]
            self.accept_s += phases[2]
            self.commit_s += phases[3]
            end_s = seconds(begin, end)
            for place, index in enumerate(live):
                num_accepted, tokens = read.num_accepted[place], read.tokens[place]
                row = StepRow(
                    index, step, end_s, read.num_nodes[place], read.depth[place], num_accepted, num_accepted + 1,
                    num_cut[place], tuple(read.ranks[place]), tuple(tokens[: len(tokens) - num_cut[place]]), *phases,
                )  # fmt: skip
                phases = (0.0, 0.0, 0.0, 0.0)
                self.rows[index].append(row)
                made.append(row)
        self._pending = []
        if self._sink is not None and made:
            self._sink(made)
