"""A list with a cursor: on a screen that may have no room for it, and picked from."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from textual.app import App, ComposeResult
from textual.containers import Vertical

from specbench.tui.lines import Line, line
from specbench.tui.theme import DARK, THEMES
from specbench.tui.views.dialogs import Picking
from specbench.tui.widgets.canvas import Canvas, Rows
from tests.tui.screens import drive


class _Two(App[None]):
    """A list above another pane."""

    CSS = "Rows, Canvas { height: 1fr; }"

    def __init__(self) -> None:
        super().__init__()
        for each in THEMES:
            self.register_theme(each)
        self.theme = DARK
        self.keys = [str(number) for number in range(20)]
        self.rows, self.other = Rows(self._rows), Canvas(lambda width, height: [line("other")])

    def compose(self) -> ComposeResult:
        yield self.rows
        yield self.other

    def _rows(self, width: int, height: int) -> tuple[Sequence[Line], Sequence[tuple[str, Line]]]:
        return [line("head")], [(key, line(f"row {key}")) for key in self.keys]


def test_a_row_chosen_while_another_pane_is_zoomed_is_under_the_cursor_when_the_list_is_back() -> None:
    """Tree chooses a node at every step; its panes may be zoomed, or the terminal have no row for the list."""

    async def body() -> None:
        app = _Two()
        async with app.run_test(size=(40, 12)) as pilot:
            app.screen.maximize(app.other)
            await pilot.pause()
            app.keys = [f"new {number}" for number in range(20)]
            app.rows.redraw()
            app.rows.select("new 15")
            app.rows.action_cursor(-1)
            app.screen.minimize()
            await pilot.pause()
            await pilot.pause()
            assert app.rows.key == "new 15"
            drawn = ["".join(part.text for part in app.rows.render_line(y)).rstrip() for y in range(6)]
            assert "▸ row new 15" in drawn

    drive(body)


@pytest.mark.parametrize(("most", "picked", "told"), [(1, ["c"], "space picks"), (2, ["a", "b"], "2 are picked")])
def test_picking_more_than_there_is_room_for_replaces_the_only_one_or_says_why_not(
    most: int, picked: list[str], told: str
) -> None:
    """Tree asks for one method, and one is always picked already: space did nothing."""

    async def body() -> None:
        app = _Two()
        async with app.run_test(size=(60, 12)) as pilot:
            window = Picking("Which?", ["a", "b", "c"], ["a"], most=most)
            app.push_screen(window)
            await pilot.pause()
            await pilot.press("down", "space", "down", "space")
            assert window.picked == picked
            assert told in str(window.query_one(Vertical).border_subtitle)

    drive(body)
