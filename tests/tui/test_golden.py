"""Whole screens at a frozen moment against their text of before. SPECBENCH_GOLDEN=write writes them anew: look at the
difference before it is committed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from textual.pilot import Pilot

from specbench.store.traces import Which
from specbench.tui import machine
from specbench.tui.app import SpecbenchApp
from specbench.tui.theme import LIGHT
from specbench.tui.views import chat, library
from specbench.tui.views.accept import AcceptView
from specbench.tui.views.board import BoardView
from specbench.tui.views.launch import LaunchForm
from specbench.tui.views.library import Item
from specbench.tui.views.race import RaceView
from specbench.tui.views.speed import SpeedView
from specbench.tui.views.system import SystemView
from specbench.tui.views.train import TrainView
from specbench.tui.views.tree import TreeView
from tests.store.traced import write_traced
from tests.tui.screens import NARROW, RUN, SIZES, WIDE, an_app, drive, screen_text, settled
from tests.tui.test_chat import Pretending
from tests.tui.test_training import TRAINING, write_training

_GOLDEN = Path(__file__).with_name("golden")


ITEMS = [
    Item("suite", "gsm8k", "not here", "dim", "? questions, GSM8K test", ("GSM8K test", "licence: MIT")),
    Item("suite", "mine", "unreadable", "bad", "mine.yaml:3 is not YAML", ("mine.yaml:3",)),
    Item("method", "broken_one", "broken", "bad", "drafter.py is missing beside method.yaml", ("why",)),
    Item("method", "redrafter", "needs weights", "dim", "Beams of a small recurrent network", ("a paper",)),
    Item("target", "demo", "embedded", "good", "ships with specbench", ("--target demo",)),
    Item("drafter", "demo/lstm", "embedded", "good", "trained for the demo target", ("a folder",)),
]


def _look(app: SpecbenchApp, name: str) -> tuple[str, Path]:
    """What is shown now, and the file of what it looked like."""
    rows = [row.rstrip() for row in screen_text(app).splitlines()]
    if name == "home":
        rows[1] = " (the store's folder)"
    return "\n".join(rows) + "\n", _GOLDEN / f"{name}-{app.size.width}x{app.size.height}.txt"


async def _comes_to(pilot: Pilot[None], app: SpecbenchApp, name: str) -> None:
    """As `_compare`, but a busy machine may take its time to scroll."""
    for _ in range(50):
        await pilot.pause(0.2)
        text, path = _look(app, name)
        if path.exists() and text == path.read_text(encoding="utf-8"):
            break
        if os.environ.get("SPECBENCH_GOLDEN") == "write":
            break
    _compare(app, name)


def _compare(app: SpecbenchApp, name: str) -> None:
    text, path = _look(app, name)
    if os.environ.get("SPECBENCH_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("environ", ["NO_COLOR", "light"])
def test_screens_of_a_finished_run_look_as_they_did(store: Path, environ: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without colour, which is how marks and shapes are read where there is none, and in the light theme: the words are
    the same. One app serves both sizes: starting one takes longer than resizing it."""
    if environ == "NO_COLOR":
        monkeypatch.setenv("NO_COLOR", "1")

    async def body() -> None:
        app = an_app(store, RUN, theme="light" if environ == "light" else "dark")
        async with app.run_test(size=WIDE) as pilot:

            async def at_both_sizes(name: str) -> None:
                for size in (NARROW, WIDE):
                    await pilot.resize_terminal(*size)
                    await pilot.pause(0.2)
                    if isinstance(app.screen, RaceView):  # its titles are as of its last frame, and it is paused
                        app.screen.draw_now()
                        await pilot.pause()
                    _compare(app, name)

            await settled(pilot, lambda: isinstance(app.screen, RaceView) and app.screen.race is not None)
            assert (app.theme == LIGHT) == (environ == "light")
            view = app.screen
            assert isinstance(view, RaceView) and view.race is not None
            view.race.clock.pause()
            view.race.clock.seek(0.02)
            view.draw_now()
            await pilot.pause()
            await at_both_sizes("race")
            for key, kind, name in (("4", AcceptView, "accept"), ("5", SpeedView, "speed")):
                await pilot.press(key)
                await settled(pilot, lambda kind=kind: isinstance(app.screen, kind) and app.screen.summed is not None)  # type: ignore[misc]
                await at_both_sizes(name)
            await pilot.press("8")
            await settled(pilot, lambda: isinstance(app.screen, BoardView) and app.screen.read is not None)
            await at_both_sizes("board")
            await pilot.press("1")
            await settled(pilot, lambda: "× [" in screen_text(app))
            await at_both_sizes("home")

    drive(body)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("environ", ["NO_COLOR", "light"])
def test_a_traced_step_a_training_and_a_conversation_look_as_they_did(
    store: Path, size: tuple[int, int], environ: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the light theme tokens wear colours and marks, under NO_COLOR marks alone: the words are the same."""
    if environ == "NO_COLOR":
        monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(chat, "Talking", Pretending)
    write_traced(store / "runs" / RUN, Which("tree", "81", 0, 0), siblings=3)
    write_training(store)

    async def body() -> None:
        app = an_app(store, theme="light")
        async with app.run_test(size=size) as pilot:
            await settled(pilot, lambda: "×" in screen_text(app))
            assert app.theme == LIGHT
            app.workspace.run_id = RUN
            tree = app.view("tree")
            assert isinstance(tree, TreeView)
            tree.show_answer(RUN, Which("tree", "81", 0, 0), 4, came_from="")
            await pilot.press("3")
            await settled(pilot, lambda: tree.at is not None)
            await _comes_to(pilot, app, "tree")
            app.open_run(TRAINING)
            await settled(pilot, lambda: isinstance(app.screen, TrainView) and app.screen.training is not None)
            await pilot.press("l", "a")
            await _comes_to(pilot, app, "train")
            await pilot.press("9")
            await settled(pilot, lambda: isinstance(app.screen, chat.ChatView))
            await pilot.press("enter")
            view = app.screen
            assert isinstance(view, chat.ChatView)
            await settled(pilot, lambda: view.is_ready)
            await pilot.press("h", "i", "enter")
            Pretending.last.answer()
            await settled(pilot, lambda: not view.is_answering)
            await pilot.press("escape")
            await _comes_to(pilot, app, "chat")

    drive(body)


@pytest.mark.parametrize("size", SIZES)
def test_the_machine_the_library_and_a_new_run_look_as_they_did(
    store: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine that stands still: what the screens read of this one is given to them."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(library, "items", lambda store: ITEMS)
    monkeypatch.setattr(machine.Machine, "look", lambda self, **_: None)
    monkeypatch.setattr(machine, "governor", lambda: "performance")
    reading = machine.Machine(
        cores=[12.0, 97.0],
        memory_used=5 << 30,
        memory_total=16 << 30,
        load=1.25,
        own_percent=3.2,
        own_bytes=48 << 20,
        model="Imaginary 2-Core",
        mhz=2596.1,
        pid=4321,
    )

    async def body() -> None:
        app = an_app(store, RUN)
        async with app.run_test(size=size) as pilot:
            await settled(pilot, lambda: isinstance(app.screen, RaceView) and app.screen.race is not None)
            await pilot.press("6")
            await settled(pilot, lambda: isinstance(app.screen, SystemView) and app.screen.summed is not None)
            view = app.screen
            assert isinstance(view, SystemView)
            await settled(pilot, lambda: view.record is not None)
            view.machine = reading
            view.look()
            await pilot.pause(0.2)
            _compare(app, "system")
            await pilot.press("0")
            await settled(pilot, lambda: "broken_one" in screen_text(app))
            await pilot.pause(0.2)
            _compare(app, "library")
            app.workspace.store = None  # the folder's name is another one every time
            app.push_screen(LaunchForm(app.workspace, {"target": "demo", "limit": "4"}))
            await settled(pilot, lambda: "ctrl+r runs" in screen_text(app))
            await pilot.pause(0.2)
            _compare(app, "launch")
            monkeypatch.setattr(app.workspace, "live_here", lambda: "20260103-demo-live")
            await pilot.press("ctrl+r")
            await settled(pilot, lambda: "⚠" in screen_text(app))
            _compare(app, "launch-beside")

    drive(body)
