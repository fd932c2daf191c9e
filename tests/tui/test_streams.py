"""Acceptance along a stream on the Accept screen: the swaps in their places, and nothing of it on other runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from specbench.store.db import open_store
from specbench.store.stream_records import StreamCurve
from specbench.store.streams import stream_curves
from specbench.tui.lines import plain, plain_text, width_of
from specbench.tui.views.accept import AcceptView
from tests.tui.screens import RUN, SIZES, an_app, drive, screen_text, settled
from tests.tui.streams import LEARNING, OFF, ON, write_learning
from tests.tui.test_golden import _compare


@pytest.fixture(scope="module")
def learning(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("learning")
    write_learning(store)
    return store


def _curves(store: Path, run_id: str = LEARNING) -> tuple[StreamCurve, ...]:
    with open_store(store / "specbench.duckdb", read_only=True) as connection:
        return stream_curves(connection, run_id)


def test_a_curve_is_the_streams_own_counts_and_swaps_stand_where_they_happened(learning: Path) -> None:
    off, on = _curves(learning)
    assert (off.method, off.learns, on.method, on.learns) == (OFF.label, False, ON.label, True)
    with open_store(learning / "specbench.duckdb", read_only=True) as connection:
        rows = connection.execute(
            "SELECT repeat, group_id, since, num_tried, num_accepted FROM stream_acceptance WHERE method = ? "
            "ORDER BY repeat, since",
            [ON.label],
        ).fetchall()
    assert sum(point.num_tried for point in on.points) == sum(row[3] for row in rows)
    assert sum(point.num_accepted for point in on.points) == sum(row[4] for row in rows)
    assert all(
        p.acceptance_ci is None or p.acceptance_ci.low <= p.acceptance <= p.acceptance_ci.high for p in on.points
    )
    # The first promotion follows the eighth answer of its repeat: so much had been tried by then.
    of_first = [row for row in rows if row[0] == 0]
    [first] = [change for change in on.changes if (change.repeat, change.version) == (0, 1) and change.previous == 0]
    assert first.at == of_first[8][2] == sum(row[3] for row in of_first[:8])
    assert [change.outcome for change in on.changes if change.repeat == 0] == [
        "kept", "promoted", "promoted", "rolled back",
    ]  # fmt: skip
    assert [row.version for row in on.versions] == [0, 1, 2, 3, 4] and not off.changes and not off.versions


def test_a_run_in_which_nothing_learns_has_no_curve(store: Path) -> None:
    assert _curves(store, RUN) == ()


@pytest.mark.parametrize("size", SIZES)
def test_the_accept_screen_of_a_learning_run_looks_as_it_did(
    learning: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the depths where there is room; as the third unit everywhere."""
    monkeypatch.setenv("NO_COLOR", "1")

    async def body() -> None:
        app = an_app(learning, LEARNING)
        async with app.run_test(size=size) as pilot:
            await pilot.press("4")
            await settled(pilot, lambda: isinstance(app.screen, AcceptView) and app.screen.summed is not None)
            await pilot.pause(0.2)
            if size[0] >= 120:
                assert "Acceptance along the stream" in screen_text(app) and "▲" in screen_text(app)
            await pilot.press("u")
            assert "Survival by depth" in screen_text(app)
            await pilot.press("u")
            await pilot.pause(0.2)
            assert "promoted, version" in screen_text(app)
            _compare(app, "accept-learning")
            await pilot.press("u")
            await pilot.pause(0.2)
            assert "Acceptance by depth" in screen_text(app)

    drive(body)


def test_lines_fit_and_a_hostile_reason_is_harmless(learning: Path) -> None:
    import dataclasses

    from specbench.store.summary import summarise
    from specbench.tui.draw_streams import stream_lines

    with open_store(learning / "specbench.duckdb", read_only=True) as connection:
        summary = summarise(connection, LEARNING)
    off, on = _curves(learning)
    changes = tuple(dataclasses.replace(each, why="\x1b[2Jgone", gain_ci=None, before=None) for each in on.changes)
    hostile = (off, dataclasses.replace(on, changes=changes))
    one_row, many = (plain_text(stream_lines((off, on), summary, 118, height)) for height in (8, 30))
    low, high = (f(point.acceptance for each in (off, on) for point in each.points) for f in (min, max))
    assert f"on {low:.3f} to {high:.3f}" in one_row and f"{low:.3f} ┤" in many, "the lower end of the scale is said"
    for width, height in ((20, 3), (58, 10), (118, 30)):
        for row in stream_lines(hostile, summary, width, height):
            assert width_of(row) <= width and "\x1b" not in plain(row)
    assert "gone" in plain_text(stream_lines(hostile, summary, 118, 30))
