"""Runs as processes of their own: started so that they outlive the viewer, stopped by signals. No Textual."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from specbench import paths
from specbench.errors import UsageError
from specbench.store.files import cannot_write, holder

_END_BYTES = 8_000


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
            process = subprocess.Popen(
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


def log_of(store: Path | None, pid: int) -> Path | None:
    """What the process printed, where it was started from a viewer; the newest of that number."""
    found = sorted(paths.logs_dir(store).glob(f"{pid}-*.log"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


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
    if live.host != socket.gethostname():
        raise UsageError(
            f"{folder.name} is written by process {live.pid} on {live.host}, not on this machine",
            where=str(folder),
            try_=f"there: kill -INT {live.pid}",
        )
    os.kill(live.pid, number)
    return live.pid
