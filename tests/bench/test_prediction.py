"""What `specbench tune` predicts, from times and counts that are set: worked out by hand. And that each text is
replayed by a drafter that remembers nothing of the others."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from specbench.api import Silent
from specbench.bench import tuning
from specbench.bench.defaults import with_defaults
from specbench.bench.request import GridAxis, RunRequest
from specbench.bench.tuning import confirm, predict
from specbench.engine.replay import Replayed, Text
from specbench.store.db import open_store
from specbench.store.summary import summarise
from specbench.suite import Defaults


@pytest.fixture
def ask(tmp_path: Path, tiny_target: Path) -> Callable[..., RunRequest]:
    """ask(method, prompts, **changes) -> a filled request over one-turn questions."""

    def make(method: str, prompts: Sequence[str], **changes: Any) -> RunRequest:
        file = tmp_path / f"{len(prompts)}.jsonl"
        rows = [{"question_id": str(n), "turns": [text]} for n, text in enumerate(prompts)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        request = RunRequest(
            suite=str(file),
            target=str(tiny_target),
            methods=("autoregressive", method),
            max_new_tokens=24,
            repeats=1,
            threads=1,
            batch_size=1,
            store=tmp_path / "results",
            **changes,
        )
        return with_defaults(request, Defaults()).request

    return make


def test_a_prediction_is_tau_over_what_its_own_steps_cost(
    ask: Callable[..., RunRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two texts. Verifying 0, 4, 6 and 8 nodes costs 1, 1.5, 2 and 3 times a plain verification.

    First text: 2 steps of 0 nodes, 3 of 4; 12 tokens. Second: 2 steps of 0, 2 of 5 (not measured, half-way: 1.75), 1 of
    8; 8 tokens. tau = 20 / 10. Verifying takes 0.8 s x (4 x 1 + 3 x 1.5 + 2 x 1.75 + 1 x 3) / 10 = 1.2 s, drafting
    0.3 s, the rest 0.2 s: 1.7 s a step; a plain one 0.8 + 0.05 + 0.15 = 1 s. Predicted: 2 x 1 / 1.7.
    """

    def phases(session: object, contestant: Any, cells: object) -> tuning._Phases:
        if contestant.drafter.max_nodes == 0:
            return tuning._Phases(verify_s=0.8, draft_s=0.05, rest_s=0.15)
        # Its own verifications are as large as the few timed texts made them: not read.
        return tuning._Phases(verify_s=77.0, draft_s=0.3, rest_s=0.2)

    def costs(engine: object, context: object, counts: Sequence[int], *, as_tree: bool) -> list[float]:
        return [{0: 1.0, 4: 1.5, 6: 2.0, 8: 3.0}.get(num, 9.0) for num in counts]

    counted = [
        Replayed(num_steps=5, num_tokens=12, accepted_at=(), proposed_at=(), num_nodes=12, steps_at=((0, 2), (4, 3))),
        Replayed(
            num_steps=5, num_tokens=8, accepted_at=(), proposed_at=(), num_nodes=18, steps_at=((0, 2), (5, 2), (8, 1))
        ),
    ]
    replayed: list[Text] = []

    def replay(lm: object, drafter: object, texts: Sequence[Text], **how: object) -> Replayed:
        replayed.extend(texts)
        return counted[(len(replayed) - 1) % 2]

    monkeypatch.setattr(tuning, "_phases", phases)
    monkeypatch.setattr(tuning, "verification_costs", costs)
    monkeypatch.setattr(tuning, "replay", replay)
    axes = (GridAxis("prompt_lookup", "num_tokens", ("8", "16")),)
    request = ask("prompt_lookup", ["abc abc abc", "0 1 0 1"], grid=axes)
    found = predict(request, "prompt_lookup", Silent(), will_confirm=False)
    assert len(replayed) == 4 and found.step_s == pytest.approx(1.0)
    assert [each.max_nodes for each in found.candidates] == [8, 16]  # the same counts: the one with fewer nodes first
    for each in found.candidates:
        assert each.acceptance_length == 2.0 and each.num_nodes == 3.0
        assert (each.verify_s, each.draft_s, each.rest_s) == pytest.approx((1.2, 0.3, 0.2))
        assert each.predicted == pytest.approx(2.0 / 1.7)


def test_phases_are_means_over_steps_and_what_is_neither_verifying_nor_drafting_is_the_rest() -> None:
    """Two texts of 3 and 1 steps: 4 s of verifying, 2 s of drafting, 8 s of decoding in all."""
    results = [
        SimpleNamespace(
            verify_s=3.0, draft_s=1.75, decode_s=6.0, generations=[SimpleNamespace(steps=[None, None, None])]
        ),
        SimpleNamespace(verify_s=1.0, draft_s=0.25, decode_s=2.0, generations=[SimpleNamespace(steps=[None])]),
    ]
    restored: list[object] = []
    limits: list[int] = []

    class Shown:
        max_new_tokens = 1000

        def generate(self, *args: object, **how: object) -> object:
            limits.append(self.max_new_tokens)
            return results[len(limits) - 1]

    session: Any = Shown()
    contestant: Any = SimpleNamespace(
        drafter=SimpleNamespace(restore=restored.append), snapshot="fresh", wants_reference=False
    )
    cells: Any = [None, None]
    found = tuning._phases(session, contestant, cells)
    assert (found.verify_s, found.draft_s, found.rest_s, found.step_s) == (1.0, 0.5, 0.5, 2.0)
    assert restored == ["fresh", "fresh"] and set(limits) == {tuning._TIMED_TOKENS}
    assert session.max_new_tokens == 1000


def test_a_method_that_carries_a_stream_is_replayed_as_if_each_text_were_its_first(
    ask: Callable[..., RunRequest], tmp_path: Path
) -> None:
    """The same question twice: a drafter that remembered the first answer would draft the second one whole. The truth
    is the paired run's count, under `carry none`."""
    axes = (GridAxis("suffix", "max_spec_factor", ("4",)),)
    request = ask("suffix", ["zz", "zz", "abc abc abc"], grid=axes)
    found = predict(request, "suffix", Silent(), will_confirm=True)
    outcome = confirm(found, request, "suffix", Silent(), top=1)
    with open_store(tmp_path / "results" / "specbench.duckdb", read_only=True) as store:
        row = next(row for row in summarise(store, outcome.run_id).rows if row.name == "suffix")
    [candidate] = found.candidates
    assert candidate.acceptance_length == pytest.approx(row.acceptance_length)
