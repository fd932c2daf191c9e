"""The frozen target's laws for distillation: whole ones from its final states, or top-k and tail from a cache.

N positions, D hidden size, V vocabulary, K entries kept, S flat states (recipe.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specbench.lm.cached_lm import CachedLM
from specbench.lm.packed import head_logits
from specbench.losses import Law, top_law, whole_law


@dataclass(frozen=True)
class WholeTeacher:
    """Laws recomputed from the final states as they are asked for: (N, V) exists for one chunk at a time."""

    lm: CachedLM
    states_SD: Tensor

    @torch.no_grad()
    def law(self, index_N: Tensor) -> Law:
        """Whole laws in the target's own dtype, whatever the drafter learns in; see recipe.Teacher."""
        with torch.autocast(self.states_SD.device.type, enabled=False):
            return whole_law(head_logits(self.lm, self.states_SD[index_N]))


@dataclass(frozen=True)
class TopTeacher:
    """Laws as a cache holds them."""

    logp_SK: Tensor
    ids_SK: Tensor
    log_tail_S: Tensor

    def law(self, index_N: Tensor) -> Law:
        """Top-k laws with their tails; see recipe.Teacher."""
        return Law(self.logp_SK[index_N].float(), self.ids_SK[index_N].long(), self.log_tail_S[index_N].float())


@torch.no_grad()
def top_laws(lm: CachedLM, states_SD: Tensor, top_k: int, *, chunk: int = 1024) -> Law:
    """The k best entries and the tail of every state's law, float32, `chunk` laws at a time."""
    parts = [top_law(whole_law(head_logits(lm, states)), top_k) for states in states_SD.split(chunk)]
    logp = torch.cat([part.logp_RK for part in parts])
    if parts[0].ids_RK is None:
        # k covers the vocabulary: every id is an entry and the tail is empty.
        ids = torch.arange(logp.shape[-1], device=logp.device).expand_as(logp)
        return Law(logp, ids, torch.full(logp.shape[:1], -69.0, device=logp.device))
    ids = torch.cat([part.ids_RK for part in parts if part.ids_RK is not None])
    tails = torch.cat([part.log_tail_R for part in parts if part.log_tail_R is not None])
    return Law(logp, ids, tails)
