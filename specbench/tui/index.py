"""What a journal says, kept small: every answer with its counts and where its steps lie. No Textual.

Steps stay on disk: an answer's are read when it is looked at. So a journal of a million steps opens in about the time
its bytes are read, and memory grows with answers, not with steps.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from specbench.errors import EnvironmentFailed
from specbench.events import (
    SCHEMA,
    Event,
    GenerationFailed,
    GenerationFinished,
    GenerationStarted,
    Measured,
    ReferenceFinished,
    RunFinished,
    RunStarted,
    from_line,
)
from specbench.store.journal import events_file
from specbench.tui.follow import Line, Tail

_STEPS = b'{"e":"steps","group":'
_NUM_RECENT = 40


class Phases(NamedTuple):
    """Seconds of one answer or step, by what they were spent on."""

    prefill_s: float
    draft_s: float
    verify_s: float
    accept_s: float
    commit_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How an answer ended."""

    first_token: int | None
    """The prefill's token, which no step holds; None for an empty answer."""
    num_tokens: int
    num_steps: int
    decode_s: float
    total_s: float
    phases: Phases
    finish_reason: str
    equality: str | None
    correct: bool | None
    error: str = ""
    """Why there is no answer; empty where there is one."""


@dataclass(kw_only=True, slots=True)
class Generation:
    """One answer: method x question x turn x repeat, as far as the journal tells."""

    group: int
    row: int
    method: str
    question_id: str
    category: str
    turn: int
    repeat: int
    num_prompt_tokens: int
    began_s: float | None
    """Unix time; None in journals of schema 1."""
    ending: Ending | None = None

    @property
    def is_finished(self) -> bool:
        """There is an answer."""
        return self.ending is not None and not self.ending.error


@dataclass(kw_only=True, slots=True)
class Group:
    """Answers decoded together, and the offsets of their `steps` lines."""

    rows: dict[int, Generation] = field(default_factory=dict)
    step_offsets: array[int] = field(default_factory=lambda: array("q"))

    @property
    def is_over(self) -> bool:
        """Every answer that was begun has ended."""
        return all(row.ending is not None for row in self.rows.values())


class RunIndex:
    """Grows with `advance`; asks the disk for nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.groups: dict[int, Group] = {}
        self.started: RunStarted | None = None
        self.finished: RunFinished | None = None
        """The last word of the journal; None while it is being written, and for ever where the run was killed."""
        self.latest: Generation | None = None
        """The answer that was begun last."""
        self.num_steps_lines = 0
        self.num_ended = 0
        """Answers that have ended, with one or without."""
        self.version = 0
        """Changes with every event but steps: what is summed up of answers is as old as this."""
        self.first_tokens: dict[tuple[str, int], int] = {}
        """Of the reference answers, by question and turn: what every method's prefill writes as well, since it is the
        same forward of the same prompt with the same noise. A live answer's own is told when it ends."""
        self.recent: deque[str] = deque(maxlen=_NUM_RECENT)
        """The last events in words, for a run that left no other log."""
        self.measured: dict[tuple[str, str], Measured] = {}
        self._tail = Tail(events_file(folder))

    @property
    def is_behind(self) -> bool:
        """More of the journal is there than was read."""
        return self._tail.is_behind

    @property
    def offset(self) -> int:
        """Bytes read so far."""
        return self._tail.offset

    def advance(self, *, limit_bytes: int | None = None) -> bool:
        """Read on; True where something was new. Raises EnvironmentFailed naming the damaged line."""
        found = False
        for line in self._tail.read(limit_bytes=limit_bytes):
            found = True
            if line.data.startswith(_STEPS):
                group = self._group(line)
                self.groups.setdefault(group, Group()).step_offsets.append(line.offset)
                self.num_steps_lines += 1
                continue
            self._take(self._event(line))
            self.version += 1
        return found

    def generations(self) -> Iterator[Generation]:
        """Every answer begun, in the order of groups in the journal."""
        for group in self.groups.values():
            yield from group.rows.values()

    def _group(self, line: Line) -> int:
        """Of a line of steps, which is not parsed whole."""
        try:
            return int(line.data[len(_STEPS) : line.data.index(b",", len(_STEPS))])
        except ValueError as error:
            raise self._damaged(line, "steps of no group") from error

    def _event(self, line: Line) -> Event:
        try:
            return from_line(line.data.decode("ascii"))
        except ValueError as error:
            raise self._damaged(line, str(error)) from error

    def _damaged(self, line: Line, why: str) -> EnvironmentFailed:
        return EnvironmentFailed(
            f"the journal is damaged at byte {line.offset}: {why}",
            where=str(self._tail.path),
            try_="restore the file from a copy; specbench results ingest names the line",
        )

    def _take(self, event: Event) -> None:
        match event:
            case RunStarted():
                if event.schema > SCHEMA:
                    raise EnvironmentFailed(
                        f"the run was written by a newer specbench (schema {event.schema}, this one reads {SCHEMA})",
                        where=str(self._tail.path),
                        try_="pip install --upgrade specbench",
                    )
                self.started, self.finished = event, None
                self._forget_unfinished()
                self.recent.append(f"{'resumed' if event.resumed else 'started'} {event.time} by process {event.pid}")
            case GenerationStarted():
                self._begin(event)
            case GenerationFinished():
                self._end(event, _ending(event))
            case GenerationFailed():
                self._end(event, _failure(event))
            case ReferenceFinished(tokens=tokens) if tokens:
                self.first_tokens[event.question_id, event.turn] = tokens[0]
            case RunFinished():
                self.finished = event
                self.recent.append(f"{event.state} {event.time} {event.message}".rstrip())
            case Measured():
                self.measured[event.name, event.method] = event
                self.recent.append(f"measured {event.name} {event.value:.4g} {event.unit} {event.method}".rstrip())
            case _:
                pass

    def _forget_unfinished(self) -> None:
        """A resumed run measures these again: what the first attempt left is superseded."""
        self.groups = {number: group for number, group in self.groups.items() if group.rows and group.is_over}
        self.num_ended = sum(row.ending is not None for row in self.generations())

    def _begin(self, event: GenerationStarted) -> None:
        group = self.groups.get(event.group)
        if group is None or event.row in group.rows:
            if group is not None:
                self.num_ended -= sum(row.ending is not None for row in group.rows.values())
            group = self.groups[event.group] = Group()
        self.latest = group.rows[event.row] = _generation(event, began_s=event.began_s)

    def _end(self, event: GenerationFinished | GenerationFailed, ending: Ending) -> None:
        group = self.groups.setdefault(event.group, Group())
        generation = group.rows.get(event.row)
        if generation is None:
            # A question can fail before its timed region opens (prompt too long): then nothing was started.
            generation = group.rows[event.row] = _generation(event, began_s=None)
        self.num_ended += generation.ending is None
        generation.ending = ending
        where = f"{event.method} on {event.question_id} turn {event.turn + 1} repeat {event.repeat + 1}"
        if ending.error:
            self.recent.append(f"failed: {where}: {ending.error}")
        else:
            self.recent.append(f"finished: {where}: {ending.num_tokens} tokens in {ending.num_steps} steps")


def _generation(
    event: GenerationStarted | GenerationFinished | GenerationFailed, *, began_s: float | None
) -> Generation:
    return Generation(
        group=event.group,
        row=event.row,
        method=event.method,
        question_id=event.question_id,
        category=event.category,
        turn=event.turn,
        repeat=event.repeat,
        # One that failed before its prompt was made says nothing of it.
        num_prompt_tokens=0 if isinstance(event, GenerationFailed) else event.num_prompt_tokens,
        began_s=began_s,
    )


def _ending(event: GenerationFinished) -> Ending:
    return Ending(
        first_token=event.tokens[0] if event.tokens else None,
        num_tokens=len(event.tokens),
        num_steps=event.num_steps,
        decode_s=event.decode_s,
        total_s=event.total_s,
        phases=Phases(event.prefill_s, event.draft_s, event.verify_s, event.accept_s, event.commit_s),
        finish_reason=event.finish_reason,
        equality=event.equality,
        correct=event.correct,
    )


def _failure(event: GenerationFailed) -> Ending:
    return Ending(
        first_token=None,
        num_tokens=0,
        num_steps=0,
        decode_s=0.0,
        total_s=0.0,
        phases=Phases(0.0, 0.0, 0.0, 0.0, 0.0),
        finish_reason="failed",
        equality=None,
        correct=None,
        error=event.error,
    )
