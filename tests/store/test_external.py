"""Real answer files of other tools come in with their defects, and never as if they had been measured here."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from specbench.errors import EnvironmentFailed, UsageError
from specbench.store.answers import read_answers
from specbench.store.db import open_store
from specbench.store.external import external_rows, import_answers, remove_import
from specbench.store.records import ExternalRow


def answer(question_id: Any, turns: Sequence[tuple[int, int, float]], **fields: Any) -> str:
    """One EAGLE row: turns as (idxs, new_tokens, wall_time)."""
    choice = {
        "index": 0,
        "turns": [f"text {i}" for i, _ in enumerate(turns)],
        "idxs": [turn[0] for turn in turns],
        "new_tokens": [turn[1] for turn in turns],
        "wall_time": [turn[2] for turn in turns],
    }
    return (
        json.dumps({"question_id": question_id, "model_id": "m", "choices": [choice], "tstamp": 1.0, **fields}) + "\n"
    )


def write(path: Path, *rows: str) -> Path:
    path.write_text("".join(rows))
    return path


def bring_in(tmp_path: Path, path: Path, baseline: Path | None = None, **names: str) -> ExternalRow:
    given = {"suite": "mtbench", "method": "ctc", "target": "vicuna"} | names
    return import_answers(tmp_path / "s.duckdb", path, baseline=baseline, **given)


# Totals published with the files: tokens, steps (idxs + 1), tokens/step, tok/s, baseline tok/s, ratio of totals.
PUBLISHED = {
    ("MT-bench", "7b"): (160, 42_819, 12_238, 3.50, 85.65, 29.95, 2.86),
    ("MT-bench", "13b"): (160, 44_371, 13_043, 3.40, 55.49, 21.89, 2.54),
    ("MT-bench", "33b"): (160, 52_236, 15_346, 3.40, 23.65, 10.86, 2.18),
    ("GSM8K", "7b"): (1319, 377_683, 108_732, 3.47, 85.10, 35.17, 2.42),
    ("GSM8K", "13b"): (1319, 346_468, 100_300, 3.45, 57.14, 21.61, 2.64),
    ("GSM8K", "33b"): (1319, 397_443, 118_508, 3.35, 23.74, 10.97, 2.16),
}


@pytest.mark.shared
@pytest.mark.parametrize(("suite", "size"), PUBLISHED)
def test_recorded_runs_give_their_published_totals(shared: Path, tmp_path: Path, suite: str, size: str) -> None:
    folder = shared / "recorded" / "ctc_drafter" / suite
    row = bring_in(
        tmp_path,
        folder / f"vc_{size}-temperature-1.0.jsonl.gz",
        folder / f"vc_{size}_baseline-temperature-1.0.jsonl.gz",
    )
    turns, tokens, steps, tokens_per_step, rate, base_rate, ratio = PUBLISHED[suite, size]
    assert (row.num_turns, row.num_new_tokens, row.num_steps) == (turns, tokens, steps)
    assert row.tokens_per_step == pytest.approx(tokens_per_step, abs=0.006)
    assert row.tokens_per_s == pytest.approx(rate, abs=0.006)
    assert row.base_tokens_per_s == pytest.approx(base_rate, abs=0.006)
    assert row.speedup_total == pytest.approx(ratio, abs=0.006)
    assert row.speedup_ci is not None and row.speedup_ci.low < ratio * 1.05
    was_uncounted = suite == "MT-bench" and size != "7b"
    assert any("new_tokens = 0" in note for note in row.notes) == was_uncounted
    assert not row.ranked and any("external" in note for note in row.notes)


def test_idxs_are_one_less_than_steps_and_decoding_steps_are_not(tmp_path: Path) -> None:
    eagle = write(tmp_path / "eagle.jsonl", answer(81, [(9, 20, 1.0)]))
    row = json.loads(answer(81, [(10, 20, 1.0)], category="writing"))
    row["choices"][0]["decoding_steps"] = row["choices"][0].pop("idxs")
    spec_bench = write(tmp_path / "spec_bench.jsonl", json.dumps(row) + "\n")
    assert read_answers(eagle).turns[0].num_steps == read_answers(spec_bench).turns[0].num_steps == 10
    assert read_answers(spec_bench).turns[0].category == "writing"


def test_an_uncounted_baseline_makes_one_token_per_step_and_says_so(tmp_path: Path) -> None:
    method = write(tmp_path / "m.jsonl", answer(81, [(9, 20, 1.0)]), answer(82, [(9, 20, 1.0)]))
    plain = write(tmp_path / "b.jsonl", answer(81, [(19, 0, 2.0)]), answer(82, [(19, 0, 2.0)]))
    row = bring_in(tmp_path, method, plain)
    assert row.base_tokens_per_s == pytest.approx(10.0) and row.speedup_total == pytest.approx(2.0)
    assert any("2 turns record new_tokens = 0" in note for note in row.notes)


def test_an_uncounted_method_cannot_be_guessed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="new_tokens = 0 everywhere") as caught:
        bring_in(tmp_path, write(tmp_path / "m.jsonl", answer(81, [(9, 0, 1.0)])))
    assert "--baseline" in caught.value.try_


def test_single_uncounted_turns_of_a_method_are_left_out_and_said(tmp_path: Path) -> None:
    row = bring_in(tmp_path, write(tmp_path / "m.jsonl", answer(81, [(9, 20, 1.0), (9, 0, 1.0)])))
    assert (row.num_turns, row.num_new_tokens) == (1, 20)
    assert any("1 turn records no tokens and is" in note for note in row.notes)


def test_a_question_that_stands_twice_counts_by_its_last_line(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.jsonl", answer(81, [(9, 20, 1.0)]), answer(82, [(9, 20, 1.0)]), answer(81, [(9, 30, 1.0)])
    )
    row = bring_in(tmp_path, path)
    assert (row.num_questions, row.num_new_tokens) == (2, 50)
    assert any("1 question stands twice (81)" in note for note in row.notes)


def test_an_incomplete_baseline_pairs_what_both_have(tmp_path: Path) -> None:
    method = write(tmp_path / "m.jsonl", *(answer(i, [(9, 20, 1.0)]) for i in range(4)))
    plain = write(tmp_path / "b.jsonl", *(answer(i, [(19, 20, 2.0)]) for i in range(3)), '{"question_id": 3, "cho')
    row = bring_in(tmp_path, method, plain)
    assert row.num_paired_questions == 3 and row.speedup == pytest.approx(2.0)
    assert any("last line is torn" in note for note in row.notes)
    assert any("4 questions answered, 3 in the baseline, 3 in both" in note for note in row.notes)


def test_turns_that_failed_in_that_tool_are_left_out(tmp_path: Path) -> None:
    """Spec-Bench writes the previous question's numbers beside the text ERROR."""
    row = json.loads(answer(81, [(9, 20, 1.0), (9, 20, 1.0)]))
    row["choices"][0]["turns"][1] = "ERROR"
    found = bring_in(tmp_path, write(tmp_path / "m.jsonl", json.dumps(row) + "\n"))
    assert found.num_turns == 1 and any("1 turn failed" in note for note in found.notes)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{broken\n", "it is not JSON"),
        ('{"choices": []}\n', "question_id is missing"),
        ('{"question_id": 1}\n', "choices is missing"),
        ('{"question_id": 1, "choices": {"0": 1}}\n', "choices is not a list"),
        ('{"question_id": 1, "choices": [7]}\n', "a choice is not an object"),
        ("[1, 2]\n", "it is not an object"),
        (answer(1, [(9, 20, 1.0)]).replace('"idxs"', '"steps"'), "idxs (or decoding_steps) is missing"),
        (answer(1, [(9, 20, 1.0)]).replace('"new_tokens": [20]', '"new_tokens": ["x"]'), "new_tokens holds 'x'"),
        (answer(1, [(9, 20, 0.0)]), "0.0 s"),
        (answer(1, [(9, -1, 1.0)]), "tokens -1"),
        (answer(1, [(9, 20, 1.0)]).replace('"idxs": [9]', '"idxs": [9, 9]'), "lists are of different lengths"),
        (answer(1, [(9, 20, 1.0)]).replace("1.0]", "NaN]"), "wall_time holds nan"),
    ],
)
def test_a_wrong_row_is_an_error_that_names_file_and_line(tmp_path: Path, line: str, words: str) -> None:
    path = write(tmp_path / "m.jsonl", answer(81, [(9, 20, 1.0)]), line, answer(82, [(9, 20, 1.0)]))
    with pytest.raises(UsageError) as caught:
        bring_in(tmp_path, path)
    assert words in caught.value.what and caught.value.where.endswith("m.jsonl:2")
    assert "Error" not in caught.value.what, "a name of Python's, not a word of the user's"


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailed, match="no such file"):
        bring_in(tmp_path, tmp_path / "absent.jsonl")
    with pytest.raises(UsageError, match="holds no answers"):
        bring_in(tmp_path, write(tmp_path / "empty.jsonl", "\n"))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(answer(81, [(9, 20, 1.0)]).encode())[:-12])
    with pytest.raises(EnvironmentFailed, match="not a whole gzip file"):
        bring_in(tmp_path, tmp_path / "cut.jsonl.gz")


def test_a_line_separator_inside_a_text_does_not_end_the_line(tmp_path: Path) -> None:
    row = json.loads(answer(81, [(9, 20, 1.0)]))
    row["choices"][0]["turns"] = ["one\u2028two\x85three"]
    path = write(tmp_path / "m.jsonl", json.dumps(row, ensure_ascii=False) + "\n")
    assert read_answers(path).turns[0].text == "one\u2028two\x85three"


def test_importing_twice_replaces_and_removing_forgets(tmp_path: Path) -> None:
    path = write(tmp_path / "m.jsonl", answer(81, [(9, 20, 1.0)]))
    first = bring_in(tmp_path, path)
    bring_in(tmp_path, path)
    bring_in(tmp_path, path, method="other")
    with open_store(tmp_path / "s.duckdb") as connection:
        assert [row.method for row in external_rows(connection)] == ["ctc", "other"]
        remove_import(connection, first.import_id)
        assert [row.method for row in external_rows(connection)] == ["other"]


def test_an_answer_that_took_no_step_has_no_tokens_per_step(tmp_path: Path) -> None:
    """It ended with the prefill's token, as our own export writes it. Infinity would break every page of the store."""
    row = bring_in(tmp_path, write(tmp_path / "m.jsonl", answer(81, [(-1, 1, 0.5)])))
    assert (row.num_steps, row.num_new_tokens, row.tokens_per_step) == (0, 1, None)


def test_turns_of_a_baseline_without_tokens_and_steps_are_left_out_and_said(tmp_path: Path) -> None:
    path = write(tmp_path / "m.jsonl", answer(81, [(9, 20, 1.0)]), answer(82, [(9, 20, 1.0)]))
    plain = write(tmp_path / "b.jsonl", answer(81, [(-1, 0, 2.0)]), answer(82, [(19, 20, 2.0)]))
    row = bring_in(tmp_path, path, plain)
    assert row.speedup == row.speedup_total == pytest.approx(2.0) and row.num_paired_questions == 1
    assert any("1 turn records neither tokens nor steps and is left out" in note for note in row.notes)
    assert any("2 questions answered, 1 in the baseline" in note for note in row.notes)


def test_a_baseline_of_nothing_but_empty_turns_is_none(tmp_path: Path) -> None:
    path = write(tmp_path / "m.jsonl", answer(81, [(9, 20, 1.0)]))
    row = bring_in(tmp_path, path, write(tmp_path / "b.jsonl", answer(81, [(-1, 0, 2.0)])))
    assert row.speedup is None and row.speedup_total is None and row.base_tokens_per_s is None


def test_an_older_store_with_empty_turns_of_a_baseline_is_read(tmp_path: Path) -> None:
    """Until now they went in, with tokens 0."""
    path = write(tmp_path / "m.jsonl", answer(81, [(9, 20, 1.0)]))
    bring_in(tmp_path, path, write(tmp_path / "b.jsonl", answer(81, [(19, 20, 2.0)])))
    with open_store(tmp_path / "s.duckdb") as connection:
        connection.execute("UPDATE external_turns SET num_steps = 0, num_new_tokens = 0 WHERE is_baseline")
        [row] = external_rows(connection)
    assert row.speedup is None and row.speedup_total is None and row.base_tokens_per_s is None


def test_removing_an_unknown_import_names_the_known_ones(tmp_path: Path) -> None:
    known = bring_in(tmp_path, write(tmp_path / "m.jsonl", answer(81, [(9, 20, 1.0)]))).import_id
    with open_store(tmp_path / "s.duckdb") as connection, pytest.raises(UsageError, match=known):
        remove_import(connection, "0")
