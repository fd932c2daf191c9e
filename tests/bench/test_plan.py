"""The order of a paired run (measurement 6)."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise, permutations

import pytest

from specbench.bench.plan import Planned, batches, make_plan, williams_squares

QUESTIONS = [Planned("a", 2, 30), Planned("b", 1, 10), Planned("c", 1, 20)]
LABELS = ["autoregressive", "autoregressive#2", "x", "y"]


def plan(**changes):
    values = {"repeats": 4, "batch_size": 1, "seed": 0, "carry": "none", **changes}
    return make_plan(QUESTIONS, LABELS, **values)


def test_every_method_meets_every_question_and_turn_once_per_repeat():
    seen = Counter((g.method, g.question_ids, g.turn, g.repeat) for g in plan())
    assert set(seen.values()) == {1}
    assert len(seen) == len(LABELS) * 4 * 4  # three first turns and one second


def test_methods_stand_next_to_each_other_within_a_question():
    groups = plan()
    for start in range(0, len(groups), len(LABELS)):
        cell = groups[start : start + len(LABELS)]
        assert sorted(g.method for g in cell) == sorted(LABELS)
        assert len({(g.question_ids, g.turn, g.repeat) for g in cell}) == 1


def test_every_method_stands_equally_often_in_every_place():
    """A method that always ran first, on a cold or hot machine, would be compared unfairly."""
    places = Counter((g.method, index % len(LABELS)) for index, g in enumerate(plan()))
    assert set(places.values()) == {4}


def orders_of(num_methods: int, num_questions: int, *, repeats: int, seed: int, **changes) -> list[tuple[str, ...]]:
    """The methods' order in one cell after the other."""
    questions = [Planned(f"q{n}", 1, n) for n in range(num_questions)]
    labels = [f"m{n}" for n in range(num_methods)]
    values = {"repeats": repeats, "batch_size": 1, "seed": seed, "carry": "none", **changes}
    methods = [group.method for group in make_plan(questions, labels, **values)]
    return [tuple(methods[start : start + num_methods]) for start in range(0, len(methods), num_methods)]


def spread(counts: Counter, keys: list) -> int:
    """Between the most frequent of the keys and the rarest, one that never occurs included."""
    return max(counts[key] for key in keys) - min(counts[key] for key in keys)


@pytest.mark.parametrize("carry", ["none", "stream"])
@pytest.mark.parametrize(("num_methods", "num_questions", "repeats"), [(7, 12, 2), (4, 9, 3), (3, 5, 1), (2, 5, 3)])
def test_no_method_is_first_or_behind_another_oftener_than_the_others(num_methods, num_questions, repeats, carry):
    """Each place, up to any point of the run: an interrupted one is as fair. Of an odd number of methods a follower may
    come twice more within a square, whose mirror image evens it out."""
    names = [f"m{n}" for n in range(num_methods)]
    pairs = list(permutations(names, 2))
    for seed in range(5):
        orders = orders_of(num_methods, num_questions, repeats=repeats, seed=seed, carry=carry)
        assert len(orders) == num_questions * repeats
        for end in range(1, len(orders) + 1):
            for place in range(num_methods):
                assert spread(Counter(order[place] for order in orders[:end]), names) <= 1
            followers = Counter(pair for order in orders[:end] for pair in pairwise(order))
            assert spread(followers, pairs) <= 1 + num_methods % 2


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_a_williams_square_holds_every_place_once_and_every_follower_equally_often(size):
    squares = williams_squares(size)
    for square in squares:
        for line in [*square, *zip(*square, strict=True)]:
            assert sorted(line) == list(range(size))
    followers = Counter(pair for square in squares for row in square for pair in pairwise(row))
    assert set(followers.values()) <= {len(squares)} and len(followers) == size * (size - 1)


def test_squares_are_shuffled_from_one_to_the_next():
    """The same few orders all along would tie a method to its neighbours."""
    orders = orders_of(4, 40, repeats=1, seed=0)
    blocks = {frozenset(orders[start : start + 4]) for start in range(0, 40, 4)}
    assert len(blocks) > 3 and len(set(orders)) > 12


def test_the_same_seed_gives_the_same_plan_and_another_seed_another():
    assert plan() == plan()
    assert plan() != plan(seed=1)


def test_stream_runs_repeat_by_repeat_and_none_question_by_question():
    assert [g.repeat for g in plan(carry="stream")] == sorted(g.repeat for g in plan(carry="stream"))
    assert [g.repeat for g in plan()] != sorted(g.repeat for g in plan())


def test_group_numbers_follow_the_order():
    assert [g.group for g in plan()] == list(range(len(plan())))


def test_batches_hold_neighbours_in_prompt_length_and_only_questions_with_that_turn():
    assert batches(QUESTIONS, turn=0, batch_size=2) == [("b", "c"), ("a",)]
    assert batches(QUESTIONS, turn=1, batch_size=2) == [("a",)]


@pytest.mark.parametrize("batch_size", [2, 3])
def test_the_same_groups_of_questions_serve_every_method(batch_size):
    by_method: dict[str, set] = {}
    for g in plan(batch_size=batch_size):
        by_method.setdefault(g.method, set()).add((g.turn, g.question_ids))
    assert len({frozenset(groups) for groups in by_method.values()}) == 1
