"""What leaves the store says the same as the store."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from specbench.errors import EnvironmentFailed, UsageError
from specbench.events import Event, GenerationFailed, GenerationFinished
from specbench.store.answers import read_answers
from specbench.store.db import open_store
from specbench.store.export import export_answers, export_csv, export_json, export_parquet, failed_turns
from specbench.store.external import import_answers
from specbench.store.ingest import ingest
from specbench.store.pairs import fetch
from specbench.store.summary import summarise, to_json
from tests.store.synthetic import make_manifest, run_events, write_run, write_synthetic


@pytest.fixture
def store(tmp_path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    folder = write_synthetic(tmp_path / "run-a", num_questions=3, num_turns=2, repeats=2)
    ingest(tmp_path / "s.duckdb", folder)
    with open_store(tmp_path / "s.duckdb", read_only=True) as connection:
        yield connection


def test_exported_answers_come_back_as_they_were(store: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    out = tmp_path / "answers.jsonl"
    assert export_answers(store, "run-a", "draft_model", out) == 3
    stored = {
        (row["question_id"], row["repeat"], row["turn"]): row
        for row in fetch(
            store,
            "SELECT * FROM generations JOIN (SELECT group_id, total_s FROM groups) USING (group_id) WHERE method = ?",
            "draft_model",
        )
    }
    turns = read_answers(out).turns
    assert len(turns) == len(stored) == 12
    for turn in turns:
        row = stored[turn.question_id, turn.choice, turn.turn]
        assert (turn.num_steps, turn.num_new_tokens, turn.text, turn.category) == (
            row["num_steps"], row["num_new_tokens"], row["text"], row["category"]
        )  # fmt: skip
        assert turn.wall_s == row["total_s"]


def test_exported_and_imported_again_the_speedup_is_the_same(store: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    export_answers(store, "run-a", "draft_model", tmp_path / "m.jsonl")
    export_answers(store, "run-a", "autoregressive", tmp_path / "b.jsonl")
    row = import_answers(
        tmp_path / "other.duckdb",
        tmp_path / "m.jsonl",
        baseline=tmp_path / "b.jsonl",
        suite="s",
        method="m",
        target="t",
    )
    own = next(row for row in summarise(store, "run-a").rows if row.method == "draft_model")
    assert row.speedup == pytest.approx(own.speedup)
    assert row.speedup_total == pytest.approx(own.speedup_total)


def test_answers_follow_spec_benchs_schema(store: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    export_answers(store, "run-a", "draft_model", tmp_path / "a.jsonl")
    row = json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0])
    assert row.keys() == {"question_id", "category", "answer_id", "model_id", "choices", "tstamp"}
    assert row["question_id"] == 81 and [choice["index"] for choice in row["choices"]] == [0, 1]
    choice = row["choices"][0]
    assert choice.keys() == {"index", "turns", "decoding_steps", "new_tokens", "wall_time", "accept_lengths"}
    # Over both turns: every step's kept tokens; the prefill's token of each turn is in none.
    assert len(choice["accept_lengths"]) == sum(choice["decoding_steps"])
    assert sum(choice["accept_lengths"]) == sum(choice["new_tokens"]) - 2


def test_a_failed_turn_keeps_its_place(tmp_path: Path) -> None:
    """Without it the second turn of an answer whose first one failed would be read as a first one."""

    def failing(event: Event) -> Event:
        if not isinstance(event, GenerationFinished) or event.method != "draft_model":
            return event
        place = (event.question_id, event.repeat, event.turn)
        if place not in (("81", 1, 0), ("82", 0, 1), ("83", 0, 0), ("83", 0, 1)):
            return event
        names = [field.name for field in dataclasses.fields(GenerationFailed) if field.name != "error"]
        return GenerationFailed(**{name: getattr(event, name) for name in names}, error="out of memory")

    manifest = make_manifest(num_questions=3, num_turns=2, repeats=2)
    events = (failing(event) for event in run_events(manifest))
    ingest(tmp_path / "s.duckdb", write_run(tmp_path / manifest.run_id, manifest, events))
    out = tmp_path / "a.jsonl"
    with open_store(tmp_path / "s.duckdb", read_only=True) as connection:
        export_answers(connection, "run-a", "draft_model", out)
        assert failed_turns(connection, "run-a", "draft_model").startswith("4 turns of draft_model failed: ")
        assert failed_turns(connection, "run-a", "tree") == ""
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [[choice["index"] for choice in line["choices"]] for line in lines] == [[0, 1], [0, 1], [1]]
    first, second = lines[0]["choices"][1], lines[1]["choices"][0]
    assert first["turns"][0] == second["turns"][1] == "ERROR" and len(first["turns"]) == len(second["turns"]) == 2
    for name in ("decoding_steps", "new_tokens", "wall_time"):
        assert first[name][0] == second[name][1] == 0 and first[name][1] > 0 and second[name][0] > 0
    read = read_answers(out)
    found = {(turn.question_id, turn.choice, turn.turn) for turn in read.turns}
    assert ("81", 1, 1) in found and ("82", 0, 0) in found and len(found) == 12 - 4
    assert any("2 turns failed in that tool" in note for note in read.notes)


def test_seconds_of_a_batch_are_nobodys(tmp_path: Path) -> None:
    ingest(tmp_path / "s.duckdb", write_synthetic(tmp_path / "run-a", num_questions=2, batch_size=2))
    with (
        open_store(tmp_path / "s.duckdb", read_only=True) as connection,
        pytest.raises(UsageError, match="2 questions at a time"),
    ):
        export_answers(connection, "run-a", "draft_model", tmp_path / "a.jsonl")


def test_an_unknown_method_or_run_suggests_the_nearest(store: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'draft_model'"):
        export_answers(store, "run-a", "draft_modl", tmp_path / "a.jsonl")
    with pytest.raises(UsageError, match="did you mean 'run-a'"):
        export_csv(store, "run-q", tmp_path / "a.csv")


def test_json_is_the_summary(store: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    export_json(store, "run-a", tmp_path / "deep" / "a.json")
    assert json.loads((tmp_path / "deep" / "a.json").read_text()) == json.loads(
        json.dumps(to_json(summarise(store, "run-a")))
    )


def test_csv_has_a_line_per_timed_group_and_no_model_text(store: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    number = export_csv(store, "run-a", tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == number == 3 * 2 * 2 * 5
    expected = fetch(store, "SELECT sum(total_s) AS total_s FROM groups")[0]["total_s"]
    assert sum(float(row["total_s"]) for row in rows) == pytest.approx(expected)
    assert "answer to" not in (tmp_path / "a.csv").read_text()


def test_parquet_holds_every_table_of_the_run_alone(store: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    other = write_synthetic(tmp_path / "run-b", run_id="run-b", num_questions=1)
    store.close()
    ingest(tmp_path / "s.duckdb", other)
    with open_store(tmp_path / "s.duckdb", read_only=True) as connection:
        files = export_parquet(connection, "run-a", tmp_path / "out")
        own = fetch(connection, "SELECT count(*) AS num FROM steps WHERE run_id = 'run-a'")[0]["num"]
    assert {path.stem for path in files} >= {"runs", "steps", "generations", "groups"}
    read = duckdb.sql(f"SELECT run_id, count(*) FROM '{tmp_path}/out/steps.parquet' GROUP BY run_id").fetchall()
    assert read == [("run-a", own)]


def test_a_place_that_may_not_be_written_is_named(store: duckdb.DuckDBPyConnection, read_only_folder: Path) -> None:
    with pytest.raises(EnvironmentFailed, match="no permission"):
        export_json(store, "run-a", read_only_folder / "a.json")
