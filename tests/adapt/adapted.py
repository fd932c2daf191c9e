"""What the tests of adaptation share: a tiny target with a disturbed copy of it as its draft, engines, adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from helpers import requests_for, tiny_lm, tiny_model, tokens_of
from torch import Tensor

from methods.adaptive_lora.drafter import AdaptiveDrafter, build
from specbench import registry
from specbench.adapt.adaptation import Adaptation
from specbench.adapt.lora import LoraLayers
from specbench.engine.decode import Engine
from specbench.method import Rule
from specbench.sampling import Sampling

PROMPTS = [tokens_of(seed, 4 + seed % 5) for seed in range(40)]


def save_draft(folder: Path, *, seed: int = 0, noise: float = 0.3) -> Path:
    """A draft folder: the tiny Llama of `seed` with noise, so that some of its drafts are right."""
    model = tiny_model(seed=seed)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * parameter.std() * torch.randn(parameter.shape, generator=generator).double())
    model.save_pretrained(folder)
    return folder


def engine(*, temperature: float = 0.0, rule: Rule = "coupled", max_batch: int = 4, max_len: int = 110) -> Engine:
    sampling = Sampling(temperature=temperature)
    return Engine(tiny_lm(), sampling=sampling, rule=rule, max_batch=max_batch, max_len=max_len, max_nodes=8)


def options(folder: Path, **given: Any) -> dict[str, Any]:
    return registry.check_options(registry.card("adaptive_lora"), {"model": str(folder), "num_tokens": 3, **given})


def learning_drafter(folder: Path, on: Engine, **given: Any) -> AdaptiveDrafter:
    """With everything small."""
    small = {
        "adapt": True,
        "rank": 4,
        "top_k": 8,
        "batch": 4,
        "steps": 3,
        "visits": 0,
        "lr_rise": 0,
        "min_held_out": 2,
        **given,
    }
    drafter = build(options(folder, **small), on.view())
    assert isinstance(drafter, AdaptiveDrafter)
    return drafter


def noisy_weights(layers: LoraLayers, *, seed: int = 1, size: float = 0.3) -> dict[str, Tensor]:
    """An adapter that changes what is drafted."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: size * torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor.dtype)
        for name, tensor in layers.weights().items()
    }


def taught(
    draft: Path, *, num: int = 20, temperature: float = 0.0, on: Engine | None = None, **given: Any
) -> AdaptiveDrafter:
    """A drafter that has seen `num` answers."""
    on = on if on is not None else engine(temperature=temperature)
    drafter = learning_drafter(draft, on, **given)
    on.reserve(drafter.max_nodes)
    requests = requests_for(PROMPTS[:num], max_new_tokens=10)
    for start in range(0, num, 4):
        on.generate(drafter, requests[start : start + 4])
        learns(drafter).gather()
    return drafter


def learns(drafter: AdaptiveDrafter) -> Adaptation:
    assert drafter.adaptation is not None
    return drafter.adaptation


def drafts_with(adaptation: Adaptation) -> dict[str, Tensor]:
    return adaptation.layers.weights()


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())
