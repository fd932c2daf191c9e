"""What speaks for a candidate: its expected acceptance on held-out answers, beside that of the adapter in use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from specbench.adapt.adaptation import Adaptation
from specbench.adapt.observed import Observed
from specbench.errors import CheckFailed
from specbench.metrics import Bootstrap, Interval, percentile_interval
from specbench.training.acceptance import compared_by
from specbench.training.verdict_loss import Answers, agreement

RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Two adapters on the same held-out positions."""

    num_answers: int
    before: float
    """Expected acceptance, mean over positions: the chance that a drafted token is accepted by the rule that answers
    are drawn under (`acceptance`). Above temperature 0 an upper bound: of a law the top k are kept, and the rest of it
    may or may not be where the draft's rest is."""
    after: float
    gain: Interval
    width_before: float
    """Mean over positions of what that leaves open: the exact figure lies between `before` less this and `before`. 0
    at temperature 0, where first choices are compared."""
    width_after: float


def evidence(
    adaptation: Adaptation,
    held_out: Sequence[Observed],
    before: Mapping[str, Tensor] | None,
    after: Mapping[str, Tensor] | None,
    judged: dict[Observed, tuple[float, float]] | None = None,
) -> Evidence:
    """Teacher-forced expected acceptance, pooled over positions, and the interval of its gain: answers are resampled,
    for positions of one answer go together. At least two answers. judged: sums (chance, width) under `before` that are
    known and not computed again; afterwards those of these answers. Raises CheckFailed where a sum is not a number."""
    judged = {} if judged is None else judged
    for gone in judged.keys() - set(held_out):
        del judged[gone]
    unknown = [observed for observed in held_out if observed not in judged]
    judged.update(zip(unknown, _sums(adaptation, unknown, before), strict=True))
    before_U2 = np.array([judged[observed] for observed in held_out])
    after_U2 = np.array(_sums(adaptation, held_out, after))
    num_U = np.array([observed.num_positions for observed in held_out], dtype=np.float64)
    bootstrap = Bootstrap(len(held_out), seed=adaptation.seed, resamples=RESAMPLES)
    resampled = bootstrap.sums(np.stack([after_U2[:, 0] - before_U2[:, 0], num_U], axis=1))
    interval = percentile_interval(resampled[:, 0] / resampled[:, 1], len(held_out))
    if interval is None:
        raise CheckFailed("the expected acceptance on held-out answers is not a number")
    of_before, of_after = before_U2.sum(0) / num_U.sum(), after_U2.sum(0) / num_U.sum()
    return Evidence(
        num_answers=len(held_out),
        before=float(of_before[0]),
        after=float(of_after[0]),
        gain=interval,
        width_before=float(of_before[1]),
        width_after=float(of_after[1]),
    )


def _sums(
    adaptation: Adaptation, held_out: Sequence[Observed], weights: Mapping[str, Tensor] | None
) -> list[tuple[float, float]]:
    """Chance and width of each answer, see `Agreement`."""
    adaptation.layers.set(weights)
    source = Answers(adaptation.lm, adaptation.plan, num_shared=adaptation.num_shared, seed=0)
    compared = compared_by(adaptation.rule, adaptation.picks)
    found: list[tuple[float, float]] = []
    for start in range(0, len(held_out), adaptation.plan.batch):
        source.answers = list(held_out[start : start + adaptation.plan.batch])
        found += agreement(
            adaptation.lm,
            source.every(),
            temperature=adaptation.temperature,
            compared=compared,
            num_ids=adaptation.num_ids,
        )
    return found
