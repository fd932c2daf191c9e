"""The two models: shapes, fresh and shipped weights, attention for training, held-out loss."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

from specbench.demo.recipe.rows import CONTEXT, VOCABULARY, Batch, Row, batches
from specbench.demo.recipe.settings import Settings


def target_config() -> LlamaConfig:
    """About 3.95 M parameters, a quarter of them the tied embedding."""
    return llama_config(hidden=256, layers=4, heads=8, kv_heads=4, head_dim=32, inner=688)


def draft_config() -> LlamaConfig:
    """One layer: on a CPU a tiny draft costs what its number of operations costs."""
    return llama_config(hidden=80, layers=1, heads=4, kv_heads=4, head_dim=20, inner=320)


def llama_config(*, hidden: int, layers: int, heads: int, kv_heads: int, head_dim: int, inner: int) -> LlamaConfig:
    """What both models share: vocabulary, context and special ids."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=inner,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        pad_token_id=0,
        eos_token_id=3,
        rms_norm_eps=1e-6,
    )


def new_model(config: LlamaConfig) -> LlamaForCausalLM:
    """Fresh weights, with the residual outputs scaled down as GPT-2 does."""
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("matmul_causal")
    scale = 1 / math.sqrt(2 * config.num_hidden_layers)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(scale)
    return model


def first_model(config: LlamaConfig, folder: Path, settings: Settings) -> LlamaForCausalLM:
    """Fresh weights, or those of an earlier go when the run is told to continue it."""
    model = new_model(config)
    if settings.resume:
        model.load_state_dict(load(folder).state_dict())
    return model


def save(model: LlamaForCausalLM, folder: Path) -> None:
    """Ship 16 bits: half the size, and no measurable difference in the figures."""
    make_config: Any = GenerationConfig
    copy: Any = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.generation_config = make_config(bos_token_id=0, pad_token_id=0, eos_token_id=3, do_sample=False)
    copy.to(torch.float16).save_pretrained(folder)


def load(folder: Path) -> LlamaForCausalLM:
    """The shipped weights, computed in 32 bits."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert isinstance(model, LlamaForCausalLM)
    model.train(False)
    return model


def matmul_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """Causal attention written out: a quarter of the time of the fused kernel at this size.

    On a CPU, bf16, head size 32 and 180 positions the fused kernel took 107 ms forward and
    back and this 30 ms.  For training only; rows are padded on the right, so no mask comes.
    """
    length = query.shape[2]
    groups = query.shape[1] // key.shape[1]
    with torch.autocast("cpu", enabled=False):
        query, key = query.to(value.dtype), key.to(value.dtype)
        scores = query @ key.repeat_interleave(groups, 1).transpose(-1, -2)
        future = torch.full((length, length), float("-inf"), dtype=scores.dtype).triu(1)
        likely = torch.add(future, scores, alpha=query.shape[-1] ** -0.5).softmax(-1)
        mixed = likely @ value.repeat_interleave(groups, 1)
    return mixed.transpose(1, 2).contiguous(), None


AttentionInterface.register("matmul_causal", matmul_attention)


def hidden_states(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Last hidden states without the vocabulary product, which is wanted only in places."""
    hidden: torch.Tensor = model.model(input_ids=ids, use_cache=False).last_hidden_state
    return hidden


def selected(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mask of the positions that predict something, what they predict, and its weight."""
    weight = batch.weights[:, 1:]
    keep = weight > 0
    return keep, batch.ids[:, 1:][keep], weight[keep]


def language_loss(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Weighted cross entropy; logits are made only where there is a loss."""
    keep, wanted, weight = selected(batch)
    logits = model.lm_head(hidden_states(model, batch.ids[:, :-1])[keep])
    losses = F.cross_entropy(logits.float(), wanted, reduction="none")
    return (losses * weight).sum() / weight.sum()


def held_out_loss(model: LlamaForCausalLM, rows: Sequence[Row], settings: Settings) -> float:
    """Mean loss per answer token of the held-out rows."""
    total, count = 0.0, 0
    with torch.inference_mode():
        for batch in batches(rows, settings, random.Random(0)):
            answers = Batch(batch.ids, torch.where(batch.weights == 1.0, 1.0, -1.0))
            tokens = answers.tokens
            total += float(language_loss(model, answers)) * tokens
            count += tokens
    return total / count
