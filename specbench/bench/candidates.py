"""What `specbench tune` tries and finds: combinations of options, their measurements and predictions. No torch."""

from __future__ import annotations

import dataclasses
import itertools
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from specbench.bench.request import RunRequest
from specbench.card import Card
from specbench.errors import UsageError

if TYPE_CHECKING:
    from specbench.store.records import MethodRow

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
    rank: int | None = None
    """In the paired run, the baseline included; None where the row is not ranked."""
    tied_with: tuple[str, ...] = ()
    """Rows of that run that it cannot be told from, by their names there."""
    notes: tuple[str, ...] = ()
    """Of its row: why it is not ranked first."""
    num_bugs: int = 0
    """Answers that differ from the target's own without a reason."""


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
    """Ranked ones first, then fastest first; empty where nothing was confirmed."""
    run_id: str = ""
    state: str = ""
    """Of the confirming run."""
    failed_checks: tuple[str, ...] = ()
    """Of the confirming run; any of them makes the command exit 1."""
    choice: str = ""
    """What the choice of the best rests on, a sentence."""
    command: str = ""
    """The `specbench run` line that uses the best, on all that was tuned for: how many questions, how long and how
    often is the suite's to say again."""

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


class Choice(NamedTuple):
    """The options to use, and why."""

    options: Options
    why: str


def confirmed_by(row: MethodRow | None, candidate: Candidate) -> Confirmed:
    """row: the candidate's of the paired run; None where that has none."""
    if row is None:
        return Confirmed(
            options=candidate.options, predicted=candidate.predicted, decode=None, speedup=None, speedup_ci=None
        )
    return Confirmed(
        options=candidate.options,
        predicted=candidate.predicted,
        decode=row.speedup_decode,
        speedup=row.speedup,
        speedup_ci=row.speedup_ci,
        rank=row.rank if row.ranked else None,
        tied_with=row.tied_with,
        notes=row.notes,
        num_bugs=row.equality.bug if row.equality is not None else 0,
    )


def in_order(confirmed: Iterable[Confirmed]) -> tuple[Confirmed, ...]:
    """Ranked ones first, then fastest first."""
    return tuple(sorted(confirmed, key=lambda each: (each.rank is None, -(each.speedup or 0.0))))


def choose(candidates: Sequence[Candidate], confirmed: Sequence[Confirmed], *, baseline: str) -> Choice:
    """The fastest of what the paired run ranked; where that ranks nothing (a failed control, noise, differing
    answers), measured differences decide nothing and the best prediction is taken that no measurement speaks against.

    candidates: best prediction first. confirmed: `in_order`. baseline: its name in the paired run.
    """
    if not confirmed:
        return Choice(candidates[0].options, "the best prediction; nothing was measured")
    first = confirmed[0]
    if first.rank is not None:
        assert first.speedup is not None, "a ranked row has a speed-up"
        if baseline in first.tied_with:
            why = f"the fastest measured, but not told from {baseline}"
        elif first.speedup < 1:
            why = f"the fastest measured, but slower than {baseline}"
        else:
            why = "the fastest measured"
        others = [label for label in first.tied_with if label != baseline]
        return Choice(first.options, why + (f"; tied with {', '.join(others)}" if others else ""))
    reason = first.notes[0] if first.notes else "the paired run has no figures"
    refuted = {each.options for each in confirmed if each.num_bugs or each.speedup is None}
    left = [each for each in candidates if each.options not in refuted]
    why = (
        f"the best prediction{' that was not refuted' if left and refuted else ''}; no measured row is ranked: {reason}"
    )
    return Choice((left or list(candidates))[0].options, why)


def interpolate(cost: Mapping[int, float], nodes: int) -> float:
    """The cost of so many nodes, linear between those measured, and beyond them as between the last two."""
    known = sorted(cost)
    if nodes in cost or len(known) == 1:
        return cost.get(nodes, cost[known[0]])
    right = min(max(bisect_left(known, nodes), 1), len(known) - 1)
    low, high = known[right - 1], known[right]
    return cost[low] + (cost[high] - cost[low]) * (nodes - low) / (high - low)
