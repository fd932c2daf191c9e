"""Answers of the target alone that earlier runs kept: what is taken from them, and what is not (measurement 10)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specbench import paths, provenance
from specbench.bench.defaults import with_defaults
from specbench.bench.session import Session
from specbench.events import GenerationFailed, ReferenceFinished
from specbench.suite import load_suite
from tests.bench.runs import request_for, rows_of


def test_an_answer_kept_by_a_run_with_a_longer_cache_is_not_asked_of_methods_without_room(tmp_path, go):
    """The reference pass used to take it without a look at its length, and the noise floor ran over the cache's end."""
    suite = tmp_path / "lengths.jsonl"
    rows = [{"question_id": "long", "turns": ["hi", "x" * 60]}, {"question_id": "a", "prompt": "ho"}]
    suite.write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome, events = go(suite=str(suite), repeats=1)
    assert not events(GenerationFailed) and rows_of(outcome)["prompt_lookup"]["num_questions"] == 2
    outcome, events = go(suite=str(suite), repeats=1, max_len=40)
    failures = events(GenerationFailed)
    assert {(e.question_id, e.turn) for e in failures} == {("long", 1)} and "the cache holds 40" in failures[0].error


def kept_books() -> list[Path]:
    return list((paths.cache_dir() / "references").glob("*.jsonl"))


def spoil(book: Path) -> None:
    """As if another machine of the same name, or another program, had written it: every answer another one."""
    rows = [json.loads(line) for line in book.read_text().splitlines()]
    for row in rows:
        row["tokens"] = [(token + 1) % 200 for token in row["tokens"]]
        row["text"] = "something else"
    book.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("changes", [{"temperature": 1.0}, {"batch_size": 2, "carry": "stream"}])
def test_a_kept_reference_that_the_target_does_not_write_here_is_made_anew(go, tmp_path, changes):
    """Both turns of the second question too: the second continues the first one's new answer."""
    fresh, first = go(**changes)
    [book] = kept_books()
    spoil(book)
    outcome, events = go(**changes)
    rows = rows_of(outcome)
    assert {name: row["equality"] for name, row in rows.items()} == {
        name: row["equality"] for name, row in rows_of(fresh).items()
    }
    assert not outcome.failed_checks and all(row["equality"]["identical"] == 10 for row in rows.values())
    made = {(e.question_id, e.turn): e.tokens for e in first(ReferenceFinished)}
    assert {(e.question_id, e.turn): e.tokens for e in events(ReferenceFinished)} == made
    assert len(events(ReferenceFinished)) > len(made), "the kept ones stand in the journal, then the new ones"
    newest = {row["key"]: tuple(row["tokens"]) for row in map(json.loads, book.read_text().splitlines())}
    assert set(made.values()) <= set(newest.values()), "the next run takes the new ones"
    assert kept_books() == [book]


def test_a_kept_reference_that_holds_is_not_written_again_for_a_method_that_differs(go, monkeypatch):
    go(repeats=1)
    from specbench.engine import accept

    right = accept.walk
    monkeypatch.setattr(
        accept,
        "walk",
        lambda chosen_BM, tree: right(
            tree.tokens_BN.new_full(chosen_BM.shape, 65) if tree.num_nodes else chosen_BM, tree
        ),
    )
    outcome, events = go(repeats=1)
    assert rows_of(outcome)["prompt_lookup"]["equality"]["bug"] > 0
    assert len(events(ReferenceFinished)) == 5


def test_answers_of_another_specbench_and_another_processor_are_not_used(
    tiny_suite, tiny_target, tmp_path, monkeypatch
):
    loaded = load_suite(str(tiny_suite))
    session = Session(with_defaults(request_for(tiny_suite, tiny_target, tmp_path), loaded.defaults).request, loaded)
    here = session.reference_identity()
    assert session.reference_identity() == here
    for name in ("decoding_hash", "device_name"):
        with monkeypatch.context() as patch:
            patch.setattr(provenance, name, lambda *_: "another")
            assert session.reference_identity() != here


def test_the_hash_of_a_program_tells_an_edit_of_what_writes_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "PACKAGE", tmp_path)
    found = set()
    for room, text in [("engine", ""), ("engine", "changed"), ("lm", "changed"), ("tui", "changed")]:
        (tmp_path / room).mkdir(exist_ok=True)
        (tmp_path / room / "a.py").write_text(text)
        for name in ("quantisation", "sampling", "tree"):
            (tmp_path / f"{name}.py").touch()
        found.add(provenance.decoding_hash.__wrapped__())
    assert len(found) == 3, "drawing does not change a token"
