"""A tree drafter over a second CachedLM: what `chain` is, with several beams at every depth.

One forward a depth, as for a chain: the first reads the pending tokens, every other the beams of the depth before, each
of which sees the text and its own ancestors in the draft's cache. The deepest nodes are never read.

    cache before    ... root' | b1 b2 b3 | c1 c2 c3 |      (root' is committed; b: depth 1, c: depth 2, depth 3 unread)
    b2 c1 accepted  ... root' b2 c1                        pending: the bonus token, the new root

Which nodes are drafted is `specbench.beams`: the best ones by the sum of their terms along the path, log q or, under
the target's noise, what it lacks to the best child.

B rows, W beams of a depth, M nodes read so far, N drafted nodes, P longest path, D depths, V the target's vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from specbench.beams import DEAD, expand, grow
from specbench.lm.cached_lm import CachedLM
from specbench.lm.chain import ChainDrafter
from specbench.lm.held_tree import HeldTree
from specbench.method import Commit, DraftNoise, TargetView
from specbench.sampling import process
from specbench.tree import DraftTree, Topology

Read = Callable[[Tensor, Topology, int], Tensor]
"""A depth's tokens (B, W), all nodes read so far with these the last, the depth of these less one -> logits (B, W, ·)
behind each of them."""


@dataclass(frozen=True, kw_only=True)
class TreeShape:
    """beam_width: nodes kept and read at every depth. branch: most children of one node, 0 = as many as win. max_nodes:
    drafted are the best so many of all, 0 = all."""

    beam_width: int
    branch: int = 0
    max_nodes: int = 0

    def widths(self, depth: int, vocab_size: int) -> tuple[int, ...]:
        """Nodes at each depth: there may be no more children than words."""
        each = min(self.branch or self.beam_width, self.beam_width, vocab_size)
        found = [1]
        for _ in range(depth):
            found.append(min(self.beam_width, found[-1] * each))
        return tuple(found[1:])


class TreeDrafter(ChainDrafter):
    """Drafts `num_tokens` deep (less where the answer or the draft's context ends).

    Nodes are picked, never drawn, so no law is recorded: under `rejection` and with picks="greedy" they are the most
    probable ones; else, above temperature 0, those the target's own noise favours. K is not chosen per step, and
    picks="sampled" has no tree.
    """

    branches = True

    def __init__(self, lm: CachedLM, target: TargetView, *, tree: TreeShape, num_tokens: int, **chain: Any) -> None:
        assert chain.get("adaptive") is None and chain.get("picks") != "sampled", "a chain's"
        super().__init__(lm, target, num_tokens=min(num_tokens, tree.max_nodes or num_tokens), **chain)
        self._tree = tree
        self._widths = tree.widths(self._num_tokens, target.vocab_size)
        self._num_read = sum(self._widths[:-1])
        self.max_nodes = min(sum(self._widths), tree.max_nodes or sum(self._widths))
        self._draws = self._draws and target.rule != "rejection"
        self._records_law = False
        # At temperature 0 nothing is filtered: every beam of a shared vocabulary has a probability above 0.
        self._all_live = self._sampling.is_greedy and self._num_shared == target.vocab_size
        self._index_BN: Tensor | None = None
        lm.allocate(max_batch=target.max_batch, max_len=target.max_len, max_nodes=self._num_read + 1)

    # --- a step ------------------------------------------------------------------------------------------------------

    def _hold(self, pair_B2: Tensor, length_B: Tensor) -> HeldTree:
        return HeldTree(self._lm, pair_B2, length_B, num_read=self._num_read, num_nodes=self.max_nodes)

    def draft(self, noise: DraftNoise | None) -> DraftTree:
        held = self._held
        if not isinstance(held, HeldTree):
            return super().draft(noise)
        limit_B = None
        if self._context is not None and held.span > self._context:
            limit_B = self._context + 1 - held.length_B
        logits_BV = held.read_pair(self._readable)
        return self._search(logits_BV, noise, self._num_tokens, limit_B, held.read_level)

    def _grow(self, noise: DraftNoise | None, num: int, room_B: list[int]) -> DraftTree:
        limit_B = None
        if len(room_B) > 1 and min(room_B) < num:
            limit_B = torch.tensor(room_B, device=self._target.device)
        logits_BV = self._lm.append(self._readable(self._pending_BM), self._num_pending)
        return self._search(logits_BV, noise, num, limit_B, self._read_level)

    def _read_level(self, tokens_BW: Tensor, levels: Topology, max_depth: int) -> Tensor:
        return self._lm.read_level(tokens_BW, levels, max_depth=max_depth)

    def _search(
        self, logits_BV: Tensor, noise: DraftNoise | None, depth: int, limit_B: Tensor | None, read: Read
    ) -> DraftTree:
        """logits_BV: the draft's behind the root. limit_B: the deepest a row may draft, where not all may so deep."""
        num_rows = logits_BV.shape[0]
        logits = logits_BV[:, None]
        priority_BW = logits.new_zeros(num_rows, 1, dtype=torch.promote_types(logits.dtype, torch.float32))
        seen_BWV = None if self._seen_BV is None else self._seen_BV[:, None]
        found = []
        levels: Topology | None = None
        for at in range(1, depth + 1):
            shared_BWV = self._shared(logits)
            if self._tell is not None:
                self._tell(shared_BWV)
            scores_BWV = process(shared_BWV, self._sampling, seen_BWV)
            noise_BV = noise.at_depth(at) if noise is not None and self._draws else None
            grown = expand(priority_BW, scores_BWV, noise_BV, width=self._tree.beam_width, branch=self._tree.branch)
            if limit_B is not None:
                grown = grown._replace(priority_BW=grown.priority_BW.masked_fill((limit_B < at)[:, None], DEAD))
            found.append(grown)
            if at == depth:
                break
            priority_BW, tokens_BW = grown.priority_BW, grown.index_BW
            levels = _one_more(levels, grown.parent_BW, at - 1)
            logits = read(self._readable(tokens_BW), levels, at - 1)
            if seen_BWV is not None:
                rows = grown.parent_BW[:, :, None].expand(-1, -1, seen_BWV.shape[2])
                seen_BWV = seen_BWV.gather(1, rows).scatter(2, tokens_BW[:, :, None], True)
        # The best beam of the deepest level: topk takes NaN for the greatest, and its children are NaN again.
        self._finite.see(found[-1].logq_BW[:, :1])
        best = grow(
            [each.index_BW for each in found],
            [each.parent_BW for each in found],
            [each.priority_BW for each in found],
            [each.logq_BW for each in found],
            max_nodes=self._tree.max_nodes,
            all_live=self._all_live and limit_B is None,
        )
        self._index_BN = best.index_BN
        if best.tree.is_chain and limit_B is not None:
            places = torch.arange(best.tree.num_nodes, device=limit_B.device)
            return replace(best.tree, valid_BN=places < limit_B[:, None])
        return best.tree

    def _searched(self, path_BP: Tensor) -> Tensor:
        """A path of drafted nodes as the searched ones are numbered; -1 stays."""
        if self._index_BN is None:
            return path_BP
        return torch.where(path_BP < 0, -1, self._index_BN.gather(1, path_BP.clamp(min=0)))

    def _beams(self, path_BP: Tensor) -> Tensor:
        """Which beam of its depth each node of a path is, (B, P); without meaning where the path is padded."""
        starts = torch.tensor([0, *self._widths]).cumsum(0)[: path_BP.shape[1]]
        return self._searched(path_BP) - starts.to(path_BP.device)

    def commit(self, commit: Commit) -> None:
        if isinstance(self._held, HeldTree) and self._num_read:
            self._held.keep_path(self._searched(commit.path_BP[:, : self._num_tokens - 1]))
        super().commit(commit)

    def _keep_read(self, commit: Commit, kept: list[int], num: int) -> None:
        if any(kept):
            self._lm.commit_levels(kept, self._searched(commit.path_BP[:, : num - 1]))


def _one_more(levels: Topology | None, parent_BW: Tensor, depth: int) -> Topology:
    """Another depth below `levels`, None where it is the first. parent_BW: of each node, among the depth before."""
    num_rows, width = parent_BW.shape
    depth_BW = torch.full((num_rows, width), depth, device=parent_BW.device)
    itself = torch.eye(width, dtype=torch.bool, device=parent_BW.device).expand(num_rows, width, width)
    if levels is None:
        return Topology(depth_BM=depth_BW, sees_BMM=itself)
    num_before = levels.depth_BM.shape[1]
    ancestors = levels.sees_BMM.gather(1, parent_BW[:, :, None].expand(-1, -1, num_before))
    return Topology(
        depth_BM=torch.cat([levels.depth_BM, depth_BW], dim=1), sees_BMM=torch.cat([ancestors, itself], dim=2)
    )
