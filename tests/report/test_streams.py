"""Acceptance along a stream on the pages: its numbers, its swaps, and nothing of it where nothing learns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from specbench.report.board import build_board
from specbench.report.page import write_leaderboard
from specbench.report.stream_page import figures_of, lines_of
from specbench.store.db import open_store
from specbench.store.stream_records import StreamCurve
from specbench.store.streams import stream_curves
from tests.conftest import Ran, find_chromium
from tests.report.browser import Browser
from tests.report.samples import method_row, record, summary
from tests.tui.streams import LEARNING, ON, write_learning


@pytest.fixture(scope="module")
def learning(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("learning")
    write_learning(store)
    return store


def _curves(store: Path) -> tuple[StreamCurve, ...]:
    with open_store(store / "specbench.duckdb", read_only=True) as connection:
        return stream_curves(connection, LEARNING)


def test_a_board_without_learning_has_no_streams() -> None:
    [scope] = build_board([record(summary(method_row()))], [])["scopes"]
    assert scope["streams"] == []


def test_plot_writes_the_curve_and_refuses_a_run_that_has_none(
    specbench: Callable[..., Ran], learning: Path, store_of_one: Path
) -> None:
    ran = specbench("results", "plot", LEARNING, "--store", str(learning))
    assert ran.code == 0 and "promoted, version 1 from 0; held out 0.510 → 0.580 [+0.020, +0.120]" in ran.out, ran.err
    page = (learning / "runs" / LEARNING / "curves.html").read_text()
    assert page.startswith("<!doctype html>") and "Acceptance along the stream" in page and "rolled back" in page
    found = json.loads(specbench("results", "plot", LEARNING, "--store", str(learning), "--json").out)
    assert [curve["method"] for curve in found["streams"]] == [curve.method for curve in _curves(learning)]
    ran = specbench("results", "plot", "run-a", "--store", str(store_of_one))
    assert ran.code == 2 and "nothing learns: it has no curves" in ran.err and "specbench leaderboard" in ran.err


@pytest.fixture
def store_of_one(tmp_path: Path) -> Path:
    from specbench.store.ingest import ingest
    from tests.store.synthetic import write_synthetic

    ingest(tmp_path / "specbench.duckdb", write_synthetic(tmp_path / "runs" / "run-a", num_questions=2, repeats=1))
    return tmp_path


def test_figures_hold_the_curve_its_intervals_and_its_swaps(learning: Path) -> None:
    off, on = _curves(learning)
    together, gains, versions = figures_of((off, on))
    assert together.traces[1]["y"] == [point.acceptance for point in on.points]
    swaps = together.traces[2]
    assert (
        swaps["x"] == [change.at for change in on.changes if change.is_swap] and "rolled back" in swaps["hovertext"][-1]
    )
    assert len(gains.traces[0]["x"]) == sum(change.gain_ci is not None for change in on.changes) == 4
    assert versions.traces[0]["x"] == [0, 1, 2, 3, 4]
    assert lines_of((off,))[0].startswith(off.method) and len(lines_of((on,))) == 1 + len(on.changes)


@pytest.mark.chromium
def test_the_board_draws_it_where_something_learns(learning: Path, tmp_path: Path) -> None:
    page = write_leaderboard(learning / "specbench.duckdb", tmp_path / "board.html")
    found = find_chromium()
    assert found is not None, "a test with this marker is skipped where there is no browser"
    with Browser(found, tmp_path / "profile") as browser:
        browser.open(page.as_uri(), height=8000)
        browser.wait("document.querySelectorAll('#fig-streams .main-svg').length >= 1")
        assert not browser.evaluate("document.getElementById('streams').hidden")
        rows = (
            "[...document.querySelectorAll('#tab-changes tr.row')].map(tr => [...tr.cells].map(td => td.textContent))"
        )
        changes = browser.evaluate(rows)
        on = next(curve for curve in _curves(learning) if curve.method == ON.label)
        assert [row[2] for row in changes] == [change.outcome for change in on.changes]
        assert [row[1] for row in changes] == [str(change.at) for change in on.changes]
        assert "+0.070" in changes[2] and "[+0.020, +0.120]" in changes[2]
        # Five swaps: two promotions a repeat, and a way back.
        dashed = "document.querySelectorAll('#fig-streams .shapelayer path').length"
        assert browser.evaluate(dashed) == sum(change.is_swap for change in on.changes) == 5
        assert browser.requests == [page.as_uri()] and browser.problems == []
