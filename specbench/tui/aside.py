"""Keeping off the processors that a live run computes on, where there are others. Linux; elsewhere nothing. No Textual.

A run's thread that is put aside for a viewer's loses little time in waiting and more in what the viewer leaves in the
core's caches, and the kernel may move it to another core. Niceness (yielding.py) says who goes first on a core that
both want; this says who goes where.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from specbench.tui import spawning

_PROC = Path("/proc")
_LEAST_TICKS = 10
"""Of processor time (hundredths of a second) between two looks: a thread with fewer did not compute."""
_UTIME, _STIME, _PROCESSOR = 11, 12, 36
"""Fields 14, 15 and 39 of proc(5)'s `stat`, counted after the command's closing bracket."""


class _Seen(NamedTuple):
    ticks: int
    """Processor time so far."""
    cpu: int
    """That the thread was last on."""


def threads_of(pid: int, *, proc: Path = _PROC) -> dict[int, _Seen]:
    """A process's threads by number; none where it is gone, or the system tells nothing."""
    found = {}
    with suppress(OSError):
        for task in (proc / str(pid) / "task").iterdir():
            # One may end meanwhile; a command may hold blanks and brackets.
            with suppress(OSError, ValueError, IndexError):
                fields = (task / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
                found[int(task.name)] = _Seen(int(fields[_UTIME]) + int(fields[_STIME]), int(fields[_PROCESSOR]))
    return found


def allowed_cpus() -> frozenset[int]:
    """Those this process may use; none where the system does not say, or does not let it choose."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else frozenset()


def keep_to(pid: int, cpus: Set[int]) -> None:
    """Every thread of a process of ours to these processors; of this one, all but the thread that starts runs."""
    kept = spawning.thread_id() if pid == os.getpid() else -1
    for thread in threads_of(pid):
        if thread != kept:
            with suppress(OSError):  # one that ended meanwhile
                os.sched_setaffinity(thread, cpus)


class Aside:
    """Of one viewer and the processes that work for it."""

    def __init__(
        self,
        *,
        allowed_cpus: Callable[[], frozenset[int]] = allowed_cpus,
        threads_of: Callable[[int], dict[int, _Seen]] = threads_of,
        keep_to: Callable[[int, Set[int]], None] = keep_to,
    ) -> None:
        self._allowed, self._threads_of, self._keep_to = allowed_cpus, threads_of, keep_to
        self._every: frozenset[int] = frozenset()
        """Those it might use before it kept off any."""
        self._seen: dict[tuple[int, int], int] = {}
        """Processor time of (process, thread) at the last look."""
        self.kept: dict[int, frozenset[int]] = {}
        """Processors by process of ours."""

    def look(self, runs: Sequence[int], own: Iterable[int]) -> None:
        """Off the processors that these runs' busy threads were last on; back on all where no run is left, or none
        would remain. Between its questions a run computes nothing: then as before. own: our processes' numbers."""
        busy = self._busy(runs)
        if (runs and not busy) or (not runs and not self.kept):
            return
        if not self.kept:
            self._every = self._allowed()
        free = self._every - busy or self._every
        own = set(own)
        self.kept = {pid: cpus for pid, cpus in self.kept.items() if pid in own}
        for pid in own:
            if self.kept.get(pid, self._every) != free:
                self._keep_to(pid, free)
                self.kept[pid] = free
        if not runs:
            self.kept = {}

    def _busy(self, runs: Sequence[int]) -> frozenset[int]:
        """Processors; none at the first look."""
        now = {(pid, thread): seen for pid in runs for thread, seen in self._threads_of(pid).items()}
        before, self._seen = self._seen, {key: seen.ticks for key, seen in now.items()}
        return frozenset(
            seen.cpu for key, seen in now.items() if seen.ticks - before.get(key, seen.ticks) >= _LEAST_TICKS
        )

    def told(self) -> str:
        """For the System screen; empty where it keeps off none."""
        cpus = self.kept.get(os.getpid(), self._every)
        if cpus == self._every:
            return ""
        return f"keeps off processor {', '.join(map(str, sorted(self._every - cpus)))}, where the run computes"
