"""What is drawn for a change: the rows that changed, as Textual's own compositor would draw them."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.segment import Segment
from textual._compositor import ChopsUpdate, Compositor

from specbench.tui.views.race import RaceView
from specbench.tui.widgets.compositor import SparingCompositor
from tests.tui.screens import RUN, SIZES, an_app, drive, settled


def _cells(update: ChopsUpdate) -> list[tuple[int, int, list[Segment]]]:
    """What each span puts on the terminal, stretch by stretch."""
    found = []
    for y, x1, x2 in update.spans:
        for at, (x, strip) in enumerate(update.chops[y].items()):
            if strip is not None and x < x2 and update.chop_ends[y][at] > x1:
                found.append((y, x, list(strip)))
    return found


@pytest.mark.parametrize("size", SIZES)
def test_partial_updates_equal_textuals_own(
    store: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oracle is the method that is overridden, on the same dirty regions: steps, scrolling, a zoom, a dialog."""
    sparing = SparingCompositor.render_partial_update
    compared = []

    def both(self: SparingCompositor) -> ChopsUpdate | None:
        dirty = set(self._dirty_regions)
        found = sparing(self)
        self._dirty_regions = dirty
        expected = Compositor.render_partial_update(self)
        assert (found is None) == (expected is None)
        if found is not None and expected is not None:
            assert found.spans == expected.spans
            assert _cells(found) == _cells(expected)
            compared.append(len(found.spans))
        return found

    monkeypatch.setattr(SparingCompositor, "render_partial_update", both)
    app = an_app(store, RUN)

    async def body() -> None:
        async with app.run_test(size=size) as pilot:
            await settled(pilot, lambda: isinstance(app.screen, RaceView) and app.screen.race is not None)
            await pilot.press("space", "g", ".", ".", ".", "m", "tab", "+", "G", ",", "z", ".", "z", "?")
            await pilot.pause()
            await pilot.press("escape", "4", "down", "1", "down", "2")
            await pilot.pause()

    drive(body)
    assert len(compared) > 8 and min(compared) < size[1], "some updates were of single rows"
