"""Did a method write what the target alone writes? Token ids against the reference, and a class for every difference.

`identical`; `tie`: the target scores both tokens the same within rounding; `numeric`: an ordinary forward of the same
model, without our tree or cache, also yields the method's token; `bug`: neither, and the run fails (measurement 12).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

from specbench.lm.cached_lm import CachedLM
from specbench.lm.rounding import largest_difference
from specbench.sampling import STREAM_ACCEPT, NoiseStream, Sampling, process
from specbench.tree import chain

Class = Literal["identical", "tie", "numeric", "bug"]

_MOST: Final = 8
"""Times what rounding makes of transformers' own forwards that our verification may differ from one-token forwards."""
_CONTEXT: Final = 256
_COMPARED: Final = 32
"""Tokens of a prompt that are read for it, and most tokens compared, per answer: rounding is a property of type and
weights, and whole prompts through the plain attention would take as long as answering them."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """first_difference: index into the output. gap: score(reference's token) - score(method's), noise included, in
    fp32."""

    verdict: Class
    first_difference: int | None = None
    gap: float | None = None


def first_difference(ours: Sequence[int], reference: Sequence[int]) -> int | None:
    """Index of the first token that differs or is missing on one side; None when equal."""
    for place, (a, b) in enumerate(zip(ours, reference, strict=False)):
        if a != b:
            return place
    return None if len(ours) == len(reference) else min(len(ours), len(reference))


class EqualityCheck:
    """Classifies outputs of one target under one sampling. Slow and rare: runs outside every timed region."""

    def __init__(self, lm: CachedLM, sampling: Sampling, *, noise_floor: float) -> None:
        """noise_floor: largest |logit difference| between one-token and many-node forwards, measured in this run."""
        self._lm = lm
        self._sampling = sampling
        self._floor = noise_floor / (1.0 if sampling.is_greedy else sampling.temperature)

    def verdict(self, prompt: Sequence[int], ours: Sequence[int], reference: Sequence[int], *, key: int) -> Verdict:
        """Class of one output. key: the sequence's noise key."""
        place = first_difference(ours, reference)
        if place is None:
            return Verdict(verdict="identical")
        if place >= len(ours) or place >= len(reference):
            # Same tokens, another end: stopping is exact, so no rounding explains it.
            return Verdict(verdict="bug", first_difference=place)
        prefix = [*prompt, *reference[:place]]
        ours_token, reference_token = ours[place], reference[place]
        exact = self._scores(prefix, key, full_precision=True)
        gap = float(exact[reference_token] - exact[ours_token])
        if abs(gap) <= 2 * self._floor:
            return Verdict(verdict="tie", first_difference=place, gap=gap)
        plain = self._scores(prefix, key, full_precision=False)
        kind: Class = "numeric" if int(plain.argmax()) == ours_token else "bug"
        return Verdict(verdict=kind, first_difference=place, gap=gap)

    @torch.inference_mode()
    def _scores(self, prefix: list[int], key: int, *, full_precision: bool) -> Tensor:
        """Processed scores (+ noise) of the token after prefix, from a fresh causal forward: (V,)."""
        logits_V = self._lm.fresh_logits(prefix, full_precision=full_precision)
        seen = None
        if self._sampling.needs_context:
            seen = torch.zeros(logits_V.shape[0], dtype=torch.bool, device=logits_V.device)
            seen[torch.tensor(prefix, device=logits_V.device)] = True
        scores = process(logits_V, self._sampling, seen)
        if self._sampling.is_greedy:
            return scores
        noise = NoiseStream(
            [key], vocab_size=self._lm.vocab_size, device=self._lm.device, stream=STREAM_ACCEPT, block=1
        )
        noise.seek([len(prefix)])
        return scores + noise.at_depth(1)[0]


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How far logits of one text lie apart that two of our forwards made, and what of it rounding explains."""

    measured: float
    """Of our own forwards: `measure_noise_floor`."""
    rounding: float
    """Of forwards in which we have no part: `measure_rounding`."""

    @property
    def is_rounding(self) -> bool:
        """A verification that is wrong measures a large floor of itself, and must not be judged by it."""
        return self.measured <= _MOST * self.rounding

    @property
    def floor(self) -> float:
        """Answers whose scores differ by at most twice this are ties."""
        return self.measured if self.is_rounding else self.rounding

    def complaint(self, dtype: torch.dtype) -> str:
        """Empty where rounding explains what was measured."""
        if self.is_rounding:
            return ""
        return (
            f"verifying several tokens at once differs by {self.measured:.3g} logits from one at a time, where "
            f"rounding in {str(dtype).removeprefix('torch.')} explains {_MOST * self.rounding:.2g}: answers that "
            "differ are bugs here, not ties. To find what is wrong, --attention plain, --compile off and --graphs off, "
            "one after the other"
        )


def measure_noise_floor(
    lm: CachedLM, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], *, num_nodes: int
) -> float:
    """Largest |logit difference| between a one-token forward and a forward of num_nodes + 1 slots, on accepted text.

    sequences: (prompt, answer) pairs of this run's reference. 0.0 where no answer is long enough to compare; inf where
    a forward is not finite.
    """
    worst = 0.0
    for prompt, answer in sequences:
        text = torch.tensor([*prompt, *answer], device=lm.device)
        nodes = min(num_nodes, len(answer) - 1)
        if nodes < 1:
            continue
        lm.begin(1)
        lm.prefill(0, text[: len(prompt)])
        root = text[len(prompt) : len(prompt) + 1]
        tree = chain(text[None, len(prompt) + 1 : len(prompt) + 1 + nodes])
        together = lm.verify(root, tree).logits_BMV[0]
        for slot in range(nodes + 1):
            alone, _ = lm.prefill(0, text[len(prompt) + slot : len(prompt) + slot + 1])
            difference = float(largest_difference(alone, together[slot]))
            worst = max(worst, math.inf if math.isnan(difference) else difference)
    return worst


def measure_rounding(
    lm: CachedLM, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], *, num_nodes: int
) -> float:
    """Largest |logit difference| that rounding makes between transformers' own one-token and many-token forwards.

    As `measure_noise_floor`, of the same tokens: what a text has in near ties (of experts, of quantised activations)
    both meet. At least one unit in the last place of the largest logit: two forwards may happen to round alike. 0.0
    where no answer is long enough, or no forward is finite.
    """
    # Transformers' plain attentions take their softmax in float32 at most.
    eps = max(torch.finfo(lm.dtype).eps, torch.finfo(torch.float32).eps)
    worst = 0.0
    for prompt, answer in sequences:
        num_last = min(num_nodes + 1, _COMPARED, len(answer))
        if num_last < 2:
            continue
        spread = lm.own_spread([*prompt[-_CONTEXT:], *answer[:num_last]], num_last=num_last)
        if math.isfinite(spread.difference) and math.isfinite(spread.largest):
            worst = max(worst, spread.difference, eps * spread.largest)
    return worst
