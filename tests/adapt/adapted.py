"""What the tests of adaptation share: a tiny target with a disturbed copy of it as its draft, engines, adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from helpers import tiny_lm, tiny_model
from torch import Tensor

from methods.adaptive_lora.drafter import AdaptiveDrafter, build
from specbench import registry
from specbench.adapt.lora import LoraLayers
from specbench.engine.decode import Engine
from specbench.method import Rule
from specbench.sampling import Sampling


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
