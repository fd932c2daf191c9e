"""Starts processes from a thread that keeps the niceness and the processors the viewer began with. No Textual.

Where the viewer gives way by its threads (yielding.py) that is for good, and what they start inherits it: a run
started beside another would be measured behind everything else of the machine. On Linux niceness belongs to threads,
so one that is left as it was can start runs that are as heavy as from the shell. Elsewhere it is the process's, and a
run tells what it had (metrics.jsonl).
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

_TASKS = Path("/proc/self/task")


class _Spawner:
    def __init__(self) -> None:
        # Made by the thread of now, whose niceness it takes over; it stays for good.
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")
        self.thread_id: int = self._pool.submit(threading.get_native_id).result()

    def popen(self, words: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        return self._pool.submit(lambda: subprocess.Popen(words, **options)).result()


@cache
def _spawner() -> _Spawner:
    return _Spawner()


def prepare() -> None:
    """Keep what there is now: to be called before anything gives way."""
    _spawner()


def thread_id() -> int:
    """Of the thread that starts runs, as the system numbers it."""
    return _spawner().thread_id


def popen(words: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """`subprocess.Popen`, as heavy as the viewer was when it began. Raises OSError as that does."""
    return _spawner().popen(words, **options)


def lower_threads(niceness: int) -> None:
    """Every thread of this process but the one that starts runs: one that was started before keeps its own niceness on
    Linux."""
    if not _TASKS.exists():
        _lower(0, niceness)
        return
    kept = thread_id()
    for task in [int(each.name) for each in _TASKS.iterdir()]:
        if task != kept:
            _lower(task, niceness)


def _lower(task: int, niceness: int) -> None:
    try:
        if os.getpriority(os.PRIO_PROCESS, task) < niceness:
            os.setpriority(os.PRIO_PROCESS, task, niceness)
    except OSError:  # a thread that ended meanwhile
        return
