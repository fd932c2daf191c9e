"""Beside a run of this machine: what is started from the viewer is as heavy as from a shell, what would slow the run is
refused, and who takes what is read off the processes themselves."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from specbench import provenance
from specbench.errors import UsageError
from specbench.store.device import read_device
from specbench.store.traces import Which
from specbench.tui import machine
from specbench.tui.lines import plain_text
from specbench.tui.tracing import Replaying
from specbench.tui.views.chat import ChatView
from specbench.tui.views.system import SystemView
from specbench.tui.widgets.canvas import Canvas
from tests.tui.screens import LIVE, RUN, WIDE, an_app, drive, hold, settled, write_live


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="niceness belongs to threads on Linux alone")
def test_a_run_started_while_the_viewer_gives_way_keeps_the_niceness_the_viewer_began_with() -> None:
    """In a process of its own: what it gives away it never gets back."""
    code = (
        "import os, sys, subprocess, threading; from specbench.tui import spawning; before = os.nice(0)\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "spawning.prepare(); spawning.lower_threads(before + 4)\n"
        "words = [sys.executable, '-c', 'import os; print(os.nice(0))']\n"
        "kept = spawning.popen(words, stdout=subprocess.PIPE).communicate()[0]\n"
        "plain = subprocess.Popen(words, stdout=subprocess.PIPE).communicate()[0]\n"
        "print(os.nice(0) - before, int(kept) - before, int(plain) - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["4", "0", "4"], "the viewer, what `spawning` starts, what itself would start"


def test_the_niceness_a_run_had_is_in_its_record_and_said(tmp_path: Path) -> None:
    head = {
        "e": "sampler_started", "schema": 2, "at_s": 1.0, "pid": 2, "run_pid": 1, "interval_s": 1.0, "num_cpus": 2,
        "governor": None, "gpu_missing": None,
    }  # fmt: skip
    sample = {
        "e": "sample", "at_s": 2.0, "interval_s": 1.0, "busy_s": 1.0, "own_s": 0.9, "sampler_s": 0.0,
        "load_average": 1.0, "available_bytes": 1, "num_threads": 1, "cpu_mhz": None, "throttle_reasons": [],
        "top_others": None,
    }  # fmt: skip

    def said(*niceness: int | None) -> str:
        rows = [row for each in niceness for row in (head | ({} if each is None else {"run_niceness": each}), sample)]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="ascii")
        return plain_text(machine.run_lines(read_device(tmp_path), 100))

    assert "the run was at niceness 15: whatever else wanted a processor came first" in said(0, 15)
    assert "niceness" not in said(0) and "niceness" not in said(None)


def test_nothing_heavy_is_begun_beside_a_run_that_is_not_the_one_that_is_open(store: Path, live: Path) -> None:
    async def body() -> None:
        app = an_app(store, RUN)
        async with app.run_test(size=WIDE) as pilot:
            await settled(pilot, lambda: app.workspace.run_id == RUN)
            assert app.workspace.live_here() == LIVE and app.workspace.live_here(but=LIVE) == ""
            await pilot.press("9")
            await settled(pilot, lambda: isinstance(app.screen, ChatView))
            await pilot.press("enter")
            view = app.screen
            assert isinstance(view, ChatView)
            assert view.talking is None and f"{LIVE} runs on this machine: talking" in view.said
            await pilot.press("6")
            await settled(pilot, lambda: isinstance(app.screen, SystemView))
            await pilot.press("i")
            await pilot.pause()
            assert f"{LIVE} runs on this machine: specbench doctor beside it would slow it" in app.screen.said

    drive(body)


def test_no_answer_is_replayed_beside_another_run(tmp_path: Path) -> None:
    folder = write_live(tmp_path, pid=1, run_id="lost")
    with pytest.raises(UsageError, match="a replay beside it would slow it"):
        Replaying().start(folder, Which("tree", "81", 0, 0), tmp_path / "x", store=tmp_path, live=LIVE)


def test_a_share_of_a_core_is_one_since_the_last_look_and_of_this_machines_processes_alone(
    live: Path,
) -> None:
    writers = machine.Writers()
    writers.look([live])
    assert "… %" in plain_text(writers.lines(120)), "of the first look there is no share"
    began_s, worked_s = time.monotonic(), time.process_time()
    while time.process_time() < worked_s + 0.2:
        pass
    writers.look([live])
    share = 100 * (time.process_time() - worked_s) / (time.monotonic() - began_s)
    [row] = [plain_text([line]) for line in writers.lines(120)]
    # Whatever of the core the machine left us; ticks of 10 ms are what is counted.
    assert float(row.split("%")[0].split()[-1]) == pytest.approx(share, abs=15) and share > 0
    assert LIVE in row and "nice" in row
    hold(live, host="elsewhere")
    writers.look([live])
    assert "on elsewhere" in plain_text(writers.lines(120)), "its number is another process's here"


def test_the_clock_of_this_machine_is_read_without_waking_a_core_beside_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/proc/cpuinfo asks every core; /sys only the one that the viewer is on, which is awake."""
    info = "processor\t: {}\nmodel name\t: Fast One\ncpu MHz\t\t: {}\n"
    (tmp_path / "cpuinfo").write_text("\n".join(info.format(core, 1000.5 + core) for core in range(12)))
    monkeypatch.setattr(machine, "_CPUS", tmp_path)
    monkeypatch.setattr(machine, "_CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(provenance, "_CPU_INFO", tmp_path / "cpuinfo")
    found = machine.Machine()
    monkeypatch.setattr(type(found._process), "cpu_num", lambda self: 1, raising=False)
    found.look(is_beside_a_run=True)
    assert found.mhz is None and found.model == ""
    found.look()
    assert found.mhz == 1001.5 and "1002 MHz  Fast One" in plain_text(machine.now_lines(found, 60))
    (tmp_path / "cpu1" / "cpufreq").mkdir(parents=True)
    (tmp_path / "cpu1" / "cpufreq" / "scaling_cur_freq").write_text("3400000\n")
    found.look(is_beside_a_run=True)
    assert found.mhz == 3400.0


def test_the_system_screen_names_the_device_and_threads_of_the_run_that_is_open(store: Path) -> None:
    async def body() -> None:
        app = an_app(store, RUN)
        async with app.run_test(size=WIDE) as pilot:
            await pilot.press("6")
            await settled(pilot, lambda: isinstance(app.screen, SystemView) and app.screen.record is not None)
            words = app.screen.query_one("#recorded", Canvas).text()
            assert "imaginary (cpu), 1 thread, attention reference, steps as operators" in " ".join(words.split())

    drive(body)
