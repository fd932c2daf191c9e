"""A path-compressed trie of all substrings of at most `max_depth` tokens, with exact counts. No torch.

One text at a time is open and grows token by token; others are closed. A suffix of the open text that stood nowhere
before is a leaf whose label grows with the text by itself ("once a leaf, always a leaf", Ukkonen 1995), so a token
costs as many steps as the longest suffix that did stand somewhere before is long, at most `max_depth`.

    text 1 2 3 1 2          root -- 1 2 -- 3 1 2          suffixes "1 2" and "2" stood before: they are live,
                                 -- 2 ---- 3 1 2          at the ends of the edges "1 2" and "2"
                                 -- 3 1 2
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple


class Text:
    """Tokens that labels point into."""

    __slots__ = ("tokens",)

    def __init__(self) -> None:
        self.tokens: list[int] = []


class Node:
    """An edge and the branching below it. The edge's label is text[start : min(stop, end of text)]."""

    __slots__ = ("best", "children", "count", "depth", "entered", "start", "stop", "text")

    def __init__(self, text: Text, start: int, stop: int, *, depth: int, count: int, entered: int) -> None:
        self.text = text
        self.start = start
        self.stop = stop
        self.depth = depth
        """Tokens above the edge."""
        self.count = count
        """Suffixes that entered the edge: occurrences of its first token here."""
        self.entered = entered
        """When the last of them did, in tokens ever appended."""
        self.children: dict[int, Node] = {}
        self.best: Node | None = None
        """The child entered most often; among equals the one entered last."""

    @property
    def length(self) -> int:
        """Tokens of the label; a growing leaf's ends where its text ends."""
        return min(self.stop, len(self.text.tokens)) - self.start


class Place(NamedTuple):
    """A string in the trie: `offset` tokens along the edge of `node`."""

    node: Node
    offset: int

    @property
    def depth(self) -> int:
        """Tokens of the string."""
        return self.node.depth + self.offset


class SuffixTrie:
    """Counts of all substrings of its texts, none longer than max_depth; equal texts give equal tries.

    `open`, `append` ..., `close` add a text; `remove_oldest` takes the first one out again.
    """

    def __init__(self, *, max_depth: int) -> None:
        self.max_depth = max_depth
        self.root = Node(Text(), 0, 0, depth=0, count=0, entered=0)
        self.texts: deque[Text] = deque()
        """Closed ones, oldest first."""
        self.live: list[Place] = []
        """Suffixes of the open text that stood somewhere before, longest first: their lengths are n, n - 1, .. 1."""
        self._open: Text | None = None
        self._num_appended = 0

    # --- a text comes ------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Begin a text."""
        assert self._open is None, "one text at a time"
        self._open = Text()
        self.live = []

    def append(self, token: int) -> None:
        """The open text grows by a token."""
        text = self._open
        assert text is not None, "open() comes first"
        text.tokens.append(token)
        last = len(text.tokens) - 1
        self._num_appended += 1
        now, max_depth = self._num_appended, self.max_depth
        waiting = [*self.live, Place(self.root, 0)]
        moved: list[Place] = []
        for index, (node, offset) in enumerate(waiting):
            label = node.text.tokens
            if offset < min(node.stop, len(label)) - node.start:
                if label[node.start + offset] != token:
                    self._split(node, offset, waiting[index:], moved)
                    self._relabel(node, text, end=last)
                    self._grow_leaf(node, text, last)
                    continue
                there = Place(node, offset + 1)
            else:
                if node is not self.root:
                    self._relabel(node, text, end=last)
                child = node.children.get(token)
                if child is None:
                    self._grow_leaf(node, text, last)
                    continue
                child.count += 1
                child.entered = now
                if node.best is None or child.count >= node.best.count:
                    node.best = child
                there = Place(child, 1)
            if there.depth == max_depth:
                self._relabel(there.node, text, end=last + 1)
            else:
                moved.append(there)
        self.live = moved

    def close(self) -> None:
        """The open text is complete: the suffixes still live end where they are."""
        text = self._open
        assert text is not None, "open() comes first"
        for index, (node, offset) in enumerate(self.live):
            if offset < node.length:
                self._split(node, offset, self.live[index:], [])
            self._relabel(node, text, end=len(text.tokens))
        self.live = []
        self._open = None
        self.texts.append(text)

    def add(self, tokens: Sequence[int]) -> None:
        """A whole text."""
        self.open()
        for token in tokens:
            self.append(token)
        self.close()

    def _grow_leaf(self, node: Node, text: Text, start: int) -> None:
        depth = node.depth + node.length
        leaf = Node(text, start, start + self.max_depth - depth, depth=depth, count=1, entered=self._num_appended)
        node.children[text.tokens[start]] = leaf
        if node.best is None or node.best.count <= 1:
            node.best = leaf

    def _split(self, node: Node, offset: int, not_yet: Sequence[Place], moved: list[Place]) -> None:
        """Cut the edge after `offset` tokens: `node` keeps the upper part, a new node takes the lower one.

        not_yet: live suffixes from this one on, in order; those on this edge never went beyond the cut. moved: longer
        ones; those on this edge did, and now stand on the lower part.
        """
        num_above = sum(place.node is node for place in not_yet)
        lower = Node(
            node.text, node.start + offset, node.stop,
            depth=node.depth + offset, count=node.count - num_above, entered=node.entered,
        )  # fmt: skip
        lower.children, lower.best = node.children, node.best
        node.stop = node.start + offset
        node.children = {lower.text.tokens[lower.start]: lower}
        node.best = lower
        for index, place in enumerate(moved):
            if place.node is node:
                moved[index] = Place(lower, place.offset - offset)

    def _relabel(self, node: Node, text: Text, *, end: int) -> None:
        """Point the label at its newest occurrence, which ends at text[end - 1]: so no label outlives its text."""
        length = node.length
        node.text, node.start, node.stop = text, end - length, end

    # --- a text goes -------------------------------------------------------------------------------------------------

    def remove_oldest(self) -> None:
        """Forget the oldest text: counts, nodes and labels are those of the other texts alone."""
        assert self._open is None, "close() comes first"
        tokens = self.texts.popleft().tokens
        for start in range(len(tokens)):
            self._remove(tokens, start, min(start + self.max_depth, len(tokens)))

    def _remove(self, tokens: list[int], at: int, end: int) -> None:
        node = self.root
        while at < end:
            child = node.children[tokens[at]]
            child.count -= 1
            if child.count == 0:
                # Nothing else came here, nor anywhere below.
                del node.children[tokens[at]]
            if node.best is child and node is not self.root:
                node.best = max(node.children.values(), key=lambda each: (each.count, each.entered), default=None)
            if child.count == 0:
                break
            at += child.length
            node = child
        if node is not self.root and len(node.children) == 1:
            (child,) = node.children.values()
            if child.count == node.count:
                node.start, node.stop, node.text = child.start - node.length, child.stop, child.text
                node.children, node.best = child.children, child.best

    # --- asking ------------------------------------------------------------------------------------------------------

    def advance(self, places: Sequence[Place], token: int) -> list[Place]:
        """Another text's last tokens, wherever they stand here: its matches, longest first, after one more token."""
        out: list[Place] = []
        for node, offset in (*places, Place(self.root, 0)):
            label = node.text.tokens
            if offset < min(node.stop, len(label)) - node.start:
                if label[node.start + offset] != token:
                    continue
                there = Place(node, offset + 1)
            else:
                child = node.children.get(token)
                if child is None:
                    continue
                there = Place(child, 1)
            if there.depth < self.max_depth:
                out.append(there)
        return out

    def count(self, string: Sequence[int]) -> int:
        """Occurrences of a string of 1 .. max_depth tokens."""
        node, offset = self.root, 0
        for token in string:
            if offset < node.length:
                if node.text.tokens[node.start + offset] != token:
                    return 0
                offset += 1
            else:
                child = node.children.get(token)
                if child is None:
                    return 0
                node, offset = child, 1
        return node.count - sum(place.node is node and place.offset < offset for place in self.live)

    def nodes(self) -> Iterator[Node]:
        """All but the root."""
        stack = list(self.root.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack += node.children.values()
