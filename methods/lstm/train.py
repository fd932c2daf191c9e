"""Teaches an LSTM speculator: teacher-forced over all anchors at once, one loss per depth, the head in chunks.

    depth     0                 1
    reads     root = ahead[0]   ahead[1]
    label     ahead[1]          ahead[2]
    teacher   law after root    law after ahead[1]

A anchors, n depths, N positions of a depth that may be learnt, V vocabulary.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from methods.lstm.architecture import Architecture
from methods.lstm.drafter import over
from methods.lstm.module import make_speculator
from specbench.blocks import SharedLaws
from specbench.losses import Objective, chunked, count_depths
from specbench.method import Drafter, Options, TargetView
from specbench.recipe import Features, Loss, Recipe, windows


class SpeculatorRecipe(Recipe):
    """Both cells. Weights are drawn when it is made, from torch's global generator."""

    taps = ("final",)

    def __init__(self, architecture: Architecture, target: TargetView, *, only_generated: bool = False) -> None:
        self.depth = architecture.num_heads
        self.architecture = architecture.as_dict()
        self.network = make_speculator(architecture)
        self.network.to(target.device)
        self.network.borrow(target)
        self.network.reset_parameters()
        self.module = self.network
        self._target = target
        self._only_generated = only_generated

    def see_labels(self, counts_V: Tensor) -> None:
        self.network.vocabulary.choose(counts_V, self._target)

    def loss(self, features: Features, objective: Objective) -> Loss:
        network, vocabulary = self.network, self.network.vocabulary
        assert vocabulary.is_chosen, "see_labels chooses the words of a trimmed head before the first step"
        found = windows(features, depth=self.depth, only_generated=self._only_generated)
        state = network.start(features.states_BTKD.flatten(0, 1)[found.anchor_A, 0])
        num_anchors = found.anchor_A.shape[0]
        laws = None
        if objective.needs_teacher:
            assert features.teacher is not None, "the objective needs the target's laws"
            asked_N = found.state_AF[:, : self.depth][found.valid_AF[:, 1:]]
            laws = SharedLaws(features.teacher.law, asked_N, vocabulary, kept=objective.kept)
        label_An = vocabulary.to_draft(found.ahead_AF[:, 1:])
        losses, ranks, total = [], [], state.hidden_ND.new_zeros(())
        for depth in range(self.depth):
            state = network.step(depth, found.ahead_AF[:, depth], state)
            which_N = found.valid_AF[:, depth + 1].nonzero()[:, 0]
            each = chunked(
                network.head_of(depth),
                state.hidden_ND[which_N],
                label_An[which_N, depth],
                None if laws is None else laws.at(found.state_AF[which_N, depth]),
                objective,
            )
            total = total + objective.depth_decay**depth * each.loss_N.sum()
            losses.append(each.loss_N.new_zeros(num_anchors).index_copy(0, which_N, each.loss_N.detach()))
            ranks.append(each.rank_N.new_zeros(num_anchors).index_copy(0, which_N, each.rank_N))
        counts = count_depths(
            torch.stack(losses, 1),
            torch.stack(ranks, 1),
            found.valid_AF[:, 1:],
            rank=objective.rank,
            said_An=label_An >= 0,
        )
        return Loss(total=total, num_anchors=torch.tensor(num_anchors, device=total.device), counts=counts)

    def drafter(self, target: TargetView, options: Options) -> Drafter:
        return over(self.network, target, options)


def build(options: Options, target: TargetView) -> SpeculatorRecipe:
    """Raises UsageError where the options do not fit together."""
    architecture = Architecture.from_options(options, target)
    return SpeculatorRecipe(architecture, target, only_generated=cast("bool", options["only_generated"]))
