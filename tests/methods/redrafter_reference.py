"""A second ReDrafter, in numpy, from the paper's equations and Apple's tensor names: nothing of ours in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def apple_logits(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], h: Array, embedded: Sequence[Array]
) -> Array:
    """Logits after the tokens of these embeddings (the root's first), with context h."""
    w = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    s = np.zeros_like(embedded[0])
    for e in embedded:
        s = silu(w["rnn_w.weight"] @ e + w["rnn_u.weight"] @ s + w["rnn_u.bias"]) if config["rnn"] else s + e
    z = np.concatenate([h, s])
    if "input_proj.weight" in w:
        z = w["input_proj.weight"] @ z + w["input_proj.bias"]
    for k in range(config["num_draft_layers"]):
        z = z + silu(w[f"lm_head.{k}.linear.weight"] @ z + w[f"lm_head.{k}.linear.bias"])
    logits: Array = w[f"lm_head.{config['num_draft_layers']}.weight"] @ z
    return logits


def apple_checkpoint(
    *, hidden: int, vocab: int, exit_dim: int, layers: int, rnn: bool, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and tensors as `save_pretrained` of Apple's Drafter writes them."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator) / shape[-1] ** 0.5).to(dtype)

    tensors = {f"lm_head.{layers}.weight": random(vocab, exit_dim) * 3}
    for k in range(layers):
        tensors[f"lm_head.{k}.linear.weight"] = random(exit_dim, exit_dim)
        tensors[f"lm_head.{k}.linear.bias"] = random(exit_dim)
    if exit_dim != 2 * hidden:
        tensors["input_proj.weight"], tensors["input_proj.bias"] = random(exit_dim, 2 * hidden), random(exit_dim)
    if rnn:
        tensors["rnn_u.weight"], tensors["rnn_u.bias"] = random(hidden, hidden), random(hidden)
        tensors["rnn_w.weight"] = random(hidden, hidden)
    config = {
        "model_type": "recurrent_drafting_drafter",
        "architectures": ["Drafter"],
        "vocab_size": vocab,
        "hidden_size": hidden,
        "exit_dim": exit_dim,
        "num_draft_layers": layers,
        "num_lookback_tokens": -1,
        "rnn": rnn,
        "torch_dtype": "float32",
    }
    return config, tensors
