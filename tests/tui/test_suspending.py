"""The key that a shell has for every program."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from specbench.tui.views.dialogs import Typing
from tests.tui.screens import an_app, drive, screen_text, settled


def test_ctrl_z_stops_the_viewer_as_a_shell_expects_and_says_where_it_cannot(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On every screen, and in a dialog whose field has the focus."""
    sent: list[tuple[int, int]] = []

    async def body() -> None:
        app = an_app(store)
        async with app.run_test(size=(120, 36)) as pilot:
            await settled(pilot, lambda: "✓ finished" in screen_text(app))
            await pilot.press("ctrl+z")
            await settled(pilot, lambda: "cannot be suspended in this terminal" in screen_text(app))
            assert sent == []
            monkeypatch.setattr(type(app._driver), "can_suspend", property(lambda _: True))
            await pilot.press("ctrl+z")
            await settled(pilot, lambda: len(sent) == 1)
            await pilot.press("slash")
            await settled(pilot, lambda: isinstance(app.screen, Typing))
            await pilot.press("ctrl+z")
            await settled(pilot, lambda: len(sent) == 2)
            assert set(sent) == {(os.getpid(), signal.SIGTSTP)}

    real = os.kill

    def kill(pid: int, number: int) -> None:
        # Others ask by it whether a process is there.
        sent.append((pid, number)) if number == signal.SIGTSTP else real(pid, number)

    monkeypatch.setattr(os, "kill", kill)
    drive(body)
