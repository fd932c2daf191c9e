"""`transform: collapse` for a drafter without a blank: equal consecutive tokens of a tree become one node.

A node that repeats its parent's token goes; its children hang from the parent. Where two nodes come to say the same
below the same parent, the earlier one stays and inherits. The root's token is not compared. Static shapes: what went is
marked invalid, what stays keeps its place, and the engine counts positions along the new parents.

B rows, N nodes.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from specbench.tree import DraftTree


def collapse_tree(tree: DraftTree) -> DraftTree:
    """The same nodes, fewer of them valid; parents still come first."""
    tokens_BN = tree.tokens_BN
    num_nodes = tree.num_nodes
    place_N = torch.arange(num_nodes, device=tokens_BN.device)
    valid_BN = torch.ones_like(tokens_BN, dtype=torch.bool) if tree.valid_BN is None else tree.valid_BN
    not_after = (place_N[:, None] >= place_N) & valid_BN[:, None]
    stands_for_BN = place_N.expand_as(tokens_BN)
    same_token = (tokens_BN[:, :, None] == tokens_BN[:, None, :]) & not_after
    for _ in range(tree.max_depth):
        parents_BN = _above(tree.parents_BN, stands_for_BN)
        repeats_BN = (parents_BN >= 0) & (tokens_BN == tokens_BN.gather(1, parents_BN.clamp(min=0)))
        # A node that goes is nobody's twin: it must not be found as the earlier one.
        twin = same_token & (parents_BN[:, :, None] == parents_BN[:, None, :]) & ~repeats_BN[:, None]
        first_BN = twin.int().argmax(-1)
        stands_for_BN = torch.where(repeats_BN, parents_BN, torch.where(twin.any(-1), first_BN, place_N))
    parents_BN = _above(tree.parents_BN, stands_for_BN)
    kept_BN = valid_BN & (stands_for_BN == place_N)
    # q of a node is given its parent, and that is another one now: no law is left to show or to test against.
    return replace(
        tree,
        parents_BN=torch.where(kept_BN, parents_BN, -1),
        valid_BN=kept_BN,
        is_chain=False,
        score_BN=None,
        logq_BMV=None,
    )


def _above(parents_BN: Tensor, stands_for_BN: Tensor) -> Tensor:
    """Each node's parent, replaced by what stands for it."""
    return torch.where(parents_BN >= 0, stands_for_BN.gather(1, parents_BN.clamp(min=0)), -1)
