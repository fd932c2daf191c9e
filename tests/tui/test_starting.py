"""A start beside a live run of this machine: warned of at the first press of its key, done at the second."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from specbench.store import pausing
from specbench.tui.beside import warning
from specbench.tui.views.dialogs import Choice
from specbench.tui.views.home import HomeView
from specbench.tui.views.launch import LaunchForm
from specbench.tui.views.train import TrainView
from specbench.tui.widgets.canvas import Canvas
from tests.tui.screens import LIVE, SIZES, WIDE, an_app, drive, hold, screen_text, settled, write_live
from tests.tui.test_training import TRAINING, write_training

OTHER = "20260104-demo-other"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """What the viewer started: words behind `specbench`, each a process that does nothing for a minute."""
    found: list[list[str]] = []
    processes: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def popen(words: list[str], **options: Any) -> Any:
        if "specbench" not in words:
            return real(words, **options)
        found.append(words[words.index("specbench") + 1 :])
        processes.append(real(["sleep", "60"], **options))
        return processes[-1]

    monkeypatch.setattr(subprocess, "Popen", popen)
    yield found
    for process in processes:
        process.kill()
        process.wait()


def _home(app: Any) -> HomeView:
    assert isinstance(app.screen, HomeView)
    return app.screen


@pytest.mark.parametrize("size", SIZES)
def test_the_demo_beside_a_live_run_wants_its_key_twice_in_a_row(
    tmp_path: Path, live: Path, started: list[list[str]], size: tuple[int, int]
) -> None:
    async def body() -> None:
        app = an_app(tmp_path)
        async with app.run_test(size=size) as pilot:
            view = _home(app)
            await settled(pilot, lambda: "● running" in screen_text(app))
            await pilot.press("b")
            await pilot.pause()
            words = " ".join(screen_text(app).split())
            assert f"{LIVE} runs on this machine" in words and "b again starts specbench run demo all the same" in words
            await pilot.press("escape", "b")
            assert started == [], "what was said is gone, so it is said again"
            await pilot.press("b")
            assert started == [["run", "demo", "--store", str(tmp_path)]] and "as process" in view.said

    drive(body)


def test_a_run_that_is_continued_beside_a_live_one_is_warned_of_too(
    tmp_path: Path, live: Path, started: list[list[str]]
) -> None:
    """Lost, and started again; or paused, and let go on."""
    other = write_live(tmp_path, pid=1, run_id=OTHER)

    async def body() -> None:
        app = an_app(tmp_path)
        async with app.run_test(size=WIDE) as pilot:
            view = _home(app)
            await settled(pilot, lambda: (entry := view.entry()) is not None and entry.run_id == OTHER)
            await pilot.press("c")
            assert f"c again starts specbench run --resume {OTHER}" in view.said and LIVE in view.said
            await pilot.press("b")
            assert "b again starts specbench run demo" in view.said and started == [], "another command"
            await pilot.press("c", "c")
            assert [words[:3] for words in started] == [["run", "--resume", OTHER]]
            hold(other)
            pausing.ask(other)
            await settled(pilot, lambda: (entry := view.entry()) is not None and entry.state == "running")
            await pilot.press("c")
            assert f"c again lets {OTHER} go on" in view.said and pausing.is_asked(other)
            await pilot.press("x")
            await pilot.pause()
            assert isinstance(app.screen, Choice)
            assert f"Go on beside {LIVE}, which runs on this machine: both would be slower" in " ".join(
                screen_text(app).split()
            )
            await pilot.press("escape", "c")
            assert not pausing.is_asked(other), "what was said still stands there"

    drive(body)


@pytest.mark.parametrize("opened_by", ["n on Home", "b on Train"])
def test_the_form_names_the_live_run_and_starts_at_the_second_press(
    tmp_path: Path, live: Path, started: list[list[str]], opened_by: str
) -> None:
    write_training(tmp_path)

    async def body() -> None:
        app = an_app(tmp_path, TRAINING if "Train" in opened_by else "")
        async with app.run_test(size=WIDE) as pilot:
            if "Train" in opened_by:
                await settled(pilot, lambda: isinstance(app.screen, TrainView) and app.screen.training is not None)
            await pilot.press(opened_by[0])
            await settled(pilot, lambda: isinstance(app.screen, LaunchForm))
            form = app.screen
            assert isinstance(form, LaunchForm)

            def becomes() -> str:
                return " ".join(form.query_one("#becomes", Canvas).text().split())

            assert "✓ ctrl+r runs" in becomes()
            await pilot.press("ctrl+r")
            await pilot.pause()
            assert f"⚠ {LIVE} runs on this machine" in becomes() and "ctrl+r again starts it" in becomes()
            assert "--methods" in becomes(), "the command stays in sight"
            await pilot.press("tab", "tab", "tab", "2")
            await settled(pilot, lambda: "✓ ctrl+r runs" in becomes())
            await pilot.press("ctrl+r")
            assert started == [], "it was of another command"
            await pilot.press("ctrl+r")
            assert len(started) == 1 and started[0][0] == "run" and app.screen is not form

    drive(body)


def test_a_command_that_has_only_just_been_started_counts_as_live(tmp_path: Path, started: list[list[str]]) -> None:
    """It loads torch for seconds before its journal is there."""

    async def body() -> None:
        app = an_app(tmp_path)
        async with app.run_test(size=WIDE) as pilot:
            view = _home(app)
            await pilot.press("b")
            assert len(started) == 1, "nothing is live: one press is enough"
            [child] = app._launched
            await pilot.press("b")
            assert f"process {child.process.pid} runs on this machine" in view.said and len(started) == 1
            child.process.kill()
            child.process.wait()
            await pilot.press("escape", "b")
            assert len(started) == 2

    drive(body)


def test_a_warning_names_what_is_live_and_what_the_key_does() -> None:
    assert warning("", "starts it", key="b") == ""
    assert "run-a runs on this machine" in warning("run-a", "starts it", key="b")
    assert warning("run-a", "starts it", key="b").endswith("b again starts it all the same")
