"""A tree's draft without the host: how `TreeDrafter` drafts while its steps are captured. The pair that every step
begins with is `held_chain`'s.

B rows, W beams of a depth, L committed tokens of a row (root included), P longest path.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from specbench.lm.cached_lm import CachedLM
from specbench.lm.held_chain import HeldChain
from specbench.tree import Topology


class HeldTree(HeldChain):
    """num_read: nodes of a draft that are read. num_nodes: those the engine knows of."""

    def __init__(self, lm: CachedLM, pair_B2: Tensor, length_B: Tensor, *, num_read: int, num_nodes: int) -> None:
        super().__init__(lm, pair_B2, length_B, num_tokens=0)
        self._num_read = num_read
        # The engine's span has room for the nodes it is handed; a budget leaves others out that were read here.
        self._more = max(0, num_read - num_nodes)
        self._base_B = length_B

    def hold(self, span: int) -> None:
        super().hold(span + self._more)

    def read_pair(self, readable: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits (B, V) behind the root."""
        # Only rows that have ended can stand so far back that their draft would not fit.
        self._base_B = self.length_B.clamp(max=self.span - self._num_read)
        return self._lm.read_behind(readable(self.pair_B2), self._base_B - 2, span=self.span)

    def read_level(self, tokens_BW: Tensor, levels: Topology, max_depth: int) -> Tensor:
        """One more depth of this step's draft -> logits (B, W, V)."""
        return self._lm.read_level_behind(tokens_BW, levels, self._base_B, span=self.span, max_depth=max_depth)

    def keep_path(self, path_BP: Tensor) -> None:
        """These of the nodes read, -1 padded, are the text's own."""
        self._lm.commit_levels_behind(path_BP, self._base_B)
