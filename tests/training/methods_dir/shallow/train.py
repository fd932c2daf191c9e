"""Learns each head by the objective on the anchors' labels."""

from __future__ import annotations

import time

import torch

from specbench.losses import Objective, chunked, count_depths
from specbench.method import Drafter, Options, TargetView
from specbench.recipe import Features, Loss, Recipe, windows

from .drafter import ShallowDrafter
from .heads import Heads


class ShallowRecipe(Recipe):
    def __init__(self, options: Options, target: TargetView) -> None:
        self.depth = int(options["depth"])
        self.architecture = {
            "depth": self.depth,
            "width": target.hidden_size,
            "vocab_size": target.vocab_size,
            "dropout": float(options["dropout"]),
        }
        self.module = Heads(**self.architecture)
        self._explode_at = int(options["explode_at"])
        self._sleep_s = float(options["sleep_s"])
        self._calls = 0

    def loss(self, features: Features, objective: Objective) -> Loss:
        time.sleep(self._sleep_s)
        found = windows(features, depth=self.depth)
        states = features.states_BTKD[:, :, 0].flatten(0, 1)[found.anchor_A].float()
        losses, ranks = [], []
        for depth in range(self.depth):
            label = found.ahead_AF[:, depth + 1]
            law_of = None
            if objective.needs_teacher:
                index = found.state_AF[:, depth]
                law_of = lambda where, index=index: features.teacher.law(index[where])  # noqa: E731
            result = chunked(lambda x, depth=depth: self.module(x, depth), states, label, law_of, objective)
            losses.append(result.loss_N * objective.depth_decay**depth)
            ranks.append(result.rank_N)
        valid = found.valid_AF[:, 1:]
        loss_An, rank_An = torch.stack(losses, 1), torch.stack(ranks, 1)
        total = torch.where(valid, loss_An, 0.0).sum()
        if self.module.training:
            self._calls += 1
            if self._calls == self._explode_at:
                total = total * float("nan")
        return Loss(
            total=total,
            num_anchors=torch.tensor(len(found.anchor_A)),
            counts=count_depths(loss_An, rank_An, valid, rank=objective.rank),
            parts={"first": torch.where(valid[:, 0], loss_An[:, 0], 0.0).sum().detach()},
        )

    def drafter(self, target: TargetView, options: Options) -> Drafter:
        return ShallowDrafter(self.module, target)


def build(options: Options, target: TargetView) -> Recipe:
    return ShallowRecipe(options, target)
