"""Everything the views say of one run, read once. No torch."""

from __future__ import annotations

import json
from typing import Any

import duckdb

from specbench.metrics import Bootstrap, Speedup
from specbench.store.control import judge
from specbench.store.files import unknown_run
from specbench.store.pairs import PairTable, fetch, load_pairs
from specbench.store.records import Control

SLOW_BASELINE = 0.6
"""On CUDA a baseline below this share of the measured bandwidth gives no ranks (measurement 11)."""
Row = dict[str, Any]


def run_ids(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Runs in the store, newest first."""
    return [row["run_id"] for row in fetch(connection, "SELECT run_id FROM runs ORDER BY created DESC, run_id DESC")]


def load_run(connection: duckdb.DuckDBPyConnection, run_id: str) -> Row:
    """The run's row without its manifest. Raises UsageError, suggesting the nearest id."""
    rows = fetch(connection, "SELECT * EXCLUDE manifest FROM runs WHERE run_id = ?", run_id)
    if not rows:
        raise unknown_run(run_id, run_ids(connection))
    return rows[0]


class Facts:
    """What the views say of a run, by method and category (None = pooled), and its paired units."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, run: Row) -> None:
        self.run = run
        run_id = run["run_id"]
        self.methods = fetch(connection, "SELECT * FROM methods WHERE run_id = ? ORDER BY position", run_id)

        def by_category(view: str) -> dict[tuple[str, str | None], Row]:
            rows = fetch(connection, f"SELECT * FROM {view} WHERE run_id = ?", run_id)
            return {(row["method"], row["category"]): row for row in rows}

        def by_method(view: str) -> dict[str, Row]:
            return {row["method"]: row for row in fetch(connection, f"SELECT * FROM {view} WHERE run_id = ?", run_id)}

        self.totals = by_category("totals")
        self.waterfall = by_category("waterfall")
        self.verdicts = by_category("verdicts")
        self.failures = by_category("failure_counts")
        self.macro = by_method("acceptance_macro")
        self.theory = by_method("chain_theory")
        self.meter = by_method("baseline_meter")
        self.energy = by_method("energy")
        self.not_captured = by_method("not_captured")
        self.single_steps = by_method("single_steps")
        query = "SELECT method, sum(value) AS s FROM measurements WHERE run_id = ? AND name = 'learn_s' GROUP BY method"
        self.learn_s: dict[str, float] = {row["method"]: row["s"] for row in fetch(connection, query, run_id)}
        self.learn_beside = {
            method["method"] for method in self.methods if json.loads(method["options"]).get("learning") == "concurrent"
        }
        """Whose rounds run in a process beside their answers: their learn_s are of handing over alone."""
        baseline = fetch(connection, "SELECT method FROM baselines WHERE run_id = ?", run_id)
        self.baseline: str | None = baseline[0]["method"] if baseline else None
        self.positions: dict[str, list[Row]] = {}
        query = "SELECT * FROM acceptance_by_position WHERE run_id = ? AND category IS NULL ORDER BY method, depth"
        for row in fetch(connection, query, run_id):
            self.positions.setdefault(row["method"], []).append(row)
        self.pairs: PairTable = load_pairs(connection, run_id, [method["method"] for method in self.methods])
        self._bootstraps: dict[int, Bootstrap] = {}
        self.bootstrap = self.bootstrap_of(max(1, len(self.pairs.units)))
        self.speedups = self.pairs.speedups(self.bootstrap) if self.pairs.units else {}
        self.control = self._control()
        self.by_category = self._categories() if run["batch_size"] == 1 else {}

    def _control(self) -> Control | None:
        label = next((method["method"] for method in self.methods if method["is_control"]), None)
        return None if label is None else judge(label, self.speedups.get(label))

    def _categories(self) -> dict[str, dict[str, Speedup]]:
        found = {}
        for category in dict.fromkeys(self.pairs.categories):
            units = [u for u, of_unit in enumerate(self.pairs.categories) if of_unit == category]
            table = self.pairs.select(units=units)
            found[category] = table.speedups(self.bootstrap_of(len(units)))
        return found

    def bootstrap_of(self, num_units: int) -> Bootstrap:
        """The run's own resamples of so many units; drawn once."""
        if num_units not in self._bootstraps:
            self._bootstraps[num_units] = Bootstrap(num_units, seed=self.run["seed"])
        return self._bootstraps[num_units]

    def is_slow_baseline(self) -> bool:
        """On CUDA only: elsewhere a plain copy says little about what a forward could reach."""
        share = self.meter[self.baseline]["share"] if self.baseline in self.meter else None
        return self.run["device_kind"] == "cuda" and share is not None and share < SLOW_BASELINE
