"""Where a row stands: ranked, control failed, too noisy, not ranked, baseline or control; and the order that follows
from it."""

from __future__ import annotations

from enum import StrEnum

from specbench.store.records import MethodRow


class Standing(StrEnum):
    """How a row may be read; the values are the page's. The baseline is ranked like any other where it can be."""

    RANKED = "ranked"
    CONTROL_FAILED = "control_failed"
    NOISY = "noisy"
    UNRANKED = "unranked"
    BASELINE = "baseline"
    CONTROL = "control"


_ORDER = list(Standing)


def standing(row: MethodRow) -> Standing:
    """The store decides; this names the class that a row without a rank belongs to."""
    if row.ranked and row.rank is not None:
        return Standing.RANKED
    if row.kind == "baseline":
        return Standing.CONTROL if row.is_control else Standing.BASELINE
    if row.control_failed:
        return Standing.CONTROL_FAILED
    return Standing.NOISY if row.too_noisy else Standing.UNRANKED


def is_broken(row: MethodRow, *, rule: str) -> bool:
    """Some answer differs without an excuse. Under a lossy rule differences are expected, and none is a defect."""
    return rule != "typical" and row.equality is not None and row.equality.bug > 0


def rank_text(where: Standing, *, rank: int | None, is_tied: bool) -> str:
    """`2`, `2=`, or the words that stand in a rank's place."""
    if where is Standing.RANKED:
        return f"{rank}=" if is_tied else str(rank)
    return {
        Standing.CONTROL_FAILED: "control failed",
        Standing.NOISY: "too noisy here",
        Standing.UNRANKED: "not ranked",
        Standing.BASELINE: "baseline",
        Standing.CONTROL: "A/A",
    }[where]


def sort_key(where: Standing, *, rank: int | None, speedup: float | None) -> tuple[int, int, float]:
    """Ranked first and fastest first; baseline and control last."""
    return _ORDER.index(where), rank or 0, -(speedup or 0.0)
