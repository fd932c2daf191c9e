"""Distillation losses over next-token laws, per depth, in chunks: what every trained drafter shares.

p is the target's law, q the drafter's. A law is whole, or its top-k and the log-probability of everything else.

N positions, V the drafter's vocabulary, K entries of a law (V when whole), A anchors, n depths, R ranks counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LossName = Literal["ce", "kd", "tv", "lk"]
_TINY = 1e-30


class Law(NamedTuple):
    """log p of N positions, float32 or float64."""

    logp_NK: Tensor
    ids_NK: Tensor | None = None
    """Which entries of the drafter's vocabulary; None = all of them in order."""
    log_tail_N: Tensor | None = None
    """log of the mass outside the entries; None = there is none."""

    def rows(self, index_M: Tensor) -> Law:
        """The laws of these positions, any number of times each."""
        return Law(
            self.logp_NK[index_M],
            None if self.ids_NK is None else self.ids_NK[index_M],
            None if self.log_tail_N is None else self.log_tail_N[index_M],
        )


def whole_law(logits_NV: Tensor, temperature: float = 1.0) -> Law:
    """The law of these logits at a temperature."""
    compute = torch.promote_types(logits_NV.dtype, torch.float32)
    return Law((logits_NV.to(compute) / temperature).log_softmax(-1))


def top_law(law: Law, top_k: int) -> Law:
    """The k most probable entries and the tail, as a cache keeps them. Exact for the entries."""
    assert law.ids_NK is None, "cut a whole law, not a cut one"
    if top_k >= law.logp_NK.shape[-1]:
        return law
    logp_NK, ids_NK = law.logp_NK.topk(top_k, dim=-1)
    rest = (1 - logp_NK.exp().sum(-1)).clamp(min=_TINY)
    return Law(logp_NK, ids_NK, rest.log())


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a position's loss is.

    ce: cross-entropy with the label. kd: alpha * tau^2 * KL(p_tau || q_tau) + (1 - alpha) * ce (Hinton 2015). tv:
    1 - sum min(p, q), the rejection rate itself. lk: -log sum min(p, q) (LK losses, arXiv:2602.23881): the same
    optimum, but its gradient does not vanish where nothing is accepted yet.
    """

    loss: LossName = "kd"
    temperature: float = 1.0
    alpha: float = 1.0
    depth_decay: float = 1.0
    """Depth i weighs depth_decay ** i."""
    rank: int = 5
    """Top-1 .. top-rank accuracies are counted."""
    chunk: int = 1024
    """Positions whose logits exist at one time; where there are more, the backward pass computes them again."""

    @property
    def needs_teacher(self) -> bool:
        """Whether the target's laws are read."""
        return self.loss != "ce"


def per_position(logits_NV: Tensor, label_N: Tensor, law: Law | None, objective: Objective) -> Tensor:
    """Loss of each position (N,), float32 at least. label_N: index in the drafter's vocabulary, -1 = it cannot be said
    (no cross-entropy). Gradient flows into the logits alone."""
    compute = torch.promote_types(logits_NV.dtype, torch.float32)
    logits_NV = logits_NV.to(compute)
    if objective.loss == "ce":
        return _cross_entropy(logits_NV, label_N)
    assert law is not None, f"loss {objective.loss} needs the target's laws"
    if objective.loss == "kd":
        tau = objective.temperature
        divergence = kl(logits_NV / tau, _tempered(law, tau)) * tau**2
        if objective.alpha == 1.0:
            return divergence
        return objective.alpha * divergence + (1 - objective.alpha) * _cross_entropy(logits_NV, label_N)
    accepted = overlap(logits_NV, law)
    return 1 - accepted if objective.loss == "tv" else -accepted.clamp(min=_TINY).log()


def kl(logits_NV: Tensor, law: Law) -> Tensor:
    """KL(p || q) per position (N,); outside a top-k both laws are one bucket. Where the drafter's vocabulary lacks some
    of p (a whole law with a tail) p is renormalised over what it has."""
    logq_NV = logits_NV.log_softmax(-1)
    logp = law.logp_NK.to(logq_NV.dtype)
    if law.ids_NK is None:
        if law.log_tail_N is not None:
            logp = logp.log_softmax(-1)
        return (logp.exp() * (logp.clamp(min=-1e4) - logq_NV)).sum(-1)
    logq_NK = logq_NV.gather(-1, law.ids_NK)
    p = logp.exp()
    entries = (p * (logp.clamp(min=-1e4) - logq_NK)).sum(-1)
    if law.log_tail_N is None:
        return entries
    log_tail = law.log_tail_N.to(logq_NV.dtype)
    return entries + log_tail.exp() * (log_tail - _log_rest(logq_NV, law.ids_NK, logp))


def overlap(logits_NV: Tensor, law: Law) -> Tensor:
    """sum min(p, q) per position (N,): the chance that one draft token is accepted (Leviathan 2023, Theorem 3.5). With
    a tail an upper bound: the two tails are taken to overlap wholly."""
    logq_NV = logits_NV.log_softmax(-1)
    p = law.logp_NK.to(logq_NV.dtype).exp()
    if law.ids_NK is None:
        return torch.minimum(p, logq_NV.exp()).sum(-1)
    shared = torch.minimum(p, logq_NV.gather(-1, law.ids_NK).exp()).sum(-1)
    if law.log_tail_N is None:
        return shared
    rest = _log_rest(logq_NV, law.ids_NK, law.logp_NK).exp()
    return shared + torch.minimum(law.log_tail_N.to(logq_NV.dtype).exp(), rest)


def _cross_entropy(logits_NV: Tensor, label_N: Tensor) -> Tensor:
    return F.cross_entropy(logits_NV, label_N, reduction="none", ignore_index=-1)


def _tempered(law: Law, temperature: float) -> Law:
    """p ** (1 / tau), renormalised. A tail is one entry among the others: exact for whole laws only."""
    if temperature == 1.0:
        return law
    scaled = law.logp_NK / temperature
    if law.log_tail_N is None:
        return Law(scaled.log_softmax(-1), law.ids_NK)
    tail = law.log_tail_N / temperature
    norm = torch.logaddexp(scaled.logsumexp(-1), tail)
    return Law(scaled - norm[:, None], law.ids_NK, tail - norm)


def _log_rest(logq_NV: Tensor, ids_NK: Tensor, logp_NK: Tensor) -> Tensor:
    """log of q's mass outside the entries. Entries of p's mass 0 are fillers (an id the drafter lacks): not counted
    out."""
    is_real_NK = (logp_NK > float("-inf")).to(torch.int8)
    real = torch.zeros_like(logq_NV, dtype=torch.int8).scatter_reduce(-1, ids_NK, is_real_NK, reduce="amax").bool()
    return logq_NV.masked_fill(real, float("-inf")).logsumexp(-1).clamp(min=-69.0)


class PositionLoss(NamedTuple):
    """loss_N: with gradient. rank_N: int64, how many entries the drafter thinks more probable than the label (0 = its
    first choice; V = the label cannot be said)."""

    loss_N: Tensor
    rank_N: Tensor


def chunked(
    head: Callable[[Tensor], Tensor],
    inputs_NE: Tensor,
    label_N: Tensor,
    law_of: Callable[[slice], Law] | None,
    objective: Objective,
) -> PositionLoss:
    """`per_position(head(inputs))` with `objective.chunk` rows of logits at a time: a larger (N, V) never exists.

    law_of: the law of inputs[slice]; None for `ce`. head may hold parameters; their gradients are exact.
    """

    def part(inputs: Tensor, where: slice) -> tuple[Tensor, Tensor]:
        logits = head(inputs)
        label = label_N[where]
        law = None if law_of is None else law_of(where)
        loss = per_position(logits, label, law, objective)
        with torch.no_grad():
            own = logits.gather(-1, label.clamp(min=0)[:, None])
            rank = torch.where(label >= 0, (logits > own).sum(-1), logits.shape[-1])
        return loss, rank

    if inputs_NE.shape[0] <= objective.chunk:
        # All of it fits: nothing is computed twice (a quarter of a training step where the head is the largest part).
        return PositionLoss(*part(inputs_NE, slice(0, inputs_NE.shape[0])))
    losses, ranks = [], []
    for start in range(0, inputs_NE.shape[0], objective.chunk):
        where = slice(start, start + objective.chunk)
        loss, rank = checkpoint(part, inputs_NE[where], where, use_reentrant=False)
        losses.append(loss)
        ranks.append(rank)
    return PositionLoss(torch.cat(losses), torch.cat(ranks))


class DepthCounts(NamedTuple):
    """Counts per depth, without gradient; add them up over batches and processes, divide last. All (n,) but correct_nR.

    num: labels. loss: their summed loss. correct: label among the first r + 1 choices. whole: anchors whose labels up
    to this depth are all valid. right: those whose first choices up to this depth are all right, so that
    sum(right / whole) is the number of tokens a greedy chain would have had accepted.
    """

    num_n: Tensor
    loss_n: Tensor
    correct_nR: Tensor
    whole_n: Tensor
    right_n: Tensor

    def plus(self, other: DepthCounts) -> DepthCounts:
        """The sum of both."""
        return DepthCounts(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


@torch.no_grad()
def count_depths(loss_An: Tensor, rank_An: Tensor, valid_An: Tensor, *, rank: int) -> DepthCounts:
    """loss, rank and validity of each anchor's depths -> counts."""
    hits_AnR = rank_An[:, :, None] < torch.arange(1, rank + 1, device=rank_An.device)
    whole_An = valid_An.long().cumprod(1).bool()
    right_An = (whole_An & (rank_An == 0)).long().cumprod(1)
    return DepthCounts(
        num_n=valid_An.sum(0),
        loss_n=torch.where(valid_An, loss_An.detach(), 0).double().sum(0),
        correct_nR=(hits_AnR & valid_An[:, :, None]).sum(0),
        whole_n=whole_An.sum(0),
        right_n=right_An.sum(0),
    )
