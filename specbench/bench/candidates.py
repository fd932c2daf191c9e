"""What `specbench tune` tries and finds: combinations of options, their measurements and predictions. No torch."""

from __future__ import annotations

import dataclasses
import itertools
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from specbench.bench.request import RunRequest
from specbench.card import Card
from specbench.errors import UsageError

MOST_CANDIDATES: Final = 200

Options = tuple[tuple[str, str], ...]
"""(option, value as typed after --set), in the order of the axes."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One combination of options with what was measured of it and what it promises."""

    options: Options
    """What is varied."""
    max_nodes: int
    acceptance_length: float
    """Simulated, bonus included; exact for the texts."""
    num_nodes: float
    """Draft nodes a step, mean."""
    verify_s: float
    draft_s: float
    rest_s: float
    """Accept, commit and everything else of a step."""
    predicted: float
    """Decode speed-up over autoregression."""


@dataclass(frozen=True, kw_only=True)
class Confirmed:
    """A candidate beside its measurement in the paired run."""

    options: Options
    predicted: float
    decode: float | None
    """Decode speed-up, measured: what was predicted."""
    speedup: float | None
    """End to end."""
    speedup_ci: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """What `specbench tune --json` prints."""

    method: str
    target: str
    device: str
    dtype: str
    quantisation: str
    threads: int
    suite: str
    temperature: float
    num_texts: int
    num_tokens: int
    """Of the target's answers, which the acceptance is exact for."""
    step_s: float
    """An autoregressive step."""
    verify_cost: tuple[tuple[int, float], ...]
    """(nodes, seconds of verifying them ÷ seconds of a step of one token)."""
    candidates: tuple[Candidate, ...]
    """Best prediction first."""
    skipped: tuple[str, ...]
    """Combinations that cannot be, with the reason."""
    confirmed: tuple[Confirmed, ...] = ()
    """Fastest measured first; empty where nothing was confirmed."""
    run_id: str = ""
    command: str = ""
    """The `specbench run` line that uses the best."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"schema": 1, **dataclasses.asdict(self)}


def combinations(request: RunRequest, card: Card) -> list[Options]:
    """Every combination to be tried, as text. Raises UsageError: nothing to tune, or too many of them."""
    said = {item.option for item in request.settings if item.method == card.name}
    axes = {axis.option: axis.values for axis in request.grid if axis.method == card.name}
    if not axes:
        axes = {name: tuple(_spelt(value) for value in values) for name, values in card.tune.items()}
        axes = {name: values for name, values in axes.items() if name not in said}
    if not axes:
        raise UsageError(
            f"the card of {card.name!r} names nothing to tune" + (" beside what was set" if said and card.tune else ""),
            where="--method",
            try_=f"--grid {card.name}.OPTION=V1,V2  (specbench methods show {card.name})",
        )
    found = [tuple(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    if len(found) > MOST_CANDIDATES:
        raise UsageError(
            f"{len(found)} combinations; at most {MOST_CANDIDATES} are tried", where="--grid", try_="fewer values"
        )
    return found


def _spelt(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def interpolate(cost: Mapping[int, float], nodes: int) -> float:
    """The cost of so many nodes, linear between those measured, and beyond them as between the last two."""
    known = sorted(cost)
    if nodes in cost or len(known) == 1:
        return cost.get(nodes, cost[known[0]])
    right = min(max(bisect_left(known, nodes), 1), len(known) - 1)
    low, high = known[right - 1], known[right]
    return cost[low] + (cost[high] - cost[low]) * (nodes - low) / (high - low)
