"""Distillation losses over next-token laws, per depth, in chunks: what every trained drafter shares.

p is the target's law, q the drafter's. A law is whole, or its top-k and the log-probability of everything else. Of
tokens that the drafter cannot say p keeps their mass alone: kd asks for p renormalised over what can be said, tv and lk
for p as it is, of which that mass is lost whatever is drafted.

N positions, R rows of a law, V the drafter's vocabulary, K entries of a law (V when whole), A anchors, n depths, of
whose labels the first `rank` choices are counted (R there).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

LossName = Literal["ce", "kd", "tv", "lk"]
_TINY = 1e-30


@dataclass(frozen=True, eq=False)
class Law:
    """log p of N positions, float32 or float64: R rows, of which a position has one. Entries, tail and what is lost add
    up to 1."""

    logp_RK: Tensor
    ids_RK: Tensor | None = None
    """Which entries of the drafter's vocabulary; None = all of them in order."""
    log_tail_R: Tensor | None = None
    """log of the mass outside a cut law's entries, of which the drafter may say any; None = there is none."""
    row_N: Tensor | None = None
    """Row of each position; None = position n has row n. n depths ask for one state's law up to n times: it is kept
    once."""
    log_lost_R: Tensor | None = None
    """log of the mass that is known to be of tokens the drafter cannot say; None = it can say all of them."""
    _known: dict[float, _Wanted] = field(default_factory=dict, repr=False)
    """`wanted` by temperature, computed once for all that share the rows."""

    def rows(self, index_M: Tensor) -> Law:
        """The laws of these positions, any number of times each; nothing is copied."""
        return replace(self, row_N=index_M if self.row_N is None else self.row_N[index_M])

    def spread(self) -> Law:
        """The same, a row for each position."""
        if self.row_N is None:
            return self
        return Law(
            self.logp_RK[self.row_N],
            None if self.ids_RK is None else self.ids_RK[self.row_N],
            None if self.log_tail_R is None else self.log_tail_R[self.row_N],
            log_lost_R=None if self.log_lost_R is None else self.log_lost_R[self.row_N],
        )

    def wanted(self, temperature: float) -> _Wanted:
        """Of a whole law: p ** (1 / temperature), renormalised over what the drafter can say."""
        assert self.ids_RK is None, "a cut law lacks most of p"
        if temperature not in self._known:
            logp_RV = self.logp_RK
            if temperature != 1.0 or self.log_lost_R is not None:
                logp_RV = (logp_RV / temperature).log_softmax(-1)
            p_RV = logp_RV.exp()
            self._known[temperature] = _Wanted(p_RV, (p_RV * logp_RV.clamp(min=-1e4)).sum(-1))
        return self._known[temperature]


class _Wanted(NamedTuple):
    p_RV: Tensor
    negative_entropy_R: Tensor
    """sum p log p."""


def whole_law(logits_NV: Tensor, temperature: float = 1.0) -> Law:
    """The law of these logits at a temperature."""
    compute = torch.promote_types(logits_NV.dtype, torch.float32)
    logits_NV = logits_NV.to(compute)
    return Law((logits_NV if temperature == 1 else logits_NV / temperature).log_softmax(-1))


def top_law(law: Law, top_k: int) -> Law:
    """The k most probable entries and the tail, as a cache keeps them. Exact for the entries."""
    assert law.ids_RK is None, "cut a whole law, not a cut one"
    if top_k >= law.logp_RK.shape[-1]:
        return law
    logp_RK, ids_RK = law.logp_RK.topk(top_k, dim=-1)
    rest = (1 - logp_RK.exp().sum(-1)).clamp(min=_TINY)
    return Law(logp_RK, ids_RK, rest.log(), law.row_N)


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a position's loss is.

    ce: cross-entropy with the label. kd: alpha * tau^2 * KL(p_tau || q_tau) + (1 - alpha) * ce (Hinton 2015). tv:
    1 - sum min(p, q), the rate at which the rule `rejection` rejects. lk: -log sum min(p, q) (LK losses,
    arXiv:2602.23881): the same optimum, but its gradient does not vanish where nothing is accepted yet. Both take p and
    q at temperature tau. `coupled` under shared noise rejects somewhat more often, and least at the same q = p.
    """

    loss: LossName = "kd"
    temperature: float = 1.0
    alpha: float = 1.0
    depth_decay: float = 1.0
    """Depth i weighs depth_decay ** i."""
    rank: int = 5
    """Top-1 .. top-rank accuracies are counted."""
    chunk: int = 1024
    """Positions that go through the head at one time."""
    kept: int = 1024
    """Positions whose logits are kept for the backward pass; where there are more, it computes them again, a chunk at
    a time."""

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
        divergence = kl(logits_NV, law, temperature=tau) * tau**2
        if objective.alpha == 1.0:
            return divergence
        return objective.alpha * divergence + (1 - objective.alpha) * _cross_entropy(logits_NV, label_N)
    if objective.temperature != 1.0:
        logits_NV, law = logits_NV / objective.temperature, tempered(law.spread(), objective.temperature)
    accepted = overlap(logits_NV, law)
    return 1 - accepted if objective.loss == "tv" else -accepted.clamp(min=_TINY).log()


def kl(logits_NV: Tensor, law: Law, *, temperature: float = 1.0) -> Tensor:
    """KL(p || q) per position (N,), both at a temperature; outside a top-k both laws are one bucket. Where the drafter
    cannot say some of p, p is renormalised over what it can: the entries it has, and the tail. No gradient flows into
    p."""
    if temperature != 1.0:
        logits_NV = logits_NV / temperature
    if law.ids_RK is None:
        wanted = law.wanted(temperature)
        found: Tensor = _WholeKL.apply(logits_NV, wanted.p_RV, wanted.negative_entropy_R, law.row_N)  # type: ignore[no-untyped-call]
        return found
    law = _sayable(tempered(law.spread(), temperature))
    assert law.ids_RK is not None
    logq_NV = logits_NV.log_softmax(-1)
    logp = law.logp_RK.to(logq_NV.dtype)
    logq_NK = logq_NV.gather(-1, law.ids_RK)
    p = logp.exp()
    entries = (p * (logp.clamp(min=-1e4) - logq_NK)).sum(-1)
    if law.log_tail_R is None:
        return entries
    log_tail = law.log_tail_R.to(logq_NV.dtype)
    return entries + log_tail.exp() * (log_tail - _log_rest(logq_NV, law.ids_RK, logp))


class _WholeKL(torch.autograd.Function):
    """sum p (log p - log q) with its gradient q - p written out: autograd's own way through the logarithm reads and
    writes (N, V) numbers twice as often, and this is most of what a small drafter's training does."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, p_RV: Tensor, negative_entropy_R: Tensor, row_N: Tensor | None) -> Tensor:
        logq_NV = logits_NV.log_softmax(-1)
        p_NV, negative_entropy_N = p_RV, negative_entropy_R
        if row_N is not None:
            p_NV, negative_entropy_N = p_RV[row_N], negative_entropy_R[row_N]
        p_NV = p_NV.to(logq_NV.dtype)
        ctx.save_for_backward(logq_NV, p_NV)
        return negative_entropy_N.to(logq_NV.dtype) - (p_NV * logq_NV).sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_N: Tensor) -> tuple[Tensor, None, None, None]:
        logq_NV, p_NV = ctx.saved_tensors
        return logq_NV.exp().sub_(p_NV).mul_(upstream_N[:, None]), None, None, None


def overlap(logits_NV: Tensor, law: Law) -> Tensor:
    """sum min(p, q) per position (N,): the chance that `rejection` accepts one token drawn from q (Leviathan 2023,
    Theorem 3.5), the most that a lossless rule can. With a tail an upper bound: the two tails are taken to overlap
    wholly. What is lost of p is in no term."""
    kept_N, tails_N = overlap_parts(logits_NV, law)
    return kept_N + tails_N


def overlap_parts(logits_NV: Tensor, law: Law) -> tuple[Tensor, Tensor]:
    """What `overlap` adds up, each (N,): over the entries that the law names, and the most that the two tails may have
    in common (0 for a law without one). sum min(p, q) lies between the first and their sum."""
    law = law.spread()
    logq_NV = logits_NV.log_softmax(-1)
    p = law.logp_RK.to(logq_NV.dtype).exp()
    if law.ids_RK is None:
        shared = torch.minimum(p, logq_NV.exp()).sum(-1)
        return shared, torch.zeros_like(shared)
    shared = torch.minimum(p, logq_NV.gather(-1, law.ids_RK).exp()).sum(-1)
    if law.log_tail_R is None:
        return shared, torch.zeros_like(shared)
    rest = _log_rest(logq_NV, law.ids_RK, law.logp_RK).exp()
    return shared, torch.minimum(law.log_tail_R.to(logq_NV.dtype).exp(), rest)


def _cross_entropy(logits_NV: Tensor, label_N: Tensor) -> Tensor:
    return F.cross_entropy(logits_NV, label_N, reduction="none", ignore_index=-1)


def tempered(law: Law, temperature: float) -> Law:
    """p ** (1 / tau), renormalised, of a law with a row for each position. Its tail is one entry among the others, and
    so is what is lost, which is not exact."""
    if temperature == 1.0:
        return law
    logp = law.logp_RK / temperature
    tail, lost = (None if each is None else each / temperature for each in (law.log_tail_R, law.log_lost_R))
    norm = logp.logsumexp(-1)
    for rest in (tail, lost):
        if rest is not None:
            norm = torch.logaddexp(norm, rest)
    return _shifted(Law(logp, law.ids_RK, tail, log_lost_R=lost), norm)


def _sayable(law: Law) -> Law:
    """A cut law renormalised over its entries and its tail."""
    if law.log_lost_R is None:
        return law
    norm = law.logp_RK.logsumexp(-1)
    if law.log_tail_R is not None:
        norm = torch.logaddexp(norm, law.log_tail_R)
    return _shifted(replace(law, log_lost_R=None), norm)


def _shifted(law: Law, norm_R: Tensor) -> Law:
    """All masses divided by exp(norm)."""
    tail, lost = (None if each is None else each - norm_R for each in (law.log_tail_R, law.log_lost_R))
    return Law(law.logp_RK - norm_R[:, None], law.ids_RK, tail, log_lost_R=lost)


def _log_rest(logq_NV: Tensor, ids_NK: Tensor, logp_NK: Tensor) -> Tensor:
    """log of q's mass outside the entries. Entries of p's mass 0 are fillers (an id the drafter lacks): not counted
    out."""
    is_real_NK = (logp_NK > float("-inf")).to(torch.int8)
    real = torch.zeros_like(logq_NV, dtype=torch.int8).scatter_reduce(-1, ids_NK, is_real_NK, reduce="amax").bool()
    return logq_NV.masked_fill(real, float("-inf")).logsumexp(-1).clamp(min=-69.0)


class PositionLoss(NamedTuple):
    """loss_N: with gradient. rank_N: int64, see `ranks` (V = the label cannot be said)."""

    loss_N: Tensor
    rank_N: Tensor


def ranks(logits: Tensor, label: Tensor) -> Tensor:
    """How many entries of (..., V) a drafter chooses before the label (...), int64: those of higher logits, and of
    equal ones those of lower ids, as argmax does. 0 = its first choice. Half precision has many equal ones."""
    own = logits.gather(-1, label[..., None])
    is_before = torch.arange(logits.shape[-1], device=logits.device) < label[..., None]
    # int32: on a CPU booleans summed as int64 took 43 ms instead of 15 (1024 x 4096, one thread of an AMD EPYC).
    return ((logits > own) | (is_before & (logits == own))).sum(-1, dtype=torch.int32).long()


def chunked(
    head: Callable[[Tensor], Tensor],
    inputs_NE: Tensor,
    label_N: Tensor,
    law_of: Callable[[slice], Law] | None,
    objective: Objective,
) -> PositionLoss:
    """`per_position(head(inputs))` with `objective.chunk` rows of logits at a time: never more than `objective.kept`
    (and a chunk) exist.

    law_of: the law of inputs[slice]; None for `ce`. head may hold parameters; their gradients are exact.
    """

    def part(inputs: Tensor, where: slice) -> tuple[Tensor, Tensor]:
        logits = head(inputs)
        label = label_N[where]
        law = None if law_of is None else law_of(where)
        loss = per_position(logits, label, law, objective)
        with torch.no_grad():
            rank = torch.where(label >= 0, ranks(logits, label.clamp(min=0)), logits.shape[-1])
        return loss, rank

    num = inputs_NE.shape[0]
    losses, places = [], []
    # One chunk even of no positions: the parameters stay part of the loss.
    for start in range(0, max(num, 1), objective.chunk):
        where = slice(start, min(start + objective.chunk, num))
        if num <= max(objective.kept, objective.chunk):
            loss, rank = part(inputs_NE[where], where)
        else:
            loss, rank = checkpoint(part, inputs_NE[where], where, use_reentrant=False)
        losses.append(loss)
        places.append(rank)
    return PositionLoss(torch.cat(losses), torch.cat(places))


class DepthCounts(NamedTuple):
    """Counts per depth, without gradient; add them up over batches and processes, divide last. All (n,) but correct_nR.

    num: labels. said: those of them that the drafter can say; no other has a loss, and every other is a miss. loss:
    their summed loss. correct: label among the first r + 1 choices. whole: anchors whose labels up to this depth are
    all valid. right: those whose first choices up to this depth are all right, so that sum(right / whole) is the number
    of tokens a greedy chain would have had accepted.
    """

    num_n: Tensor
    loss_n: Tensor
    correct_nR: Tensor
    whole_n: Tensor
    right_n: Tensor
    said_n: Tensor

    def plus(self, other: DepthCounts) -> DepthCounts:
        """The sum of both."""
        return DepthCounts(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


@torch.no_grad()
def count_depths(
    loss_An: Tensor, rank_An: Tensor, valid_An: Tensor, *, rank: int, said_An: Tensor | None = None
) -> DepthCounts:
    """loss, rank and validity of each anchor's depths -> counts. said: which labels the drafter can say; None = all."""
    said_An = valid_An if said_An is None else valid_An & said_An
    hits_AnR = rank_An[:, :, None] < torch.arange(1, rank + 1, device=rank_An.device)
    whole_An = valid_An.long().cumprod(1).bool()
    right_An = (whole_An & said_An & (rank_An == 0)).long().cumprod(1)
    return DepthCounts(
        num_n=valid_An.sum(0),
        loss_n=torch.where(said_An, loss_An.detach(), 0).double().sum(0),
        correct_nR=(hits_AnR & said_An[:, :, None]).sum(0),
        whole_n=whole_An.sum(0),
        right_n=right_An.sum(0),
        said_n=said_An.sum(0),
    )
