"""Train a drafter: documents -> the frozen target's states -> a recipe's loss; one runner for every recipe.

A training is a run: a folder with `train.json` and `events.jsonl`, stopped, resumed and watched like a bench run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from specbench.training.request import TrainOutcome, TrainProgress, TrainRequest

if TYPE_CHECKING:
    from specbench.training.corpus import Corpus

__all__ = ["TrainOutcome", "TrainProgress", "TrainRequest", "train"]


def train(request: TrainRequest, progress: TrainProgress, *, corpus: Corpus | None = None) -> TrainOutcome:
    """Carry out a training, or continue one. corpus: documents in memory, in place of the request's data set.

    Raises SpecbenchError where nothing could be trained; what was saved before stays.
    """
    # 3 s of torch and accelerate, which a front end that only reads requests does not need.
    from specbench.training.runner import train as carry_out

    return carry_out(request, progress, corpus=corpus)
