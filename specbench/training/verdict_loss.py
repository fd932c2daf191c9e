"""The loss of a draft model on the target's recorded verdicts: both laws at the positions that were verified.

Teacher-forced: an answer's text is read once by the draft, with gradient, and its logits at the recorded positions are
held against the target's recorded top-k law and tail (`specbench.losses`).

B answers, T tokens, N positions, V vocabulary, S ids both models know, K entries of a law.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specbench.adapt.lora import LoraLayers, LoraModule
from specbench.adapt.observed import Observed, shared_law
from specbench.adapt.plan import LearningPlan
from specbench.lm.cached_lm import CachedLM
from specbench.lm.packed import packed_logits
from specbench.losses import DepthCounts, Law, Objective, kl, per_position, whole_law
from specbench.recipe import Loss
from specbench.training.acceptance import Compared, chance, known

_COPIES = 8
"""Tensors of logits' size that a step holds at one time: laws, gradients, the base's."""


@dataclass(frozen=True, kw_only=True)
class AnswerBatch:
    """Answers ready to be read."""

    tokens_BT: Tensor
    document_BT: Tensor
    """0 for text, -1 for padding behind it."""
    index_N: Tensor
    """Flat place (b * T + t) whose next token the law is of."""
    answer_N: Tensor
    """Which of the B answers."""
    label_N: Tensor
    """The text's token, -1 where the draft cannot say it."""
    weight_N: Tensor
    first_N: Tensor
    """The target's first choice, -1 where the draft cannot say it."""
    target: Law
    """As recorded, whatever the draft can say of it."""
    law: Law
    """Of what it can say."""
    num_shared: int


class Answers:
    """Makes batches of `answers`, which is set before every step: `training.step.Source`."""

    def __init__(self, lm: CachedLM, plan: LearningPlan, *, num_shared: int, seed: int) -> None:
        self._lm = lm
        self._plan = plan
        self._num_shared = num_shared
        self._generator = torch.Generator().manual_seed(seed)
        self._most = max(1, (plan.round_mb << 20) // (4 * _COPIES * lm.vocab_size))
        self.answers: list[Observed] = []

    def make(self, rows: Any) -> AnswerBatch:
        """Of all answers; where memory holds no more, positions drawn by their weight."""
        batch = self.every()
        if batch.index_N.shape[0] <= self._most:
            return batch
        chosen = torch.multinomial(batch.weight_N.cpu().float() + 1e-9, self._most, generator=self._generator)
        chosen = chosen.sort().values.to(batch.index_N.device)
        return replace(
            batch,
            index_N=batch.index_N[chosen],
            answer_N=batch.answer_N[chosen],
            label_N=batch.label_N[chosen],
            # Drawn by weight already.
            weight_N=torch.ones_like(batch.weight_N[chosen]),
            first_N=batch.first_N[chosen],
            target=batch.target.rows(chosen).spread(),
            law=batch.law.rows(chosen).spread(),
        )

    def every(self) -> AnswerBatch:
        """All positions of all answers."""
        plan, device = self._plan, self._lm.device
        ends = [int(answer.position_N.max()) for answer in self.answers]
        width = max(ends)
        tokens_BT = torch.zeros(len(self.answers), width, dtype=torch.long)
        document_BT = torch.full_like(tokens_BT, -1)
        index, which, labels, weights, firsts = [], [], [], [], []
        for row, (answer, end) in enumerate(zip(self.answers, ends, strict=True)):
            tokens_BT[row, :end] = answer.tokens_T[:end]
            document_BT[row, :end] = 0
            position_N = answer.position_N.long()
            index.append(row * width + position_N - 1)
            which.append(torch.full_like(position_N, row))
            labels.append(answer.tokens_T.long()[position_N])
            decay_N = plan.depth_decay ** (answer.depth_N.float() - 1)
            weights.append((1 + plan.early * (1 - answer.overlap_N)) * decay_N)
            ids = answer.target.ids_RK
            assert ids is not None
            firsts.append(ids.long().gather(-1, answer.target.logp_RK.argmax(-1, keepdim=True))[:, 0])
        label_N, first_N = torch.cat(labels), torch.cat(firsts)
        target = _stacked([answer.target for answer in self.answers], device)
        vocab = self._lm.vocab_size
        return AnswerBatch(
            # Ids the draft has no row for are read as its last one, as they are while drafting.
            tokens_BT=tokens_BT.clamp(max=vocab - 1).to(device),
            document_BT=document_BT.to(device),
            index_N=torch.cat(index).to(device),
            answer_N=torch.cat(which).to(device),
            label_N=torch.where(label_N < self._num_shared, label_N, -1).to(device),
            weight_N=torch.cat(weights).to(device),
            first_N=torch.where(first_N < self._num_shared, first_N, -1).to(device),
            target=target,
            law=shared_law(target, self._num_shared),
            num_shared=self._num_shared,
        )


def _stacked(laws: list[Law], device: torch.device) -> Law:
    """Laws of several answers; those with fewer entries are filled up with entries of mass 0."""
    width = max(law.logp_RK.shape[-1] for law in laws)
    logp = [F.pad(law.logp_RK, (0, width - law.logp_RK.shape[-1]), value=float("-inf")) for law in laws]
    ids = [F.pad(law.ids_RK, (0, width - law.ids_RK.shape[-1])) for law in laws if law.ids_RK is not None]
    return Law(
        torch.cat(logp).to(device),
        torch.cat(ids).to(device),
        torch.cat([law.log_tail_R for law in laws if law.log_tail_R is not None]).to(device),
    )


class VerdictLearner(nn.Module):
    """A batch's weighted loss; `at` says how far the round is, which decides the loss where it changes."""

    def __init__(self, lm: CachedLM, layers: LoraLayers, module: LoraModule, plan: LearningPlan) -> None:
        super().__init__()
        self.module = module
        self._lm = lm
        self._layers = layers
        self._plan = plan
        self.objective = objective(plan, 0.0)

    def at(self, share: float) -> None:
        """share: of the round, 0 to 1."""
        self.objective = objective(self._plan, share)

    def forward(self, batch: AnswerBatch) -> Loss:
        logits_NS = _logits(self._lm, batch)
        loss_N = per_position(logits_NS, batch.label_N, batch.law, self.objective)
        parts = {"verdicts": (batch.weight_N * loss_N).sum().detach()}
        if self._plan.pull:
            with torch.no_grad(), self._layers.silenced():
                base = whole_law(_logits(self._lm, batch))
            pull_N = kl(logits_NS.to(base.logp_RK.dtype), base)
            parts["pull"] = (batch.weight_N * pull_N).sum().detach()
            loss_N = loss_N + self._plan.pull * pull_N
        none = torch.zeros(0, device=logits_NS.device)
        return Loss(
            total=(batch.weight_N * loss_N).sum(),
            num_anchors=batch.weight_N.sum(),
            counts=DepthCounts(none.long(), none.double(), *[none.long()] * 4),
            parts=parts,
        )


def objective(plan: LearningPlan, share: float) -> Objective:
    """What a position costs at this share of the round, in the words of `specbench.losses`."""
    word = plan.loss
    if word == "kl-tv":
        word = "kl" if share < plan.warm else "tv"
    if word == "tv" or word == "lk":
        return Objective(loss=word, temperature=plan.learn_temperature)
    if word == "ce":
        return Objective(loss="ce")
    alpha = 1 - plan.ce_share if word == "mixed" else 1.0
    return Objective(loss="kd", temperature=plan.learn_temperature, alpha=alpha)


class Agreement(NamedTuple):
    """Sums over the positions of one answer."""

    chance: float
    """That the draft's token is accepted; where a law was cut an upper bound."""
    width: float
    """Of what the cut leaves open: the chance lies between `chance - width` and `chance`."""


@torch.no_grad()
def agreement(
    lm: CachedLM, batch: AnswerBatch, *, temperature: float, compared: Compared, num_ids: int
) -> list[Agreement]:
    """Per answer the chance that the draft's token is accepted: at temperature 0 whether both laws have the same first
    choice, which is exact, else what `compared` says at it, as far as the kept entries tell. num_ids: of the target."""
    logits_NS = _logits(lm, batch).float()
    if temperature == 0:
        chance_N = (logits_NS.argmax(-1) == batch.first_N).double()
        width_N = torch.zeros_like(chance_N)
    else:
        target = known(batch.target, temperature=temperature, num_shared=batch.num_shared, num_ids=num_ids)
        chance_N, width_N = chance(logits_NS / temperature, target, compared)
    sums = torch.zeros(batch.tokens_BT.shape[0], 2, dtype=torch.float64, device=chance_N.device)
    sums.index_add_(0, batch.answer_N, torch.stack([chance_N, width_N], dim=1))
    return [Agreement(*pair) for pair in sums.tolist()]


def _logits(lm: CachedLM, batch: AnswerBatch) -> Tensor:
    return packed_logits(lm, batch.tokens_BT, batch.document_BT, batch.index_N)[:, : batch.num_shared]
