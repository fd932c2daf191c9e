"""One optimiser step: micro-batches, token-weighted gradients, clipping, and the sums every process must agree on.

The loss of a step is sum(Loss.total) / sum(Loss.num_anchors) over all micro-batches of all processes. Processes average
their gradients (DDP, FSDP), so they are scaled by num_processes / anchors after the reduction: how a batch was cut
changes nothing.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils._pytree import register_dataclass

from specbench.errors import CheckFailed
from specbench.losses import Objective
from specbench.recipe import Features, Loss, Recipe
from specbench.sampling import sequence_key

# FSDP hangs its part of the backward pass on the tensors that a forward returns; torch 2.8 finds them in registered
# types only.
register_dataclass(Loss)


class Source(Protocol):
    """Where a learner's micro-batches come from: `FeatureSource` for recipes."""

    def make(self, rows: Sequence[int | None]) -> object:
        """What the learner's forward takes, of these rows."""
        ...


class Learner(nn.Module):
    """What DDP and FSDP wrap: a recipe's loss as a forward."""

    def __init__(self, recipe: Recipe, objective: Objective) -> None:
        super().__init__()
        self.module = recipe.module
        self._recipe = recipe
        self._objective = objective
        self.touches_all = False
        """Every parameter takes part in every loss, with weight zero where the batch gives it none: processes must
        reduce the same gradients."""

    def forward(self, features: Features) -> Loss:
        loss = self._recipe.loss(features, self._objective)
        if self.touches_all or not loss.total.requires_grad:
            nothing = sum((p.flatten()[:1].sum() * 0.0 for p in self.module.parameters()), loss.total.new_zeros(()))
            return Loss(total=loss.total + nothing, num_anchors=loss.num_anchors, counts=loss.counts, parts=loss.parts)
        return loss


@dataclass(frozen=True, kw_only=True)
class StepSums:
    """Sums over all processes."""

    loss: float
    """Per anchor."""
    num_anchors: int
    grad_norm: float
    """Before clipping."""
    wants_stop: bool
    """Some process was told to stop (Ctrl-C)."""
    seconds: float
    """Of training so far, by the first process's clock: what every process goes by."""
    parts: Mapping[str, float]
    """The loss's named terms, per anchor."""


class NotFinite(CheckFailed):
    """A loss or gradient is not a number: the training stops where it is, the last good checkpoint stays."""


@dataclass
class Stepper:
    """Holds what every step needs."""

    accelerator: Accelerator
    learner: nn.Module
    """As prepared by accelerate."""
    optimiser: torch.optim.Optimizer
    source: Source
    clip: float
    _names: tuple[str, ...] | None = field(default=None, init=False)
    """Of the loss's terms, on all processes: what is reduced must be as long everywhere."""

    def step(
        self,
        micro_batches: Sequence[Sequence[int | None]],
        *,
        lr: float,
        wants_stop: bool,
        seconds: float,
        draw: int = 0,
    ) -> StepSums:
        """Forward, backward, reduce, clip, update. draw: this step's number on every process, from which the rows'
        `Features.keys_B` come. Raises StepFailed before any weight is touched."""
        accelerator = self.accelerator
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.zero_grad(set_to_none=True)
        totals: list[Tensor] = []
        anchors: list[Tensor] = []
        parts: dict[str, list[Tensor]] = defaultdict(list)
        for rows, is_last in _with_last(micro_batches):
            features = self.source.make(rows)
            if isinstance(features, Features):
                features = replace(features, keys_B=_row_keys(draw, rows, features.tokens_BT.device))
            context = nullcontext() if is_last else accelerator.no_sync(self.learner)
            with context:
                loss: Loss = self.learner(features)
                # accelerate divides by its own accumulation count, which is 1: the sum stays a sum.
                accelerator.backward(loss.total)
            totals.append(loss.total.detach().double())
            anchors.append(loss.num_anchors.double())
            for name, part in loss.parts.items():
                parts[name].append(part.detach().double())
        first = 1.0 if accelerator.is_main_process else 0.0
        flags = torch.tensor([float(wants_stop), seconds * first], dtype=torch.float64, device=totals[0].device)
        names = self._part_names(parts)
        terms = [torch.stack(parts[name]).sum() if name in parts else flags.new_zeros(()) for name in names]
        sums = torch.cat([torch.stack([torch.stack(totals).sum(), torch.stack(anchors).sum(), *terms]), flags])
        total, num_anchors, *reduced, stops, clock = reduce_sum(accelerator, sums).tolist()
        if not math.isfinite(total):
            bad = [at for at, each in enumerate(torch.stack(totals).tolist()) if not math.isfinite(each)]
            raise StepFailed(bad)
        scale = accelerator.num_processes / max(num_anchors, 1.0)
        gradients = [parameter.grad for parameter in self.learner.parameters() if parameter.grad is not None]
        torch._foreach_mul_(gradients, scale)
        norm = accelerator.clip_grad_norm_(self.learner.parameters(), self.clip if self.clip > 0 else math.inf)
        grad_norm = float(norm) if norm is not None else 0.0
        if not math.isfinite(grad_norm):
            raise StepFailed(list(range(len(micro_batches))))
        self.optimiser.step()
        return StepSums(
            loss=total / max(num_anchors, 1.0),
            num_anchors=int(num_anchors),
            grad_norm=grad_norm,
            wants_stop=stops > 0,
            seconds=clock,
            parts={name: value / max(num_anchors, 1.0) for name, value in zip(names, reduced, strict=True)},
        )

    def _part_names(self, parts: Mapping[str, object]) -> tuple[str, ...]:
        if self._names is None:
            found = sorted(parts)
            if self.accelerator.num_processes > 1:
                found = sorted(set(gather_object(found)))
            self._names = tuple(found)
        assert set(parts) <= set(self._names), "a recipe names the same parts in every loss"
        return self._names


class StepFailed(Exception):
    """A step's loss or gradient is not finite. micro_batches: which of this process's; empty where another's."""

    def __init__(self, micro_batches: list[int]) -> None:
        super().__init__("not finite")
        self.micro_batches = micro_batches


def not_finite(failed: StepFailed, *, step: int, keys_of: Sequence[Sequence[str]], kept: str) -> NotFinite:
    """The same for the user. keys_of: documents of each micro-batch of this process."""
    keys = [key for at in failed.micro_batches for key in keys_of[at]]
    shown = ", ".join(keys[:12]) + (f" and {len(keys) - 12} more" if len(keys) > 12 else "")
    return NotFinite(
        f"the loss or its gradient is not a number at step {step}",
        where=f"documents {shown}" if keys else "documents of another process",
        try_=f"a smaller --lr or --clip, --precision fp32, or leave those documents out; {kept}",
    )


def reduce_sum(accelerator: Accelerator, values: Tensor) -> Tensor:
    """The sum over processes, on every one."""
    if accelerator.num_processes == 1:
        return values
    reduced = accelerator.reduce(values, reduction="sum")
    assert isinstance(reduced, Tensor)
    return reduced


def _row_keys(draw: int, rows: Sequence[int | None], device: torch.device) -> Tensor:
    """A row's own number at this step, whichever rows stand beside it."""
    keys = [sequence_key(seed=draw, question_id=str(row), turn=0) for row in rows]
    return torch.tensor(keys, dtype=torch.long, device=device)


def _with_last(items: Sequence[Sequence[int | None]]) -> Iterator[tuple[Sequence[int | None], bool]]:
    for at, item in enumerate(items):
        yield item, at == len(items) - 1
