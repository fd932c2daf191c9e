"""Warm-up ends when steps take the same time twice (measurement 7), at any batch size."""

from __future__ import annotations

from typing import Any

import pytest

from specbench.bench.entries import warmed_up
from specbench.bench.session import Cell, Session, WarmUp
from specbench.engine.answer import Generation, GroupResult
from specbench.events import StepRow
from specbench.suite import Question
from tests.helpers import NoDrafter

NUM_STEPS = 5


def group(step_s: float, *, batch_size: int) -> GroupResult:
    """Rows in lockstep as the recorder writes them: a step's phases on its first live row. Row 0 ends two steps
    early."""
    generations = []
    for row in range(batch_size):
        steps = []
        for step in range(NUM_STEPS - 2 * (row == 0)):
            is_first = row == (0 if step < NUM_STEPS - 2 else 1)
            phases = (0.0, step_s, 0.0, 0.0) if is_first or batch_size == 1 else (0.0, 0.0, 0.0, 0.0)
            steps.append(StepRow(row, step, (step + 1) * step_s, 0, 0, 0, 1, 0, (), (7,), *phases))
        generations.append(Generation(tokens=(7,), finish_reason="length", steps=tuple(steps)))
    seconds = dict.fromkeys(("prefill_s", "decode_s", "draft_s", "accept_s", "commit_s", "journal_s"), 0.0)
    return GroupResult(generations=tuple(generations), total_s=1.0, verify_s=1.0, **seconds)


class Replayed(Session):
    """A session whose generations take the seconds a step that they are told to."""

    def __init__(self, step_s: list[float]) -> None:
        self.max_new_tokens = 24
        self.left = step_s
        self.num_met = 0

    def generate(self, drafter: Any, cells: Any, **given: Any) -> GroupResult:
        self.num_met += 1
        return group(self.left.pop(0), batch_size=len(cells))


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 16])
def test_a_step_that_takes_the_same_time_twice_is_warm(batch_size: int) -> None:
    """A median over rows is 0 from three rows on, and nothing that is 0 ever settles."""
    question = Question(question_id="q", category="c", turns=("hi",), reference=())
    cells = [Cell(question=question, turn=0, key=0, prompt=(1,))] * batch_size
    slow_at_first = Replayed([0.4, 0.2, 0.1, 0.1, 0.1, 0.1])
    assert slow_at_first.warm_up(NoDrafter(), cells, with_reference=False) == (4.0, "")
    assert slow_at_first.num_met == 4 and slow_at_first.max_new_tokens == 24
    never = Replayed([0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    told = never.warm_up(NoDrafter(), cells, with_reference=False).unsettled
    assert never.num_met == 6 and told.endswith("still took 200 and 100 ms in the last two of 6 warm-ups")
    assert (f"at batch {batch_size}" in told) is (batch_size > 1)


def test_a_warm_up_that_never_settles_stands_with_the_reading_and_others_do_not() -> None:
    reading = warmed_up("x", [WarmUp(1.0, ""), WarmUp(2.0, "steps still took 2 and 1 ms")])
    assert (reading.value, reading.detail) == (3.0, "steps still took 2 and 1 ms")
    assert warmed_up("x", [WarmUp(1.0, "")]).detail == ""
