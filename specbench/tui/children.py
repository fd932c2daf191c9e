"""Runs as processes of their own: started so that they outlive the viewer, stopped by signals. No Textual."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from specbench import paths
from specbench.errors import EnvironmentFailed, UsageError
from specbench.store.files import cannot_write, holder
from specbench.tui import spawning

_END_BYTES = 8_000
_CLOCKS_S = 2.0
"""A log's name and a journal's first line are whole seconds of two processes."""
_LONGEST_START_S = 24 * 3600.0
"""Between a process's start and its journal's first line: before it, a number was another process's."""


_NO_FAILURES = (0, 130)
"""Good; interrupted, its data kept."""


class Child(NamedTuple):
    """A command that was started."""

    process: subprocess.Popen[bytes]
    log: Path
    command: str


def start(words: Sequence[str], *, store: Path | None) -> Child:
    """`specbench WORDS` in a session of its own: neither the viewer's end nor its terminal's reaches it.

    A command and not a fork: Textual holds stderr, and spawning from inside it fails (Textual #3593).
    """
    folder = paths.logs_dir(store)
    part = folder / f"starting-{os.getpid()}-{time.time_ns()}.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as output:
            process = spawning.popen(
                [sys.executable, "-m", "specbench", *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        # The run's journal names its process: by that the log is found again, by this viewer or a later one.
        log = folder / f"{process.pid}-{int(time.time())}.log"
        part.rename(log)
    except OSError as error:
        raise cannot_write(folder, error, try_="specbench tui --store DIR, one that you may write to") from error
    return Child(process, log, " ".join(["specbench", *words]))


def log_of(store: Path | None, pid: int, began_s: float) -> Path | None:
    """What the process printed, where it was started from a viewer. began_s: Unix time of its journal's first line.

    Numbers are given again: the log is the newest of those begun before the journal was, and not days before.
    """
    found = []
    for path in paths.logs_dir(store).glob(f"{pid}-*.log"):
        stamp = path.stem.partition("-")[2]
        if stamp.isdigit() and -_CLOCKS_S <= began_s - int(stamp) <= _LONGEST_START_S:
            found.append((int(stamp), path))
    return max(found)[1] if found else None


def last_words(child: Child) -> str:
    """What a process that ended said of it: its error's first line, else the last it printed."""
    try:
        rows = [row for row in end_of(child.log) if row.strip()]
    except OSError:
        return "its log is gone"
    return next((row for row in reversed(rows) if row.startswith("✗")), rows[-1] if rows else "it said nothing")


def failure_of(child: Child) -> str:
    """Why it is over, where that is not as it should; empty while it runs, after a good end, and where somebody asked
    it to end."""
    code = child.process.poll()
    if code is None or code in _NO_FAILURES:
        return ""
    how = f"was killed (signal {-code})" if code < 0 else f"failed (exit {code})"
    return f"{child.command} {how}: {last_words(child)}; log {child.log}"


def end_of(log: Path) -> list[str]:
    """Its last lines."""
    with log.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _END_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    lines = text.splitlines()
    return lines[1:] if size > _END_BYTES else lines


def interrupt(folder: Path) -> int:
    """Ask the run to end now: what was finished is kept, `--resume` continues. Returns its pid."""
    return _signal(folder, signal.SIGINT)


def kill(folder: Path) -> int:
    """End the run by force: its journal stays readable, and it is shown as lost. Returns its pid."""
    return _signal(folder, signal.SIGKILL)


def _signal(folder: Path, number: signal.Signals) -> int:
    live = holder(folder)
    if live is None:
        raise UsageError(f"no process writes {folder.name} any more", where=str(folder))
    if not live.is_here:
        raise UsageError(
            f"{folder.name} is written by process {live.pid} on {live.host}, not on this machine",
            where=str(folder),
            try_=f"there: kill -INT {live.pid}",
        )
    try:
        os.kill(live.pid, number)
    except ProcessLookupError as error:
        raise UsageError(f"process {live.pid} of {folder.name} is gone", where=str(folder)) from error
    except PermissionError as error:
        raise EnvironmentFailed(
            f"process {live.pid} of {folder.name} belongs to another user",
            where=str(folder),
            try_=f"as that user: kill -{number.name.removeprefix('SIG')} {live.pid}",
        ) from error
    return live.pid
