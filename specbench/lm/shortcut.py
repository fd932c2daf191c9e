"""Decoder and head called directly, where that was seen to be all the causal-LM wrapper around them does.

The wrapper (merging arguments, building output objects) costs some 60 microseconds a call on a CPU: 8 % of a forward of
a draft model of a million parameters. A wrapper that does more, such as soft-capping or scaling logits, is found out
by the first forward, whose logits are compared bit by bit, and stays.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from specbench.lm.taps import decoder_of

_NEEDED = {"input_ids", "position_ids", "past_key_values", "use_cache"}


class Shortcut:
    """The model's logits by the shortest way known to be exact. Hooks on decoder, layers and head run as ever."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._decoder: nn.Module = decoder_of(model)
        self._head: nn.Module = model.get_output_embeddings()
        self._is_exact: bool | None = None
        """None until the first forward has shown it."""

    def logits(self, tokens_BM: Tensor, positions_BM: Tensor, cache: Cache, *, keep: int) -> Tensor:
        """(B, M, V), or the last `keep` columns where keep > 0. The first call runs the decoder twice."""
        if self._is_exact:
            return self._direct(tokens_BM, positions_BM, cache, keep=keep)
        whole: Tensor = self._model(
            input_ids=tokens_BM, position_ids=positions_BM, past_key_values=cache, use_cache=True, logits_to_keep=keep
        ).logits
        if self._is_exact is None:
            # The second run writes the same keys and values to the same slots.
            self._is_exact = set(inspect.signature(type(self._decoder).forward).parameters) >= _NEEDED and torch.equal(
                self._direct(tokens_BM, positions_BM, cache, keep=keep), whole
            )
        return whole

    def _direct(self, tokens_BM: Tensor, positions_BM: Tensor, cache: Cache, *, keep: int) -> Tensor:
        hidden: Tensor = self._decoder(
            input_ids=tokens_BM, position_ids=positions_BM, past_key_values=cache, use_cache=True
        ).last_hidden_state
        logits: Tensor = self._head(hidden[:, -keep:] if keep else hidden)
        return logits
