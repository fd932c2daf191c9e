"""From one place in a trie to a draft: the most frequent way on, or the most probable nodes of all ways. No torch.

The probability of a node is that of its parent times count(string with it) / count(string without). The open text's own
last occurrence is counted and has nothing behind it yet, so what followed once is given 1/2, what followed twice 2/3.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from math import exp, inf, log
from typing import TYPE_CHECKING

from specbench.suffix.trie import Node, Place, SuffixTrie

if TYPE_CHECKING:
    from specbench.method import DraftNoise

Perturb = Callable[[int, list[int]], list[float]]
"""(depth, tokens) -> the noise of these tokens at that depth below the root."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """One row's draft. parents: -1 = the root, parents first."""

    tokens: list[int]
    parents: list[int]
    score: float
    """Sum of the nodes' probabilities: the accepted tokens to expect."""
    num_matched: int
    """Last tokens of the text that stood before where this was found."""


def perturb_by(noise: DraftNoise, row: int) -> Perturb:
    """Row's noise, read on the host a few tokens at a time."""

    def read(depth: int, tokens: list[int]) -> list[float]:
        found: list[float] = noise.at_depth(depth)[row][tokens].tolist()
        return found

    return read


class Walker:
    """Drafts from places of one trie, for one step."""

    def __init__(
        self,
        trie: SuffixTrie,
        *,
        min_prob: float,
        stop_ids: frozenset[int],
        max_depth: int,
        perturb: Perturb | None = None,
    ) -> None:
        """max_depth: longest path. perturb: at a branch the child with the highest log count + noise comes first; its
        probability is taken to be that of the most frequent one, which it replaces."""
        self._min_prob = min_prob
        self._stop_ids = stop_ids
        self._max_depth = max_depth
        self._perturb = perturb
        self._live: dict[Node, list[int]] = {}
        for node, offset in trie.live:
            self._live.setdefault(node, []).append(offset)

    def path(self, place: Place, cap: int) -> Proposal | None:
        """At most `cap` tokens, the first child at every branch."""
        cap = min(cap, self._max_depth)
        node, offset = place
        here = self._count(node, offset)
        prob, score = 1.0, 0.0
        tokens: list[int] = []
        while len(tokens) < cap:
            if offset < node.length:
                offset += 1
                ahead = self._count(node, offset)
                prob *= ahead / here
            else:
                if node.best is None:
                    break
                prob *= node.best.count / here
                node, offset = self._first(node, depth=len(tokens) + 1), 1
                ahead = node.count
            if prob < self._min_prob:
                break
            token = node.text.tokens[node.start + offset - 1]
            tokens.append(token)
            score += prob
            if token in self._stop_ids:
                break
            here = ahead
        return _proposal(tokens, list(range(-1, len(tokens) - 1)), score, place)

    def tree(self, place: Place, cap: int) -> Proposal | None:
        """At most `cap` nodes, the most probable first, wherever they branch off."""
        tokens: list[int] = []
        parents: list[int] = []
        score = 0.0
        # (-probability, order of discovery, where the node ends, its parent, its depth)
        waiting: list[tuple[float, int, Place, int, int]] = []
        num_found = 0

        def look_below(at: Place, prob: float, parent: int, depth: int) -> None:
            nonlocal num_found
            for there, share in self._children(at, depth):
                if prob * share >= self._min_prob:
                    heapq.heappush(waiting, (-prob * share, num_found, there, parent, depth))
                    num_found += 1

        look_below(place, 1.0, -1, 1)
        while waiting and len(tokens) < cap:
            negative, _, there, parent, depth = heapq.heappop(waiting)
            token = there.node.text.tokens[there.node.start + there.offset - 1]
            tokens.append(token)
            parents.append(parent)
            score -= negative
            if depth < self._max_depth and token not in self._stop_ids:
                look_below(there, -negative, len(tokens) - 1, depth + 1)
        return _proposal(tokens, parents, score, place)

    def _children(self, at: Place, depth: int) -> list[tuple[Place, float]]:
        """Ways on from a place, with their shares of what came there; best first."""
        node, offset = at
        here = self._count(node, offset)
        if offset < node.length:
            return [(Place(node, offset + 1), self._count(node, offset + 1) / here)]
        children = sorted(node.children.values(), key=lambda each: (each.count, each.entered), reverse=True)
        if self._perturb is None or len(children) < 2:
            return [(Place(child, 1), child.count / here) for child in children]
        keys = self._perturbed(children, depth)
        ceiling, most = max(keys), children[0].count / here
        pairs = sorted(zip(keys, children, strict=True), key=lambda pair: -pair[0])
        return [(Place(child, 1), most * exp(key - ceiling)) for key, child in pairs if key > -inf]

    def _first(self, node: Node, *, depth: int) -> Node:
        assert node.best is not None, "asked at a branch only"
        if self._perturb is None or len(node.children) < 2:
            return node.best
        children = list(node.children.values())
        keys = self._perturbed(children, depth)
        return children[max(range(len(keys)), key=keys.__getitem__)]

    def _perturbed(self, children: list[Node], depth: int) -> list[float]:
        assert self._perturb is not None, "asked under noise only"
        noise = self._perturb(depth, [child.text.tokens[child.start] for child in children])
        return [log(child.count) + each for child, each in zip(children, noise, strict=True)]

    def _count(self, node: Node, offset: int) -> int:
        """Occurrences of the string that ends here, 1 or more tokens long."""
        stopped = self._live.get(node)
        return node.count if stopped is None else node.count - sum(each < offset for each in stopped)


def _proposal(tokens: list[int], parents: list[int], score: float, place: Place) -> Proposal | None:
    if not tokens:
        return None
    return Proposal(tokens=tokens, parents=parents, score=score, num_matched=place.depth)
