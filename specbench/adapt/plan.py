"""What a round of learning may do and when it is due: every option of it as one frozen, checked value. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from specbench.errors import UsageError

LossWord = Literal["kl-tv", "kl", "tv", "lk", "ce", "mixed"]


@dataclass(frozen=True, kw_only=True)
class LearningPlan:
    """Options of the method's card under the same names; the card holds ranges and help."""

    loss: LossWord = "kl-tv"
    """kl-tv: KL for the first `warm` of a round, then total variation. mixed: ce_share of cross-entropy with the text's
    token, the rest KL."""
    warm: float = 0.5
    ce_share: float = 0.3
    learn_temperature: float = 1.0
    """Both laws are compared at it, under every loss that compares them."""
    lr: float = 2e-3
    weight_decay: float = 0.0
    lr_warmup: float = 0.1
    """Share of a round."""
    lr_rise: int = 30
    """... and, from a candidate's first step on, so many steps: at a full rate they do damage that takes rounds to
    mend."""
    clip: float = 1.0
    batch: int = 8
    """Answers in one optimiser step."""
    steps: int = 40
    """Most optimiser steps of a round."""
    visits: float = 1.5
    """How often a round learns from a new answer, on average: more steps would learn few answers by heart. 0 = as often
    as `steps` allows."""
    round_s: float = 30.0
    """Most seconds of a round, its judging not included."""
    round_mb: int = 2048
    """Most MiB of logits and laws that a step may hold."""
    early: float = 1.0
    """A position weighs 1 + early * (1 - a), a the overlap of both laws when it was observed."""
    depth_decay: float = 0.8
    """... times depth_decay ** (depth - 1)."""
    replay: float = 0.5
    """Share of a step's answers that comes from the reservoir."""
    pull: float = 0.02
    """Weight of KL(base || draft) beside the loss: against forgetting."""
    after_positions: int = 2000
    """A round is due after so many new positions; 0 = never by count."""
    after_drop: float = 0.0
    """... or when the moving acceptance falls so far below its best; 0 = never."""
    idle: bool = False
    """... or whenever there is time and anything new."""
    margin: float = 0.0
    """A candidate is drafted with when the 95 % interval of its gain in expected acceptance lies above this."""
    patience: int = 4
    """Judged rounds in a row in which a candidate may seem worse than what is drafted with before it is begun anew."""
    min_held_out: int = 24
    """Held-out answers without which nothing is promoted."""
    rollback: bool = True
    """Back to the version before when the live acceptance falls below what it was under it."""
    watch_positions: int = 1000
    """Tried positions after a swap before it is judged live, and the memory of the moving acceptance."""

    def steps_for(self, num_new: int, *, has_old: bool) -> int:
        """Optimiser steps of a round with so many new answers; a reservoir takes `replay` of each batch."""
        if not self.visits:
            return self.steps
        fresh = max(1, self.batch - round(self.batch * self.replay)) if has_old else self.batch
        return max(1, min(self.steps, math.ceil(self.visits * num_new / fresh)))

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> LearningPlan:
        """Of a card's options, checked by the card. Raises UsageError for a temperature that the loss does not read."""
        plan = cls(**{field.name: options[field.name] for field in fields(cls)})
        if plan.loss == "ce" and plan.learn_temperature != 1.0:
            raise UsageError(
                "learn_temperature is that of two laws, and loss=ce compares none",
                where="adaptive_lora.learn_temperature",
                try_="adaptive_lora.learn_temperature=1, or adaptive_lora.loss=kl",
            )
        return plan
