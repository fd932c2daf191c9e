"""Terminals of few rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from specbench.tui.views.home import HomeView
from tests.tui.screens import RUN, an_app, drive, screen_text, settled


@pytest.mark.parametrize("size", [(80, 10), (80, 12), (80, 15), (110, 12)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_home_has_rows_for_its_runs_on_a_low_terminal(store: Path, size: tuple[int, int]) -> None:
    """The pane below the list took seven rows, and from twelve rows down the list had none."""

    async def body() -> None:
        app = an_app(store)
        async with app.run_test(size=size) as pilot:
            view = app.view("home")
            assert isinstance(view, HomeView)
            await settled(pilot, lambda: "✓ finished" in screen_text(app))
            assert not view.query_one("#about").display
            await pilot.resize_terminal(80, 16)
            await settled(pilot, lambda: view.query_one("#about").display)
            await pilot.resize_terminal(130, 12)
            await settled(pilot, lambda: view.query_one("#about").display and RUN in screen_text(app))

    drive(body)
