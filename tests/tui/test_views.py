"""Every screen at both sizes, from recorded events."""

from __future__ import annotations

from pathlib import Path

import pytest

from specbench.tui import actions, children, draw_figures
from specbench.tui.app import SpecbenchApp
from specbench.tui.marks import Mode
from specbench.tui.theme import LIGHT
from specbench.tui.views.accept import AcceptView
from specbench.tui.views.board import BoardView
from specbench.tui.views.dialogs import Choice, Picking, Reading
from specbench.tui.views.home import HomeView
from specbench.tui.views.launch import LaunchForm
from specbench.tui.views.library import LibraryView
from specbench.tui.views.race import RaceView
from specbench.tui.views.speed import SpeedView
from specbench.tui.views.system import SystemView
from specbench.tui.widgets.canvas import Canvas, Rows
from specbench.tui.widgets.lane_pane import LanePane
from tests.tui.screens import NARROW, RUN, SIZES, WIDE, an_app, drive, screen_text, settled


def _home(app: SpecbenchApp) -> HomeView:
    assert isinstance(app.screen, HomeView)
    return app.screen


async def _open_race(app: SpecbenchApp, pilot: object) -> RaceView:
    await settled(pilot, lambda: isinstance(app.screen, RaceView) and app.screen.race is not None)
    assert isinstance(app.screen, RaceView)
    return app.screen


@pytest.mark.parametrize("size", SIZES)
def test_home_lists_runs_with_speedup_and_interval(store: Path, size: tuple[int, int]) -> None:
    async def body() -> None:
        app = an_app(store)
        async with app.run_test(size=size) as pilot:
            await settled(pilot, lambda: "×" in screen_text(app))
            text = screen_text(app)
            assert "✓ finished" in text and "[" in text and "run" in text
            assert "? Help" in text.splitlines()[-1]

    drive(body)


@pytest.mark.parametrize("size", SIZES)
def test_an_empty_store_says_what_to_press(tmp_path: Path, size: tuple[int, int]) -> None:
    async def body() -> None:
        app = an_app(tmp_path)
        async with app.run_test(size=size) as pilot:
            await settled(pilot, lambda: "No runs here yet" in screen_text(app))
            assert "measures every method on the demo" in screen_text(app)

    drive(body)


def test_one_key_starts_the_demo_as_a_process_that_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command and its session are what lets it outlive the viewer; the test starts something cheaper."""
    asked: list[list[str]] = []
    real = children.subprocess.Popen

    def popen(words: list[str], **options: object) -> object:
        asked.append(words)
        assert options["start_new_session"] is True
        return real(["true"], **options)  # type: ignore[call-overload]

    monkeypatch.setattr(children.subprocess, "Popen", popen)

    async def body() -> None:
        app = an_app(tmp_path)
        async with app.run_test(size=WIDE) as pilot:
            await settled(pilot, lambda: "No runs here yet" in screen_text(app))
            await pilot.press("b")
            await pilot.pause()
            assert asked[0][1:] == ["-m", "specbench", "run", "demo", "--store", str(tmp_path)]
            assert str(tmp_path / "logs") in _home(app).said

    drive(body)


@pytest.mark.parametrize("size", SIZES)
def test_race_replays_a_finished_run_and_steps_pause_and_seek(store: Path, size: tuple[int, int]) -> None:
    async def body() -> None:
        app = an_app(store, RUN)
        async with app.run_test(size=size) as pilot:
            view = await _open_race(app, pilot)
            race = view.race
            assert race is not None
            await pilot.press("space" if race.clock.is_playing else "g")
            assert not race.clock.is_playing
            await pilot.press("g")
            assert race.position() == 0.0
            await pilot.press("full_stop", "full_stop")
            lane = race.lanes[0]
            assert lane.timeline is not None and race.position() == lane.timeline.steps[0].end_s
            await pilot.press("comma")
            assert race.position() == lane.timeline.prefill_s
            await pilot.press("G")
            assert race.position() == race.clock.duration
            panes = list(view.query(LanePane))
            assert panes[0].tokens.num_shown == 40
            assert "autoregressive" in screen_text(app)

    drive(body)


def test_the_race_shows_the_interval_of_the_tables(store: Path) -> None:
    async def body() -> None:
        app = an_app(store, RUN)
        async with app.run_test(size=WIDE) as pilot:
            view = await _open_race(app, pilot)
            await pilot.pause()
            found = view.figures["tree"].speedup
            assert found is not None and found.interval is not None
            text = view.query_one("#speedups", Canvas).text()
            assert f"{found.geometric_mean:.2f}×" in text
            assert f"[{found.interval.low:.2f}, {found.interval.high:.2f}]" in text

    drive(body)


def test_brackets_change_the_question_and_methods_are_chosen_from_a_list(store: Path) -> None:
    async def body() -> None:
        app = an_app(store, RUN)
        async with app.run_test(size=WIDE) as pilot:
            view = await _open_race(app, pilot)
            assert view.race is not None
            first = view.race.question
            await pilot.press("right_square_bracket")
            assert view.race.question != first
            await pilot.press("left_square_bracket")
            assert view.race.question == first
            await pilot.press("o")
            await pilot.pause()
            assert isinstance(app.screen, Picking)
            app.screen.picked = ["tree", "slow"]
            await pilot.press("enter")
            await pilot.pause()
            assert [lane.method for lane in view.race.lanes] == ["tree", "slow"]

    drive(body)


def test_m_cycles_through_marks_and_z_zooms_one_pane(store: Path) -> None:
    async def body() -> None:
        app = an_app(store, RUN)
        async with app.run_test(size=WIDE) as pilot:
            view = await _open_race(app, pilot)
            before = app.marks
            await pilot.press("m")
            assert app.marks is before.next()
            assert view.query_one("#lane0", LanePane).tokens.mode is app.marks
            await pilot.press("z")
            await pilot.pause()
            assert view.maximized is view.query_one("#lane0")
            await pilot.press("escape")
            await pilot.pause()
            assert view.maximized is None

    drive(body)


@pytest.mark.parametrize("size", SIZES)
def test_accept_prints_a_number_in_every_cell_and_enter_replays_the_worst(store: Path, size: tuple[int, int]) -> None:
    async def body() -> None:
        app = an_app(store, RUN)
        async with app.run_test(size=size) as pilot:
            await _open_race(app, pilot)
            await pilot.press("4")
            await settled(pilot, lambda: isinstance(app.screen, AcceptView) and app.screen.summed is not None)
            assert isinstance(app.screen, AcceptView)
            heat = app.screen.query_one("#heat", Canvas).text()
            assert "depth 1" in heat and ".7" in heat
            await pilot.press("u")
            assert app.screen.unit == "survival"
            worst = draw_figures.answer_of(app.screen.query_one("#worst", Rows).key)
            app.screen.query_one("#worst").focus()
            await pilot.press("enter")
            view = await _open_race(app, pilot)
            assert view.race is not None
            await settled(pilot, lambda: view.race is not None and view.race.question.question_id == worst.question_id)
            assert worst.method in [lane.method for lane in view.race.lanes]

    drive(body)


@pytest.mark.parametrize("size", SIZES)
def test_speed_draws_intervals_and_says_slowdowns_in_words(store: Path, size: tuple[int, int]) -> None:
    async def body() -> None:
        app = an_app(store, RUN)
        async with app.run_test(size=size) as pilot:
            await _open_race(app, pilot)
            await pilot.press("5")
            await settled(pilot, lambda: isinstance(app.screen, SpeedView) and app.screen.summed is not None)
            forest = app.screen.query_one("#forest", Canvas).text()
            assert "●" in forest and "├" in forest
            assert "slow is a slow-down: a step takes" in " ".join(forest.split())

    drive(body)


@pytest.mark.parametrize("size", SIZES)
def test_board_ranks_marks_and_exports(store: Path, size: tuple[int, int]) -> None:
    async def body() -> None:
        app = an_app(store)
        async with app.run_test(size=size) as pilot:
            await pilot.press("8")
            await settled(pilot, lambda: isinstance(app.screen, BoardView) and app.screen.read is not None)
            view = app.screen
            assert isinstance(view, BoardView)
            assert "tree" in view.query_one("#rows", Rows).text()
            await pilot.press("space")
            assert view.marked == [RUN]
            await pilot.press("v")
            assert "mark two runs" in view.said
            await pilot.press("e")
            await settled(pilot, lambda: ".html" in view.said)
            written = {path.suffix for path in (store / "exports").iterdir()}
            assert written >= {".csv", ".json", ".html", ".svg"}

    drive(body)


@pytest.mark.parametrize("size", SIZES)
def test_system_answers_whether_the_measurement_is_clean(store: Path, size: tuple[int, int]) -> None:
    async def body() -> None:
        app = an_app(store, RUN)
        async with app.run_test(size=size) as pilot:
            await _open_race(app, pilot)
            await pilot.press("6")
            await settled(pilot, lambda: isinstance(app.screen, SystemView) and app.screen.summed is not None)
            clean = app.screen.query_one("#clean", Canvas).text()
            assert "A/A control" in clean and "0 answers differ" in clean
            assert "this viewer" in app.screen.query_one("#now", Canvas).text()

    drive(body)


@pytest.mark.parametrize("size", SIZES)
def test_library_lists_suites_methods_and_drafters(store: Path, size: tuple[int, int]) -> None:
    async def body() -> None:
        app = an_app(store)
        async with app.run_test(size=size) as pilot:
            await pilot.press("0")
            await settled(pilot, lambda: isinstance(app.screen, LibraryView) and app.screen.items is not None)
            text = app.screen.query_one("#rows", Rows).text()
            assert "mtbench" in text and "prompt_lookup" in text
            await pilot.press("enter")
            await pilot.pause()
            assert isinstance(app.screen, Reading)

    drive(body)


def test_help_lists_the_keys_of_the_screen(store: Path) -> None:
    async def body() -> None:
        app = an_app(store)
        async with app.run_test(size=WIDE) as pilot:
            await settled(pilot, lambda: _home(app).listing is not None)
            await pilot.press("question_mark")
            await pilot.pause()
            assert isinstance(app.screen, Reading)
            words = " ".join(app.screen.text().split())
            assert all(action.help in words for action in actions.actions_of("home"))
            await pilot.press("escape")
            await pilot.pause()
            assert isinstance(app.screen, HomeView)

    drive(body)


def test_the_palette_finds_an_action_by_its_words(store: Path) -> None:
    async def body() -> None:
        app = an_app(store)
        async with app.run_test(size=WIDE) as pilot:
            await settled(pilot, lambda: _home(app).listing is not None)
            await pilot.press("ctrl+p")
            await pilot.pause()
            await pilot.press(*"leader")
            await settled(pilot, lambda: "Board" in screen_text(app))
            await pilot.press("enter")
            await settled(pilot, lambda: isinstance(app.screen, BoardView))

    drive(body)


def test_deleting_asks_first_and_then_removes_folder_and_rows(store: Path) -> None:
    async def body() -> None:
        app = an_app(store)
        async with app.run_test(size=WIDE) as pilot:
            await settled(pilot, lambda: _home(app).listing is not None and _home(app).entry() is not None)
            view = _home(app)
            await pilot.press("d")
            await pilot.pause()
            assert isinstance(app.screen, Choice)
            await pilot.press("enter")
            await pilot.pause()
            assert (store / "runs" / RUN).exists(), "the harmless answer stands first"
            await pilot.press("d")
            await pilot.pause()
            await pilot.press("down", "enter")
            await settled(pilot, lambda: not (store / "runs" / RUN).exists())
            await settled(pilot, lambda: view.listing is not None and not view.listing.runs)

    drive(body)


def test_filter_and_sort_change_the_list(store: Path) -> None:
    async def body() -> None:
        app = an_app(store)
        async with app.run_test(size=WIDE) as pilot:
            await settled(pilot, lambda: _home(app).listing is not None)
            await pilot.press("slash")
            await pilot.pause()
            await pilot.press(*"nothing", "enter")
            await pilot.pause()
            assert "No run matches" in screen_text(app)
            await pilot.press("escape", "s")
            await pilot.pause()
            assert RUN in screen_text(app) and "sorted by suite" in screen_text(app)

    drive(body)


def test_the_form_checks_while_typing_and_shows_the_command(tmp_path: Path) -> None:
    async def body() -> None:
        app = an_app(tmp_path)
        async with app.run_test(size=WIDE) as pilot:
            await pilot.press("n")
            await pilot.pause()
            form = app.screen
            assert isinstance(form, LaunchForm)
            assert "specbench run demo --methods" in " ".join(form.query_one("#becomes", Canvas).text().split())
            await pilot.press("x")
            await settled(pilot, lambda: "there is no suite 'x'" in form.query_one("#becomes", Canvas).text())
            await pilot.press("ctrl+r")
            await pilot.pause()
            assert app.screen is form, "what is wrong is not started"
            await pilot.press("escape")
            await pilot.pause()
            assert isinstance(app.screen, HomeView)

    drive(body)


def test_copy_goes_to_clipboard_and_file(store: Path) -> None:
    async def body() -> None:
        app = an_app(store)
        async with app.run_test(size=WIDE) as pilot:
            await settled(pilot, lambda: "×" in screen_text(app))
            await pilot.press("y")
            await pilot.pause()
            assert RUN in app.clipboard
            (path,) = (store / "exports").glob("copy-home-*.txt")
            assert RUN in path.read_text(encoding="utf-8") and str(path) in _home(app).said

    drive(body)


@pytest.mark.parametrize("size", SIZES)
def test_every_screen_stands_without_colour_and_on_a_light_terminal(
    store: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """NO_COLOR crashed on segments without a style (Textual 8.2)."""
    monkeypatch.setenv("NO_COLOR", "1")

    async def body() -> None:
        app = an_app(store, RUN, theme="light")
        async with app.run_test(size=size) as pilot:
            assert app.theme == LIGHT
            view = await _open_race(app, pilot)
            assert app.marks is Mode.MARKS
            assert view.race is not None
            for action in actions.SCREENS:
                await pilot.press(action.keys[0])
                await pilot.pause(0.2)
                assert f"[{action.keys[0]} {action.label}]" in screen_text(app).splitlines()[0]
                app.export_screenshot()

    drive(body)


def test_a_screen_that_was_resized_while_hidden_is_drawn_for_its_new_size(store: Path) -> None:
    async def body() -> None:
        app = an_app(store)
        async with app.run_test(size=WIDE) as pilot:
            await settled(pilot, lambda: "×" in screen_text(app))
            await pilot.press("0")
            await pilot.resize_terminal(*NARROW)
            await pilot.pause(0.2)
            await pilot.press("1")
            await settled(pilot, lambda: RUN[:12] in screen_text(app))
            assert all(len(row) <= 80 for row in screen_text(app).splitlines())

    drive(body)
