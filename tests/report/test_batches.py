"""Throughput against batch size: what stands in one curve, and where a method is said to stop paying."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from specbench.metrics import Interval
from specbench.report.batches import Point, crossing, verdict
from specbench.report.board import build_board
from tests.report.samples import baseline_row, control_row, method_row, record, summary


def _point(batch_size: int, speedup: float, half: float = 0.05) -> Point:
    interval = Interval(speedup - half, speedup + half)
    return Point(batch_size=batch_size, tokens_per_s=100.0, speedup=speedup, speedup_ci=interval)


def _at(batch_size: int, *speedups: tuple[str, float], **changes: Any) -> Any:
    rows = (method_row(name, speedup=speedup) for name, speedup in speedups)
    found = summary(rows=(baseline_row(tokens_per_s=50.0 * batch_size), control_row(), *rows))
    return record(dataclasses.replace(found, run_id=f"b{batch_size}", batch_size=batch_size, **changes))


def test_the_crossing_lies_on_the_straight_line_between_its_neighbours() -> None:
    points = [_point(1, 2.0), _point(4, 1.25), _point(16, 0.8)]
    assert crossing(points) == pytest.approx(8.0), "half way between 4 and 16, as log 1.25 = -log 0.8"
    assert crossing(points[::-1]) == crossing(points), "the order they come in says nothing"


@pytest.mark.parametrize("speedups", [(2.0, 1.5, 1.1), (0.9, 0.8, 0.7), (2.0,)])
def test_without_two_sides_of_one_there_is_no_crossing(speedups: tuple[float, ...]) -> None:
    assert crossing([_point(2**i, speedup) for i, speedup in enumerate(speedups)]) is None


def test_an_interval_that_holds_one_proves_neither_side() -> None:
    points = [_point(1, 1.5), _point(4, 1.02), _point(8, 0.9), _point(2, 1.3)]
    assert verdict(points) == "pays at 1, 2; costs at 8; not told apart from plain decoding at 4"


def test_where_the_control_failed_nothing_is_judged() -> None:
    """The point is shown; no verdict and no crossing rests on it."""
    points = [_point(1, 1.5), _point(4, 1.25), dataclasses.replace(_point(16, 0.8), is_disturbed=True)]
    assert crossing(points) is None
    assert verdict(points) == "pays at 1, 4; not judged, for the A/A control failed, at 16"
    shaken = dataclasses.replace(method_row("a", speedup=0.8), control_failed=True, ranked=False, rank=None)
    last = summary(rows=(baseline_row(tokens_per_s=800.0), control_row(), shaken))
    board = build_board([_at(1, ("a", 2.0)), record(dataclasses.replace(last, run_id="b16", batch_size=16))], [])
    [line] = [line for line in board["scopes"][0]["batches"] if line["method"] == "a"]
    assert [point["is_disturbed"] for point in line["points"]] == [False, True] and line["crossing"] is None


def test_a_row_that_may_not_be_ranked_says_nothing_of_where_it_pays() -> None:
    """A control that knows the answers pays everywhere; what is noisy alone still proves what its interval shows."""
    points = [_point(1, 3.0), dataclasses.replace(_point(8, 2.0), is_unranked=True), _point(16, 0.9)]
    assert verdict(points) == "pays at 1; costs at 16; not judged, for it may not be ranked, at 8"
    assert crossing(points) == pytest.approx(crossing([points[0], points[2]]))

    def at(batch_size: int) -> Any:
        oracle = method_row("oracle", speedup=3.0, rank=None, reasons=("not ranked: a control, not a competitor",))
        wide = method_row("suffix", speedup=1.6, half=0.4, rank=None, too_noisy=True)
        found = summary(rows=(baseline_row(tokens_per_s=50.0), control_row(), oracle, wide))
        return record(dataclasses.replace(found, run_id=f"b{batch_size}", batch_size=batch_size))

    board = build_board([at(1), at(8)], [])
    lines = {line["method"]: line for line in board["scopes"][0]["batches"]}
    assert lines["oracle"]["verdict"] == "not judged, for it may not be ranked, at 1, 8"
    assert all(point["is_unranked"] for point in lines["oracle"]["points"])
    assert lines["suffix"]["verdict"] == "pays at 1, 8"
    assert not any(point["is_unranked"] for name in ("suffix", "autoregressive") for point in lines[name]["points"])


def test_runs_that_differ_in_the_batch_size_alone_share_their_curves() -> None:
    board = build_board([_at(1, ("a", 2.0), ("b", 1.5)), _at(4, ("a", 1.25)), _at(16, ("a", 0.8))], [])
    assert len(board["scopes"]) == 3, "they are never ranked together"
    for scope in board["scopes"]:
        lines = {line["method"]: line for line in scope["batches"]}
        assert set(lines) == {"a", "autoregressive"}, "b has one point, the control is no method"
        assert [point["batch_size"] for point in lines["a"]["points"]] == [1, 4, 16]
        assert [point["tokens_per_s"] for point in lines["autoregressive"]["points"]] == [50, 200, 800]
        assert math.isclose(lines["a"]["crossing"], 8.0, rel_tol=1e-4)
        assert lines["autoregressive"]["verdict"] == ""


@pytest.mark.parametrize("change", [{"dtype": "bfloat16"}, {"suite_hash": "c" * 64}, {"num_questions": 3}])
def test_runs_that_differ_in_more_do_not(change: dict[str, Any]) -> None:
    board = build_board([_at(1, ("a", 2.0)), _at(4, ("a", 1.2), **change)], [])
    assert [scope["batches"] for scope in board["scopes"]] == [[], []]


def test_namesakes_with_other_options_are_lines_of_their_own() -> None:
    """Two settings of one method at one batch size are no curve."""

    def with_options(found: Any, **options: int) -> Any:
        methods = [
            method.model_copy(update={"options": options} if method.label == "a" else {})
            for method in found.manifest.methods
        ]
        return dataclasses.replace(found, manifest=found.manifest.model_copy(update={"methods": tuple(methods)}))

    once, again, other = _at(1, ("a", 2.0)), _at(4, ("a", 0.8)), _at(1, ("a", 0.5), created="2026-11-22T00:00:00Z")
    runs = [with_options(once, k=1), with_options(again, k=1), with_options(other, k=2)]
    found = build_board(runs, [])["scopes"][0]["batches"]
    [line] = [line for line in found if line["method"] == "a"]
    assert [(point["batch_size"], point["speedup"]) for point in line["points"]] == [(1, 2.0), (4, 0.8)]
