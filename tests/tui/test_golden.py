"""Whole screens at a frozen moment against their text of before. SPECBENCH_GOLDEN=write writes them anew: look at the
difference before it is committed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from specbench.tui.app import SpecbenchApp
from specbench.tui.views.accept import AcceptView
from specbench.tui.views.board import BoardView
from specbench.tui.views.race import RaceView
from specbench.tui.views.speed import SpeedView
from tests.tui.screens import RUN, SIZES, an_app, drive, screen_text, settled

_GOLDEN = Path(__file__).with_name("golden")


def _compare(app: SpecbenchApp, name: str) -> None:
    text = "\n".join(row.rstrip() for row in screen_text(app).splitlines()) + "\n"
    path = _GOLDEN / f"{name}-{app.size.width}x{app.size.height}.txt"
    if os.environ.get("SPECBENCH_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("size", SIZES)
def test_screens_of_a_finished_run_look_as_they_did(
    store: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without colour, which is how marks and shapes are read where there is none."""
    monkeypatch.setenv("NO_COLOR", "1")

    async def body() -> None:
        app = an_app(store, RUN)
        async with app.run_test(size=size) as pilot:
            await settled(pilot, lambda: isinstance(app.screen, RaceView) and app.screen.race is not None)
            view = app.screen
            assert isinstance(view, RaceView) and view.race is not None
            view.race.clock.pause()
            view.race.clock.seek(0.02)
            view.draw_now()
            await pilot.pause()
            _compare(app, "race")
            for key, kind, name in (("4", AcceptView, "accept"), ("5", SpeedView, "speed")):
                await pilot.press(key)
                await settled(pilot, lambda kind=kind: isinstance(app.screen, kind) and app.screen.summed is not None)  # type: ignore[misc]
                await pilot.pause(0.2)
                _compare(app, name)
            await pilot.press("8")
            await settled(pilot, lambda: isinstance(app.screen, BoardView) and app.screen.read is not None)
            await pilot.pause(0.2)
            _compare(app, "board")

    drive(body)
