"""The journal of a run: `events.jsonl`, append-only, one event a line. Viewers tail it, the store is built from it.

A line is whole when its newline is there. A killed writer leaves at most one torn line, at the end: readers stop
before it, the next writer cuts it off. No torch, no DuckDB, no numpy.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from specbench.errors import EnvironmentFailed
from specbench.events import (
    SCHEMA,
    Event,
    GenerationFailed,
    GenerationFinished,
    RunFinished,
    RunStarted,
    StepRow,
    Steps,
    from_line,
    to_line,
)
from specbench.store.files import RunLock, cannot_keep, cannot_write, holder
from specbench.store.streamed import copy_of

FLUSH_S = 0.1
"""Steps are held back at most this long (measurement 20)."""
MAY_GROW = ("running", "unknown")
"""States of runs whose journals may not be all there is."""
_STEPS_PREFIX = b'{"e":"steps"'
_TAIL_BYTES = 1 << 16
_DURABLE = (GenerationFinished, GenerationFailed, RunFinished)


def events_file(folder: Path) -> Path:
    """The journal's file in a run folder."""
    return folder / "events.jsonl"


class Journal:
    """The one writer of a run folder; a context manager.

    Raises UsageError when another process holds the folder, EnvironmentFailed when the disk refuses.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = events_file(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(folder, error, try_="--store DIR, one that you may write to") from error
        self._lock = RunLock(folder)
        self._pending: list[tuple[int, list[StepRow]]] = []
        self._last_flush = time.monotonic()
        try:
            # Unbuffered: what write() was given is in the kernel when it returns, so that kill -9 loses nothing of it.
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                self._end = end_of_whole_lines(self._file)
                if self._end != os.fstat(self._file).st_size:
                    os.ftruncate(self._file, self._end)
            except OSError:
                os.close(self._file)
                raise
        except OSError as error:
            self._lock.release()
            raise cannot_keep(self._path, error) from error

    def write(self, event: Event) -> None:
        """Appends held-back steps, then the event; on the disk itself (fsync) when an answer or the run has ended."""
        self.flush()
        self._append(to_line(event))
        if isinstance(event, _DURABLE):
            try:
                os.fsync(self._file)
            except OSError as error:
                raise cannot_keep(self._path, error) from error

    def steps(self, group: int, rows: Sequence[StepRow]) -> None:
        """Takes step rows; they reach the file with the next event, `flush()`, or the first call 100 ms after that."""
        if self._pending and self._pending[-1][0] == group:
            self._pending[-1][1].extend(rows)
        else:
            self._pending.append((group, list(rows)))
        if time.monotonic() - self._last_flush >= FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Appends held-back steps."""
        self._last_flush = time.monotonic()
        pending, self._pending = self._pending, []
        for group, rows in pending:
            self._append(to_line(Steps(group=group, rows=tuple(rows))))

    def close(self) -> None:
        """Appends what is held back and gives the folder back."""
        try:
            self.flush()
        finally:
            os.close(self._file)
            self._lock.release()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, line: str) -> None:
        data = memoryview((line + "\n").encode("ascii"))
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file, data[written:])
        except OSError as error:
            self._cut_back(error)
            raise cannot_keep(self._path, error) from error
        self._end += len(data)

    def _cut_back(self, error: OSError) -> None:
        """Half a line would tear the middle of the journal once a later write succeeds."""
        try:
            os.ftruncate(self._file, self._end)
        except OSError as second:
            error.add_note(f"and the torn line could not be cut off: {second}")


class JournalLine(NamedTuple):
    """An event and where the next one starts: what a tail remembers."""

    event: Event
    next_offset: int


class RawSteps(NamedTuple):
    """A `steps` line before its rows become StepRows: fields in StepRow's order. For bulk readers."""

    group: int
    rows: list[list[Any]]


def read_events(folder: Path, *, offset: int = 0) -> Iterator[JournalLine]:
    """Whole lines from a byte offset on; stops before a torn last line, which may still be growing.

    Raises EnvironmentFailed naming file and line where a line in the middle is damaged or the journal is newer.
    """
    for line in _lines(events_file(folder), offset):
        event = _parsed(line)
        if event is None:
            return
        yield JournalLine(event, line.next_offset)


def replay(folder: Path, *, with_steps: bool = True) -> Iterator[Event | RawSteps]:
    """The whole journal for bulk readers: steps stay plain lists, or are passed over unread."""
    for line in _lines(events_file(folder), 0):
        if line.data.startswith(_STEPS_PREFIX):
            if not with_steps and line.data.endswith(b"]}\n"):
                continue
            try:
                steps = _raw_steps(line.data)
            except (ValueError, KeyError, TypeError) as error:
                if line.is_last():
                    return
                raise _damaged(line, error) from error
            yield steps
            continue
        event = _parsed(line)
        if event is None:
            return
        yield event


def _raw_steps(data: bytes) -> RawSteps:
    """Raises ValueError, KeyError or TypeError for what is no line of steps. Their numbers are looked at no closer:
    steps come by the million."""
    body = json.loads(data)
    for row in body["rows"]:
        if len(row) != len(StepRow._fields):
            raise ValueError(f"a step of {len(row)} fields, not {len(StepRow._fields)}")
    return RawSteps(body["group"], body["rows"])


def last_event(folder: Path) -> Event | None:
    """The last whole line, found from the end; None for an empty or missing journal."""
    path = events_file(folder)
    try:
        with path.open("rb") as file:
            end = end_of_whole_lines(file.fileno())
            if end == 0:
                return None
            start = _start_of_line_before(file.fileno(), end)
            return from_line(os.pread(file.fileno(), end - start, start).decode("ascii"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise EnvironmentFailed(f"the journal's last line is damaged: {error}", where=str(path)) from error


def run_state(folder: Path) -> str:
    """'running', 'finished', 'interrupted', 'failed', or 'lost': no last word, and the process is gone.

    'unknown': a copy of another machine's run that nothing is heard of, which says nothing about the run.
    """
    event = last_event(folder)
    if isinstance(event, RunFinished):
        return event.state
    if holder(folder) is not None:
        return "running"
    copy = copy_of(folder)
    return "unknown" if copy is not None and copy.said != "gone" else "lost"


class _Line(NamedTuple):
    path: Path
    file: int
    offset: int
    next_offset: int
    data: bytes

    def is_last(self) -> bool:
        return self.next_offset >= os.fstat(self.file).st_size


def _lines(path: Path, offset: int) -> Iterator[_Line]:
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise EnvironmentFailed(f"no journal here: {path} is missing", try_="specbench results ls") from error
    with file:
        file.seek(offset)
        for data in file:
            if not data.endswith(b"\n"):
                return
            yield _Line(path, file.fileno(), offset, offset + len(data), data)
            offset += len(data)


def _parsed(line: _Line) -> Event | None:
    """None for a damaged last line."""
    try:
        event = from_line(line.data.decode("ascii"))
    except ValueError as error:
        # Cut JSON or bytes that are no text are what a crash leaves; a whole object of unknown kind never is.
        if isinstance(error, json.JSONDecodeError | UnicodeDecodeError) and line.is_last():
            return None
        raise _damaged(line, error) from error
    if isinstance(event, RunStarted) and event.schema > SCHEMA:
        raise EnvironmentFailed(
            f"the run was written by a newer specbench (schema {event.schema}, this one reads {SCHEMA})",
            where=str(line.path),
            try_="pip install --upgrade specbench",
        )
    return event


def _damaged(line: _Line, error: Exception) -> EnvironmentFailed:
    with line.path.open("rb") as file:
        number = file.read(line.offset).count(b"\n") + 1
    return EnvironmentFailed(
        f"line {number} of the journal is damaged: {error}",
        where=f"{line.path}:{number}",
        try_="restore the file from a copy, or delete that line: its group is then measured again by --resume",
    )


def end_of_whole_lines(file: int) -> int:
    """Byte offset behind the last whole, readable line of an open JSONL file."""
    size = os.fstat(file).st_size
    end = _start_of_line_before(file, size + 1) if size else 0
    if end == 0:
        return 0
    start = _start_of_line_before(file, end)
    try:
        json.loads(os.pread(file, end - start, start))
    except ValueError:
        return start
    return end


def _start_of_line_before(file: int, end: int) -> int:
    """Where the line whose newline stands at end - 1 begins."""
    stop = end - 1
    while stop > 0:
        start = max(0, stop - _TAIL_BYTES)
        found = os.pread(file, stop - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        stop = start
    return 0
