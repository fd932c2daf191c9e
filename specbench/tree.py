"""Draft trees: what a step proposes, and the shape facts the engine derives from it.

B sequences, N draft nodes, M = N + 1 slots of a verification forward: slot 0 is the root (the last committed token, not
yet in the cache), slot i + 1 is node i. P is the longest path in nodes. A chain is a tree; so is proposing nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class DraftTree:
    """One step's proposal for B sequences; padded to one N, parents before children, siblings distinct and in draw
    order.

    tokens_BN: int64 ids in the target's vocabulary. parents_BN: int64 index of the parent node, -1 = the root.
    valid_BN: bool, prefix-closed; None claims that every node is valid. max_depth: an upper bound of the longest path.
    score_BN: log q of the node given its parent; shown and calibrated, never used to accept.
    logq_BMV: the processed law each parent's children were drawn from (row 0 = root), for rule `rejection`;
    None = the nodes were picked, not drawn (a point mass each).
    is_chain: claims parents_BN[b] = -1, 0, 1, ... so that nothing needs compaction.
    """

    tokens_BN: Tensor
    parents_BN: Tensor
    max_depth: int
    valid_BN: Tensor | None = None
    score_BN: Tensor | None = None
    logq_BMV: Tensor | None = None
    is_chain: bool = False

    @property
    def num_nodes(self) -> int:
        """N, padding included."""
        return self.tokens_BN.shape[1]


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Shape facts of a tree's slots. depth_BM: int64, root = 0. sees_BMM: bool, slot i attends slot j: itself and its
    ancestors.

    Of a tree that is read level by level, only the last level's slots are rows of sees_BMM: (B, W, M).
    """

    depth_BM: Tensor
    sees_BMM: Tensor

    @property
    def is_level(self) -> bool:
        """Whether the slots before the rows of `sees_BMM` stand in the cache already."""
        return self.sees_BMM.shape[1] < self.sees_BMM.shape[2]


KEPT_SLOTS = 513
"""A captured step holds addresses and no tensor of Python's: constants that it may have read are never let go. Longer
chains than any draft are chunks of prompts, which are not captured and come in too many lengths to be kept."""


def _chain_parents(num_rows: int, num_nodes: int, device: torch.device) -> Tensor:
    found = _kept_parents if num_nodes < KEPT_SLOTS else _passing_parents
    return found(num_rows, num_nodes, device)


def _make_parents(num_rows: int, num_nodes: int, device: torch.device) -> Tensor:
    return torch.arange(-1, num_nodes - 1, device=device).expand(num_rows, num_nodes)


_kept_parents = cache(_make_parents)
_passing_parents = lru_cache(maxsize=64)(_make_parents)


def _chain_topology(num_rows: int, num_slots: int, device: torch.device) -> Topology:
    found = _kept_chain if num_slots <= KEPT_SLOTS else _passing_chain
    return found(num_rows, num_slots, device)


def _make_chain(num_slots: int, device: torch.device) -> tuple[Tensor, Tensor]:
    sees_MM = torch.ones(num_slots, num_slots, dtype=torch.bool, device=device).tril()
    return torch.arange(num_slots, device=device), sees_MM


_one_chain = cache(_make_chain)


@cache
def _kept_chain(num_rows: int, num_slots: int, device: torch.device) -> Topology:
    """However many rows, one chain's memory."""
    return _expanded(_one_chain(num_slots, device), num_rows)


@lru_cache(maxsize=64)
def _passing_chain(num_rows: int, num_slots: int, device: torch.device) -> Topology:
    return _expanded(_make_chain(num_slots, device), num_rows)


def _expanded(one: tuple[Tensor, Tensor], num_rows: int) -> Topology:
    depth_M, sees_MM = one
    return Topology(depth_BM=depth_M.expand(num_rows, -1), sees_BMM=sees_MM.expand(num_rows, -1, -1))


def chain(
    tokens_BN: Tensor, *, valid_BN: Tensor | None = None, score_BN: Tensor | None = None, logq_BMV: Tensor | None = None
) -> DraftTree:
    """A tree with one path per row: tokens_BN[:, d] is proposed at depth d + 1. valid_BN must be a prefix of each
    row."""
    num_rows, num_nodes = tokens_BN.shape
    return DraftTree(
        tokens_BN=tokens_BN,
        parents_BN=_chain_parents(num_rows, num_nodes, tokens_BN.device),
        max_depth=num_nodes,
        valid_BN=valid_BN,
        score_BN=score_BN,
        logq_BMV=logq_BMV,
        is_chain=True,
    )


@cache
def empty(num_rows: int, device: torch.device) -> DraftTree:
    """No proposal: the step is one plain target step."""
    return chain(torch.empty(num_rows, 0, dtype=torch.long, device=device))


def from_lists(tokens: Sequence[Sequence[int]], parents: Sequence[Sequence[int]], *, device: torch.device) -> DraftTree:
    """Host-built trees of different sizes, one per row, padded to the largest. Raises AssertionError where a parent
    follows its child."""
    num_nodes = max((len(row) for row in tokens), default=0)
    if num_nodes == 0:
        return empty(len(tokens), device)
    deepest = 0
    for row in parents:
        depths: list[int] = []
        for node, parent in enumerate(row):
            assert -1 <= parent < node, f"node {node} has parent {parent}: parents must come first"
            depths.append(1 if parent < 0 else depths[parent] + 1)
        deepest = max(deepest, max(depths, default=0))
    is_chain = all(list(row) == list(range(-1, len(row) - 1)) for row in parents)
    is_full = all(len(row) == num_nodes for row in tokens)
    valid_BN = None
    if not is_full:
        valid_BN = torch.tensor([[i < len(row) for i in range(num_nodes)] for row in tokens], device=device)
    tokens_BN = torch.tensor([list(row) + [0] * (num_nodes - len(row)) for row in tokens], device=device)
    if is_chain:
        return chain(tokens_BN, valid_BN=valid_BN)
    parents_BN = torch.tensor([list(row) + [-1] * (num_nodes - len(row)) for row in parents], device=device)
    return DraftTree(tokens_BN=tokens_BN, parents_BN=parents_BN, max_depth=deepest, valid_BN=valid_BN)


def merge(sequences: Sequence[Sequence[int]], *, max_nodes: int) -> tuple[list[int], list[int]]:
    """Continuations that may share prefixes -> (tokens, parents) of their prefix tree.

    Earlier sequences come first: their nodes are placed, in order, until `max_nodes` are used, so a budget cuts the
    least wanted leaves and the result stays prefix-closed.
    """
    tokens: list[int] = []
    parents: list[int] = []
    children: dict[tuple[int, int], int] = {}
    for sequence in sequences:
        parent = -1
        for token in sequence:
            node = children.get((parent, token))
            if node is None:
                if len(tokens) == max_nodes:
                    break
                node = len(tokens)
                children[parent, token] = node
                tokens.append(token)
                parents.append(parent)
            parent = node
    return tokens, parents


def topology(tree: DraftTree) -> Topology:
    """Depth and visibility of every slot, by `max_depth` vectorised steps; cached for chains.

    An invalid node keeps itself and its ancestors visible to itself (no softmax over nothing); nobody accepts it.
    """
    num_rows, num_nodes = tree.tokens_BN.shape
    if tree.is_chain:
        return _chain_topology(num_rows, num_nodes + 1, tree.tokens_BN.device)
    return dense_topology(tree.parents_BN, max_depth=tree.max_depth)


def dense_topology(parents_BN: Tensor, *, max_depth: int) -> Topology:
    """`topology` for any parents: sees[i] = {i} or sees[parent(i)], repeated `max_depth` times."""
    num_rows, num_nodes = parents_BN.shape
    slots = num_nodes + 1
    root = torch.zeros(num_rows, 1, dtype=torch.long, device=parents_BN.device)
    parent_slot_BM = torch.cat([root, parents_BN + 1], dim=1)
    itself = torch.eye(slots, dtype=torch.bool, device=parents_BN.device).expand(num_rows, slots, slots)
    index = parent_slot_BM[:, :, None].expand(num_rows, slots, slots)
    sees = itself
    for _ in range(max_depth):
        sees = itself | sees.gather(1, index)
    return Topology(depth_BM=sees.sum(-1) - 1, sees_BMM=sees)


def sibling_ranks(tree: DraftTree) -> Tensor:
    """For each node the number of earlier nodes with the same parent: int64 (B, N); all 0 in a chain."""
    if tree.is_chain:
        return torch.zeros_like(tree.tokens_BN)
    same = tree.parents_BN[:, :, None] == tree.parents_BN[:, None, :]
    return same.tril(-1).sum(-1)


def paths(tokens: Sequence[int], parents: Sequence[int]) -> list[list[int]]:
    """Root-to-node token paths of a host tree, one per node: the slow, plain reading that tests hold against the
    tensors."""
    out: list[list[int]] = []
    for token, parent in zip(tokens, parents, strict=True):
        out.append(([] if parent < 0 else list(out[parent])) + [token])
    return out
