"""Ending and pausing a run from the viewer."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from specbench.errors import UsageError
from specbench.manifest import read_manifest
from specbench.store import pausing
from specbench.tui import children
from specbench.tui.app import SpecbenchApp
from specbench.tui.views.dialogs import Choice
from specbench.tui.views.race import RaceView
from specbench.tui.yielding import live_here
from tests.store.crafted import crafted_answer, crafted_steps
from tests.tui.screens import LIVE, WIDE, an_app, append, drive, screen_text, settled, write_held


@pytest.fixture
def live(store: Path, writer: subprocess.Popen[bytes]) -> Path:
    """A live run's folder."""
    return write_held(store, pid=writer.pid)


async def _running(pilot: Pilot[Any], app: SpecbenchApp) -> None:
    """The live run's race is on the screen."""
    await settled(pilot, lambda: isinstance(app.screen, RaceView) and app.screen.state == "running")


async def _asked_how(pilot: Pilot[Any], *answer: str) -> None:
    """Asks for an end and answers the question how."""
    await pilot.press("x")
    await pilot.pause()
    await pilot.press(*answer)


def test_stopping_asks_how_and_interrupts_the_run(store: Path, live: Path, writer: subprocess.Popen[bytes]) -> None:
    async def body() -> None:
        app = an_app(store, LIVE)
        async with app.run_test(size=WIDE) as pilot:
            await _running(pilot, app)
            await pilot.press("x")
            await pilot.pause()
            assert isinstance(app.screen, Choice)
            await pilot.press("enter")
            await pilot.pause()
            assert writer.poll() is None, "the harmless answer stands first"
            await _asked_how(pilot, "down", "down", "down", "enter")
            await settled(pilot, lambda: writer.poll() is not None)
            assert writer.returncode in (-signal.SIGINT, 1)

    drive(body)


def test_stopping_after_this_answer_waits_for_it(store: Path, live: Path, writer: subprocess.Popen[bytes]) -> None:
    async def body() -> None:
        app = an_app(store, LIVE)
        async with app.run_test(size=WIDE) as pilot:
            await _running(pilot, app)
            await _asked_how(pilot, "down", "down", "enter")
            await pilot.pause(0.4)
            assert writer.poll() is None
            append(live, crafted_answer(read_manifest(live), 1, crafted_steps([(3, 2, 0)])))
            await settled(pilot, lambda: writer.poll() is not None)

    drive(body)


def test_a_paused_run_that_is_to_end_after_this_answer_ends_at_once(
    store: Path, live: Path, writer: subprocess.Popen[bytes]
) -> None:
    """No answer ends while it waits, so none is waited for."""
    pausing.ask(live)
    (live / "paused").touch()

    async def body() -> None:
        app = an_app(store, LIVE)
        async with app.run_test(size=WIDE) as pilot:
            await _running(pilot, app)
            await _asked_how(pilot, "down", "down", "enter")
            await settled(pilot, lambda: writer.poll() is not None)
            assert "which was paused" in getattr(app.screen, "said", "")

    drive(body)


def test_a_pause_is_asked_for_shown_and_ended_without_ending_the_run(
    store: Path, live: Path, writer: subprocess.Popen[bytes]
) -> None:
    """The test plays the run's part: it says that it waits."""

    async def body() -> None:
        app = an_app(store)
        async with app.run_test(size=WIDE) as pilot:
            await settled(pilot, lambda: "● running" in screen_text(app))
            await _asked_how(pilot, "down", "enter")
            await settled(pilot, lambda: pausing.is_asked(live))
            (live / "paused").touch()
            await settled(pilot, lambda: "‖ paused, 1 of 4" in screen_text(app))
            await pilot.press("c")
            await settled(pilot, lambda: not pausing.is_asked(live))
            assert writer.poll() is None

    drive(body)


def test_an_end_after_this_answer_is_waited_for_once_and_can_be_called_off(
    store: Path, live: Path, writer: subprocess.Popen[bytes]
) -> None:
    """Two that waited would send two signals, and the second ends the summing-up."""

    async def body() -> None:
        app = an_app(store, LIVE)
        async with app.run_test(size=WIDE) as pilot:
            await _running(pilot, app)
            for _ in range(2):
                await _asked_how(pilot, "down", "down", "enter")
                await pilot.pause()
            append(live, crafted_answer(read_manifest(live), 1, crafted_steps([(3, 2, 0)])))
            await pilot.pause(0.4)
            assert writer.poll() is None and not app.ending, "the second choice was to let it go on"
            await _asked_how(pilot, "down", "down", "enter", "x")
            await pilot.pause()
            assert "Do not end after this answer" in screen_text(app)
            await pilot.press("down", "down", "down", "enter")
            await settled(pilot, lambda: writer.poll() is not None)
            assert not app.ending, "it is stopped now, and no signal follows when an answer has ended"

    drive(body)


@pytest.mark.skipif(sys.platform != "linux", reason="another boot is told by /proc")
@pytest.mark.parametrize("how", [children.interrupt, children.kill])
def test_a_run_of_another_machine_of_the_same_name_has_no_process_here(
    store: Path, live: Path, writer: subprocess.Popen[bytes], how: Callable[[Path], int]
) -> None:
    """The number in its lock is an unrelated process's: that one is neither ended nor given way to."""
    lock = json.loads((live / "run.lock").read_text()) | {"boot_id": "another", "start_ticks": 1}
    (live / "run.lock").write_text(json.dumps(lock))
    (live / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UsageError, match="not on this machine"):
        how(live)
    assert writer.poll() is None and live_here(live) == 0
