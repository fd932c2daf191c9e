"""One traced step as the tree it is: its rows in reading order, and the words of its tokens. No Textual.

A node that is its parent's only child stands in its parent's column: a chain goes down, only branches go right.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from specbench.store.traces import Node, Trace, TracedStep
from specbench.tui.detokenise import text_behind
from specbench.tui.layout import Shown
from specbench.tui.marks import Kind

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ROOT = -1


class Row(NamedTuple):
    """A line of the tree."""

    place: int
    """A node's index, ROOT, or the number of nodes for the bonus token."""
    depth: int
    lead: str
    """Branches in front of it."""


def rows_of(step: TracedStep, *, pruned: bool = False) -> list[Row]:
    """Depth first, siblings in draft order, the bonus token as the last child where the accepted path ends. pruned:
    without what was not reached."""
    bonus = len(step.nodes)
    children: dict[int, list[int]] = {}
    for place, node in enumerate(step.nodes):
        if not (pruned and node.verdict == "unreached"):
            children.setdefault(node.parent, []).append(place)
    path = step.path()
    children.setdefault(path[-1] if path else ROOT, []).append(bonus)
    found = [Row(ROOT, 0, "")]
    # (place, depth, lead of its children, own lead): a stack, because a chain of a thousand is no recursion.
    waiting: list[tuple[int, int, str, str]] = []

    def push(parent: int, depth: int, lead: str) -> None:
        below = children.get(parent, [])
        rows: list[tuple[int, int, str, str]] = []
        for number, place in enumerate(below):
            if len(below) == 1:
                rows.append((place, depth, lead, f"{lead}│ "))
            elif number < len(below) - 1:
                rows.append((place, depth, f"{lead}│ ", f"{lead}├─"))
            else:
                rows.append((place, depth, f"{lead}  ", f"{lead}└─"))
        waiting.extend(reversed(rows))

    push(ROOT, 1, "")
    while waiting:
        place, depth, below, own = waiting.pop()
        found.append(Row(place, depth, own))
        if place != bonus:
            push(place, depth + 1, below)
    return found


def path_to(nodes: Sequence[Node], place: int) -> list[int]:
    """Nodes from the root's child to this one."""
    found: list[int] = []
    while place != ROOT:
        found.append(place)
        place = nodes[place].parent
    return found[::-1]


class Words:
    """A trace's tokens as text."""

    def __init__(self, trace: Trace, tokenizer: Tokenizer | None) -> None:
        self.trace = trace
        self._tokenizer = tokenizer
        # Tokens of the answer before each step, the prefill's included.
        self._ends = list(accumulate((len(step.kept()) for step in trace.steps), initial=1))

    def before(self, number: int) -> tuple[int, ...]:
        """The answer's tokens up to the root of a step."""
        return self.trace.head.tokens[: self._ends[number]]

    def text(self, number: int, parent: int, token: int) -> str:
        """What `token` adds behind a node of step `number`, or behind its root."""
        nodes = self.trace.steps[number].nodes
        path = [nodes[place].token for place in path_to(nodes, parent)]
        return text_behind(self._tokenizer, [*self.before(number), *path], token)

    def node(self, number: int, place: int) -> str:
        """A node's text, or the bonus token's."""
        step = self.trace.steps[number]
        if place == len(step.nodes):
            path = step.path()
            return self.text(number, path[-1] if path else ROOT, step.bonus)
        return self.text(number, step.nodes[place].parent, step.nodes[place].token)

    def root(self, number: int, *, num_tokens: int = 6) -> str:
        """The last words before the step."""
        before = self.before(number)
        first = max(0, len(before) - num_tokens)
        texts = [text_behind(self._tokenizer, before[:place], before[place]) for place in range(first, len(before))]
        return ("… " if first else "") + "".join(texts)

    def ghost(self, number: int) -> str:
        """The best rejected path of a step; empty where nothing was rejected."""
        return "".join(self.node(number, place) for place in self.trace.steps[number].ghosts())

    def around(self, number: int, *, most: int = 400) -> list[Shown]:
        """The answer up to and with a step, which stands in brackets, its best rejected path behind it."""
        found: list[Shown] = []
        tokens = self.trace.head.tokens
        kinds = [(Kind.PLAIN, 0)]
        for step in self.trace.steps[: number + 1]:
            kept = len(step.kept())
            kinds += [
                (Kind.DRAFTED, place + 1)
                if place < step.num_accepted
                else (Kind.BONUS if step.nodes else Kind.PLAIN, 0)
                for place in range(kept)
            ]
        start = self._ends[number]
        for place in range(max(0, self._ends[number + 1] - most), self._ends[number + 1]):
            if place == start:
                found.append(Shown(" [", Kind.PLAIN, 0))
            text = text_behind(self._tokenizer, tokens[:place], tokens[place])
            found.append(Shown(text, *kinds[place]))
        if ghost := self.ghost(number):
            found.append(Shown(f"~{ghost}~", Kind.GHOST, 0))
        return [*found, Shown("]", Kind.PLAIN, 0)]
