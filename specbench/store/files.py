"""What the disk refuses, in the user's words; and who holds a run folder. No torch, no DuckDB."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from specbench.errors import EnvironmentFailed, UsageError, did_you_mean
from specbench.errors import cannot_write as cannot_write
from specbench.store import streamed

TRAIN_JSON = "train.json"
UNTOUCHED = "restore the files from a copy; if nobody has changed them, this is a defect of specbench: please report it"
"""What to do where a run's files hold what no run writes."""
_START_TOLERANCE_S = 1.0
_EACH_SECOND = "metrics.jsonl"
_QUIET_S = 60.0
"""A run on another host that wrote nothing for so long is over: its sampler writes every second, paused or not."""
_PATIENCE_S = 1.0
_NOBODYS = (ValueError, KeyError, TypeError)
"""Of a lock: empty after a release, or torn by a crash."""


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
    is_here: bool = False
    """Looked at just now, and a process of this machine: what is done to the number is done to it. Names are not
    enough for that: machines, containers and this one before it was booted again may share one."""


def _identity(pid: int) -> dict[str, object]:
    # The start tells a process from a later one that was given the same number. In ticks since this boot it stays what
    # it is when the wall clock is set; `started` moves with the clock, and is for systems without /proc.
    identity: dict[str, object] = {"pid": pid, "host": socket.gethostname()}
    identity["started"] = psutil.Process(pid).create_time()
    ticks, boot = _start_ticks(pid), _boot_id()
    return identity | {"boot_id": boot, "start_ticks": ticks} if ticks is not None and boot else identity


def _start_ticks(pid: int) -> int | None:
    """Clock ticks from the machine's boot to the process's start; None where the system does not tell, or it is
    gone."""
    try:
        # The second field, the program's name, may hold spaces and brackets: the 22nd is the 20th behind its end.
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def holder(folder: Path) -> Holder | None:
    """Who holds the run folder now; None when nobody does, the process is gone, or a run on another host gives no sign
    of life.

    A process of another host, or of this one before it was booted again, cannot be looked at. A run writes each second
    what its machine does: one that has been quiet for a minute is over. What keeps no such record counts as alive.
    What is streamed here is live as long as its machine says so, or cannot say and the record grows.
    """
    try:
        text = (folder / "run.lock").read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    return _live_holder(text, folder)


def named_holder(folder: Path) -> Holder | None:
    """Whom the lock names, live or not; None where it is nobody's."""
    try:
        return Holder(*_fields(json.loads((folder / "run.lock").read_text(encoding="utf-8")))[:2])
    except (FileNotFoundError, *_NOBODYS):
        return None


def _fields(lock: dict[str, Any]) -> tuple[int, str, float, str, int | None]:
    """(pid, host, started, boot, ticks)."""
    return (
        int(lock["pid"]),
        str(lock["host"]),
        float(lock["started"]),
        lock.get("boot_id", ""),
        lock.get("start_ticks"),
    )


def _live_holder(text: str, folder: Path) -> Holder | None:
    try:
        pid, host, started, boot, ticks = _fields(json.loads(text))
    except _NOBODYS:
        return None
    found = Holder(pid, host)
    copy = streamed.copy_of(folder)
    if copy is not None:
        return found if _is_heard_of(copy, folder) else None
    is_elsewhere = found.host != socket.gethostname()
    if is_elsewhere or (boot and boot != _boot_id()):
        quiet_s = _quiet_s(folder)
        # Of the same name and another boot: this machine, booted again, unless there are signs of another.
        return found if (is_elsewhere if quiet_s is None else quiet_s <= _QUIET_S) else None
    try:
        process = psutil.Process(found.pid)
        is_same = abs(process.create_time() - started) < _START_TOLERANCE_S
        if boot and ticks is not None:
            is_same = _start_ticks(found.pid) == ticks
        is_dead = process.status() == psutil.STATUS_ZOMBIE  # killed, and its parent has not looked yet
    except psutil.NoSuchProcess:
        return None
    return found._replace(is_here=True) if is_same and not is_dead else None


def _is_heard_of(copy: streamed.Copy, folder: Path) -> bool:
    """A run of another machine that is streamed here is live as far as is known."""
    if not copy.is_fresh or copy.said in ("", "gone"):
        return False
    # Where its process cannot be looked at from there either, its signs of life are all there is.
    quiet_s = _quiet_s(folder) if copy.said == "unseen" else None
    return quiet_s is None or quiet_s <= _QUIET_S


def _quiet_s(folder: Path) -> float | None:
    """Seconds since a run wrote into its folder; None where it keeps no record of its machine (a training)."""
    try:
        if not (folder / _EACH_SECOND).stat().st_size:
            return None
        newest = max(path.stat().st_mtime for path in folder.glob("*.jsonl"))
    except OSError:
        return None
    quiet_s = time.time() - newest
    if 0 <= quiet_s <= _QUIET_S:
        return quiet_s
    # On a shared folder the times are its server's: only a file made there tells what time it is by that clock.
    with suppress(OSError), tempfile.TemporaryFile(dir=folder) as probe:
        return os.fstat(probe.fileno()).st_mtime - newest
    return quiet_s


class RunLock:
    """One writer per run folder. The file names pid, host and start for whoever looks; what keeps others out is a lock
    of the kernel's on it, which ends with the process however that ends. The lock of a dead process is taken over."""

    def __init__(self, folder: Path) -> None:
        """Raises UsageError naming the pid while another process (or another journal of this one) writes the folder,
        and for the copy of another machine's run."""
        streamed.refuse_to_write(folder, "train" if is_training(folder) else "run")
        self._path = folder / "run.lock"
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise cannot_keep(self._path, error) from error
        try:
            self._take(folder)
        except BaseException:
            os.close(self._file)
            raise

    def _take(self, folder: Path) -> None:
        try:
            # What is held for a moment only, by an older specbench that reads or by a writer that ends, is waited for.
            deadline = time.monotonic() + _PATIENCE_S
            while not (is_ours := self._is_locked()) and self._written(folder) is None and time.monotonic() < deadline:
                time.sleep(0.02)
            live = self._written(folder)
            if live is not None or not is_ours:
                raise _is_written(folder, live)
            self._replace(json.dumps(_identity(os.getpid())).encode())
        except OSError as error:
            raise cannot_keep(self._path, error) from error

    def _is_locked(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _written(self, folder: Path) -> Holder | None:
        return _live_holder(os.pread(self._file, 4096, 0).decode("utf-8", errors="replace"), folder)

    def release(self) -> None:
        """Gives the folder back. The file stays, empty: unlinking it would race with the next writer's open."""
        try:
            self._replace(b"")
        except OSError as error:
            raise cannot_keep(self._path, error) from error
        finally:
            os.close(self._file)

    def _replace(self, text: bytes) -> None:
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, text, 0)


def _is_written(folder: Path, live: Holder | None) -> UsageError:
    """live: None where its writer is gone and a process that it started still holds the folder."""
    again = f"run again with --resume {folder.name}"
    if live is None:
        what = f"run {folder.name} is held by what its writer, which is gone, has started"
        return UsageError(what, where=str(folder), try_=f"end that process (fuser {folder / 'run.lock'}) and {again}")
    what = f"run {folder.name} is being written by process {live.pid} on {live.host}"
    if live.is_here:
        return UsageError(what, where=str(folder), try_=f"wait for it, or stop it (kill -INT {live.pid}) and {again}")
    gone = f"if that machine is gone, empty {folder / 'run.lock'} and {again}"
    if _quiet_s(folder) is not None:
        gone = f"if that machine is gone, {again} a minute after its last sign of life"
    return UsageError(what, where=str(folder), try_=f"wait for it, or stop it there; {gone}")
