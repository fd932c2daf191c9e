"""Weights for a method that needs some, made for one tiny target: its own recipe, a few steps on the target's own text.

Enough that some drafts are accepted and some are not, which is what the promises need; and proof that the recipe
learns: the loss falls and every parameter receives gradient.

B packed rows, T tokens a row, K taps, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from specbench import checkpoint, registry
from specbench.card import Card
from specbench.conformance.broken import BrokenPromise
from specbench.conformance.watch import PlainDrafter
from specbench.engine.decode import Engine
from specbench.lm.cached_lm import CachedLM
from specbench.lm.packed import packed_states
from specbench.losses import Objective
from specbench.method import Request, TargetView
from specbench.recipe import Features, Recipe
from specbench.sampling import Sampling, sequence_key

NUM_STEPS = 40
_LEARNING_RATE = 1e-2
_NUM_TEXTS, _NUM_TOKENS = 8, 24


@dataclass(frozen=True, kw_only=True)
class Made:
    """A drafter's folder, and what making it showed."""

    folder: Path
    first_loss: float
    last_loss: float


def make_weights(
    card: Card,
    lm: CachedLM,
    folder: Path,
    *,
    training: Mapping[str, Any] | None = None,
    methods_dirs: tuple[Path, ...] = (),
    num_steps: int = NUM_STEPS,
) -> Made:
    """Weights of the method for this target, saved in `folder`. training: options of `specbench train`.

    Raises UsageError where the recipe refuses the target, BrokenPromise where it does not learn.
    """
    values = {name: option.default for name, option in card.training.items()} | dict(training or {})
    view = Engine(lm, sampling=Sampling(), max_len=2 * _NUM_TOKENS).view()
    features = _own_text(lm)
    # A recipe draws its weights from torch's global generator; the caller's stream is put back.
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        recipe = registry.load_recipe(card.name, methods_dirs=methods_dirs)(values, view)
        recipe.see_labels(torch.bincount(features.tokens_BT[features.learn_BT], minlength=lm.vocab_size))
        states = packed_states(lm, features.tokens_BT, features.document_BT, recipe.taps)
        losses = _learn(recipe, _with_states(features, states), num_steps)
    _save(card, recipe, lm, view, folder)
    return Made(folder=folder, first_loss=losses[0], last_loss=losses[-1])


def _own_text(lm: CachedLM) -> Features:
    """What the target writes after single tokens, greedily and drawn; one document a row. States come later."""
    rows = []
    for sampling in (Sampling(), Sampling(temperature=1.0)):
        engine = Engine(lm, sampling=sampling, max_batch=_NUM_TEXTS, max_len=2 * _NUM_TOKENS)
        requests = [
            Request(
                key=sequence_key(seed=0, question_id=str(place), turn=0),
                prompt=(place % lm.vocab_size,) * 2,
                max_new_tokens=_NUM_TOKENS - 2,
            )
            for place in range(1, _NUM_TEXTS + 1)
        ]
        found = engine.generate(PlainDrafter(engine.view()), requests).generations
        rows += [request.prompt + each.tokens for request, each in zip(requests, found, strict=True)]
    tokens = torch.tensor(rows, device=lm.device)
    learn = torch.ones_like(tokens, dtype=torch.bool)
    learn[:, :2] = False
    empty = torch.empty(*tokens.shape, 0, 0, device=lm.device)
    return Features(tokens_BT=tokens, document_BT=torch.zeros_like(tokens), learn_BT=learn, states_BTKD=empty)


def _with_states(features: Features, states_BTKD: torch.Tensor) -> Features:
    return Features(
        tokens_BT=features.tokens_BT,
        document_BT=features.document_BT,
        learn_BT=features.learn_BT,
        states_BTKD=states_BTKD,
    )


def _learn(recipe: Recipe, features: Features, num_steps: int) -> list[float]:
    """Adam on one batch -> the loss per anchor at every step."""
    module = recipe.module.train()
    learning = {name: each for name, each in module.named_parameters() if each.requires_grad}
    optimiser = torch.optim.Adam(learning.values(), lr=_LEARNING_RATE)
    losses = []
    idle = set(learning)
    for step in range(num_steps + 1):
        loss = recipe.loss(features, Objective(loss="ce"))
        mean = loss.total / loss.num_anchors
        losses.append(float(mean.detach()))
        if step == num_steps:
            break
        optimiser.zero_grad()
        mean.backward()
        idle -= {name for name in idle if _is_moved(learning[name])}
        optimiser.step()
    if idle:
        raise BrokenPromise(f"no gradient reaches {', '.join(sorted(idle))}")
    if not losses[-1] < losses[0]:
        raise BrokenPromise(f"{num_steps} steps on one batch moved the loss from {losses[0]:.4g} to {losses[-1]:.4g}")
    module.eval()
    return losses


def _is_moved(parameter: torch.nn.Parameter) -> bool:
    return parameter.grad is not None and bool(parameter.grad.any())


def _save(card: Card, recipe: Recipe, lm: CachedLM, view: TargetView, folder: Path) -> None:
    checkpoint.save(
        folder,
        checkpoint.Checkpoint(
            method=card.name,
            architecture=recipe.architecture,
            target=checkpoint.trained_on(view, weights_hash=lm.weights_hash),
            state=recipe.module.state_dict(),
        ),
    )
