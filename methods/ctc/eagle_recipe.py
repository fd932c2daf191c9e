"""How the released form learns: the target's next state and next law from every position of the text (EAGLE-1).

    f_t reads z_i = F [E(x_{i+1}); h_i + noise], i <= t of its document; it stands for h_{t+1}, whose law is of x_{t+2}
    loss = reg * SmoothL1(f_t, h_{t+1}) + soft * (what --loss says of x_{t+2}) + ctc * (the released CTC term)

The CTC term of anchor t takes the laws of f_t .. f_{t+U-1} as frames, id `blank_id` as blank and x_{t+2} .. x_{t+1+L}
as labels; a window is left out where a frame or a label is not there, may not be learnt or is the blank.

B rows, T tokens, A anchors, U frames, L labels, D width, H heads, W the drafter's vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from methods.ctc.ctc_loss import ctc, feasible_length, lattice
from methods.ctc.drafter import make
from methods.ctc.module import CtcNetwork
from methods.ctc.text_states import text_states
from specbench.blocks import SharedLaws
from specbench.errors import UsageError
from specbench.losses import Objective, chunked, count_depths
from specbench.method import Drafter, Options, TargetView
from specbench.recipe import Features, Loss, Recipe, windows
from specbench.sampling import uniforms

_NOISE_LENGTH = 512.0


@dataclass(frozen=True, kw_only=True)
class EagleWeights:
    """Of the loss's terms; labels, frames and blank_id are the CTC term's."""

    reg: float
    soft: float
    ctc: float
    noise: float
    labels: int
    frames: int
    blank_id: int


class EagleRecipe(Recipe):
    """One depth, teacher-forced: deeper ones live on the drafter's own states, which is what the noise is for."""

    depth = 1

    def __init__(self, network: CtcNetwork, target: TargetView, weights: EagleWeights, *, only_generated: bool) -> None:
        self.module = self._network = network
        self.architecture = network.architecture.as_dict()
        self._target = target
        self._weights = weights
        self._only_generated = only_generated
        self._head = network.borrowed_head(target)

    def see_labels(self, counts_V: Tensor) -> None:
        self._network.vocabulary.choose(counts_V, self._target)

    def drafter(self, target: TargetView, options: Options) -> Drafter:
        return make(self._network, target, options)

    def loss(self, features: Features, objective: Objective) -> Loss:
        network, weights = self._network, self._weights
        assert network.vocabulary.is_chosen, "see_labels chooses the words of a trimmed head before the first step"
        if features.continuations is not None:
            raise UsageError(
                "form eagle learns the target's next states, which continuations (seq) do not have",
                where="ctc.form",
                try_="ctc.form=nar, or learn from the text (gt, kd)",
            )
        states_ND = self._states(features).flatten(0, 1)
        found = windows(features, depth=1, only_generated=self._only_generated)
        inputs_AD, next_A = states_ND[found.anchor_A], found.state_AF[:, 0]
        label_A = network.vocabulary.to_draft(found.ahead_AF[:, 1])
        law_of = None
        if objective.needs_teacher:
            assert features.teacher is not None, "this loss needs the target's laws"
            law_of = SharedLaws(features.teacher.law, next_A, network.vocabulary, kept=objective.kept).at(next_A)
        each = chunked(lambda states: network.token_logits(states, self._head), inputs_AD, label_A, law_of, objective)
        wanted_AD = features.states_BTKD[:, :, 0].flatten(0, 1)[next_A].to(inputs_AD.dtype)
        distance_A = F.smooth_l1_loss(inputs_AD, wanted_AD, reduction="none").mean(-1)
        terms = {"soft": weights.soft * each.loss_N.sum(), "regression": weights.reg * distance_A.sum()}
        if weights.ctc:
            terms["ctc"] = weights.ctc * self._ctc(features, states_ND, objective)
        valid_A1, said_A1 = found.valid_AF[:, 1:], label_A[:, None] >= 0
        return Loss(
            total=cast("Tensor", sum(terms.values())),
            num_anchors=valid_A1.new_tensor(valid_A1.shape[0], dtype=torch.long),
            counts=count_depths(
                each.loss_N[:, None], each.rank_N[:, None], valid_A1, rank=objective.rank, said_An=said_A1
            ),
            parts={name: term.detach() for name, term in terms.items()},
        )

    # --- f of every position -----------------------------------------------------------------------------------------

    def _states(self, features: Features) -> Tensor:
        """f (B, T, D). That of a document's last token means nothing: its feature lacks the next token."""
        network, document_BT = self._network, features.document_BT
        hidden_BTD = features.states_BTKD[:, :, 0].to(network.dtype)
        if self._weights.noise and network.training:
            hidden_BTD = hidden_BTD + self._noise(hidden_BTD, features)
        with torch.no_grad():
            embedded: Tensor = self._target.embed_tokens(features.tokens_BT.roll(-1, 1))
        z_BTD = network.features(embedded.to(network.dtype), hidden_BTD)
        return text_states(network, z_BTD, document_BT)

    def _noise(self, hidden_BTD: Tensor, features: Features) -> Tensor:
        """Uniform, narrower in longer documents. Drawn by the row's own number, so that the rows beside it, and which
        process has them, decide nothing."""
        document_BT, keys_B = features.document_BT, features.keys_B
        num_rows, num_tokens, width = hidden_BTD.shape
        if keys_B is None:
            keys_B = torch.randint(1 << 62, (num_rows,), device=hidden_BTD.device)
        places_BT = torch.arange(num_tokens, device=hidden_BTD.device).expand(num_rows, -1)
        drawn_BTD = uniforms(keys_B, places_BT, width).to(hidden_BTD.dtype)
        same = document_BT[:, :, None] == document_BT[:, None, :]
        width_BT1 = self._weights.noise * _NOISE_LENGTH / same.sum(-1, keepdim=True)
        return (drawn_BTD - 0.5) * width_BT1

    # --- the released term, masked -----------------------------------------------------------------------------------

    def _ctc(self, features: Features, states_ND: Tensor, objective: Objective) -> Tensor:
        """Sum over windows of the loss per label, as CTC's mean reduction has it."""
        weights, vocabulary, head = self._weights, self._network.vocabulary, self._head
        found = windows(features, depth=weights.frames, only_generated=self._only_generated)
        labels = vocabulary.to_draft(found.ahead_AF[:, 1 : weights.labels + 1])
        blank = vocabulary.to_draft(labels.new_tensor([weights.blank_id]))
        is_whole = found.valid_AF.all(1) & (labels >= 0).all(1) & (labels != blank).all(1) & (blank >= 0)
        anchor_A, labels_AL = found.anchor_A[is_whole], labels[is_whole]
        length_A = feasible_length(labels_AL, torch.full_like(anchor_A, weights.labels), frames=weights.frames)
        index_AU = anchor_A[:, None] + torch.arange(weights.frames, device=anchor_A.device)

        def part(states: Tensor, where: slice) -> Tensor:
            logits = self._network.token_logits(states[index_AU[where]], head)
            logp = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
            mine = labels_AL[where]
            spoken = logp.gather(2, mine[:, None].expand(-1, weights.frames, -1))
            silent = logp[..., blank].squeeze(-1)
            length = length_A[where]
            return (ctc(lattice(spoken, silent, mine), length) / length).sum()

        each = max(objective.chunk // weights.frames, 1)
        total = states_ND.new_zeros((), dtype=torch.promote_types(states_ND.dtype, torch.float32))
        for start in range(0, anchor_A.shape[0], each):
            total = total + checkpoint(part, states_ND, slice(start, start + each), use_reentrant=False)
        return total
