"""One answer as it came: its tokens with where each came from, its steps with their times. No Textual.

Time 0 is the start of the answer's timed region. The journal holds the ids that were kept: of a rejected draft it knows
how many tokens it had, not which, and neither does anything here.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from pathlib import Path
from typing import Any, NamedTuple

from specbench.errors import EnvironmentFailed
from specbench.events import StepRow
from specbench.store.journal import events_file
from specbench.tui.follow import lines_at
from specbench.tui.index import Generation, Group
from specbench.tui.marks import Kind


class Token(NamedTuple):
    """A token kept."""

    id: int
    """-1 for Kind.MISSING."""
    kind: Kind
    depth: int
    """Of a drafted one: its place in the draft, from 1."""
    step: int
    """Index of its step; -1 for the prefill's token."""


class Step(NamedTuple):
    """One round, the seconds of its whole batch."""

    begin_s: float
    end_s: float
    num_nodes: int
    depth: int
    num_accepted: int
    num_kept: int
    draft_s: float
    verify_s: float
    accept_s: float
    commit_s: float


class Timeline:
    """Grows while its answer is decoded."""

    def __init__(self, generation: Generation, *, first_token: int | None = None) -> None:
        """first_token: the reference's, shown until the answer's own is known."""
        self.generation = generation
        self.tokens: list[Token] = [
            Token(-1, Kind.MISSING, 0, -1) if first_token is None else Token(first_token, Kind.PLAIN, 0, -1)
        ]
        self.steps: list[Step] = []
        self._ends: list[float] = []
        self._counts: list[int] = []
        """Tokens kept up to each step, the prefill's included."""
        self._num_lines = 0
        self._phases: dict[float, tuple[float, float, float, float]] = {}
        """Of a batched step, by its end: they stand on one row only."""

    @property
    def prefill_s(self) -> float:
        """When the first token was there; until the answer has ended, when the first step began."""
        ending = self.generation.ending
        # In a batch the group's seconds stand on its first row.
        if ending is not None and ending.phases.prefill_s > 0:
            return ending.phases.prefill_s
        return self.steps[0].begin_s if self.steps else 0.0

    @property
    def end_s(self) -> float:
        """End of the last step known."""
        return self._ends[-1] if self._ends else self.prefill_s

    def extend(self, folder: Path, group: Group) -> bool:
        """Take in the steps written since; True where the timeline changed. Raises EnvironmentFailed for a journal that
        is gone, or whose next line is no steps of this answer."""
        offsets = list(group.step_offsets[self._num_lines :])
        for data in lines_at(events_file(folder), offsets):
            self._take(self._rows(data, events_file(folder)))
            # Line by line: what was taken in before a damaged one is not taken in again by the next key.
            self._num_lines += 1
        return bool(offsets) or self._name_first()

    def _rows(self, data: bytes, path: Path) -> list[StepRow]:
        try:
            rows = [StepRow(*row) for row in json.loads(data)["rows"]]
            if not all(map(_is_step, rows)):
                raise ValueError("a step holds something else than its numbers")
        except (ValueError, KeyError, TypeError) as error:
            raise EnvironmentFailed(
                f"steps of group {self.generation.group} cannot be read: {error}",
                where=str(path),
                try_="restore the file from a copy; specbench results ingest names the line",
            ) from error
        return rows

    def _name_first(self) -> bool:
        ending = self.generation.ending
        if ending is None or ending.first_token in (None, self.tokens[0].id):
            return False
        assert ending.first_token is not None
        self.tokens[0] = Token(ending.first_token, Kind.PLAIN, 0, -1)
        return True

    def _take(self, rows: list[StepRow]) -> None:
        for row in rows:
            if any(row[-4:]):
                self._phases[row.end_s] = row[-4:]
        for row in rows:
            if row.row != self.generation.row:
                continue
            phases = self._phases.get(row.end_s, (0.0, 0.0, 0.0, 0.0))
            number = len(self.steps)
            begin_s = self._ends[-1] if self._ends else row.end_s - sum(phases)
            self.steps.append(
                Step(begin_s, row.end_s, row.num_nodes, row.depth, row.num_accepted, len(row.tokens), *phases)
            )
            self.tokens += [self._token(row, place, number) for place in range(len(row.tokens))]
            self._ends.append(row.end_s)
            self._counts.append(len(self.tokens))
        self._name_first()

    @staticmethod
    def _token(row: StepRow, place: int, number: int) -> Token:
        if place < row.num_accepted:
            return Token(row.tokens[place], Kind.DRAFTED, place + 1, number)
        return Token(row.tokens[place], Kind.BONUS if row.num_nodes else Kind.PLAIN, 0, number)

    def steps_at(self, seconds: float) -> int:
        """Steps that had ended by then."""
        return bisect_right(self._ends, seconds)

    def tokens_at(self, seconds: float) -> int:
        """Tokens that were there by then."""
        done = self.steps_at(seconds)
        return self._counts[done - 1] if done else int(seconds >= self.prefill_s)

    def next_event(self, seconds: float) -> float | None:
        """The next moment at which something appears; None behind the last."""
        if seconds < self.prefill_s:
            return self.prefill_s
        place = bisect_right(self._ends, seconds)
        return self._ends[place] if place < len(self._ends) else None

    def event_before(self, seconds: float) -> float:
        """The moment one step earlier; 0 before the first token."""
        place = bisect_left(self._ends, seconds)
        if place:
            return self._ends[place - 1]
        return self.prefill_s if seconds > self.prefill_s else 0.0

    def acceptance_length_at(self, seconds: float) -> float | None:
        """Tokens kept per step so far, bonus included; None before the first step."""
        done = self.steps_at(seconds)
        return (self._counts[done - 1] - 1) / done if done else None


def _is_step(row: Any) -> bool:
    """Has what is counted on before anything is kept of it; a line of another shape is no tuple of this length."""
    return isinstance(row.tokens, list) and isinstance(row.end_s, float | int) and isinstance(row.num_accepted, int)


def load_timeline(folder: Path, group: Group, generation: Generation) -> Timeline:
    """An answer's timeline as far as the journal has it."""
    timeline = Timeline(generation)
    timeline.extend(folder, group)
    return timeline
