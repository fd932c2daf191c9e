"""The token pane on real screens: sizes, NO_COLOR, light, selection, hostile text."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from textual.app import App, ComposeResult
from textual.geometry import Offset
from textual.selection import SELECT_ALL, Selection

from specbench.tui.layout import Shown
from specbench.tui.marks import Kind, Mode
from specbench.tui.theme import DARK, LIGHT, THEMES
from specbench.tui.widgets.token_view import TokenView
from tests.tui.screens import SIZES, drive

_TOKENS = [
    Shown("The", Kind.PLAIN, 0),
    Shown(" cat", Kind.DRAFTED, 1),
    Shown(" sat", Kind.DRAFTED, 2),
    Shown(".", Kind.BONUS, 0),
]


class _Pane(App[None]):
    def __init__(self, theme: str = DARK) -> None:
        super().__init__()
        for each in THEMES:
            self.register_theme(each)
        self.theme = theme
        self.pane = TokenView(mode=Mode.MARKS)

    def compose(self) -> ComposeResult:
        yield self.pane


def _segments(app: _Pane) -> list[tuple[str, str]]:
    strip = app.pane.render_line(0)
    return [(segment.text, str(segment.style)) for segment in strip if segment.text.strip()]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("theme", [DARK, LIGHT])
@pytest.mark.parametrize("no_color", [False, True])
def test_marks_are_on_the_screen_in_every_theme_and_without_colour(
    size: tuple[int, int], theme: str, no_color: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Colour is never the only carrier."""
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")

    async def body() -> None:
        app = _Pane(theme)
        async with app.run_test(size=size) as pilot:
            app.pane.show(_TOKENS)
            await pilot.pause()
            assert app.pane.text() == "The cat¹ sat².◆"
            # Everything the terminal is sent, through the filters that NO_COLOR puts in between.
            assert "cat" in app.export_screenshot()

    drive(body)


def test_colours_tell_depths_apart_where_marks_are_off() -> None:
    async def body() -> None:
        app = _Pane()
        async with app.run_test(size=(40, 5)) as pilot:
            app.pane.set_mode(Mode.COLOUR)
            app.pane.show(_TOKENS)
            await pilot.pause()
            styles = dict(_segments(app))
            assert "#0b3c6e" in styles[" cat"] and "#0f5596" in styles[" sat"] and "#f0a30a" in styles["."]

    drive(body)


def test_a_narrower_pane_wraps_again_and_loses_nothing() -> None:
    async def body() -> None:
        app = _Pane()
        async with app.run_test(size=(60, 20)) as pilot:
            app.pane.show([Shown(" word", Kind.PLAIN, 0)] * 30)
            await pilot.pause()
            before = app.pane.text().split()
            await pilot.resize_terminal(20, 20)
            await pilot.pause()
            assert app.pane.text().split() == before
            assert all(len(row) <= 19 for row in app.pane.text().splitlines())

    drive(body)


def test_only_what_is_revealed_is_shown_and_it_follows_the_end() -> None:
    async def body() -> None:
        app = _Pane()
        async with app.run_test(size=(20, 5)) as pilot:
            app.pane.show([Shown(f" {n:03}", Kind.PLAIN, 0) for n in range(100)], num_shown=4)
            await pilot.pause()
            assert app.pane.text().split() == ["000", "001", "002", "003"]
            app.pane.reveal(100)
            await pilot.pause()
            assert app.pane.scroll_offset.y == app.pane.max_scroll_y > 0
            app.pane.reveal(2)
            await pilot.pause()
            assert app.pane.answer() == " 000 001"

    drive(body)


def test_text_can_be_selected_and_copied() -> None:
    """The most wanted thing of every terminal viewer."""

    async def body() -> None:
        app = _Pane()
        async with app.run_test(size=(40, 5)) as pilot:
            app.pane.show(_TOKENS)
            await pilot.pause()
            assert app.pane.get_selection(SELECT_ALL) == ("The cat¹ sat².◆", "\n")
            part = Selection(Offset(4, 0), Offset(7, 0))
            assert app.pane.get_selection(part) == ("cat", "\n")
            app.screen.selections = {app.pane: part}
            await pilot.pause()
            assert "cat" in [text.strip() for text, _ in _segments(app)]

    drive(body)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(), max_size=40), max_size=12))
def test_hostile_tokens_never_reach_the_terminal_raw(texts: list[str]) -> None:
    """Escape codes, markup, overrides, lone surrogates: nothing crashes, nothing is obeyed."""

    async def body() -> None:
        app = _Pane()
        async with app.run_test(size=(30, 8)) as pilot:
            app.pane.show([Shown(text, Kind.DRAFTED, 3) for text in ["[red]", "\x1b[2J", *texts]])
            await pilot.pause()
            for y in range(8):
                for segment in app.pane.render_line(y):
                    assert "\x1b" not in segment.text and "\u202e" not in segment.text
                    segment.text.encode("utf-8")

    drive(body)
