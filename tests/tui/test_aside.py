"""Keeping off the processors of a live run: which, when, and whose threads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Set
from pathlib import Path

import pytest

from specbench.tui import spawning
from specbench.tui.aside import Aside, allowed_cpus, keep_to, threads_of

VIEWER, READER, RUN = 1, 2, 7


class _Kernel:
    """Threads of runs as (ticks, processor), and who was kept to what."""

    def __init__(self, num_cpus: int = 4) -> None:
        self.num_cpus = num_cpus
        self.runs: dict[int, dict[int, tuple[int, int]]] = {}
        self.kept: dict[int, Set[int]] = {}
        self.changes = 0

    def keep_to(self, pid: int, cpus: Set[int]) -> None:
        self.kept[pid] = cpus
        self.changes += 1

    def aside(self) -> Aside:
        return Aside(
            allowed_cpus=lambda: frozenset(range(self.num_cpus)),
            threads_of=lambda pid: self.runs.get(pid, {}),  # type: ignore[arg-type, return-value]
            keep_to=self.keep_to,
        )

    def compute(self, cpu: int, *, thread: int = 70, ticks: int = 100) -> None:
        """A thread of the run does so on a processor."""
        from specbench.tui.aside import _Seen

        threads = self.runs.setdefault(RUN, {})
        before = threads[thread][0] if thread in threads else 0
        threads[thread] = _Seen(before + ticks, cpu)


def test_the_viewer_and_its_reader_leave_the_processor_of_a_busy_thread_and_come_back() -> None:
    kernel = _Kernel()
    aside = kernel.aside()
    kernel.compute(2)
    kernel.compute(3, thread=71, ticks=0)
    aside.look([RUN], [VIEWER])
    assert not kernel.kept, "one look does not tell what computes"
    kernel.compute(2)
    kernel.compute(3, thread=71, ticks=1)
    aside.look([RUN], [VIEWER, READER])
    assert kernel.kept == {VIEWER: {0, 1, 3}, READER: {0, 1, 3}}
    kernel.compute(0)
    aside.look([RUN], [VIEWER, READER])
    assert kernel.kept == {VIEWER: {1, 2, 3}, READER: {1, 2, 3}}, "the run was moved"
    aside.look([], [VIEWER, READER])
    assert kernel.kept == {VIEWER: {0, 1, 2, 3}, READER: {0, 1, 2, 3}}
    aside.look([], [VIEWER, READER])
    assert kernel.changes == 6, "nothing is set twice"


def test_between_questions_it_stays_where_it_is() -> None:
    kernel = _Kernel()
    aside = kernel.aside()
    for _ in range(2):
        kernel.compute(1)
        aside.look([RUN], [VIEWER])
    aside.look([RUN], [VIEWER])
    assert kernel.kept == {VIEWER: {0, 2, 3}} and kernel.changes == 1


def test_a_reader_that_was_started_anew_follows() -> None:
    kernel = _Kernel()
    aside = kernel.aside()
    for own in ([VIEWER], [VIEWER, READER], [VIEWER], [VIEWER, READER + 1]):
        kernel.compute(1)
        aside.look([RUN], own)
    assert kernel.kept == {VIEWER: {0, 2, 3}, READER: {0, 2, 3}, READER + 1: {0, 2, 3}}


def test_where_the_run_computes_everywhere_nobody_moves() -> None:
    kernel = _Kernel(num_cpus=2)
    aside = kernel.aside()
    for _ in range(2):
        kernel.compute(0)
        kernel.compute(1, thread=71)
        aside.look([RUN], [VIEWER])
    assert not kernel.kept and aside.told() == ""


def test_where_the_system_tells_nothing_nothing_is_done() -> None:
    assert threads_of(1, proc=Path("/nowhere")) == {}
    kernel = _Kernel(num_cpus=0)
    aside = kernel.aside()
    for _ in range(2):
        kernel.compute(0)
        aside.look([RUN], [VIEWER])
    assert not kernel.kept


linux = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processors are chosen on Linux alone")


def test_a_command_may_hold_blanks_and_brackets(tmp_path: Path) -> None:
    """proc(5): the second field is the command, as its process wrote it."""
    task = tmp_path / "7" / "task" / "8"
    task.mkdir(parents=True)
    fields = ["S", *(str(number) for number in range(4, 53))]
    (task / "stat").write_text(f"8 (a) b (c) {' '.join(fields)}\n")
    assert threads_of(7, proc=tmp_path) == {8: (14 + 15, 39)}


@linux
def test_a_thread_that_computes_is_told_from_one_that_waits() -> None:
    """The real kernel."""
    code = "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\nwhile 1: pass"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        end = time.monotonic() + 30
        while len(threads_of(process.pid)) < 2 or max(each.ticks for each in threads_of(process.pid).values()) < 20:
            assert time.monotonic() < end
            time.sleep(0.05)
        found = threads_of(process.pid)
        assert all(each.cpu in range(os.cpu_count() or 1) for each in found.values())
        assert min(each.ticks for each in found.values()) <= 1
    finally:
        process.kill()
        process.wait()


@linux
def test_this_process_moves_without_the_thread_that_starts_runs() -> None:
    """What it starts may use every processor."""
    every = allowed_cpus()
    if len(every) < 2:
        pytest.skip("one processor")
    spawning.prepare()
    waits = threading.Event()
    other = threading.Thread(target=waits.wait, daemon=True)
    other.start()
    one = {min(every)}
    try:
        keep_to(os.getpid(), one)
        assert os.sched_getaffinity(0) == one and os.sched_getaffinity(other.native_id or 0) == one
        assert os.sched_getaffinity(spawning.thread_id()) == every
        process = spawning.popen(
            [sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"], stdout=subprocess.PIPE
        )
        assert process.communicate()[0].decode().strip() == str(set(every))
    finally:
        keep_to(os.getpid(), every)
        waits.set()
    assert allowed_cpus() == every
