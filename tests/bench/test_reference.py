"""Answers of the target alone that earlier runs kept: what is taken from them, and what is not (measurement 10)."""

from __future__ import annotations

import json

from specbench.events import GenerationFailed
from tests.bench.runs import rows_of


def test_an_answer_kept_by_a_run_with_a_longer_cache_is_not_asked_of_methods_without_room(tmp_path, go):
    """The reference pass used to take it without a look at its length, and the noise floor ran over the cache's end."""
    suite = tmp_path / "lengths.jsonl"
    rows = [{"question_id": "long", "prompt": "x" * 60}, {"question_id": "a", "prompt": "hi"}]
    suite.write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome, _ = go(suite=str(suite), repeats=1)
    assert rows_of(outcome)["prompt_lookup"]["num_questions"] == 2
    outcome, events = go(suite=str(suite), repeats=1, max_len=40)
    assert rows_of(outcome)["prompt_lookup"]["num_questions"] == 1
    failures = events(GenerationFailed)
    assert {e.question_id for e in failures} == {"long"} and "the cache holds 40" in failures[0].error
