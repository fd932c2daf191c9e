"""Everything the views say of one run, each view read once and when it is asked for. No torch."""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any

import duckdb

from specbench.metrics import Bootstrap, Interval, Speedup, efficiency_interval
from specbench.store.control import judge
from specbench.store.files import unknown_run
from specbench.store.pairs import PairTable, fetch, load_pairs
from specbench.store.records import Control

SLOW_BASELINE = 0.6
"""On CUDA a baseline below this share of the measured bandwidth gives no ranks (measurement 11)."""
MOST_SINGLE = 0.05
"""A method of which a larger share of the timed steps met no graph, where steps are graphs, gets no rank."""
Row = dict[str, Any]
Bootstraps = dict[tuple[int, int], Bootstrap]
"""Resamples by number of units and seed."""


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
    """What the views say of a run, by method and category (None = pooled), and its paired units.

    A list of runs asks for few of the views, so none is read before it is needed.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, run: Row, bootstraps: Bootstraps | None = None) -> None:
        """bootstraps: of other runs, to be shared with this one."""
        self.run = run
        self._connection = connection
        self._bootstraps: Bootstraps = {} if bootstraps is None else bootstraps
        self._efficiencies: dict[str, Interval | None] = {}
        self.methods = self._rows("SELECT * FROM methods WHERE run_id = ? ORDER BY position")

    def _rows(self, query: str) -> list[Row]:
        return fetch(self._connection, query, self.run["run_id"])

    def _by_category(self, view: str) -> dict[tuple[str, str | None], Row]:
        return {(row["method"], row["category"]): row for row in self._rows(f"SELECT * FROM {view} WHERE run_id = ?")}

    def _by_method(self, view: str) -> dict[str, Row]:
        return {row["method"]: row for row in self._rows(f"SELECT * FROM {view} WHERE run_id = ?")}

    @cached_property
    def totals(self) -> dict[tuple[str, str | None], Row]:
        return self._by_category("totals")

    @cached_property
    def waterfall(self) -> dict[tuple[str, str | None], Row]:
        return self._by_category("waterfall")

    @cached_property
    def verdicts(self) -> dict[tuple[str, str | None], Row]:
        return self._by_category("verdicts")

    @cached_property
    def failures(self) -> dict[tuple[str, str | None], Row]:
        return self._by_category("failure_counts")

    @cached_property
    def macro(self) -> dict[str, Row]:
        return self._by_method("acceptance_macro")

    @cached_property
    def theory(self) -> dict[str, Row]:
        return self._by_method("chain_theory")

    @cached_property
    def meter(self) -> dict[str, Row]:
        return self._by_method("baseline_meter")

    @cached_property
    def energy(self) -> dict[str, Row]:
        return self._by_method("energy")

    @cached_property
    def not_captured(self) -> dict[str, Row]:
        return self._by_method("not_captured")

    @cached_property
    def single_steps(self) -> dict[str, Row]:
        return self._by_method("single_steps")

    @cached_property
    def unsettled(self) -> dict[str, str]:
        """How far a method's step time was from settled when timing began; the last such part of a resumed run."""
        query = """
            SELECT method, arg_max(detail, position) AS detail
            FROM measurements
            WHERE run_id = ? AND name = 'warm_up_s' AND detail <> ''
            GROUP BY method
        """
        return {row["method"]: row["detail"] for row in self._rows(query)}

    @cached_property
    def drafts_not_finite(self) -> dict[str, Row]:
        return self._by_method("drafts_not_finite")

    @cached_property
    def unpaired(self) -> dict[str, Row]:
        return self._by_method("unpaired")

    @cached_property
    def learn_s(self) -> dict[str, float]:
        query = "SELECT method, sum(value) AS s FROM measurements WHERE run_id = ? AND name = 'learn_s' GROUP BY method"
        return {row["method"]: row["s"] for row in self._rows(query)}

    @cached_property
    def learn_beside(self) -> set[str]:
        """Whose rounds run in a process beside their answers: their learn_s are of handing over alone."""
        return {each["method"] for each in self.methods if json.loads(each["options"]).get("learning") == "concurrent"}

    @cached_property
    def baseline(self) -> str | None:
        found = self._rows("SELECT method FROM baselines WHERE run_id = ?")
        return found[0]["method"] if found else None

    @cached_property
    def positions(self) -> dict[str, list[Row]]:
        found: dict[str, list[Row]] = {}
        query = "SELECT * FROM acceptance_by_position WHERE run_id = ? AND category IS NULL ORDER BY method, depth"
        for row in self._rows(query):
            found.setdefault(row["method"], []).append(row)
        return found

    @cached_property
    def pairs(self) -> PairTable:
        return load_pairs(self._connection, self.run["run_id"], [method["method"] for method in self.methods])

    @property
    def bootstrap(self) -> Bootstrap:
        """Of all the run's units."""
        return self.bootstrap_of(max(1, len(self.pairs.units)))

    @cached_property
    def speedups(self) -> dict[str, Speedup]:
        return self.pairs.speedups(self.bootstrap) if self.pairs.units else {}

    @cached_property
    def control(self) -> Control | None:
        label = next((method["method"] for method in self.methods if method["is_control"]), None)
        return None if label is None else judge(label, self.speedups.get(label))

    @cached_property
    def by_category(self) -> dict[str, dict[str, Speedup]]:
        """Empty at batch > 1."""
        found: dict[str, dict[str, Speedup]] = {}
        for category in dict.fromkeys(self.pairs.categories if self.run["batch_size"] == 1 else ()):
            units = [u for u, of_unit in enumerate(self.pairs.categories) if of_unit == category]
            table = self.pairs.select(units=units)
            found[category] = table.speedups(self.bootstrap_of(len(units)))
        return found

    def efficiency_ci(self, label: str) -> Interval | None:
        """None for the baseline, and with fewer than two paired units."""
        if label not in self._efficiencies:
            self._efficiencies[label] = None if label == self.baseline else self._efficiency(label)
        return self._efficiencies[label]

    def _efficiency(self, label: str) -> Interval | None:
        table = self.pairs.of_method(label)
        if len(table.units) < 2:
            return None
        return efficiency_interval(
            seconds_U=table.decode_s_UK[:, 0],
            num_steps_U=table.num_steps_UK[:, 0],
            base_seconds_U=table.base_decode_s_UK[:, 0],
            base_tokens_U=table.base_decode_tokens_UK[:, 0],
            bootstrap=self.bootstrap_of(len(table.units)),
        )

    def bootstrap_of(self, num_units: int) -> Bootstrap:
        """The run's own resamples of so many units; drawn once."""
        key = (num_units, self.run["seed"])
        if key not in self._bootstraps:
            self._bootstraps[key] = Bootstrap(num_units, seed=self.run["seed"])
        return self._bootstraps[key]

    def is_lossy(self, kind: str) -> bool:
        """The baseline drafts nothing, so that no rule can take anything from it."""
        return bool(self.run["rule"] == "typical") and kind != "baseline"

    def has_too_few_graphs(self, label: str) -> bool:
        """Whether too many of its steps ran operator by operator beside others that did not."""
        found = self.single_steps.get(label)
        return found is not None and found["share"] is not None and bool(found["share"] > MOST_SINGLE)

    def is_refused_as_baseline(self, label: str) -> bool:
        """Whether neither its steps nor the baseline's can be captured, for a reason of their own (the forward of a
        mixture of experts): both were run alike, and may be compared."""
        both = (self.not_captured.get(each or "", {}) for each in (label, self.baseline))
        return all(found.get("reason") for found in both)

    def is_slow_baseline(self) -> bool:
        """On CUDA only: elsewhere a plain copy says little about what a forward could reach."""
        if self.run["device_kind"] != "cuda":
            return False
        share = self.meter[self.baseline]["share"] if self.baseline in self.meter else None
        return share is not None and share < SLOW_BASELINE
