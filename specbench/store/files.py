"""What the disk refuses, in the user's words; and who holds a run folder. No torch, no DuckDB."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from specbench.errors import EnvironmentFailed, UsageError, did_you_mean
from specbench.errors import cannot_write as cannot_write

TRAIN_JSON = "train.json"
_START_TOLERANCE_S = 1.0


def write_whole(path: Path, text: str, *, try_: str = "") -> None:
    """The file as a whole or not at all, in the place of an older one. Raises EnvironmentFailed as `cannot_write` words
    it, and where the path is a folder's."""
    if not path.name or path.is_dir():
        raise EnvironmentFailed(f"{path} is a folder, not a file to write", where=str(path), try_=try_ or "-o FILE")
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise cannot_write(path, error, try_=try_) from error


def cannot_keep(path: Path, error: OSError) -> EnvironmentFailed:
    """`cannot_write` for a file of a run's folder: what was written stays, and the run can be continued by its id."""
    folder = path.parent
    command = "train" if is_training(folder) else "run"
    return cannot_write(
        path,
        error,
        try_="--store DIR, one that you may write to",
        if_full=f"free some space, then specbench {command} --resume {folder.name} (with the same --store)",
    )


def is_training(folder: Path) -> bool:
    """The run folder is a training's."""
    return (folder / TRAIN_JSON).exists()


def unknown_run(run_id: str, known: Iterable[str]) -> UsageError:
    """No such run, with the nearest of those there are."""
    nearest = did_you_mean(run_id, known)
    return UsageError(f"no run {run_id!r} here" + (f"; {nearest}" if nearest else ""), try_="specbench results ls")


class Holder(NamedTuple):
    """A live process that writes a run folder."""

    pid: int
    host: str


def _identity(pid: int) -> dict[str, object]:
    # The start time tells a process from a later one that was given the same number.
    return {"pid": pid, "host": socket.gethostname(), "started": psutil.Process(pid).create_time()}


def holder(folder: Path) -> Holder | None:
    """Who holds the run folder now; None when nobody does or the process is gone.

    A holder on another host cannot be looked at and counts as alive.
    """
    try:
        text = (folder / "run.lock").read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    return _live_holder(text)


def _live_holder(text: str) -> Holder | None:
    try:
        written = json.loads(text)
        found = Holder(int(written["pid"]), str(written["host"]))
        started = float(written["started"])
    except (ValueError, KeyError, TypeError):
        return None  # empty after a release, or torn by a crash: nobody's
    if found.host != socket.gethostname():
        return found
    try:
        process = psutil.Process(found.pid)
        is_same = abs(process.create_time() - started) < _START_TOLERANCE_S
        is_dead = process.status() == psutil.STATUS_ZOMBIE  # killed, and its parent has not looked yet
    except psutil.NoSuchProcess:
        return None
    return found if is_same and not is_dead else None


class RunLock:
    """One writer per run folder. The file holds pid, host and start time; the lock of a dead process is taken over."""

    def __init__(self, folder: Path) -> None:
        """Raises UsageError naming the pid while another process (or another journal of this one) writes the folder."""
        self._path = folder / "run.lock"
        with _exclusive(self._path) as file:
            live = _live_holder(os.pread(file, 4096, 0).decode("utf-8", errors="replace"))
            if live is not None:
                raise UsageError(
                    f"run {folder.name} is being written by process {live.pid} on {live.host}",
                    where=str(folder),
                    try_=f"wait for it, or stop it (kill -INT {live.pid}) and run again with --resume {folder.name}",
                )
            self._replace(file, json.dumps(_identity(os.getpid())).encode())

    def release(self) -> None:
        """Gives the folder back. The file stays, empty: unlinking it would race with the next writer's open."""
        with _exclusive(self._path) as file:
            self._replace(file, b"")

    @staticmethod
    def _replace(file: int, text: bytes) -> None:
        os.ftruncate(file, 0)
        os.pwrite(file, text, 0)


@contextmanager
def _exclusive(path: Path) -> Iterator[int]:
    """Opens (creating) `path` and holds a file lock while it is read and written: two takeovers cannot both win."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise cannot_keep(path, error) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
    except OSError as error:
        raise cannot_keep(path, error) from error
    finally:
        os.close(file)
