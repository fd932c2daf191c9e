"""Train a causal model from nothing on whole texts: bf16 arithmetic, fp32 weights, AdamW, cosine."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How long and how fast."""

    tokens: int
    """To be seen."""
    batch_tokens: int
    warmup: int
    """Steps."""
    rate: float
    """Highest learning rate."""


def fit(
    model: LlamaForCausalLM,
    rows: Sequence[list[int]],
    rng: random.Random,
    how: Fit,
    *,
    look: Callable[[], None] = lambda: None,
) -> tuple[int, float]:
    """-> (tokens seen, loss of a late step). look: called every ten steps; what it raises ends the training."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=how.rate, betas=(0.9, 0.95), weight_decay=0.1)
    seen, step, last = 0, 0, math.nan
    while seen < how.tokens:
        for batch in batches(rows, how.batch_tokens, rng):
            share = seen / how.tokens
            if share >= 1:
                break
            for group in optimizer.param_groups:
                rise, fall = min(1.0, (step + 1) / how.warmup), 0.5 * (1 + math.cos(math.pi * share))
                group["lr"] = how.rate * rise * fall
            loss = loss_of(model, batch.to(model.device))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            seen += int((batch >= 0).sum())
            if step % 10 == 0:
                last = float(loss)
                look()
            step += 1
    return seen, last


def held_out_loss(model: LlamaForCausalLM, rows: Sequence[list[int]], *, batch_tokens: int) -> float:
    """Nats a token."""
    with torch.no_grad():
        found = [
            (float(loss_of(model, batch.to(model.device))), int((batch >= 0).sum()))
            for batch in batches(rows, batch_tokens, random.Random(0))
        ]
    return sum(loss * count for loss, count in found) / sum(count for _, count in found)


def batches(rows: Sequence[list[int]], num_tokens: int, rng: random.Random) -> Iterator[torch.Tensor]:
    """int64 (B, T) of texts of like length, B x T at most num_tokens, -1 behind a text's end; in random order."""
    order = sorted(range(len(rows)), key=lambda index: (len(rows[index]), rng.random()))
    groups: list[list[int]] = [[]]
    for index in order:
        if groups[-1] and (len(groups[-1]) + 1) * len(rows[index]) > num_tokens:
            groups.append([])
        groups[-1].append(index)
    rng.shuffle(groups)
    for group in groups:
        longest = max(len(rows[index]) for index in group)
        yield torch.tensor([rows[index] + [-1] * (longest - len(rows[index])) for index in group])


def loss_of(model: LlamaForCausalLM, batch_BT: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the next token. Padding stands behind the text, where causal attention cannot look."""
    with torch.autocast(batch_BT.device.type, torch.bfloat16):
        logits_BTV = model(input_ids=batch_BT.clamp_min(0)[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits_BTV.float().flatten(0, 1), batch_BT[:, 1:].flatten(), ignore_index=-1)
