"""How a ReDrafter learns: n depths from every anchor, the embeddings shifted by one per depth (Zhang 2024, section 3).

A anchors, n depths, F = n + 1 tokens ahead, N valid (anchor, depth) pairs, H width of the target's final state.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from methods.redrafter.drafter import ReDrafter
from methods.redrafter.module import Architecture, ReDrafterNetwork, parameter_dtype
from specbench.blocks import HeadKind, SharedLaws
from specbench.errors import UsageError
from specbench.losses import Objective, chunked, count_depths
from specbench.method import Drafter, Options, TargetView
from specbench.recipe import Features, Loss, Recipe, windows


class ReDrafterRecipe(Recipe):
    """Depth i of anchor t reads the root x_{t+1} and the tokens up to x_{t+1+i} beside h_t; its label is x_{t+2+i}."""

    def __init__(self, network: ReDrafterNetwork, target: TargetView, *, depth: int, only_generated: bool) -> None:
        self.module = self._network = network
        self.architecture = network.architecture.as_dict()
        self.depth = depth
        self._target = target
        self._only_generated = only_generated
        self._head = network.borrowed_head(target)

    def see_labels(self, counts_V: Tensor) -> None:
        self._network.vocabulary.choose(counts_V, self._target)

    def loss(self, features: Features, objective: Objective) -> Loss:
        network, depth = self._network, self.depth
        assert network.vocabulary.is_chosen, "see_labels chooses the words of a trimmed head before the first step"
        dtype = parameter_dtype(network)
        found = windows(features, depth=depth, only_generated=self._only_generated)
        hidden_AH = features.states_BTKD[:, :, 0].flatten(0, 1)[found.anchor_A].to(dtype)
        with torch.no_grad():
            embedded_AnM = self._target.embed_tokens(found.ahead_AF[:, :depth]).to(dtype)
        state = network.initial_state(hidden_AH.shape[0], hidden_AH)
        states = []
        for step in range(depth):
            state = network.next_state(embedded_AnM[:, step], state)
            states.append(state)
        valid_An = found.valid_AF[:, 1:]
        anchor_N, depth_N = valid_An.nonzero(as_tuple=True)
        joined_NZ = torch.cat([hidden_AH[anchor_N], torch.stack(states, 1)[anchor_N, depth_N]], 1)
        label_An = network.vocabulary.to_draft(found.ahead_AF[:, 1:])
        label_N = label_An[anchor_N, depth_N]
        law_of = None
        if objective.needs_teacher:
            assert features.teacher is not None, "this loss needs the target's laws"
            state_N = found.state_AF[:, :depth][anchor_N, depth_N]
            law_of = SharedLaws(features.teacher.law, state_N, network.vocabulary, kept=objective.kept).at(state_N)
        each = chunked(network.logits_with(self._head), joined_NZ, label_N, law_of, objective)
        weight_N = objective.depth_decay ** depth_N.to(each.loss_N.dtype)
        shape = valid_An.shape
        loss_An = each.loss_N.new_zeros(shape).index_put((anchor_N, depth_N), each.loss_N.detach())
        rank_An = each.rank_N.new_zeros(shape).index_put((anchor_N, depth_N), each.rank_N)
        return Loss(
            total=(each.loss_N * weight_N).sum(),
            num_anchors=valid_An.new_tensor(shape[0], dtype=torch.long),
            counts=count_depths(loss_An, rank_An, valid_An, rank=objective.rank, said_An=label_An >= 0),
        )

    def drafter(self, target: TargetView, options: Options) -> Drafter:
        return ReDrafter(self._network, target, options, live=True)


def build(options: Options, target: TargetView) -> Recipe:
    """A fresh recipe with random weights (torch's global generator). Raises UsageError: exit_dim does not fit a
    borrowed head."""
    head = cast("HeadKind", options["head"])
    hidden = target.hidden_size
    rnn = cast("bool", options["rnn"])
    trimmed = cast("int", options["vocabulary"])
    if trimmed and trimmed < len(target.stop_ids) + 1:
        raise UsageError(
            f"a vocabulary of {trimmed} has no room beside the {len(target.stop_ids)} stop tokens",
            where="redrafter.vocabulary",
            try_="redrafter.vocabulary=0 for all tokens, or some thousands",
        )
    architecture = Architecture(
        hidden_size=hidden,
        embed_size=target.embed_width,
        vocab_size=target.vocab_size,
        exit_dim=cast("int", options["exit_dim"]) or (hidden if head == "target" else 2 * hidden),
        num_layers=cast("int", options["num_layers"]),
        rnn=rnn,
        head=head,
        trimmed=trimmed if trimmed < target.vocab_size else 0,
    )
    network = ReDrafterNetwork(architecture).to(target.device)
    network.borrowed_head(target)  # refuses a wrong width before any data is read
    return ReDrafterRecipe(
        network,
        target,
        depth=cast("int", options["depth"]),
        only_generated=cast("bool", options["only_generated"]),
    )
