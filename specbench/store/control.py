"""The A/A control of a run: autoregression twice under two names (measurement 7). The one place that judges it.

Its interval must contain 1. Where it does not, the machine gave two equal things different speeds, and a rank made of
differences of that size would be noise: no method of the run is ranked. Speed-ups and intervals stay shown. No torch.
"""

from __future__ import annotations

from typing import Any

import duckdb

from specbench.metrics import Bootstrap, Speedup
from specbench.store.pairs import fetch, load_pairs
from specbench.store.records import Control

REMEDY = "measure again on a quiet machine, or with more questions or --repeats"


def judge(method: str, found: Speedup | None) -> Control:
    """found: the control's speed-up against the baseline; None where nothing was paired."""
    if found is None or found.num_units == 0:
        return Control(method=method, speedup=None, speedup_ci=None, passed=None)
    passed = found.interval.contains(1.0) if found.interval is not None else None
    return Control(method=method, speedup=found.geometric_mean, speedup_ci=found.interval, passed=passed)


def load_control(connection: duckdb.DuckDBPyConnection, run: dict[str, Any]) -> Control | None:
    """The control of a stored run, by the same resamples as its summary; None where it has none."""
    query = "SELECT method FROM methods WHERE run_id = ? AND is_control ORDER BY position"
    labels = [row["method"] for row in fetch(connection, query, run["run_id"])]
    if not labels:
        return None
    pairs = load_pairs(connection, run["run_id"], labels[:1])
    if not pairs.units:
        return judge(labels[0], None)
    return judge(labels[0], pairs.speedups(Bootstrap(len(pairs.units), seed=run["seed"]))[labels[0]])


def failure(control: Control | None) -> str:
    """`autoregression against itself gives [1.020, 1.041], which excludes 1`; empty where the control did not fail."""
    if control is None or control.passed is not False or control.speedup_ci is None:
        return ""
    low, high = control.speedup_ci
    return f"autoregression against itself gives [{low:.3f}, {high:.3f}], which excludes 1"
