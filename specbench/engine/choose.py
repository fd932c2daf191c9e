"""What each slot of a verification is answered with: processors, noise and acceptance rule together.

B rows, N nodes, M = N + 1 slots, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from specbench.engine import accept
from specbench.method import Rule
from specbench.sampling import STREAM_TEST, Sampling, log_probs, process, uniforms
from specbench.tree import DraftTree, sibling_ranks, topology


class Ahead(Protocol):
    """Noise of the positions ahead of B roots."""

    def ahead(self, num: int) -> Tensor:
        """Depths 1 .. num: float32 (B, num, V)."""
        ...


class Tests(Protocol):
    """Where the uniforms of `rejection`'s accept tests come from; asked only there."""

    def keys_B(self) -> Tensor: ...

    def roots_B(self) -> Tensor:
        """Committed tokens of each row, root included."""
        ...


def choose(
    logits_BMV: Tensor,
    tree: DraftTree,
    *,
    sampling: Sampling,
    rule: Rule,
    noise: Ahead | None,
    tests: Tests,
    seen_BV: Tensor | None,
    most_children: Callable[[DraftTree], int],
) -> Tensor:
    """The rule's token for every slot -> chosen_BM. noise None: temperature 0. seen_BV: see `seen_by_slots`."""
    scores = process(logits_BMV, sampling, None if seen_BV is None else seen_by_slots(seen_BV, tree))
    if noise is None:
        return accept.coupled(scores, None)
    ahead = noise.ahead(tree.max_depth + 1)
    if tree.is_chain:
        noise_BMV = ahead
    else:
        depth_BM = topology(tree).depth_BM
        noise_BMV = ahead.gather(1, depth_BM[..., None].expand(-1, -1, ahead.shape[-1]))
    if rule == "coupled":
        return accept.coupled(scores, noise_BMV)
    logp = log_probs(scores)
    max_children = most_children(tree)
    if rule == "typical":
        return accept.typical(logp, noise_BMV, tree, max_children=max_children)
    uniform_BMR = _uniforms(tree, tests, max_children)
    return accept.rejection(logp, noise_BMV, uniform_BMR, tree, max_children=max_children)


def counted_children(tree: DraftTree) -> int:
    """Most children of any slot, read from the device."""
    return int(sibling_ranks(tree).max()) + 1 if tree.num_nodes and not tree.is_chain else 1


def bounded_children(tree: DraftTree) -> int:
    """No slot has more children: what the shape alone says."""
    return 1 if tree.is_chain else max(tree.num_nodes, 1)


def test_key(key: int) -> int:
    """Of the accept tests' uniforms."""
    return key ^ (STREAM_TEST << 61)


def _uniforms(tree: DraftTree, tests: Tests, max_children: int) -> Tensor:
    """Keyed by the position of the slot, one per slot and child rank: (B, M, R)."""
    depth_BM = topology(tree).depth_BM
    # A slot's own index enters too: two slots of one depth are different events.
    index = torch.arange(depth_BM.shape[1], device=depth_BM.device)
    return uniforms(tests.keys_B(), (tests.roots_B()[:, None] + depth_BM) * 4096 + index, max_children)


def seen_by_slots(seen_BV: Tensor, tree: DraftTree) -> Tensor:
    """bool (B, M, V): tokens in prompt + committed (seen_BV) + the slot's ancestors and itself."""
    num_nodes = tree.num_nodes
    seen_BMV = seen_BV[:, None].expand(-1, num_nodes + 1, -1)
    if num_nodes == 0:
        return seen_BMV
    sees_BMN = topology(tree).sees_BMM[:, :, 1:]
    tokens_BMN = tree.tokens_BN[:, None].expand(-1, num_nodes + 1, -1)
    ahead = torch.zeros(seen_BMV.shape, dtype=torch.int32, device=seen_BMV.device)
    ahead.scatter_add_(2, tokens_BMN, sees_BMN.int())
    return seen_BMV | (ahead > 0)


def see(seen_BV: Tensor, tokens_BC: Tensor, num_B: Tensor, is_open_B: Tensor | None = None) -> None:
    """Mark the first num_B of each row's tokens. Padding repeats column 0, which is always committed. is_open_B: False
    where a row's tokens are none of its text, and nothing is marked."""
    kept = torch.arange(tokens_BC.shape[1], device=tokens_BC.device) < num_B[:, None]
    index_BC = torch.where(kept, tokens_BC, tokens_BC[:, :1])
    if is_open_B is None:
        seen_BV.scatter_(1, index_BC, True)
    else:
        seen_BV.scatter_(1, index_BC, seen_BV.gather(1, index_BC) | is_open_B[:, None])
