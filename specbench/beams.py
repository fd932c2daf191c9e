"""Beam search as a static-shape draft tree: parent pointers, a node budget, the acceptance noise inside the search.

A node's priority is a sum of terms <= 0 along its path, so the best N nodes always hold their ancestors. Without noise
the term is log q(v | prefix); with the target's own noise g (rule `coupled`, architecture 5) it is s(v) - max_u s(u),
s = log q + g: 0 for the token that target and drafter would agree on.

B rows, W beams, V entries of the drafter's vocabulary, D depths, N = kept nodes.
"""

from __future__ import annotations

from functools import cache
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

    width: beams afterwards (fewer where there are not as many children). branch: children one beam may have, 0 = as
    many as win. A dead beam grows nothing that lives. Equal priorities are ranked as torch.topk finds them.
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
    logq_BWK = gain_BWK if noise_BV is None else logq_BWV.gather(-1, index_BWK)
    if num_beams == 1 and each <= width:
        return Expansion(
            priority_BW + gain_BWK[:, 0], torch.zeros_like(index_BWK[:, 0]), index_BWK[:, 0], logq_BWK[:, 0]
        )
    joint = (priority_BW[:, :, None] + gain_BWK).reshape(num_rows, num_beams * each)
    best_BW, flat_BW = joint.topk(min(width, num_beams * each), dim=-1)
    return Expansion(
        priority_BW=best_BW,
        parent_BW=flat_BW // each,
        index_BW=index_BWK.reshape(num_rows, -1).gather(1, flat_BW),
        logq_BW=logq_BWK.reshape(num_rows, -1).gather(1, flat_BW),
    )


@cache  # captured steps read it where it lies
def _starts(widths: tuple[int, ...], device: torch.device) -> Tensor:
    """For each node of levels of these widths where its parents' level begins, -1 for the first: its parents are the
    root, and their indices are 0."""
    starts = [torch.full((widths[0],), -1, device=device)]
    for depth in range(1, len(widths)):
        starts.append(torch.full((widths[depth],), sum(widths[: depth - 1]), device=device))
    return torch.cat(starts)


class Grown(NamedTuple):
    """A search's tree. index_BN: of each of its nodes, which of the searched ones it is (they are numbered level by
    level); None: they are the same."""

    tree: DraftTree
    index_BN: Tensor | None


def grow(
    tokens: list[Tensor],
    parents: list[Tensor],
    priorities: list[Tensor],
    logq: list[Tensor],
    *,
    max_nodes: int,
    all_live: bool = False,
) -> Grown:
    """Levels of a search -> the tree of its `max_nodes` best nodes (all when 0 or enough).

    tokens[d], parents[d] (beam of level d - 1; those of level 0 are 0), priorities[d], logq[d]: (B, W_d).
    Static shapes: the kept nodes stand level by level, so parents come first; dead nodes are invalid. all_live: the
    caller knows that no beam is dead (no filter, no masked score), and nothing is marked.
    """
    widths = tuple(level.shape[1] for level in tokens)
    num_all = sum(widths)
    is_cut = 0 < max_nodes < num_all
    tokens_BN, logq_BN = torch.cat(tokens, 1), torch.cat(logq, 1)
    if num_all == len(widths) and not is_cut:
        return Grown(chain(tokens_BN, score_BN=logq_BN), None)
    device = tokens_BN.device
    parents_BN = torch.cat(parents, 1) + _starts(widths, device)
    priority_BN = torch.cat(priorities, 1) if is_cut or not all_live else None
    kept_BN = None
    if is_cut:
        assert priority_BN is not None
        # Stable, because a child whose term is 0 ties with its parent, which stands before it and must be kept first.
        ranked_BN = priority_BN.sort(dim=-1, descending=True, stable=True).indices
        kept_BN = ranked_BN[:, :max_nodes].sort(-1).values
        # Slot 0 stands for the root, so that -1 + 1 finds it.
        place_BM = torch.zeros(tokens_BN.shape[0], num_all + 1, dtype=torch.long, device=device)
        place_BM.scatter_(1, kept_BN + 1, torch.arange(1, max_nodes + 1, device=device).expand_as(kept_BN))
        parents_BN = place_BM.gather(1, parents_BN.gather(1, kept_BN) + 1) - 1
        tokens_BN, logq_BN = tokens_BN.gather(1, kept_BN), logq_BN.gather(1, kept_BN)
        priority_BN = None if all_live else priority_BN.gather(1, kept_BN)
    valid_BN = None if priority_BN is None else priority_BN > DEAD
    tree = DraftTree(
        tokens_BN=tokens_BN,
        parents_BN=parents_BN if valid_BN is None else torch.where(valid_BN, parents_BN, -1),
        max_depth=len(widths) if not is_cut else min(len(widths), max_nodes),
        valid_BN=valid_BN,
        score_BN=logq_BN,
    )
    return Grown(tree, kept_BN)
