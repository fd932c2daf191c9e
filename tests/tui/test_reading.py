"""What is read in a window of its own: help of the focused thing, comparisons, logs; all of it can be taken away."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from textual.widgets import Input

from specbench.tui.actions import EVERYWHERE, actions_of, help_lines
from specbench.tui.draw_home import empty_lines
from specbench.tui.lines import plain_text, width_of
from specbench.tui.panes import PANES
from specbench.tui.views.dialogs import Reading
from specbench.tui.views.home import HomeView
from specbench.tui.views.launch import LaunchForm
from specbench.tui.views.race import RaceView
from specbench.tui.widgets.canvas import Canvas, LineView, Rows
from tests.tui.screens import RUN, SIZES, an_app, drive, screen_text, settled


@pytest.mark.parametrize("size", SIZES)
def test_what_is_read_is_copied_and_exported_with_its_path_shown(store: Path, size: tuple[int, int]) -> None:
    async def body() -> None:
        app = an_app(store, RUN)
        async with app.run_test(size=size) as pilot:
            await settled(pilot, lambda: isinstance(app.screen, RaceView) and app.screen.race is not None)
            await pilot.press("L")
            await settled(pilot, lambda: isinstance(app.screen, Reading))
            window = app.screen
            assert isinstance(window, Reading)
            for key, pattern in (("y", "copy-log-*.txt"), ("e", "log-*.txt")):
                await pilot.press(key)
                await pilot.pause()
                (path,) = (store / "exports").glob(pattern)
                written = path.read_text(encoding="utf-8")
                assert f"Log of {RUN}" in written and "finished" in written
                assert str(path) in window.said
                # Also where it wraps, and first of all: what stands below may need scrolling.
                shown = "".join(window.text().split())
                assert str(path) in shown and shown.index(path.name) < shown.index("finished")
            assert f"Log of {RUN}" in app.clipboard
            await pilot.press("escape")
            await pilot.pause()
            assert isinstance(app.screen, RaceView)

    drive(body)


def test_help_begins_with_the_pane_that_has_the_focus(store: Path) -> None:
    async def body() -> None:
        app = an_app(store, RUN)
        async with app.run_test(size=(120, 36)) as pilot:
            await settled(pilot, lambda: isinstance(app.screen, RaceView) and app.screen.race is not None)
            view = app.screen
            said = {}
            for name in ("lane1", "clock"):
                pane = view.query_one(f"#{name}")
                (pane if isinstance(pane, LineView) else view.query_one(f"#{name} TokenView")).focus()
                await pilot.press("question_mark")
                await pilot.pause()
                assert isinstance(app.screen, Reading)
                said[name] = " ".join(app.screen.text().split())
                await pilot.press("escape")
                await pilot.pause()
            assert PANES["race"]["lane1"] in said["lane1"] and PANES["race"]["clock"] in said["clock"]
            assert "Race clock: tokens over time" in said["clock"] and "Play or pause" in said["clock"]

    drive(body)


@pytest.mark.parametrize("width", [67, 30])
def test_every_sentence_of_help_is_whole_in_a_narrow_window(width: int) -> None:
    """67 cells are what a window has at 80 columns. It cannot be scrolled sideways."""
    for name in EVERYWHERE:
        rows = Reading("Keys", help_lines(name), topic="help")._laid_out(width, 0)
        words = " ".join(plain_text(rows).split())
        assert all(width_of(row) <= width for row in rows)
        assert [action.help for action in actions_of(name) if action.help not in words] == []


@pytest.mark.parametrize("width", [76, 40])
def test_what_to_do_in_an_empty_store_is_whole_on_a_narrow_screen(width: int) -> None:
    rows = empty_lines("/home/somebody/a/rather/long/way/to/the/results", width)
    words = " ".join(plain_text(rows).split())
    assert all(width_of(row) <= width for row in rows)
    assert "measures every method on the demo: needs no download, no GPU, about a minute." in words
    assert "specbench run mtbench --target ./my-model --limit 20" in words


def test_every_pane_that_can_have_the_focus_has_its_help(store: Path) -> None:
    """A new pane must not be without by being forgotten."""

    async def body() -> None:
        app = an_app(store, RUN)
        async with app.run_test(size=(120, 36)) as pilot:
            for name in EVERYWHERE:
                app.show_view(name)
                await pilot.pause(0.1)
                panes = [each for each in app.view(name).focus_chain if isinstance(each, LineView)]
                without = [
                    str(each) for each in panes if not {up.id for up in each.ancestors_with_self} & PANES[name].keys()
                ]
                assert panes and without == []

    drive(body)


def test_the_form_explains_the_field_that_has_the_focus(tmp_path: Path) -> None:
    async def body() -> None:
        app = an_app(tmp_path)
        async with app.run_test(size=(120, 36)) as pilot:
            await pilot.press("n")
            await pilot.pause()
            form = app.screen
            assert isinstance(form, LaunchForm)
            form.query_one("#field-batch_size").focus()
            await pilot.press("f1")
            await pilot.pause()
            assert isinstance(app.screen, Reading)
            words = app.screen.text()
            assert "--batch-size" in words and "takes a whole number" in words and "as things stand: 1" in words
            assert "ctrl+r starts" in words
            await pilot.press("escape")
            await pilot.pause()
            assert app.screen is form

    drive(body)


@pytest.mark.parametrize(("down", "suffix"), [(0, ".txt"), (1, ".yaml")], ids=["command", "yaml"])
def test_the_form_copies_its_command_or_its_yaml_to_the_clipboard_and_to_a_file(
    store: Path, down: int, suffix: str
) -> None:
    async def body() -> None:
        app = an_app(store)
        async with app.run_test(size=(120, 36)) as pilot:
            await pilot.press("n")
            await settled(pilot, lambda: isinstance(app.screen, LaunchForm))
            form = app.screen
            assert isinstance(form, LaunchForm)
            form.query_one("#field-limit", Input).value = "4"
            form.query_one("#field-seed", Input).value = "7"
            await pilot.pause()
            await pilot.press("ctrl+y", *["down"] * down, "enter")
            await settled(pilot, lambda: form.said != "")
            (path,) = (store / "exports").glob(f"copy-*{suffix}")
            words = path.read_text(encoding="utf-8").rstrip("\n")
            if suffix == ".txt":
                assert words == form.checked.command and "--limit 4" in words
            else:
                whole = yaml.safe_load(words)
                assert whole == yaml.safe_load(form.checked.yaml) and "# specbench run" in words and "--seed 7" in words
            assert app.clipboard == words and form.said == f"copied {len(words)} characters; also in {path}"
            shown = form.query_one("#becomes", Canvas).text()
            assert str(path) in "".join(shown.split()), "the path is shown, wrapped where it is long"
            form.query_one("#field-limit", Input).value = "none"
            await settled(pilot, lambda: form.said == "")
            await pilot.press("ctrl+y")
            await pilot.pause()
            assert app.screen is form and form.said == "", "what is wrong is not copied"

    drive(body)


@pytest.mark.parametrize("size", SIZES)
def test_home_shows_target_and_course_of_the_chosen_run_where_its_row_has_no_room(
    store: Path, size: tuple[int, int]
) -> None:
    async def body() -> None:
        app = an_app(store)
        async with app.run_test(size=size) as pilot:
            await settled(pilot, lambda: "× [" in screen_text(app))
            await settled(pilot, lambda: "by question" in app.screen.query_one("#about", Canvas).text())
            about, runs = app.screen.query_one("#about", Canvas), app.screen.query_one("#runs", Rows)
            text = screen_text(app)
            bars = re.search(r"by question ([▁▂▃▄▅▆▇█]+)", text)
            assert "target tiny" in text and bars is not None
            assert not about.region.overlaps(runs.region) and len(bars[1]) == 6, "a bar a question"

    drive(body)


def test_home_shows_id_and_interval_whole_at_every_width_from_80_on(store: Path) -> None:
    """Side by side with the run under the cursor the list needs room for both; below it stands under the list."""

    async def body() -> None:
        app = an_app(store)
        async with app.run_test(size=(80, 24)) as pilot:
            await settled(pilot, lambda: "× [" in screen_text(app))
            for width in (80, 99, 100, 119):
                await pilot.resize_terminal(width, 24)
                await pilot.pause()
                rows = "\n".join(row for row in screen_text(app).splitlines() if "✓ finished  demo" in row)
                assert RUN in rows and re.search(r"× \[\d\.\d\d, \d\.\d\d\]", rows), width

    drive(body)


def test_what_is_said_during_a_zoom_takes_the_rows_it_needs_when_the_zoom_has_ended(store: Path) -> None:
    async def body() -> None:
        app = an_app(store)
        async with app.run_test(size=(80, 24)) as pilot:
            view = app.screen
            assert isinstance(view, HomeView)
            await pilot.press("z")
            await pilot.pause()
            view.say("one line of words that fits this terminal")
            await pilot.press("z")
            await pilot.pause()
            assert view.query_one("#says").size == (80, 1)

    drive(body)
