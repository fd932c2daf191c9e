"""Names and answers that want to break the screen, and keys in any order."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest

from specbench.tui import actions
from specbench.tui.detokenise import Found
from specbench.tui.race import Race
from specbench.tui.views.race import RaceView
from specbench.tui.views.tree import TreeView
from specbench.tui.widgets.lane_pane import LanePane
from tests.store.synthetic import AUTOREGRESSIVE, CHAIN, Competitor, make_manifest, run_events, write_run
from tests.tui.screens import NARROW, SIZES, WIDE, an_app, drive, raced, screen_text, settled

HOSTILE = "\x1b[31m[red]x[/\u202e日本🎉\u200b\ud800"
_NAMES = ("evil\x1b]0;title\x07", "[/bold]\u202eidle", "日本語" * 12)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A run whose methods, suite, target and categories were named by an enemy."""
    competitors = (AUTOREGRESSIVE, *(Competitor(label=name, depth=3, alpha=0.6) for name in _NAMES))
    manifest = make_manifest(competitors, run_id="evil", num_questions=3, repeats=1, categories=("a\x1b[2J", "[b]"))
    suite = manifest.suite.model_copy(update={"name": "suite\x1b[1m[x]"})
    target = manifest.target.model_copy(update={"name": "target\u202e"})
    manifest = manifest.model_copy(update={"suite": suite, "target": target})
    write_run(tmp_path / "runs" / "evil", manifest, run_events(manifest, competitors))
    return tmp_path


class _Enemy:
    """A tokenizer whose every token is hostile."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        return "".join(f" {HOSTILE}{number}\n" if number % 7 == 0 else f"{HOSTILE[number % 9]}w" for number in ids)


@pytest.mark.parametrize("size", SIZES)
def test_hostile_names_and_answers_are_shown_harmless_on_every_screen(
    hostile: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is obeyed, nothing crashes, no row is wider than the screen."""

    def load(self: Race) -> None:
        self.found = Found(_Enemy(), "")  # type: ignore[arg-type]

    monkeypatch.setattr(Race, "load_tokenizer", load)

    async def body() -> None:
        app = an_app(hostile, "evil")
        async with app.run_test(size=size) as pilot:
            await settled(pilot, lambda: isinstance(app.screen, RaceView) and app.screen.race is not None)
            await pilot.press("G")
            for action in actions.SCREENS:
                await pilot.press(action.keys[0])
                await pilot.pause(0.3)
                text = screen_text(app)
                assert not [char for char in text if (char < " " and char != "\n") or char in "\u202e\u200b\x7f"]
                text.encode("utf-8")
                assert "\x1b" not in app.export_screenshot()
                await pilot.press("y", "e")
                await pilot.pause()
            assert "\x1b" not in app.clipboard
            for path in (hostile / "exports").iterdir():
                assert b"\x1b" not in path.read_bytes()

    drive(body)


def test_a_question_whose_name_has_a_line_break_is_replayed_and_traced_from_accept(tmp_path: Path) -> None:
    manifest = make_manifest((AUTOREGRESSIVE, CHAIN), run_id="odd", num_questions=1, repeats=1)
    folder = write_run(tmp_path / "runs" / "odd", manifest, run_events(manifest, (AUTOREGRESSIVE, CHAIN)))
    for path in (folder / "manifest.json", folder / "events.jsonl"):
        path.write_text(path.read_text(encoding="utf-8").replace('"81"', json.dumps("a\nb")), encoding="utf-8")

    async def body() -> None:
        app = an_app(tmp_path, "odd")
        async with app.run_test(size=NARROW) as pilot:
            race = await raced(app, pilot)
            for key in ("enter", "t"):
                await pilot.press("4")
                await settled(pilot, lambda: bool(app.screen.query("#worst")) and "a⏎b" in screen_text(app))
                app.screen.query_one("#worst").focus()
                await pilot.press(key)
                await settled(pilot, lambda: not app.screen.query("#worst"))
            assert race.race is not None and race.race.question.question_id == "a\nb"
            view = app.screen
            assert isinstance(view, TreeView) and view.which is not None and view.which.question_id == "a\nb"

    drive(body)


@pytest.fixture
def nothing_heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that starts specbench starts a process that ends at once: a replay or a conversation would load torch, and
    go on beside the tests that follow."""
    real = subprocess.Popen

    def popen(words: list[str], **options: Any) -> Any:
        return real(["true"] if "specbench" in words else words, **options)

    monkeypatch.setattr(subprocess, "Popen", popen)


@pytest.mark.usefixtures("nothing_heavy")
@pytest.mark.parametrize("view", actions.EVERYWHERE)
def test_every_key_of_every_screen_can_be_pressed(store: Path, view: str) -> None:
    """One after the other, each from a fresh look at the screen; what opens a dialog is closed again. The sizes take
    turns over the screens: a key does the same in both, and the golden texts hold the layouts. Of two screens one goes
    to the other by its key, and comes back as the other's key would have it."""
    size = WIDE if actions.EVERYWHERE.index(view) % 2 else NARROW
    left_out = {"quit", "bench", "inspect", "delete", "resume"}
    left_out |= {f"go_{name}" for name in actions.EVERYWHERE[: actions.EVERYWHERE.index(view)]}

    async def body() -> None:
        app = an_app(store, "20260102-demo-run-a")
        async with app.run_test(size=size) as pilot:
            await settled(pilot, lambda: isinstance(app.screen, RaceView) and app.screen.race is not None)
            go = next(action for action in actions.SCREENS if action.name == f"go_{view}")
            app.show_view(view)
            await pilot.pause(0.3)
            for action in actions.actions_of(view):
                if action.name in left_out:
                    continue
                app.show_view(view)
                await pilot.pause(0)
                await pilot.press(action.keys[0] if action.keys else go.keys[0])
                await pilot.pause(0)
                while len(app.screen_stack) > 2:
                    await pilot.press("escape")
                    await pilot.pause(0)
            assert app.is_running

    drive(body)


@pytest.mark.usefixtures("nothing_heavy")
def test_keys_in_any_order_leave_a_screen_that_still_answers(store: Path) -> None:
    """A seeded walk over the race's keys, resized in mid-stream."""
    keys = [action.keys[0] for action in actions.actions_of("race") if action.keys]
    keys = [key for key in keys if key not in ("ctrl+q", "n", "x", "L", "question_mark", "o") and not key.isdigit()]
    chosen = random.Random(7).choices(keys, k=120)

    async def body() -> None:
        app = an_app(store, "20260102-demo-run-a")
        async with app.run_test(size=WIDE) as pilot:
            await settled(pilot, lambda: isinstance(app.screen, RaceView) and app.screen.race is not None)
            for number, key in enumerate(chosen):
                await pilot.press(key)
                if number % 20 == 10:
                    await pilot.resize_terminal(*((80, 24) if number % 40 == 10 else WIDE))
            # t may have led to the tree of a step.
            await pilot.press("escape", "2", "g")
            await pilot.pause()
            view = app.screen
            assert isinstance(view, RaceView)
            assert view.query_one("#lane0", LanePane).tokens.num_held == 40

    drive(body)
