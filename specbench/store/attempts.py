"""From a journal's order of events to the generations that count: the last complete attempt of every group.

A group that was begun and not ended (killed, interrupted) is measured again by `--resume`; what its first attempt left
in the journal is superseded. No torch, no DuckDB, no numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from specbench.errors import EnvironmentFailed
from specbench.events import Event, GenerationFailed, GenerationFinished, GenerationStarted, RunStarted
from specbench.manifest import read_manifest
from specbench.store.journal import RawSteps, replay


@dataclass
class Attempt:
    """One try at a group, as far as the journal tells."""

    group: int
    started: set[int] = field(default_factory=set)
    finished: dict[int, GenerationFinished] = field(default_factory=dict)
    failed: dict[int, GenerationFailed] = field(default_factory=dict)
    began_s: float | None = None
    """Unix time of its first start; None where the journal does not say."""
    rows: list[list[Any]] = field(default_factory=list)
    """Steps of all its sequences, fields in StepRow's order."""

    def num_ended(self) -> int:
        """Sequences that finished or failed."""
        return len(self.finished) + len(self.failed)


class Attempts:
    """Feed it a journal in order; `feed` hands back a group's attempt when its last sequence ends.

    num_rows: planned sequences per group. Without a plan a group is complete when all that were started have ended.
    """

    def __init__(self, num_rows: Mapping[int, int] | None) -> None:
        self._num_rows = num_rows
        self._open: dict[int, Attempt] = {}

    def feed(self, event: Event | RawSteps) -> Attempt | None:
        """The attempt that this event completes, or None."""
        match event:
            case RunStarted():
                self._open.clear()
            case GenerationStarted(group=group, row=row, began_s=began_s):
                attempt = self._open.get(group)
                if attempt is None or row in attempt.started:
                    attempt = self._open[group] = Attempt(group, began_s=began_s)
                attempt.started.add(row)
            case RawSteps(group=group, rows=rows):
                self._current(group).rows.extend(rows)
            case GenerationFinished(group=group, row=row):
                self._current(group).finished[row] = event
                return self._completed(group)
            case GenerationFailed(group=group, row=row):
                self._current(group).failed[row] = event
                return self._completed(group)
            case _:
                pass
        return None

    def _current(self, group: int) -> Attempt:
        # A question can fail before its timed region opens (prompt too long): then nothing was started.
        return self._open.setdefault(group, Attempt(group))

    def _completed(self, group: int) -> Attempt | None:
        attempt = self._open[group]
        if self._num_rows is None:
            num_rows = len(attempt.started | attempt.finished.keys() | attempt.failed.keys())
        else:
            if group not in self._num_rows:
                raise EnvironmentFailed(f"the journal has group {group}, the plan in manifest.json has not")
            num_rows = self._num_rows[group]
        return self._open.pop(group) if attempt.num_ended() == num_rows else None


def planned_rows(folder: Path) -> dict[int, int] | None:
    """Sequences per group of the run's plan; None without a manifest."""
    if not (folder / "manifest.json").exists():
        return None
    return {record.group: len(record.question_ids) for record in read_manifest(folder).groups}


def attempt_of(folder: Path, group: int) -> Attempt | None:
    """The attempt at this group that counts; None where none has ended."""
    attempts = Attempts(planned_rows(folder))
    completed = [attempts.feed(event) for event in replay(folder)]
    return next((each for each in reversed(completed) if each is not None and each.group == group), None)


def finished_groups(folder: Path) -> set[int]:
    """Groups all of whose sequences finished or failed: `--resume` measures the others. Empty without a journal."""
    if not (folder / "events.jsonl").exists():
        return set()
    attempts = Attempts(planned_rows(folder))
    completed = (attempts.feed(event) for event in replay(folder, with_steps=False))
    return {attempt.group for attempt in completed if attempt is not None}


class Tally(NamedTuple):
    """Timed generations of one method, each by its last complete attempt."""

    num_answers: int
    num_failed: int
    num_bugs: int
    """Answers that differ from the target's own without a reason."""


def tallies(folder: Path) -> dict[str, Tally]:
    """By method, of the whole run: what an earlier part left counts as well as what a resumed one does. Methods of
    which nothing ended are left out."""
    attempts = Attempts(planned_rows(folder))
    completed = {
        attempt.group: attempt
        for attempt in (attempts.feed(event) for event in replay(folder, with_steps=False))
        if attempt is not None
    }
    found: dict[str, Tally] = {}
    for attempt in completed.values():
        for answer in attempt.finished.values():
            was = found.get(answer.method, _NONE)
            is_bug = answer.equality == "bug"
            found[answer.method] = was._replace(num_answers=was.num_answers + 1, num_bugs=was.num_bugs + is_bug)
        for failure in attempt.failed.values():
            was = found.get(failure.method, _NONE)
            found[failure.method] = was._replace(num_failed=was.num_failed + 1)
    return found


_NONE = Tally(num_answers=0, num_failed=0, num_bugs=0)
