"""Weights that still learn are float32 whatever the target computes in: every evaluation of a training drafts so."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from specbench import registry
from specbench.engine.decode import Engine
from specbench.engine.replay import Text, replay
from specbench.sampling import Sampling
from tests.helpers import tiny_lm

TRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "redrafter": ("redrafter", {}),
    "redrafter, own head": ("redrafter", {"head": "own"}),
    "lstm": ("lstm", {}),
    "lstm, target's tables": ("lstm", {"head": "target", "embedding": "target"}),
    "ctc, nar": ("ctc", {}),
    "ctc, nar, own head": ("ctc", {"head": "own"}),
    "ctc, nar, anchor": ("ctc", {"first_frame": "anchor"}),
    "ctc, nar, linear": ("ctc", {"module": "linear"}),
    "ctc, eagle": ("ctc", {"form": "eagle"}),
    "ctc, eagle, linear": ("ctc", {"form": "eagle", "module": "linear"}),
}


def test_every_trained_method_is_looked_at() -> None:
    trained = {each.name for each in registry.cards() if each.card is not None and each.card.training}
    assert trained == {method for method, _ in TRAINED.values()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("is_chain", [False, True], ids=["tree", "chain"])
@pytest.mark.parametrize("kind", TRAINED)
def test_live_weights_draft_over_a_target_in_half_precision(kind: str, is_chain: bool, dtype: torch.dtype) -> None:
    method, changed = TRAINED[kind]
    lm = tiny_lm("llama", dtype=dtype, scale=1.0)
    view = Engine(lm, sampling=Sampling(), max_batch=2, max_len=40).view()
    card = registry.card(method)
    training = {name: option.default for name, option in card.training.items()}
    drafting = {name: option.default for name, option in card.options.items()}
    assert set(changed) <= set(training)
    if is_chain:
        [width] = {"beams", "beam_width"} & set(drafting)
        drafting[width] = 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        recipe = registry.load_recipe(method)({**training, **changed}, view)
    # As the training runner has it.
    recipe.module.to(dtype=torch.float32)
    texts = [Text(prompt=(3, 4, 5, 6), answer=(7, 8, 9, 10, 11)), Text(prompt=(9,), answer=(5, 5, 0))]
    found = replay(lm, recipe.drafter(view, drafting), texts, max_batch=2)
    assert found.num_tokens == 4 + 2 and found.num_nodes > 0
    assert {each.dtype for each in recipe.module.parameters()} == {torch.float32}
