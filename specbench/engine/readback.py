"""What leaves the device after a step: one transfer to the host, and the states that predicted the committed tokens.

B rows, N nodes, M = N + 1 slots, C = P + 1, K taps, D hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from specbench.engine import accept
from specbench.tree import DraftTree, sibling_ranks, topology


@dataclass(frozen=True, kw_only=True)
class HostRead:
    """What the host learns of a step, in one transfer."""

    num_accepted: list[int]
    tokens: list[list[int]]
    ranks: list[list[int]]
    num_nodes: list[int]
    depth: list[int]
    is_finite: list[bool]


class Shape(NamedTuple):
    """What the host must know of a tree to read its table. num_columns: C, tokens a row may commit."""

    num_nodes: int
    num_columns: int
    is_plain_chain: bool

    @classmethod
    def of(cls, tree: DraftTree) -> Shape:
        return cls(tree.num_nodes, tree.max_depth + 1, tree.is_chain and tree.valid_BN is None)

    @property
    def width(self) -> int:
        """Columns of the table."""
        return 2 + self.num_columns + (0 if self.is_plain_chain else 1 + self.num_columns)


def step_table(verdict: accept.Verdict, tree: DraftTree, logits_BMV: Tensor) -> Tensor:
    """All the host reads of a step, int64 (B, Shape.width): accepted, finite, tokens, and of a tree that is not a plain
    chain its nodes, depth and the ranks of the accepted path.

    amax carries a NaN or +inf anywhere in a row's logits to the flag.
    """
    num_nodes = tree.num_nodes
    columns = [verdict.num_accepted_B[:, None], logits_BMV.amax((1, 2)).isfinite()[:, None].long(), verdict.tokens_BC]
    if not Shape.of(tree).is_plain_chain:
        valid = torch.ones_like(tree.tokens_BN, dtype=torch.bool) if tree.valid_BN is None else tree.valid_BN
        depth_BN = topology(tree).depth_BM[:, 1:]
        ranks = sibling_ranks(tree).gather(1, verdict.path_BP.clamp(min=0)) if num_nodes else verdict.path_BP
        columns += [
            valid.sum(1, keepdim=True),
            (depth_BN * valid).amax(1, keepdim=True) if num_nodes else valid.sum(1, keepdim=True),
            ranks,
        ]
    return torch.cat(columns, dim=1)


def read_table(table: list[list[int]], shape: Shape) -> HostRead:
    """`step_table` on the host."""
    num_rows, width = len(table), shape.num_columns
    accepted = [line[0] for line in table]
    if shape.is_plain_chain:
        nodes, depths = [shape.num_nodes] * num_rows, [shape.num_nodes] * num_rows
        ranks_host = [[0] * count for count in accepted]
    else:
        nodes, depths = [line[2 + width] for line in table], [line[3 + width] for line in table]
        ranks_host = [line[4 + width : 4 + width + count] for line, count in zip(table, accepted, strict=True)]
    return HostRead(
        num_accepted=accepted,
        tokens=[line[2 : 3 + count] for line, count in zip(table, accepted, strict=True)],
        ranks=ranks_host,
        num_nodes=nodes,
        depth=depths,
        is_finite=[bool(line[1]) for line in table],
    )


def committed_states(hidden_BMKD: Tensor | None, slots_BC: Tensor) -> Tensor | None:
    """hidden_BCKD: the states that predicted tokens_BC; columns past the bonus repeat the last one."""
    if hidden_BMKD is None:
        return None
    index = slots_BC[:, :, None, None].expand(-1, -1, *hidden_BMKD.shape[2:])
    return hidden_BMKD.gather(1, index)
