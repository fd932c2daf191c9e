"""What steps of host-drafted trees are padded to, which of those shapes become graphs, and which one stands in for
another.

A shape is a batch size, the slots of the cache that are read, and a tree. Any step may run in a larger shape: rows
without a text are closed, nodes that are not there are not valid, slots behind a text are not seen. So one graph of the
widest tree for every batch size and span is enough for no step to go without; the others save it work.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from specbench.tree import DraftTree


class TreeShape(NamedTuple):
    """What trees are padded to: N nodes, paths of at most `depth`."""

    num_nodes: int
    depth: int
    is_chain: bool

    @classmethod
    def around(cls, tree: DraftTree, *, max_nodes: int) -> TreeShape:
        """The next powers of two, nodes and depth at most max_nodes."""
        return cls._of(tree.num_nodes, None if tree.is_chain else tree.max_depth, max_nodes)

    @classmethod
    def _of(cls, num_nodes: int, depth: int | None, max_nodes: int) -> TreeShape:
        """depth: of a tree; None: a chain."""
        if num_nodes == 0:
            return cls(0, 0, True)
        nodes = min(_power(num_nodes), max_nodes)
        return cls(nodes, nodes if depth is None else min(_power(depth), nodes), depth is None)

    @classmethod
    def all_of(cls, max_nodes: int, *, branches: bool) -> set[TreeShape]:
        """Whatever drafts of up to max_nodes nodes are padded to. branches: False where all of them are chains.

        For 16 nodes 6 chains and 14 trees.
        """
        chains = {cls._of(num, None, max_nodes) for num in range(max_nodes + 1)}
        if not branches:
            return chains
        return chains | {
            cls._of(num, depth, max_nodes) for num in range(2, max_nodes + 1) for depth in range(1, num + 1)
        }

    def holds(self, other: TreeShape) -> bool:
        """Whether every tree of that shape may be padded to this one."""
        fits = self.num_nodes >= other.num_nodes and self.depth >= other.depth
        return fits and (other.is_chain or not self.is_chain)


class StepShape(NamedTuple):
    """What a graph is captured for. span: slots of the cache that are read."""

    num_rows: int
    span: int
    tree: TreeShape

    def takes(self, tree: TreeShape, *, num_rows: int, longest: int) -> bool:
        """Whether a step of these rows and this tree may run in this shape. longest: tokens of the longest row, root
        included."""
        return self.num_rows >= num_rows and self.span >= longest + self.tree.num_nodes and self.tree.holds(tree)

    def cost(self) -> tuple[int, ...]:
        """What is computed comes first, then what is read; the smallest is the best stand-in."""
        return (self.num_rows * (self.tree.num_nodes + 1), self.span, not self.tree.is_chain, self.tree.depth)


def in_order(
    num_met: Mapping[TreeShape, int], possible: Iterable[TreeShape], *, batches: Sequence[int], spans: Sequence[int]
) -> Iterator[StepShape]:
    """Shapes that are worth a graph, the first ones most, should not all of them get one. num_met: steps of a warm-up
    by the shape of their trees.

    The widest tree stands in for all others. Then come those that were met, the most frequent first, and those of other
    texts, the larger ones first: the largest draft of a batch is what all its rows are padded to. Each comes for every
    batch and span, so that no size of batch is left with fewer of them.
    """
    trees = {*possible, *num_met}
    widest = max(trees, key=lambda tree: (not tree.is_chain, tree.num_nodes, tree.depth))
    met = sorted(num_met, key=lambda tree: (num_met[tree], tree), reverse=True)
    for tree in dict.fromkeys([widest, *met, *sorted(trees, reverse=True)]):
        for num_rows in batches:
            for span in spans:
                yield StepShape(num_rows, span, tree)


def _power(number: int) -> int:
    return 1 << (number - 1).bit_length()
