"""The store is what the journals say: whole, once, and never instead of them."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from specbench.errors import EnvironmentFailed, StoreBusy
from specbench.events import SCHEMA, Event, GenerationFailed, GenerationFinished, RunFinished, RunStarted, to_line
from specbench.manifest import Manifest, read_manifest
from specbench.store.attempts import finished_groups
from specbench.store.db import open_store
from specbench.store.ingest import RUN_TABLES, ingest
from specbench.store.invariants import InvariantViolation
from specbench.store.pairs import fetch
from specbench.store.summary import summarise
from tests.store.synthetic import COMPETITORS, group_events, make_manifest, run_events, write_run, write_synthetic

RESUMED = RunStarted(schema=SCHEMA, run_id="run-a", time="t", pid=2, resumed=True)


def content(store: Path, *, without: tuple[str, ...] = ()) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table of the runs."""
    with open_store(store, read_only=True) as connection:
        return {
            table: sorted(connection.execute(f"SELECT * FROM {table}").fetchall(), key=repr)
            for table in RUN_TABLES
            if table not in without
        }


def test_every_step_and_answer_arrives_as_it_was_journalled(tmp_path: Path) -> None:
    folder = write_synthetic(tmp_path / "runs" / "run-a", num_questions=2, num_turns=2, repeats=2)
    report = ingest(tmp_path / "s.duckdb", folder)
    manifest = make_manifest(num_questions=2, num_turns=2, repeats=2)
    events = list(run_events(manifest))
    answers = [event for event in events if isinstance(event, GenerationFinished)]
    with open_store(tmp_path / "s.duckdb", read_only=True) as connection:
        stored = fetch(connection, "SELECT * FROM generations ORDER BY group_id, row_index")
        steps = fetch(connection, "SELECT * FROM steps ORDER BY group_id, row_index, step")
        (run,) = fetch(connection, "SELECT * FROM runs")
    assert [tuple(row["tokens"]) for row in stored] == [answer.tokens for answer in answers]
    assert [row["text"] for row in stored] == [answer.text for answer in answers]
    journalled = [row for event in events if event.kind == "steps" for row in event.rows]  # type: ignore[attr-defined]
    assert [(s["step"], s["num_accepted"], tuple(s["ranks"])) for s in steps] == [
        (row.step, row.num_accepted, row.ranks) for row in journalled
    ]
    for name in ("end_s", "draft_s", "verify_s", "accept_s", "commit_s"):  # journalled to the nanosecond
        expected = [getattr(row, name) for row in journalled]
        assert [s[name] for s in steps] == pytest.approx(expected, rel=0, abs=1e-9)
    assert report.num_steps == len(journalled) and report.num_generations == len(answers)
    assert (run["state"], run["dtype"], run["num_groups"]) == ("finished", "float32", len(manifest.groups))


def test_ingesting_again_replaces_the_run_and_leaves_the_others(tmp_path: Path) -> None:
    store = tmp_path / "s.duckdb"
    first = write_synthetic(tmp_path / "run-a", num_questions=2)
    ingest(store, first)
    ingest(store, write_synthetic(tmp_path / "run-b", run_id="run-b", num_questions=2))
    before = content(store)
    ingest(store, first)
    assert content(store) == before


def killed_and_resumed(num_events: int) -> Iterator[Event]:
    """run-a cut after num_events of its journal, then measured on as `--resume` does: only groups that did not end."""
    manifest = make_manifest(num_questions=2)
    by_label = {competitor.label: competitor for competitor in COMPETITORS}
    kept = list(run_events(manifest))[:num_events]
    yield from kept
    ended = {event.group for event in kept if isinstance(event, GenerationFinished)}
    yield RESUMED
    for record in manifest.groups:
        if record.group not in ended:
            yield from group_events(manifest, record, by_label[record.method], num_tokens=40)
    yield RunFinished(state="finished", time="2026-01-02T04:04:05+00:00")


@pytest.mark.parametrize("num_events", [3, 7, 8, 50, 75])
def test_a_killed_and_resumed_run_is_stored_as_an_uninterrupted_one(tmp_path: Path, num_events: int) -> None:
    manifest = make_manifest(num_questions=2)
    whole = write_run(tmp_path / "whole" / "run-a", manifest, run_events(manifest))
    resumed = write_run(tmp_path / "resumed" / "run-a", manifest, killed_and_resumed(num_events))
    ingest(tmp_path / "whole.duckdb", whole)
    ingest(tmp_path / "resumed.duckdb", resumed)
    no_reference = (
        "reference_answers",
        "measurements",
    )  # the cut may fall into the reference pass, made again by bench
    assert content(tmp_path / "resumed.duckdb", without=no_reference) == content(
        tmp_path / "whole.duckdb", without=no_reference
    )


def test_of_two_complete_attempts_the_last_one_counts(tmp_path: Path) -> None:
    manifest = make_manifest(num_questions=1, repeats=1)
    chain = COMPETITORS[2]
    record = manifest.groups[2]
    slow = list(group_events(manifest, record, chain, num_tokens=40, seed=1))
    events = [*run_events(manifest)]
    write_run(tmp_path / "twice" / "run-a", manifest, iter([*slow, *events]))
    write_run(tmp_path / "once" / "run-a", manifest, iter(events))
    ingest(tmp_path / "twice.duckdb", tmp_path / "twice" / "run-a")
    ingest(tmp_path / "once.duckdb", tmp_path / "once" / "run-a")
    assert content(tmp_path / "twice.duckdb") == content(tmp_path / "once.duckdb")


def test_a_failed_question_is_an_error_and_no_number(tmp_path: Path) -> None:
    manifest = make_manifest(num_questions=1, repeats=1)
    events = list(run_events(manifest))
    at = next(i for i, event in enumerate(events) if isinstance(event, GenerationFinished))
    answer = events[at]
    assert isinstance(answer, GenerationFinished)
    names = [field.name for field in dataclasses.fields(GenerationFailed) if field.name != "error"]
    events[at] = GenerationFailed(**{name: getattr(answer, name) for name in names}, error="out of memory")
    ingest(tmp_path / "s.duckdb", write_run(tmp_path / "run-a", manifest, iter(events)))
    with open_store(tmp_path / "s.duckdb", read_only=True) as connection:
        (failure,) = fetch(connection, "SELECT * FROM failures")
        groups = fetch(connection, "SELECT group_id FROM timed_groups")
        steps = fetch(connection, "SELECT * FROM steps WHERE group_id = ?", answer.group)
    assert (failure["error"], failure["question_id"]) == ("out of memory", "81")
    assert answer.group not in {row["group_id"] for row in groups}
    assert steps == []


def test_a_torn_last_line_is_no_obstacle(tmp_path: Path) -> None:
    folder = write_synthetic(tmp_path / "run-a", num_questions=1)
    journal = folder / "events.jsonl"
    journal.write_bytes(journal.read_bytes()[:-30])
    report = ingest(tmp_path / "s.duckdb", folder)
    assert report.state == "lost"
    assert report.num_generations == len(finished_groups(folder)) == 15


def test_counts_that_cannot_be_are_refused_and_nothing_is_stored(tmp_path: Path) -> None:
    folder = write_synthetic(tmp_path / "run-a", num_questions=1)
    journal = folder / "events.jsonl"
    journal.write_text(journal.read_text().replace('"num_steps":39,', '"num_steps":40,', 1))
    with pytest.raises(InvariantViolation, match="num_steps is 40, but 39"):
        ingest(tmp_path / "s.duckdb", folder)
    assert not (tmp_path / "s.duckdb").exists()


def test_a_group_that_took_no_time_is_refused(tmp_path: Path) -> None:
    manifest = make_manifest(num_questions=1, repeats=1)
    events = [
        dataclasses.replace(event, total_s=0.0) if isinstance(event, GenerationFinished) else event
        for event in run_events(manifest)
    ]
    with pytest.raises(InvariantViolation, match=r"group 0 \(autoregressive\) finished in 0.0 s"):
        ingest(tmp_path / "s.duckdb", write_run(tmp_path / "run-a", manifest, iter(events)))


def test_an_insert_that_breaks_leaves_the_run_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "s.duckdb"
    folder = write_synthetic(tmp_path / "run-a", num_questions=1)
    ingest(store, folder)
    before = content(store)
    monkeypatch.setattr(
        "specbench.store.columns._STEP_SECONDS", ("end_s", "draft_s", "verify_s", "accept_s", "nonsense")
    )
    with pytest.raises(duckdb.Error):
        ingest(store, folder)
    monkeypatch.undo()
    assert content(store) == before


HOLD = """
import sys, time, duckdb
connection = duckdb.connect(sys.argv[1])
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def hold(tmp_path: Path) -> Iterator[Any]:
    """Another process that keeps the store locked for so many seconds."""
    held: list[subprocess.Popen[str]] = []

    def start(store: Path, seconds: float) -> int:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(store), str(seconds)], stdout=subprocess.PIPE, text=True
        )
        held.append(process)
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        return process.pid

    yield start
    for process in held:
        process.kill()
        process.wait()


def test_a_locked_store_is_named_with_its_holder_and_loses_nothing(tmp_path: Path, hold: Any) -> None:
    store = tmp_path / "s.duckdb"
    folder = write_synthetic(tmp_path / "run-a", num_questions=1)
    journal = (folder / "events.jsonl").read_bytes()
    with open_store(store):
        pass
    pid = hold(store, 60)
    began = time.monotonic()
    with pytest.raises(StoreBusy) as caught:
        ingest(store, folder, timeout_s=0.3)
    assert time.monotonic() - began < 5
    assert str(pid) in caught.value.what and "results ingest" in caught.value.try_
    assert caught.value.exit_code == 3
    assert (folder / "events.jsonl").read_bytes() == journal


def test_a_store_that_is_locked_for_a_moment_is_waited_for(tmp_path: Path, hold: Any) -> None:
    store = tmp_path / "s.duckdb"
    folder = write_synthetic(tmp_path / "run-a", num_questions=1)
    hold(store, 0.5)
    assert ingest(store, folder, timeout_s=20).num_generations == 15


def test_a_newer_store_is_refused(tmp_path: Path) -> None:
    store = tmp_path / "s.duckdb"
    with open_store(store) as connection:
        connection.execute("UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    for read_only in (True, False):
        with pytest.raises(EnvironmentFailed, match="newer specbench"), open_store(store, read_only=read_only):
            pass


def test_a_foreign_database_is_left_alone(tmp_path: Path) -> None:
    store = tmp_path / "s.duckdb"
    with duckdb.connect(str(store)) as connection:
        connection.execute("CREATE TABLE mine (x INTEGER)")
    with pytest.raises(EnvironmentFailed, match="not a store of specbench"), open_store(store):
        pass


def test_a_damaged_store_says_how_to_rebuild_it(tmp_path: Path) -> None:
    store = tmp_path / "s.duckdb"
    store.write_bytes(b"this is no database" * 1000)
    with pytest.raises(EnvironmentFailed) as caught, open_store(store, read_only=True):
        pass
    assert "results ingest" in caught.value.try_


def test_a_missing_store_says_what_makes_one(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailed, match="no store at") as caught, open_store(tmp_path / "s", read_only=True):
        pass
    assert "specbench run" in caught.value.try_


def test_a_folder_that_may_not_be_written_is_named(read_only_folder: Path) -> None:
    with pytest.raises(EnvironmentFailed, match="no permission"), open_store(read_only_folder / "s.duckdb"):
        pass


def test_a_reader_brings_its_own_views(tmp_path: Path) -> None:
    """Views are the program's: a store whose views an older program wrote is read with this one's."""
    store = tmp_path / "s.duckdb"
    with open_store(store) as connection:
        connection.execute("CREATE OR REPLACE VIEW baselines AS SELECT 1 AS old")
        connection.execute("UPDATE meta SET value = 'older' WHERE key = 'views_hash'")
    with open_store(store, read_only=True) as connection:
        assert fetch(connection, "SELECT * FROM baselines") == []
    with open_store(store):
        pass
    with duckdb.connect(str(store), read_only=True) as connection:
        assert connection.execute("SELECT * FROM baselines").fetchall() == []


@pytest.mark.parametrize(
    ("provenance", "stop"),
    [({"request": {"stop": ["Q:", "A:"]}}, ["A:", "Q:"]), ({"request": {"stop": []}}, []), ({"git": "none"}, [])],
    ids=["asked for two", "asked for none", "does not say"],
)
def test_runs_from_before_stop_strings_were_recorded_have_those_of_their_request(
    tmp_path: Path, provenance: dict[str, Any], stop: list[str]
) -> None:
    """In a folder that is ingested now, and in a store that was filled then."""
    folder = write_synthetic(tmp_path / "run-a", num_questions=1, provenance=provenance)
    body = json.loads((folder / "manifest.json").read_text())
    del body["stop"]
    (folder / "manifest.json").write_text(json.dumps(body))
    assert sorted(read_manifest(folder).stop) == stop
    store = tmp_path / "s.duckdb"
    ingest(store, folder)
    for is_older in (False, True):
        if is_older:
            with open_store(store) as connection:
                connection.execute("ALTER TABLE runs DROP COLUMN stop")
                connection.execute("UPDATE meta SET value = '6' WHERE key = 'schema_version'")
        with open_store(store, read_only=True) as connection:
            assert fetch(connection, "SELECT stop FROM runs") == [{"stop": stop}]
            assert summarise(connection, "run-a").stop == tuple(stop)


def test_the_first_stores_of_all_are_read(tmp_path: Path) -> None:
    """They are of schema 1 as those after them, and their methods lack a column."""
    store = tmp_path / "s.duckdb"
    ingest(store, write_synthetic(tmp_path / "run-a", num_questions=1))
    with open_store(store) as connection:
        connection.execute("ALTER TABLE methods DROP COLUMN is_ranked")
        connection.execute("UPDATE meta SET value = '1' WHERE key = 'schema_version'")
    with open_store(store, read_only=True) as connection:
        assert summarise(connection, "run-a").rows
        assert all(row["is_ranked"] for row in fetch(connection, "SELECT is_ranked FROM methods"))


def test_a_new_manifest_records_the_stop_strings_of_its_request() -> None:
    """Whoever makes one need not say them twice."""
    plan = make_manifest(num_questions=1).model_dump(exclude={"stop"})
    made = Manifest(**plan | {"provenance": {"request": {"stop": ("Q:",)}}})
    assert made.stop == ("Q:",) and json.loads(made.model_dump_json())["stop"] == ["Q:"]


def test_a_group_that_the_plan_lacks_is_an_error(tmp_path: Path) -> None:
    folder = write_synthetic(tmp_path / "run-a", num_questions=1)
    manifest = make_manifest(num_questions=2)
    with (folder / "events.jsonl").open("a") as file:
        for event in group_events(manifest, manifest.groups[-1], COMPETITORS[-1], num_tokens=5):
            file.write(to_line(event) + "\n")
    with pytest.raises(EnvironmentFailed, match="group 29"):
        ingest(tmp_path / "s.duckdb", folder)


def test_a_hundred_thousand_steps_are_ingested_in_a_tenth_of_the_budget_twice_over(tmp_path: Path) -> None:
    """The budget is 20 s for a million; on a busy machine this leaves twice that."""
    folder = write_synthetic(tmp_path / "run-a", num_questions=20, repeats=3, num_tokens=485)
    began = time.process_time()
    report = ingest(tmp_path / "s.duckdb", folder)
    assert 95_000 < report.num_steps < 105_000
    assert time.process_time() - began < 4.0
