"""A step as it was decided, for untimed replays: drafted nodes, the drafter's and the target's laws, the choice.

A timed step pays one `if` for it. Reading a step waits for the device and copies laws to the host.

B rows, N nodes, M = N + 1 slots (0 = root), V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from specbench.engine.choose import seen_by_slots
from specbench.sampling import Sampling, log_probs, process
from specbench.tree import DraftTree


class StepSeen(NamedTuple):
    """Between acceptance and commit; the tensors are the engine's own and must be read before it goes on."""

    step: int
    live: list[int]
    """Of each row of the tensors: the index of its generation in the group."""
    tree: DraftTree
    logits_BMV: Tensor
    seen_BV: Tensor | None
    """Tokens of prompt and committed text, where the processors want them."""
    chosen_BM: Tensor
    """What the rule chose behind every slot."""
    path_BP: Tensor
    """Accepted nodes, root first, -1 padded."""


StepWatch = Callable[[StepSeen], None]


@dataclass(frozen=True, kw_only=True)
class RowSeen:
    """One row of a step on the host: N valid nodes, M = N + 1 slots."""

    step: int
    tokens: list[int]
    parents: list[int]
    """-1 = the root; parents come first."""
    q: list[float | None]
    """The drafter's probability of each node given its parent; None where it has no law."""
    p: list[float]
    """The target's, after all processors; at temperature 0 its own at temperature 1."""
    chosen: list[int]
    """[M]: what the rule chose behind the root and behind each node."""
    top: list[list[tuple[int, float]]]
    """[M]: the target's most probable tokens there, best first."""
    path: list[int]
    """Accepted nodes, root first."""


def read_row(seen: StepSeen, row: int, *, sampling: Sampling, num_top: int = 5) -> RowSeen:
    """One row of a step; nodes that are padding are left out."""
    tree = seen.tree
    context = None if seen.seen_BV is None else seen_by_slots(seen.seen_BV, tree)[row]
    logp_MV = log_probs(process(seen.logits_BMV[row], sampling, context))
    is_valid = [True] * tree.num_nodes if tree.valid_BN is None else [bool(v) for v in tree.valid_BN[row].tolist()]
    kept = [node for node, valid in enumerate(is_valid) if valid]
    place = {-1: -1} | {node: new for new, node in enumerate(kept)}
    tokens, parents = tree.tokens_BN[row].tolist(), tree.parents_BN[row].tolist()
    slots = [0, *(node + 1 for node in kept)]
    values, ids = logp_MV[slots].topk(min(num_top, logp_MV.shape[-1]), dim=-1)
    chosen = seen.chosen_BM[row].tolist()
    return RowSeen(
        step=seen.step,
        tokens=[tokens[node] for node in kept],
        # Valid nodes are prefix-closed: a kept node's parent is kept.
        parents=[place[parents[node]] for node in kept],
        q=[_q(tree, row, node, parents[node], tokens[node]) for node in kept],
        p=[float(logp_MV[parents[node] + 1, tokens[node]].exp()) for node in kept],
        chosen=[chosen[slot] for slot in slots],
        top=[list(zip(i, v, strict=True)) for i, v in zip(ids.tolist(), values.exp().tolist(), strict=True)],
        path=[place[node] for node in seen.path_BP[row].tolist() if node >= 0],
    )


def _q(tree: DraftTree, row: int, node: int, parent: int, token: int) -> float | None:
    if tree.score_BN is not None:
        found = float(tree.score_BN[row, node].exp())
    elif tree.logq_BMV is not None:
        found = float(tree.logq_BMV[row, parent + 1, token].exp())
    else:
        return None
    return None if math.isnan(found) else found
