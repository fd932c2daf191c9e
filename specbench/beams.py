"""Beam search as a static-shape draft tree: parent pointers, a node budget, the acceptance noise inside the search.

A node's priority is a sum of terms <= 0 along its path, so the best N nodes always hold their ancestors. Without noise
the term is log q(v | prefix); with the target's own noise g (rule `coupled`, architecture 5) it is s(v) - max_u s(u),
s = log q + g: 0 for the token that target and drafter would agree on.

B rows, W beams, V entries of the drafter's vocabulary, D depths, N = kept nodes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from specbench.tree import DraftTree, chain

DEAD = float("-inf")


class Expansion(NamedTuple):
    """The W best children of all beams together. priority_BW: descending; -inf = a dead beam. parent_BW: index of the
    beam they grew from. index_BW: drafter's vocabulary. logq_BW: log q of the child given its parent."""

    priority_BW: Tensor
    parent_BW: Tensor
    index_BW: Tensor
    logq_BW: Tensor


def expand(
    priority_BW: Tensor, scores_BWV: Tensor, noise_BV: Tensor | None, *, width: int, branch: int = 0
) -> Expansion:
    """One depth of beam search. scores_BWV: processed scores (`sampling.process`), any constant per beam.

    width: beams afterwards. branch: children one beam may have, 0 = as many as win. Ties go to the lower beam, then the
    lower index. Dead beams grow nothing that lives.
    """
    num_rows, num_beams, size = scores_BWV.shape
    logq_BWV = scores_BWV.log_softmax(-1)
    if noise_BV is None:
        gain_BWV = logq_BWV
    else:
        perturbed = logq_BWV + noise_BV[:, None]
        gain_BWV = perturbed - perturbed.amax(-1, keepdim=True)
    each = min(branch or width, width, size)
    gain_BWK, index_BWK = gain_BWV.topk(each, dim=-1)
    joint = (priority_BW[:, :, None] + gain_BWK).reshape(num_rows, num_beams * each)
    kept = min(width, num_beams * each)
    best_BW, flat_BW = joint.topk(kept, dim=-1)
    parent_BW = flat_BW // each
    index_BW = index_BWK.reshape(num_rows, -1).gather(1, flat_BW)
    logq_BW = logq_BWV[torch.arange(num_rows, device=index_BW.device)[:, None], parent_BW, index_BW]
    return Expansion(best_BW, parent_BW, index_BW, logq_BW)


def grown_tree(
    tokens: list[Tensor], parents: list[Tensor], priorities: list[Tensor], logq: list[Tensor], *, max_nodes: int
) -> DraftTree:
    """Levels of a search -> the tree of its `max_nodes` best nodes (all when 0 or enough).

    tokens[d], parents[d] (beam of level d - 1; level 0's parents are the root), priorities[d], logq[d]: (B, W_d).
    Static shapes: the kept nodes stand level by level, so parents come first; dead nodes are invalid.
    """
    widths = [level.shape[1] for level in tokens]
    if max(widths) == 1 and (max_nodes == 0 or max_nodes >= len(widths)):
        return chain(torch.cat(tokens, 1), score_BN=torch.cat(logq, 1))
    tokens_BN, priority_BN, logq_BN = torch.cat(tokens, 1), torch.cat(priorities, 1), torch.cat(logq, 1)
    num_rows, num_all = tokens_BN.shape
    device = tokens_BN.device
    starts = [sum(widths[:depth]) for depth in range(len(widths))]
    roots = torch.full_like(parents[0], -1)
    parents_BN = torch.cat([roots, *(parents[d] + starts[d - 1] for d in range(1, len(widths)))], 1)
    if 0 < max_nodes < num_all:
        # Stable, because a child whose term is 0 ties with its parent, which stands before it and must be kept first.
        ranked_BN = priority_BN.sort(dim=-1, descending=True, stable=True).indices
        kept_BN = ranked_BN[:, :max_nodes].sort(-1).values
        place_BN = torch.full((num_rows, num_all), -1, dtype=torch.long, device=device)
        place_BN.scatter_(1, kept_BN, torch.arange(max_nodes, device=device).expand(num_rows, -1))
        tokens_BN, priority_BN, logq_BN = (t.gather(1, kept_BN) for t in (tokens_BN, priority_BN, logq_BN))
        old_BN = parents_BN.gather(1, kept_BN)
        parents_BN = torch.where(old_BN >= 0, place_BN.gather(1, old_BN.clamp(min=0)), -1)
    valid_BN = priority_BN > DEAD
    return DraftTree(
        tokens_BN=tokens_BN,
        parents_BN=torch.where(valid_BN, parents_BN, -1),
        max_depth=len(widths),
        valid_BN=valid_BN,
        score_BN=logq_BN,
    )
