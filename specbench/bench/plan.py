"""The order of a paired run: every question's methods next to each other, in a randomised balanced order. No torch.

Balanced (measurement 6): the orders are the rows of Williams squares (E. J. Williams 1949), dealt to one question and
repeat after the other, with the methods and the rows shuffled from square to square. Up to any point of a run two
methods' counts of any place differ by at most 1, and no method stands behind another much oftener than behind a third:
what one leaves in caches, clocks and temperature is met by all alike.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from specbench.manifest import GroupRecord


class Planned(NamedTuple):
    """What the plan needs to know of a question."""

    question_id: str
    num_turns: int
    num_prompt_tokens: int


def batches(questions: Sequence[Planned], *, turn: int, batch_size: int) -> list[tuple[str, ...]]:
    """Question ids decoded together in one turn: suite order at batch 1, neighbours in prompt length otherwise."""
    present = [question for question in questions if question.num_turns > turn]
    if batch_size > 1:
        present = sorted(present, key=lambda question: question.num_prompt_tokens)
    ids = [question.question_id for question in present]
    return [tuple(ids[start : start + batch_size]) for start in range(0, len(ids), batch_size)]


def make_plan(
    questions: Sequence[Planned],
    labels: Sequence[str],
    *,
    repeats: int,
    batch_size: int,
    seed: int,
    carry: Literal["none", "stream"],
) -> tuple[GroupRecord, ...]:
    """All timed groups in order of execution.

    carry `none`: question by question, all repeats of a question together. `stream`: repeat by repeat, so that what a
    method carries grows along one question order and never meets a question twice (measurement 6).
    """
    rng = random.Random(f"specbench plan {seed}")
    num_turns = max((question.num_turns for question in questions), default=0)
    units: list[tuple[int, tuple[str, ...]]] = []
    if batch_size == 1:
        for question in questions:
            for turn in range(question.num_turns):
                units.append((turn, (question.question_id,)))
    else:
        for turn in range(num_turns):
            for ids in batches(questions, turn=turn, batch_size=batch_size):
                units.append((turn, ids))
    if carry == "none":
        cells = [(repeat, unit) for unit in units for repeat in range(repeats)]
    else:
        cells = [(repeat, unit) for repeat in range(repeats) for unit in units]
    groups: list[GroupRecord] = []
    for (repeat, (turn, ids)), order in zip(cells, _orders(labels, rng), strict=False):
        for label in order:
            groups.append(GroupRecord(group=len(groups), method=label, repeat=repeat, turn=turn, question_ids=ids))
    return tuple(groups)


def williams_squares(size: int) -> list[list[list[int]]]:
    """Latin squares of 0 ... size - 1 in whose rows, together, every number follows every other equally often: one of
    an even size, of an odd one a square and its mirror image (Williams 1949)."""
    # 0, 1, -1, 2, -2, ...: its steps are all differences from 1 to size - 1 for an even size, half of them twice for an
    # odd one; read backwards it has the other half.
    first = [(place + 1) // 2 * (1 if place % 2 else -1) for place in range(size)]
    square = [[(number + shift) % size for number in first] for shift in range(size)]
    return [square] if size % 2 == 0 else [square, [row[::-1] for row in square]]


def _orders(labels: Sequence[str], rng: random.Random) -> Iterator[list[str]]:
    """Endless: the rows of one square after the other. A square and its mirror image share their names: only so are
    their followers balanced."""
    squares = williams_squares(len(labels))
    while True:
        named = rng.sample(list(labels), len(labels))
        for square in squares:
            for row in rng.sample(square, len(square)):
                yield [named[number] for number in row]
