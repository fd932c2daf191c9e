"""How much of a training is done, what ends it, and the learning rate at that share. Pure, no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from specbench.training.request import Schedule


@dataclass(frozen=True, kw_only=True)
class Done:
    """What has been trained: optimiser steps, epochs (with fraction), text tokens, seconds of training."""

    steps: int = 0
    epochs: float = 0.0
    tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What ends a training: the first limit that is reached. None = not a limit; at least one is set."""

    max_steps: int | None = None
    epochs: float | None = None
    max_tokens: int | None = None
    max_minutes: float | None = None

    def shares(self, done: Done) -> dict[str, float]:
        """Share used of every limit that is set."""
        pairs = {
            "max_steps": (done.steps, self.max_steps),
            "epochs": (done.epochs, self.epochs),
            "max_tokens": (done.tokens, self.max_tokens),
            "max_minutes": (done.seconds / 60, self.max_minutes),
        }
        return {name: used / limit for name, (used, limit) in pairs.items() if limit is not None}

    def share(self, done: Done) -> float:
        """How much of the training is done, 0 to 1: the limit nearest to its end."""
        return min(1.0, max(self.shares(done).values()))

    def reached(self, done: Done) -> str | None:
        """The limit that ends the training now."""
        return next((name for name, share in self.shares(done).items() if share >= 1 - 1e-12), None)


def rate(schedule: Schedule, share: float, *, warmup: float) -> float:
    """Factor of the learning rate in the middle of a step: 0 to 1 over `warmup`, then down to 0 (constant: stays 1).

    share: of the training before the step, plus half the step's own.
    """
    if share < warmup:
        return share / warmup
    if schedule == "constant":
        return 1.0
    rest = min(1.0, (share - warmup) / max(1 - warmup, 1e-12))
    return 0.5 * (1 + math.cos(math.pi * rest)) if schedule == "cosine" else 1 - rest
