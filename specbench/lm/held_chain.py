"""A chain's draft without the host: how `ChainDrafter` drafts while its steps are captured.

Every step begins by reading the last two committed tokens, at positions L - 2 and L - 1: the first of them stands in
the cache already unless the whole last draft was accepted, and writing it again changes nothing but rounding. So no
row has to know how many tokens are pending.

B rows, L committed tokens of a row (root included), K drafted tokens, C columns of a commit, V the draft's vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from specbench.lm.cached_lm import CachedLM


class HeldChain:
    """pair_B2: the last two committed tokens. length_B: L. Both are carried from step to step."""

    def __init__(self, lm: CachedLM, pair_B2: Tensor, length_B: Tensor, *, num_tokens: int) -> None:
        self._lm = lm
        self.pair_B2 = pair_B2
        self.length_B = length_B
        self._num_tokens = num_tokens
        self.span = 0

    def hold(self, span: int) -> None:
        """No row passes so many tokens, its draft included."""
        self.span = min(span, self._lm.cache.num_slots)

    def draft(self, pick: Callable[[int, Tensor], Tensor], readable: Callable[[Tensor], Tensor]) -> Tensor:
        """K tokens (B, K). pick: depth and logits (B, V) -> the token (B, 1). readable: ids as the draft reads them."""
        # Only rows that have ended can stand so far back that their draft would not fit.
        base_B = (self.length_B - 2).clamp(max=self.span - 1 - self._num_tokens)
        logits_BV = self._lm.read_behind(readable(self.pair_B2), base_B, span=self.span)
        drafted = [pick(1, logits_BV)]
        for depth in range(2, self._num_tokens + 1):
            logits_BV = self._lm.read_behind(readable(drafted[-1]), base_B + depth, span=self.span)
            drafted.append(pick(depth, logits_BV))
        return torch.cat(drafted, dim=1)

    def commit(self, tokens_BC: Tensor, num_accepted_B: Tensor) -> None:
        """What was committed behind the pair."""
        known = torch.cat([self.pair_B2[:, 1:], tokens_BC], dim=1)
        index_B2 = num_accepted_B[:, None] + torch.arange(2, device=tokens_BC.device)
        self.pair_B2 = known.gather(1, index_B2)
        self.length_B = self.length_B + num_accepted_B + 1

    def keep(self, rows: list[int]) -> None:
        """Rows leave: new row i is old row rows[i]."""
        self._lm.keep(rows, used=self.span)
        self.pair_B2, self.length_B = self.pair_B2[rows], self.length_B[rows]
