"""transformers' own forwards, and how far they lie apart over the same tokens: what rounding alone does to logits.

Neither our cache nor our attention has a part in them, so that errors of theirs can be held against it. V vocabulary,
T tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel


class Spread(NamedTuple):
    """In logits, over all tokens compared."""

    difference: float
    """Largest |difference| between a token alone and the same token among others."""
    largest: float
    """Largest |logit|: one unit in the last place of it is the least that rounding can be."""


@contextmanager
def own_attention(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block the model attends by transformers' plain attention; behind it as before."""
    used = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(used)


@torch.inference_mode()
def own_logits(model: PreTrainedModel, tokens_T: Tensor) -> Tensor:
    """Logits (V,) after these tokens, by transformers' plain attention without a cache, in the model's dtype."""
    with own_attention(model):
        logits: Tensor = model(input_ids=tokens_T[None], use_cache=False, logits_to_keep=1).logits[0, -1]
    return logits


@torch.inference_mode()
def own_spread(model: PreTrainedModel, tokens_T: Tensor, *, num_last: int) -> Spread:
    """The last num_last tokens behind the others, in one forward and one by one, by transformers' plain attention and
    its own cache, in the model's dtype. 1 <= num_last < T."""
    with own_attention(model):
        ids = tokens_T[None]
        cache = model(input_ids=ids[:, :-num_last], use_cache=True, logits_to_keep=1).past_key_values
        last = ids[:, -num_last:]
        together = model(input_ids=last, past_key_values=copy.deepcopy(cache), use_cache=True).logits[0]
        difference = torch.zeros((), device=together.device)
        for slot in range(num_last):
            alone = model(input_ids=last[:, slot : slot + 1], past_key_values=cache, use_cache=True).logits[0, -1]
            difference = torch.maximum(difference, largest_difference(alone, together[slot]))
    return Spread(float(difference), float(together.abs().max()))


def largest_difference(first_V: Tensor, second_V: Tensor) -> Tensor:
    """max |first - second|, in float32 at least: a scalar, NaN where either holds one."""
    wide = torch.promote_types(first_V.dtype, torch.float32)
    return (first_V.to(wide) - second_V.to(wide)).abs().max()
