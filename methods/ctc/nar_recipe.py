"""How parallel frames learn: from every anchor one pass over U frames, scored against all alignments of L labels.

    anchor t reads z_i of its own document for i < t, its own z_t = F [E(ahead[0]); h_t], and its own frames
    labels   ahead[1] .. ahead[L]

Several anchors of a row share one pass; the mask keeps them apart. Everything of the vocabulary's size lives for one
chunk of anchors at a time.

B rows, T tokens, A anchors, n anchors of a chunk, U frames, L labels, D width, W the drafter's vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from methods.ctc.ctc_loss import ctc, feasible_length, lattice, next_laws
from methods.ctc.drafter import make
from methods.ctc.frame_attention import frames_of_anchors
from methods.ctc.module import CtcNetwork
from methods.ctc.text_states import text_states
from specbench.blocks import SharedLaws
from specbench.errors import UsageError
from specbench.losses import DepthCounts, Law, Objective, chunked, count_depths, per_position, ranks
from specbench.method import Drafter, Options, TargetView
from specbench.recipe import Features, Loss, Recipe, Windows, windows
from specbench.sampling import uniforms


@dataclass(frozen=True, kw_only=True)
class NarWeights:
    """Of the loss's terms."""

    first: float
    """Cross-entropy of frame 1 with the first label."""
    reg: float
    """SmoothL1 of f_1 and the target's next state."""
    text: float
    """What --loss says of the layer over the text's own features, from every position: see `_text_loss`."""
    prefix_weighted: bool
    max_anchors: int
    """Of a row, in training; 0 = all."""


class _Scored(NamedTuple):
    """loss_A: with gradient. first_A: the part of it that is frame 1's. depth_AL: -log q(label | labels before), no
    gradient. rank_AL: tokens thought more probable than the label there."""

    loss_A: Tensor
    first_A: Tensor
    depth_AL: Tensor
    rank_AL: Tensor


class NarRecipe(Recipe):
    """ctc-nar, and its ablation without a blank (`loss: ce`)."""

    def __init__(self, network: CtcNetwork, target: TargetView, weights: NarWeights, *, only_generated: bool) -> None:
        self.module = self._network = network
        self.architecture = network.architecture.as_dict()
        self.depth = network.architecture.labels
        self._target = target
        self._weights = weights
        self._only_generated = only_generated
        self._head = network.borrowed_head(target)

    def see_labels(self, counts_V: Tensor) -> None:
        self._network.vocabulary.choose(counts_V, self._target)

    def drafter(self, target: TargetView, options: Options) -> Drafter:
        return make(self._network, target, options)

    # --- the loss ----------------------------------------------------------------------------------------------------

    def loss(self, features: Features, objective: Objective) -> Loss:
        network, depth = self._network, self.depth
        assert network.vocabulary.is_chosen, "see_labels chooses the words of a trimmed head before the first step"
        if self._weights.reg and features.continuations is not None:
            raise UsageError(
                "lambda_reg compares with the target's next state, which continuations (seq) do not have",
                where="ctc.lambda_reg",
                try_="ctc.lambda_reg=0",
            )
        if self._weights.text and features.continuations is not None:
            raise UsageError(
                "lambda_text learns from the text's own next tokens, which continuations (seq) replace",
                where="ctc.lambda_text",
                try_="ctc.lambda_text=0",
            )
        found = windows(features, depth=depth, only_generated=self._only_generated)
        labels_AL = network.vocabulary.to_draft(found.ahead_AF[:, 1:])
        # A frame without a blank stands alone: a label it may not learn does not end the window.
        asked_AL = valid_AL = found.valid_AF[:, 1:]
        length_A = self._lengths(labels_AL, valid_AL)
        said_AL = labels_AL >= 0
        if network.architecture.has_blank:
            said_AL = valid_AL = torch.arange(depth, device=length_A.device) < length_A[:, None]
            asked_AL = asked_AL.long().cumprod(1).bool()
        has_label_A = valid_AL.any(1)
        is_chosen_A = self._choose(has_label_A, found.anchor_A, features)
        chosen = is_chosen_A.nonzero()[:, 0]
        text = None
        if self._weights.text:
            # It weighs as if as many positions of each row had been drawn as anchors.
            row_A = found.anchor_A // features.tokens_BT.shape[1]
            none_B = has_label_A.new_zeros(features.tokens_BT.shape[0], dtype=torch.long)
            chosen_B, all_B = (none_B.index_add(0, row_A, each.long()) for each in (is_chosen_A, has_label_A))
            text = self._text_loss(features, found, objective, (chosen_B / all_B.clamp(min=1))[row_A])
        is_counted_A = is_chosen_A | ~has_label_A
        found = Windows(*(each[chosen] for each in found))
        labels_AL, length_A, valid_AL = labels_AL[chosen], length_A[chosen], valid_AL[chosen]
        states_AUD = self._frame_states(features, found)
        if network.architecture.has_blank:
            scored = self._score_alignments(states_AUD, labels_AL.clamp(min=0), length_A, found, features, objective)
        else:
            scored = self._score_frames(states_AUD, labels_AL, valid_AL, found, features, objective)
        parts = {self.architecture["loss"]: (scored.loss_A - scored.first_A).sum().detach()}
        if self._weights.first and network.architecture.has_blank:
            parts["first"] = scored.first_A.sum().detach()
        total = scored.loss_A.sum()
        if self._weights.reg:
            wanted_AD = features.states_BTKD[:, :, 0].flatten(0, 1)[found.state_AF[:, 0]]
            distance_A = F.smooth_l1_loss(states_AUD[:, 0], wanted_AD.to(states_AUD.dtype), reduction="none").mean(-1)
            parts["regression"] = distance_A.sum().detach()
            total = total + self._weights.reg * distance_A.sum()
        if text is not None:
            parts["text"] = text.detach()
            total = total + self._weights.text * text
        return Loss(
            total=total,
            num_anchors=valid_AL.new_tensor(valid_AL.shape[0], dtype=torch.long),
            counts=_counts(scored, chosen, asked_AL & is_counted_A[:, None], said_AL, rank=objective.rank),
            parts=parts,
        )

    def _text_loss(self, features: Features, found: Windows, objective: Objective, weight_A: Tensor) -> Tensor:
        """Weighted sum over all anchors of the loss of the next token, said by the layer's output for the text's own
        feature.

        Frames of a few anchors teach the layer little a step; this teaches it from all positions at the price of an
        ordinary layer. With `first_frame: anchor` what it teaches is frame 1 itself.
        """
        network = self._network
        states_BTD = features.states_BTKD[:, :, 0].to(network.dtype)
        z_BTD = network.features(self._embedded(features.tokens_BT.roll(-1, 1)), states_BTD)
        has_label = found.valid_AF[:, 1]
        inputs_AD = text_states(network, z_BTD, features.document_BT).flatten(0, 1)[found.anchor_A[has_label]]
        next_A = found.state_AF[has_label, 0]
        label_A = network.vocabulary.to_draft(found.ahead_AF[has_label, 1])
        laws = self._laws(next_A, features, objective)
        law_of = None if laws is None else laws.at(next_A)
        each = chunked(lambda states: network.token_logits(states, self._head), inputs_AD, label_A, law_of, objective)
        return (each.loss_N * weight_A[has_label]).sum()

    def _lengths(self, labels_AL: Tensor, valid_AL: Tensor) -> Tensor:
        """Labels of each window: up to the first that may not be learnt or cannot be said, and what the frames hold."""
        is_label = (valid_AL & (labels_AL >= 0)).long().cumprod(1)
        return feasible_length(labels_AL, is_label.sum(1), frames=self._network.architecture.frames)

    def _choose(self, has_label_A: Tensor, anchor_A: Tensor, features: Features) -> Tensor:
        """bool (A,): the anchors learnt from. In training `max_anchors` of each row, drawn by the row's own number, so
        that the rows beside it decide nothing; an evaluation looks at all."""
        most, (num_rows, num_tokens) = self._weights.max_anchors, features.tokens_BT.shape
        if not most or not self._network.training:
            return has_label_A
        device = anchor_A.device
        keys_B = features.keys_B
        if keys_B is None:
            keys_B = torch.randint(1 << 62, (num_rows,), device=device)
        drawn_BT = uniforms(keys_B, torch.arange(num_tokens, device=device).expand(num_rows, -1), 1)[..., 0]
        is_anchor_BT = torch.zeros(num_rows * num_tokens, dtype=torch.bool, device=device)
        is_anchor_BT = is_anchor_BT.index_put((anchor_A,), has_label_A).view(num_rows, num_tokens)
        # Stable: of equal numbers the first place wins, however wide the row was padded.
        order_BT = drawn_BT.masked_fill(~is_anchor_BT, 2.0).argsort(dim=1, stable=True)
        return has_label_A & (order_BT.argsort(1).flatten()[anchor_A] < most)

    def _frame_states(self, features: Features, found: Windows) -> Tensor:
        """f (A, U, D)."""
        network = self._network
        states_BTD = features.states_BTKD[:, :, 0].to(network.dtype)
        own_AD = network.features(self._embedded(found.ahead_AF[:, 0]), states_BTD.flatten(0, 1)[found.anchor_A])
        if network.layer is None:
            return network.mapped(own_AD)
        # The last token's feature lacks its next token; nothing ever looks at it.
        text_BTD = network.features(self._embedded(features.tokens_BT.roll(-1, 1)), states_BTD)
        return frames_of_anchors(network, own_AD, found.anchor_A, text_BTD, features.document_BT)

    def _embedded(self, tokens: Tensor) -> Tensor:
        with torch.no_grad():
            embedded: Tensor = self._target.embed_tokens(tokens)
        return embedded.to(self._network.dtype)

    def _laws(self, state_N: Tensor, features: Features, objective: Objective) -> SharedLaws | None:
        if not objective.needs_teacher:
            return None
        assert features.teacher is not None, "this loss needs the target's laws"
        return SharedLaws(features.teacher.law, state_N, self._network.vocabulary, kept=objective.kept)

    # --- all alignments ----------------------------------------------------------------------------------------------

    def _score_alignments(
        self,
        states_AUD: Tensor,
        labels_AL: Tensor,
        length_A: Tensor,
        found: Windows,
        features: Features,
        objective: Objective,
    ) -> _Scored:
        head = self._head
        num_anchors, num_frames = states_AUD.shape[:2]
        each = max(objective.chunk // num_frames, 1)
        asked_AL = found.state_AF[:, : self.depth]
        laws = self._laws(asked_AL.flatten(), features, objective)

        def part(states_nUD: Tensor, where: slice) -> tuple[Tensor, ...]:
            law = None if laws is None else laws.at(asked_AL[where].flatten())(slice(None))
            logits = self._network.logits(states_nUD, head)
            # Sums over alignments are not for half precision; under autocast their products would be.
            with torch.autocast(logits.device.type, enabled=False):
                return tuple(self._score(logits, labels_AL[where], length_A[where], law, objective))

        parts = []
        for start in range(0, max(num_anchors, 1), each):
            where = slice(start, start + each)
            parts.append(checkpoint(part, states_AUD[where], where, use_reentrant=False))
        return _Scored(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _score(
        self, logits_nUX: Tensor, labels_nL: Tensor, length_n: Tensor, law: Law | None, objective: Objective
    ) -> _Scored:
        logp = logits_nUX.log_softmax(-1)
        spoken = logp[..., :-1].gather(2, labels_nL[:, None].expand(-1, logp.shape[1], -1))
        found = lattice(spoken, logp[..., -1], labels_nL)
        place_L = torch.arange(labels_nL.shape[1], device=labels_nL.device)
        valid_nL = place_L < length_n[:, None]
        step_nL = torch.where(valid_nL, found.prefix_NL[:, :-1] - found.prefix_NL[:, 1:], 0.0)
        laws_nLV = None
        if law is not None:
            laws_nLV = next_laws(found, logp[..., :-1].exp(), labels_nL, length_n)
            flat = laws_nLV.flatten(0, 1)
            # The law may lack mass where the output could end; a text never ends, so that mass is lost acceptance.
            each = per_position(flat, labels_nL.flatten(), law, objective) - flat.logsumexp(-1)
            weight_L = objective.depth_decay ** place_L.to(each.dtype)
            loss_n = (torch.where(valid_nL, each.view(valid_nL.shape), 0.0) * weight_L).sum(1)
        elif self._weights.prefix_weighted:
            weight_nL = (length_n[:, None] - place_L).clamp(min=0) / length_n[:, None].clamp(min=1)
            loss_n = (step_nL * weight_nL * objective.depth_decay ** place_L.to(step_nL.dtype)).sum(1)
        else:
            loss_n = ctc(found, length_n)
        first_n = -self._weights.first * spoken[:, 0, 0]
        with torch.no_grad():
            if laws_nLV is None:
                laws_nLV = next_laws(found, logp[..., :-1].exp(), labels_nL, length_n)
        return _Scored(loss_n + first_n, first_n, step_nL.detach(), ranks(laws_nLV.detach(), labels_nL))

    # --- one label a frame -------------------------------------------------------------------------------------------

    def _score_frames(
        self,
        states_AUD: Tensor,
        labels_AL: Tensor,
        valid_AL: Tensor,
        found: Windows,
        features: Features,
        objective: Objective,
    ) -> _Scored:
        head = self._head
        anchor_N, depth_N = valid_AL.nonzero(as_tuple=True)
        state_N = found.state_AF[anchor_N, depth_N]
        laws = self._laws(state_N, features, objective)
        each = chunked(
            lambda states: self._network.logits(states, head),
            states_AUD[anchor_N, depth_N],
            labels_AL[anchor_N, depth_N],
            None if laws is None else laws.at(state_N),
            objective,
        )
        weight_N = objective.depth_decay ** depth_N.to(each.loss_N.dtype)
        zeros_AL = each.loss_N.new_zeros(valid_AL.shape)
        loss_A = zeros_AL.index_put((anchor_N, depth_N), each.loss_N * weight_N).sum(1)
        return _Scored(
            loss_A,
            torch.zeros_like(loss_A),
            zeros_AL.index_put((anchor_N, depth_N), each.loss_N.detach()),
            torch.zeros_like(labels_AL).index_put((anchor_N, depth_N), each.rank_N),
        )


def _counts(scored: _Scored, chosen: Tensor, asked_AL: Tensor, said_AL: Tensor, *, rank: int) -> DepthCounts:
    """scored: of the anchors `chosen`. asked_AL, said_AL: of all anchors; a label that no output of the frames can hold
    at its place (it or one before it cannot be said, or the frames are too few) is a miss, as it is for a chain."""
    depth_AL = scored.depth_AL.new_zeros(asked_AL.shape).index_copy(0, chosen, scored.depth_AL)
    rank_AL = scored.rank_AL.new_zeros(asked_AL.shape).index_copy(0, chosen, scored.rank_AL)
    return count_depths(depth_AL, rank_AL, asked_AL, rank=rank, said_An=said_AL)
