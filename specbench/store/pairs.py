"""Rows of `unit_pairs` as arrays for metrics.py: one row per unit, one column per method. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import duckdb
import numpy as np

from specbench.metrics import Bootstrap, FloatArray, Speedup, speedups

_FIELDS = {
    "seconds_UK": "total_s",
    "tokens_UK": "num_new_tokens",
    "base_seconds_UK": "base_total_s",
    "base_tokens_UK": "base_num_new_tokens",
    "decode_s_UK": "decode_s",
    "decode_tokens_UK": "num_decode_tokens",
    "num_steps_UK": "num_steps",
    "base_decode_s_UK": "base_decode_s",
    "base_decode_tokens_UK": "base_num_decode_tokens",
}


def fetch(connection: duckdb.DuckDBPyConnection, query: str, *values: Any) -> list[dict[str, Any]]:
    """All rows of a query, by column name."""
    cursor = connection.execute(query, list(values))
    names = [column[0] for column in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


Mix = frozenset[tuple[int, Fraction]]
"""What a unit is made of: its turns, each with its share of the timed groups. Repeats leave it as it is."""


@dataclass(frozen=True, kw_only=True)
class PairTable:
    """Methods beside the baseline, unit by unit; float64 (U, K), NaN where a method has no pair for a unit.

    All methods that have a unit have the same turns and repeats of it (paired_cells).
    """

    units: tuple[str, ...]
    categories: tuple[str, ...]
    """Of each unit."""
    mixes: tuple[Mix, ...]
    """Of each unit."""
    methods: tuple[str, ...]
    seconds_UK: FloatArray
    tokens_UK: FloatArray
    base_seconds_UK: FloatArray
    base_tokens_UK: FloatArray
    decode_s_UK: FloatArray
    decode_tokens_UK: FloatArray
    num_steps_UK: FloatArray
    base_decode_s_UK: FloatArray
    base_decode_tokens_UK: FloatArray

    def logs_UK(self) -> FloatArray:
        """log of each unit's speed-up."""
        base: FloatArray = self.base_seconds_UK / self.base_tokens_UK
        logs: FloatArray = np.log(base / (self.seconds_UK / self.tokens_UK))
        return logs

    def select(self, *, units: Sequence[int] | None = None, methods: Sequence[int] | None = None) -> PairTable:
        """The named rows and columns, by index."""
        rows = list(range(len(self.units))) if units is None else list(units)
        columns = list(range(len(self.methods))) if methods is None else list(methods)
        return PairTable(
            units=tuple(self.units[u] for u in rows),
            categories=tuple(self.categories[u] for u in rows),
            mixes=tuple(self.mixes[u] for u in rows),
            methods=tuple(self.methods[k] for k in columns),
            **{name: getattr(self, name)[np.ix_(rows, columns)] for name in _FIELDS},
        )

    def of_method(self, method: str) -> PairTable:
        """One column, and of its units only those that are paired."""
        column = self.methods.index(method)
        units = [int(u) for u in np.flatnonzero(~np.isnan(self.seconds_UK[:, column]))]
        return self.select(units=units, methods=[column])

    def speedups(self, bootstrap: Bootstrap) -> dict[str, Speedup]:
        """By method; `bootstrap` resamples this table's units."""
        found = speedups(
            seconds_UK=self.seconds_UK,
            tokens_UK=self.tokens_UK,
            base_seconds_UK=self.base_seconds_UK,
            base_tokens_UK=self.base_tokens_UK,
            bootstrap=bootstrap,
        )
        return dict(zip(self.methods, found, strict=True))


def load_pairs(connection: duckdb.DuckDBPyConnection, run_id: str, methods: Sequence[str]) -> PairTable:
    """The run's units in a fixed order (so that a seed means the same resamples), columns in the order of `methods`."""
    rows = fetch(connection, "SELECT * FROM unit_pairs WHERE run_id = ? ORDER BY unit, method", run_id)
    of_unit = {row["unit"]: row for row in rows}
    units = {unit: index for index, unit in enumerate(of_unit)}
    columns = {method: index for index, method in enumerate(methods)}
    arrays = {name: np.full((len(units), len(columns)), np.nan) for name in _FIELDS}
    for row in rows:
        place = (units[row["unit"]], columns[row["method"]])
        for name, source in _FIELDS.items():
            arrays[name][place] = row[source]
    return PairTable(
        units=tuple(units),
        categories=tuple(row["category"] for row in of_unit.values()),
        mixes=tuple(_mix(row["turns"]) for row in of_unit.values()),
        methods=tuple(methods),
        **arrays,
    )


def _mix(turns: Sequence[int]) -> Mix:
    return frozenset((turn, Fraction(number, len(turns))) for turn, number in Counter(turns).items())
