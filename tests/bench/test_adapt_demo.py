"""`specbench demo --adapt`: honest in both directions, held-out prompts never learnt from, within its time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from specbench.bench import adapt_demo as demo
from specbench.bench.adapt_demo import DemoPlan, _compare, _counts, _Decoded, to_json, words_of
from specbench.events import StepRow
from specbench.metrics import Interval
from tests.conftest import Ran

TINY = DemoPlan(
    num_stream=16, num_rounds=1, num_held_out=6, num_elsewhere=4, max_new_tokens=12, most_s=1e9,
    options=(("steps", 2), ("min_held_out", 2), ("round_s", 0)),
)  # fmt: skip


@pytest.fixture(scope="module")
def outcome() -> demo.DemoOutcome:
    """The embedded models, sixteen answers, two optimiser steps."""
    return demo.adapt_demo(TINY, lambda _: None)


def test_a_short_demo_learns_from_the_stream_alone(outcome: demo.DemoOutcome) -> None:
    assert outcome.num_learnt_prompts == 16 and len(outcome.rounds) == 1
    assert [each.set for each in outcome.compared] == ["gsm8k", "other kinds"]
    assert [each.before.num_prompts for each in outcome.compared] == [6, 4]
    # At most per_answer positions of sixteen answers: nothing of the held-out ones.
    assert 0 < outcome.num_positions <= 16 * 11
    assert all(each.num_equal == each.before.num_prompts for each in outcome.compared), "no adapter changes a text"
    body = json.loads(json.dumps(to_json(outcome)))
    assert body["compared"][0]["before"]["acceptance"] == outcome.compared[0].before.rate


def test_without_a_promotion_nothing_changes_and_that_is_said(outcome: demo.DemoOutcome) -> None:
    if outcome.version:
        outcome = replace(outcome, version=0, compared=tuple(replace(e, after=e.before) for e in outcome.compared))
    else:
        assert all(each.change == 0 and each.change_ci == Interval(0.0, 0.0) for each in outcome.compared)
    assert any("no candidate was surely better" in line for line in words_of(outcome))


@pytest.mark.parametrize(("shift", "said"), [(8, "it rose"), (0, "no change can be told"), (-8, "it fell")])
def test_what_is_said_follows_the_interval(outcome: demo.DemoOutcome, shift: int, said: str) -> None:
    """Against paired counts in which every prompt gained, none did, or every one lost."""
    rng = np.random.default_rng(0)
    before = _Decoded((40, int(accepted), 60, 25, (1,)) for accepted in rng.integers(15, 25, 24))
    after = _Decoded((tried, accepted + shift, kept, steps, text) for tried, accepted, kept, steps, text in before)
    found = _compare("kind", before, after, seed=0)
    assert found.change == pytest.approx(shift / 40)
    assert found.change_ci.low <= found.change <= found.change_ci.high
    assert f"; {said}" in words_of(replace(outcome, compared=(found,)))[0]


def test_pairing_by_prompt_makes_the_interval_narrower_than_chance_would() -> None:
    """A gain of the same size on every prompt has no spread, however unlike the prompts are."""
    before = _Decoded((40, accepted, 60, 25, (1,)) for accepted in range(4, 36))
    after = _Decoded((40, accepted + 2, 60, 25, (1,)) for accepted in range(4, 36))
    found = _compare("kind", before, after, seed=0)
    assert found.change_ci.low == pytest.approx(0.05) == found.change_ci.high


def test_tried_positions_are_those_of_the_store() -> None:
    step = StepRow(0, 0, 0.1, 4, 4, 2, 3, 0, (0, 0), (1, 2, 3), 0.0, 0.0, 0.0, 0.0)
    assert _counts(step) == (3, 2, 3), "two accepted, one rejection"
    assert _counts(step._replace(num_accepted=4, num_committed=5)) == (4, 4, 5)
    assert _counts(step._replace(num_truncated=1)) == (2, 2, 2), "what was cut off was not kept"
    assert _counts(step._replace(depth=0, num_accepted=0, num_committed=1)) == (0, 0, 1)


def test_the_command_asks_which_demo_and_refuses_an_unknown_kind(specbench: Callable[..., Ran]) -> None:
    ran = specbench("demo")
    assert ran.code == 2 and "specbench demo --adapt" in ran.err
    ran = specbench("demo", "--adapt", "--kind", "poems")
    assert ran.code == 2 and "no kind of the embedded prompts" in ran.err and "roleplay" in ran.err


def test_the_command_prints_both_sides(specbench: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "DemoPlan", lambda **given: replace(TINY, num_stream=8, num_held_out=3, num_elsewhere=2))
    ran = specbench("demo", "--adapt", "--seconds", "30")
    assert ran.code == 0 and "3 held-out prompts: accepted of tried" in ran.out and "other kinds" in ran.out, ran.err
    assert "before" in ran.err and "round 1" in ran.err
