"""Throughput against batch size: rows of runs that differ in nothing else, and where a method stops paying.

A row's speed-up is over plain decoding at the same batch size, so that the curve shows what speculation is worth there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from specbench.metrics import Interval


@dataclass(frozen=True, kw_only=True)
class Point:
    """A method at one batch size."""

    batch_size: int
    tokens_per_s: float | None
    """Of the whole batch."""
    speedup: float | None
    """Over plain decoding at this batch size; None for plain decoding itself."""
    speedup_ci: Interval | None
    is_disturbed: bool = False
    """The run's A/A control failed: differences of that size mean nothing there."""
    is_unranked: bool = False
    """May not be ranked there whatever its interval says: lossy, wrong, implausible, no competitor, a slow baseline."""


def crossing(points: Sequence[Point]) -> float | None:
    """The batch size at which the speed-up falls to 1, between two that were measured; None where it does not.

    Straight lines of log speed-up over log batch size; of several crossings the last one down. Disturbed and unranked
    points are passed over.
    """
    judged = [point for point in _in_order(points) if not point.is_disturbed and not point.is_unranked]
    measured = [(math.log(p.batch_size), math.log(p.speedup)) for p in judged if p.speedup]
    found = None
    for (x0, y0), (x1, y1) in pairwise(measured):
        if y0 > 0 >= y1:
            found = math.exp(x0 + (x1 - x0) * y0 / (y0 - y1))
    return found


def verdict(points: Sequence[Point]) -> str:
    """What the intervals say, in words: a batch size whose interval holds 1 proves nothing either way."""
    unknown, disturbed = "not told apart from plain decoding", "not judged, for the A/A control failed,"
    unranked = "not judged, for it may not be ranked,"
    named: dict[str, list[str]] = {"pays": [], "costs": [], unknown: [], disturbed: [], unranked: []}
    for point in _in_order(points):
        if point.speedup_ci is None:
            continue
        low, high = point.speedup_ci
        word = "pays" if low > 1 else "costs" if high < 1 else unknown
        word = disturbed if point.is_disturbed else unranked if point.is_unranked else word
        named[word].append(str(point.batch_size))
    said = [f"{word} at {', '.join(sizes)}" for word, sizes in named.items() if sizes]
    return "; ".join(said)


def curves(points: Sequence[tuple[str, str, Point]]) -> list[dict[str, Any]]:
    """(identity, method, point) of one family of runs -> a line per identity, as the page reads it; [] for one batch
    size only.

    Methods that were measured at a single batch size are left out.
    """
    lines: dict[str, list[Point]] = {}
    for identity, _, point in points:
        lines.setdefault(identity, []).append(point)
    if len({point.batch_size for *_, point in points}) < 2:
        return []
    names = {identity: method for identity, method, _ in points}
    return [
        {
            "method": names[identity],
            "points": [
                {
                    "batch_size": point.batch_size,
                    "tokens_per_s": point.tokens_per_s,
                    "speedup": point.speedup,
                    "speedup_ci": list(point.speedup_ci) if point.speedup_ci else None,
                    "is_disturbed": point.is_disturbed,
                    "is_unranked": point.is_unranked,
                }
                for point in _in_order(of_method)
            ],
            "crossing": crossing(of_method),
            "verdict": verdict(of_method),
        }
        for identity, of_method in lines.items()
        if len(of_method) > 1
    ]


def _in_order(points: Sequence[Point]) -> list[Point]:
    return sorted(points, key=lambda point: point.batch_size)
