"""Counts and seconds -> speed-ups with intervals, ties, ranks, and what theory expects. numpy only, no torch.

Shape legend: U units (questions; groups of questions at batch > 1), K columns (methods or sums), R resamples.
A NaN says that a unit has no pair for that column; it never counts as zero.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

RESAMPLES = 10_000
CONFIDENCE = 0.95
NOISE_LIMIT = 0.15
"""An interval wider than +-15 % of its estimate says nothing worth a rank."""
IMPLAUSIBLE_EFFICIENCY = 1.05
"""Speed-up cannot beat acceptance length on one engine; an interval wholly above this means a broken measurement."""
_CHUNK = 1000
_NORMAL = 1.959964
"""The normal's 97.5 % quantile, and Student's of 1, 2, ... degrees of freedom."""
_STUDENT = (12.70620, 4.302653, 3.182446, 2.776445, 2.570582, 2.446912, 2.364624, 2.306004, 2.262157)


class Interval(NamedTuple):
    """A closed interval of a ratio or a log-ratio."""

    low: float
    high: float

    def contains(self, value: float) -> bool:
        """True when value lies inside, ends included."""
        return self.low <= value <= self.high


class Speedup(NamedTuple):
    """Paired over units."""

    geometric_mean: float
    interval: Interval | None
    """None with fewer than two units: resampling one question cannot vary."""
    num_units: int
    ratio_of_totals: float
    """(sum of baseline seconds / sum of its tokens) / (the same of the method)."""


class Bootstrap:
    """Resamples of U units with replacement (the cluster is the unit), drawn once and shared by every column.

    Sharing keeps two columns paired: the difference of their resampled values is the resampled paired difference.
    """

    def __init__(self, num_units: int, *, seed: int, resamples: int = RESAMPLES) -> None:
        if num_units < 1:
            raise ValueError("a bootstrap needs at least one unit")
        self.num_units = num_units
        rng = np.random.default_rng(seed)
        # How often each unit is drawn, one row a resample: one matrix product then serves all columns. uint8 keeps
        # 10 000 x 1319 at 13 MB; a unit drawn more than 255 times would take more resamples than atoms.
        self._counts_RU = np.empty((resamples, num_units), dtype=np.uint8)
        for start in range(0, resamples, _CHUNK):
            rows = min(_CHUNK, resamples - start)
            draws = rng.integers(0, num_units, size=(rows, num_units), dtype=np.int64)
            draws += np.arange(rows, dtype=np.int64)[:, None] * num_units
            counts = np.bincount(draws.ravel(), minlength=rows * num_units)
            self._counts_RU[start : start + rows] = counts.reshape(rows, num_units)

    def sums(self, values_UK: FloatArray) -> FloatArray:
        """Resampled column sums, float64 (R, K). values_UK must hold no NaN."""
        counts = self._counts_RU
        return np.concatenate(
            [counts[start : start + _CHUNK].astype(np.float64) @ values_UK for start in range(0, len(counts), _CHUNK)]
        )

    def means(self, values_UK: FloatArray) -> FloatArray:
        """Resampled column means over the units that are not NaN, float64 (R, K); NaN where a resample has none."""
        present_UK = ~np.isnan(values_UK)
        if present_UK.all():
            return self.sums(values_UK) / self.num_units
        sums_RK = self.sums(np.where(present_UK, values_UK, 0.0))
        counts_RK = self.sums(present_UK.astype(np.float64))
        return np.divide(sums_RK, counts_RK, out=np.full_like(sums_RK, np.nan), where=counts_RK > 0)


def percentile_interval(samples_R: FloatArray, num_units: int) -> Interval | None:
    """The central 95 % of resampled values, as wide as so few units demand; None where there are none. NaN resamples
    are left out. num_units: that were resampled, at least two.

    A percentile interval is too narrow by sqrt((n - 1) / n), and takes the normal's quantiles where Student's are due
    (T. Hesterberg, *What Teachers Should Know About the Bootstrap*, 2015): uncorrected, equal methods were
    told apart in 15 % of runs of eight questions instead of 5 %. Both ends are moved away from the median by that
    factor: 1.75 at five units, 1.17 at twelve, 1.02 at eighty.
    """
    samples = samples_R[np.isfinite(samples_R)]
    if samples.size == 0:
        return None
    tail = (1 - CONFIDENCE) / 2
    low, middle, high = (float(value) for value in np.quantile(samples, [tail, 0.5, 1 - tail]))
    factor = widening(num_units)
    return Interval(middle - factor * (middle - low), middle + factor * (high - middle))


def ratio_interval(ratios_R: FloatArray, num_units: int) -> Interval | None:
    """`percentile_interval` of positive values by their logarithms: no end below zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = percentile_interval(np.log(ratios_R), num_units)
    return found and Interval(math.exp(found.low), math.exp(found.high))


def widening(num_units: int) -> float:
    """By how much a percentile interval of n >= 2 units is too narrow: sqrt(n / (n - 1)) t(n - 1) / z."""
    if num_units < 2:
        raise ValueError("one unit alone has no interval")
    freedom = num_units - 1
    z = _NORMAL
    if freedom <= len(_STUDENT):
        quantile = _STUDENT[freedom - 1]
    else:
        # Abramowitz and Stegun 26.7.5; below 1e-4 from here on.
        quantile = (
            z
            + (z**3 + z) / (4 * freedom)
            + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
            + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
        )
    return math.sqrt(num_units / freedom) * quantile / z


def geometric_mean(ratios: FloatArray) -> float:
    """exp(mean log); NaN where ratios is empty. Ratios are positive."""
    return float(np.exp(np.mean(np.log(ratios)))) if ratios.size else math.nan


def speedups(
    *,
    seconds_UK: FloatArray,
    tokens_UK: FloatArray,
    base_seconds_UK: FloatArray,
    base_tokens_UK: FloatArray,
    bootstrap: Bootstrap,
) -> list[Speedup]:
    """One Speedup per column: baseline seconds per token / method seconds per token, paired by unit (measurement 8).

    Turns and repeats are already pooled within a unit. The four arrays are float64 (U, K) with NaN in the same places.
    """
    logs_UK = np.log((base_seconds_UK / base_tokens_UK) / (seconds_UK / tokens_UK))
    means_RK = bootstrap.means(logs_UK)
    found = []
    for k in range(logs_UK.shape[1]):
        paired_U = ~np.isnan(logs_UK[:, k])
        num_units = int(paired_U.sum())
        if num_units == 0:
            found.append(Speedup(math.nan, None, 0, math.nan))
            continue
        interval = percentile_interval(means_RK[:, k], num_units) if num_units > 1 else None
        totals = (base_seconds_UK[paired_U, k].sum() / base_tokens_UK[paired_U, k].sum()) / (
            seconds_UK[paired_U, k].sum() / tokens_UK[paired_U, k].sum()
        )
        found.append(
            Speedup(
                float(np.exp(logs_UK[paired_U, k].mean())),
                Interval(math.exp(interval.low), math.exp(interval.high)) if interval else None,
                num_units,
                float(totals),
            )
        )
    return found


def log_ratio_intervals(logs_UK: FloatArray, bootstrap: Bootstrap) -> dict[tuple[int, int], Interval | None]:
    """For columns a < b: the interval of mean(log a - log b) over the units both have; None below two such units."""
    num_columns = logs_UK.shape[1]
    pairs = [(a, b) for a in range(num_columns) for b in range(a + 1, num_columns)]
    if not pairs:
        return {}
    differences_UP = np.stack([logs_UK[:, a] - logs_UK[:, b] for a, b in pairs], axis=1)
    means_RP = bootstrap.means(differences_UP)
    num_units_P = (~np.isnan(differences_UP)).sum(axis=0)
    return {
        pair: percentile_interval(means_RP[:, index], int(num)) if num > 1 else None
        for index, (pair, num) in enumerate(zip(pairs, num_units_P, strict=True))
    }


class Standing(NamedTuple):
    """A column's place among the others."""

    rank: int
    """1 + the number of columns that are told apart as faster: pairwise, not corrected for their number."""
    tied_with: tuple[int, ...]
    """Columns whose paired log-ratio with this one has an interval that contains 0 (or none at all)."""


def standings(logs_UK: FloatArray, bootstrap: Bootstrap) -> list[Standing]:
    """Ranks with ties. logs_UK: log speed-up per unit and column; larger is faster.

    "Tied" is not transitive (a = b, b = c, a > c happens): the rank counts those told apart, ties are named.
    """
    num_columns = logs_UK.shape[1]
    num_faster = [0] * num_columns
    tied: list[list[int]] = [[] for _ in range(num_columns)]
    for (a, b), interval in log_ratio_intervals(logs_UK, bootstrap).items():
        if interval is None or interval.contains(0.0):
            tied[a].append(b)
            tied[b].append(a)
        elif interval.low > 0:
            num_faster[b] += 1
        else:
            num_faster[a] += 1
    return [Standing(1 + num_faster[k], tuple(sorted(tied[k]))) for k in range(num_columns)]


def efficiency_interval(
    *,
    seconds_U: FloatArray,
    num_steps_U: FloatArray,
    base_seconds_U: FloatArray,
    base_tokens_U: FloatArray,
    bootstrap: Bootstrap,
) -> Interval | None:
    """95 % interval of eta = speedup_decode / acceptance length, a ratio of totals over units.

    Both factors count the method's kept tokens, which cancel: eta = (base seconds / base tokens) / (seconds / steps).
    Decode seconds and decode tokens only; no NaN. None with fewer than two units.
    """
    if bootstrap.num_units < 2:
        return None
    sums = bootstrap.sums(np.stack([seconds_U, num_steps_U, base_seconds_U, base_tokens_U], axis=1))
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample of answers without a decode step has no eta
        eta_R = (sums[:, 2] / sums[:, 3]) / (sums[:, 0] / sums[:, 1])
    return ratio_interval(eta_R, bootstrap.num_units)


def is_too_noisy(estimate: float, interval: Interval) -> bool:
    """True when half the interval is more than 15 % of the estimate."""
    return (interval.high - interval.low) / 2 > NOISE_LIMIT * estimate


def is_implausible(efficiency: Interval) -> bool:
    """True when eta's interval lies wholly above 1.05 (measurement 14)."""
    return efficiency.low > IMPLAUSIBLE_EFFICIENCY


def expected_tokens(alpha: float, gamma: float) -> float:
    """Tokens per step of a chain of gamma drafts accepted at rate alpha: (1 - alpha^(gamma+1)) / (1 - alpha)."""
    if alpha >= 1.0:
        return gamma + 1.0
    return float((1.0 - alpha ** (gamma + 1.0)) / (1.0 - alpha))


def leviathan(*, alpha: float, gamma: float, c: float) -> float:
    """Expected improvement in wall time: expected_tokens / (gamma c + 1). (Leviathan et al. 2023, Theorem 3.8)

    c: seconds of one draft step / seconds of one baseline step; verifying gamma + 1 positions counts as one such step.
    """
    return expected_tokens(alpha, gamma) / (gamma * c + 1.0)
