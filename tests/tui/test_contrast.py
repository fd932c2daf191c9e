"""What is written can be read: WCAG 2.1's contrast of at least 4.5, computed from the colours on the screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.segment import Segment
from textual.widgets import Input

from specbench.tui.app import SpecbenchApp
from specbench.tui.theme import THEMES
from tests.tui.screens import WIDE, an_app, drive, settled

_LEAST = 4.5


def _luminance(colour: tuple[int, int, int]) -> float:
    def linear(value: int) -> float:
        share = value / 255
        return share / 12.92 if share <= 0.03928 else ((share + 0.055) / 1.055) ** 2.4

    red, green, blue = map(linear, colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def _colour(words: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(words.removeprefix("#"))
    return red, green, blue


def test_the_contrast_of_black_on_white_is_21() -> None:
    assert _contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert _contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
@pytest.mark.parametrize("ground", ["surface", "panel", "background"])
def test_placeholders_can_be_read_on_every_ground(theme: Any, ground: str) -> None:
    assert _contrast(_colour(theme.variables["placeholder"]), _colour(getattr(theme, ground))) >= _LEAST


def _shown(app: SpecbenchApp, words: str) -> list[Segment]:
    strips = app.screen._compositor.render_strips(app.size)
    return [segment for strip in strips for segment in strip if words in segment.text]


def _contrast_of(segment: Segment) -> float:
    style = segment.style
    assert style is not None and style.color is not None and style.bgcolor is not None
    front, back = style.color.triplet, style.bgcolor.triplet
    assert front is not None and back is not None and not style.dim and not style.reverse
    return _contrast(tuple(front), tuple(back))  # type: ignore[arg-type]


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_placeholders_of_the_form_the_chat_and_the_palette_can_be_read(tmp_path: Path, theme: str) -> None:
    async def body() -> None:
        app = an_app(tmp_path, theme=theme)
        async with app.run_test(size=WIDE) as pilot:
            await pilot.press("9")
            await settled(pilot, lambda: bool(_shown(app, "nter loads a target")))
            for segment in _shown(app, "nter loads a target"):
                assert _contrast_of(segment) >= _LEAST
            await pilot.press("1", "n")
            await settled(pilot, lambda: bool(_shown(app, "MODEL")) or bool(_shown(app, "demo")))
            hints = [each.placeholder for each in app.screen.query(Input) if not each.value and not each.has_focus]
            shown = [segment for hint in hints if hint for segment in _shown(app, str(hint)[:12])]
            assert shown
            assert min(map(_contrast_of, shown)) >= _LEAST
            await pilot.press("escape")
            await pilot.press("ctrl+p")
            await settled(pilot, lambda: bool(_shown(app, "earch for commands")))
            assert min(map(_contrast_of, _shown(app, "earch for commands"))) >= _LEAST

    drive(body)
