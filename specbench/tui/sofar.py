"""Speed-up so far, from a journal alone: the pairs the store's views would make, through metrics.py. No Textual.

A cell is one timed group; a unit is a question (a batch of them), its turns and repeats pooled: a method's where it has
finished every cell that the baseline has. The same pairing stands in views.sql (`paired_cells`, `unit_pairs`); a test
holds the two together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from specbench.manifest import Manifest
from specbench.metrics import Bootstrap, Speedup, speedups
from specbench.tui.index import RunIndex


class MethodSoFar(NamedTuple):
    """A method's figures over every answer that is in the journal by now."""

    method: str
    num_tokens: int
    num_decode_tokens: int
    num_steps: int
    total_s: float
    prefill_s: float
    decode_s: float
    draft_s: float
    verify_s: float
    accept_s: float
    commit_s: float
    speedup: Speedup | None
    """None for the baseline and where nothing was paired."""

    @property
    def tokens_per_s(self) -> float | None:
        """New tokens / end-to-end seconds."""
        return self.num_tokens / self.total_s if self.total_s else None

    @property
    def acceptance_length(self) -> float | None:
        """Tokens kept per step, bonus included."""
        return self.num_decode_tokens / self.num_steps if self.num_steps else None


class _Seconds(NamedTuple):
    total_s: float
    prefill_s: float
    decode_s: float
    draft_s: float
    verify_s: float
    accept_s: float
    commit_s: float


def _seconds(sums: list[float]) -> _Seconds:
    return _Seconds(*sums[3:])


class _Cell(NamedTuple):
    method: str
    unit: str
    turn: int
    repeat: int


class SoFar:
    """Keeps the resamples between calls: their number of units changes seldom."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._bootstrap: Bootstrap | None = None
        self._records = {record.group: record for record in manifest.groups}
        self.baseline = next(
            (method.label for method in manifest.methods if method.kind == "baseline" and not method.is_control), None
        )

    def figures(self, index: RunIndex) -> dict[str, MethodSoFar]:
        """By method, in the order of the plan; methods without an answer yet have zeros."""
        sums = {method.label: [0.0] * 10 for method in self._manifest.methods}
        cells: dict[_Cell, tuple[int, float]] = {}
        for number, group in list(index.groups.items()):
            record = self._records.get(number)
            endings = [
                row.ending for row in list(group.rows.values()) if row.ending is not None and not row.ending.error
            ]
            if record is None or len(endings) < len(record.question_ids):
                continue
            tokens = sum(ending.num_tokens for ending in endings)
            seconds = sum(ending.total_s for ending in endings)
            cells[_Cell(record.method, "|".join(record.question_ids), record.turn, record.repeat)] = (tokens, seconds)
            parts = (
                tokens,
                sum(ending.num_tokens - 1 for ending in endings),
                sum(ending.num_steps for ending in endings),
                seconds,
                sum(ending.phases.prefill_s for ending in endings),
                sum(ending.decode_s for ending in endings),
                *(sum(ending.phases[place] for ending in endings) for place in range(1, 5)),
            )
            sums[record.method] = [a + b for a, b in zip(sums[record.method], parts, strict=True)]
        paired = self._speedups(cells)
        return {
            method: MethodSoFar(method, int(of[0]), int(of[1]), int(of[2]), *_seconds(of), speedup=paired.get(method))
            for method, of in sums.items()
        }

    def _speedups(self, cells: dict[_Cell, tuple[int, float]]) -> dict[str, Speedup]:
        if self.baseline is None:
            return {}
        units = sorted({cell.unit for cell in cells if cell.method == self.baseline})
        methods = [method.label for method in self._manifest.methods]
        if not units:
            return {}
        rows = {unit: place for place, unit in enumerate(units)}
        columns = {method: place for place, method in enumerate(methods)}
        sums = np.full((4, len(units), len(methods)), np.nan)
        num_cells = np.zeros((len(units), len(methods)), dtype=np.int64)
        for cell, (tokens, seconds) in cells.items():
            base = cells.get(cell._replace(method=self.baseline))
            if base is None:
                continue
            place = (rows[cell.unit], columns[cell.method])
            num_cells[place] += 1
            sums[:, *place] = np.nan_to_num(sums[:, *place]) + np.array([seconds, tokens, base[1], base[0]])
        sums[:, num_cells < num_cells[:, [columns[self.baseline]]]] = np.nan
        if self._bootstrap is None or self._bootstrap.num_units != len(units):
            self._bootstrap = Bootstrap(len(units), seed=self._manifest.seed)
        found = speedups(
            seconds_UK=sums[0],
            tokens_UK=sums[1],
            base_seconds_UK=sums[2],
            base_tokens_UK=sums[3],
            bootstrap=self._bootstrap,
        )
        return {
            method: each
            for method, each in zip(methods, found, strict=True)
            if each.num_units and method != self.baseline
        }
