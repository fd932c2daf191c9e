"""Acceptance along a stream, the rounds of learning in their places: of runs in which a method learns. No torch."""

from __future__ import annotations

from typing import Any

import duckdb
import numpy as np

from specbench.metrics import Bootstrap, Interval, percentile_interval
from specbench.store.pairs import fetch
from specbench.store.stream_records import AdapterChange, StreamCurve, StreamPoint, VersionRow

_MOST_POINTS = 16
_LEAST_ANSWERS = 3
"""In a stretch of one repeat: fewer make a point of noise."""
_SEED = 0
# Methods that learn, and those of the same card beside them that do not.
_METHODS = """
    WITH learning AS (SELECT DISTINCT method FROM measurements WHERE run_id = $run AND name = 'learn_s')
    SELECT m.method, m.method IN (SELECT method FROM learning) AS learns
    FROM methods AS m
    WHERE m.run_id = $run AND m.name IN (
        SELECT o.name FROM methods AS o WHERE o.run_id = $run AND o.method IN (SELECT method FROM learning)
    )
    ORDER BY m.position
"""
# A round stands behind the answers of its group.
_CHANGES = """
    SELECT
        c.*,
        p.repeat,
        coalesce((
            SELECT sum(s.num_tried) FROM stream_acceptance AS s
            WHERE s.run_id = c.run_id AND s.method = c.method AND s.repeat = p.repeat AND s.group_id <= c.group_id
        ), 0)::BIGINT AS at
    FROM adapter_rounds AS c
    JOIN groups AS p ON p.run_id = c.run_id AND p.group_id = c.group_id
    WHERE c.run_id = ?
    ORDER BY c.position
"""


def stream_curves(connection: duckdb.DuckDBPyConnection, run_id: str) -> tuple[StreamCurve, ...]:
    """A curve per method that learns and per method it can be held against; () for a run in which none does."""
    methods = connection.execute(_METHODS, {"run": run_id}).fetchall()
    if not methods:
        return ()
    answers = fetch(connection, "SELECT * FROM stream_acceptance WHERE run_id = ? ORDER BY repeat, since", run_id)
    changes = fetch(connection, _CHANGES, run_id)
    versions = fetch(connection, "SELECT * FROM adapter_versions WHERE run_id = ? ORDER BY domain, version", run_id)
    return tuple(
        StreamCurve(
            method=method,
            learns=learns,
            num_repeats=len({row["repeat"] for row in answers if row["method"] == method}),
            points=_points([row for row in answers if row["method"] == method]),
            changes=tuple(_change(row) for row in changes if row["method"] == method),
            versions=tuple(_version(row) for row in versions if row["method"] == method),
        )
        for method, learns in methods
    )


def _points(answers: list[dict[str, Any]]) -> tuple[StreamPoint, ...]:
    """Stretches of equal length in tried positions; an answer belongs to the one that its middle lies in."""
    if not answers:
        return ()
    whole = max(row["since"] + row["num_tried"] for row in answers)
    per_repeat = len(answers) / len({row["repeat"] for row in answers})
    num = max(1, min(_MOST_POINTS, int(per_repeat / _LEAST_ANSWERS)))
    stretches: list[list[dict[str, Any]]] = [[] for _ in range(num)]
    for row in answers:
        middle = row["since"] + row["num_tried"] / 2
        stretches[min(num - 1, int(num * middle / whole))].append(row)
    return tuple(
        _point(rows, since=place * whole // num, until=(place + 1) * whole // num)
        for place, rows in enumerate(stretches)
        if rows
    )


def _point(rows: list[dict[str, Any]], *, since: int, until: int) -> StreamPoint:
    by_question: dict[str, list[int]] = {}
    for row in rows:
        sums = by_question.setdefault(row["question_id"], [0, 0])
        sums[0] += row["num_accepted"]
        sums[1] += row["num_tried"]
    counts = np.array(list(by_question.values()), dtype=np.float64)
    accepted, tried = (int(total) for total in counts.sum(axis=0))
    interval: Interval | None = None
    if len(counts) > 1:
        resampled = Bootstrap(len(counts), seed=_SEED, resamples=2000).sums(counts)
        interval = percentile_interval(resampled[:, 0] / resampled[:, 1], len(counts))
        if interval is not None:  # of few questions it is wider than a share can be
            interval = Interval(max(0.0, interval.low), min(1.0, interval.high))
    return StreamPoint(
        since=since,
        until=until,
        num_tried=tried,
        num_accepted=accepted,
        acceptance=accepted / tried,
        acceptance_ci=interval,
    )


def _change(row: dict[str, Any]) -> AdapterChange:
    has_gain = row["gain_low"] is not None and row["gain_high"] is not None
    return AdapterChange(
        before=row["acceptance_before"],
        after=row["acceptance_after"],
        gain_ci=Interval(row["gain_low"], row["gain_high"]) if has_gain else None,
        **{
            name: row[name]
            for name in (
                "repeat", "at", "domain", "outcome", "why", "version", "previous", "seconds", "num_steps",
                "num_positions", "num_held_out", "is_concurrent", "is_regrown",
            )
        },
    )  # fmt: skip


def _version(row: dict[str, Any]) -> VersionRow:
    names = ("domain", "version", "num_positions", "acceptance", "overlap")
    return VersionRow(**{name: row[name] for name in names})
