"""Every run is listed in the state it is in, with or without a store."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from specbench.events import SCHEMA, RunFinished, RunStarted
from specbench.manifest import write_manifest
from specbench.store.db import open_store
from specbench.store.ingest import ingest
from specbench.store.journal import Journal
from specbench.store.listing import RunEntry, list_runs
from specbench.store.summary import summarise
from tests.store.synthetic import make_manifest, write_synthetic


def by_id(results: Path) -> dict[str, RunEntry]:
    return {entry.run_id: entry for entry in list_runs(results).runs}


def begin(results: Path, run_id: str, created: str = "2026-01-02T03:04:05+00:00") -> Journal:
    folder = results / "runs" / run_id
    journal = Journal(folder)
    write_manifest(folder, make_manifest(run_id=run_id, created=created))
    journal.write(RunStarted(schema=SCHEMA, run_id=run_id, time=created, pid=1, resumed=False))
    return journal


def test_states_are_read_from_journals_and_locks(tmp_path: Path) -> None:
    with begin(tmp_path, "live"):
        with begin(tmp_path, "stopped") as journal:
            journal.write(RunFinished(state="interrupted", time="t"))
        begin(tmp_path, "gone").close()
        write_synthetic(tmp_path / "runs" / "done", run_id="done", num_questions=1)
        (tmp_path / "runs" / "broken").mkdir()
        (tmp_path / "runs" / "broken" / "manifest.json").write_text("{")
        found = by_id(tmp_path)
    assert {name: entry.state for name, entry in found.items()} == {
        "live": "running",
        "stopped": "interrupted",
        "gone": "lost",
        "done": "finished",
        "broken": "damaged",
    }
    assert (found["done"].suite, found["done"].target) == ("demo", "tiny")


def test_the_newest_comes_first(tmp_path: Path) -> None:
    for run_id, year in (("b", 2025), ("a", 2026), ("c", 2024)):
        begin(tmp_path, run_id, f"{year}-01-02T03:04:05+00:00").close()
    assert [entry.run_id for entry in list_runs(tmp_path).runs] == ["a", "b", "c"]


def test_speedups_appear_once_the_run_is_in_the_store(tmp_path: Path) -> None:
    folder = write_synthetic(tmp_path / "runs" / "run-a", num_questions=4)
    assert by_id(tmp_path)["run-a"].speedups == {}
    ingest(tmp_path / "specbench.duckdb", folder)
    entry = by_id(tmp_path)["run-a"]
    assert entry.is_stored and list(entry.speedups) == ["draft_model", "tree", "slow"]
    assert entry.speedups["draft_model"] > 1 > entry.speedups["slow"]


def test_a_speedup_that_the_table_does_not_rank_says_why(tmp_path: Path) -> None:
    manifest = make_manifest(num_questions=12)
    methods = tuple(each.model_copy(update={"is_ranked": each.label != "tree"}) for each in manifest.methods)
    write_synthetic(tmp_path / "runs" / "run-a", num_questions=12, methods=methods)
    ingest(tmp_path / "specbench.duckdb", tmp_path / "runs" / "run-a")
    entry = by_id(tmp_path)["run-a"]
    assert entry.unranked == {"tree": "not ranked: a control, not a competitor"}
    with open_store(tmp_path / "specbench.duckdb", read_only=True) as connection:
        rows = [row for row in summarise(connection, "run-a").rows if row.kind != "baseline"]
    assert entry.speedups == pytest.approx({row.method: row.speedup for row in rows})
    (light,) = list_runs(tmp_path, with_ranks=False).runs
    assert light.speedups == entry.speedups and light.unranked == {}
    assert set(entry.unranked) == {row.method for row in rows if not row.ranked}


def test_a_run_that_only_the_store_remembers_is_listed(tmp_path: Path) -> None:
    ingest(tmp_path / "specbench.duckdb", write_synthetic(tmp_path / "elsewhere" / "run-a", num_questions=1))
    entry = by_id(tmp_path)["run-a"]
    assert entry.is_stored and not entry.has_journal


def test_a_busy_store_costs_the_speedups_and_is_said(tmp_path: Path) -> None:
    ingest(tmp_path / "specbench.duckdb", write_synthetic(tmp_path / "runs" / "run-a", num_questions=1))
    hold = "import duckdb, sys, time; c = duckdb.connect(sys.argv[1]); print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / "specbench.duckdb")], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    try:
        listing = list_runs(tmp_path, timeout_s=0.1)
    finally:
        holder.kill()
        holder.wait()
    assert [entry.run_id for entry in listing.runs] == ["run-a"]
    assert listing.runs[0].speedups == {} and str(holder.pid) in listing.notes[0]


def test_no_results_are_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list_runs(tmp_path / "nothing").runs == ()
    monkeypatch.setenv("SPECBENCH_RESULTS", str(tmp_path / "nothing"))
    assert list_runs(None).runs == ()


def test_a_copied_folder_is_listed_as_damaged(tmp_path: Path) -> None:
    """Its rows would be those of the run that it was copied from."""
    whole = write_synthetic(tmp_path / "runs" / "run-a", num_questions=1)
    shutil.copytree(whole, tmp_path / "runs" / "run-a.bak")
    found = by_id(tmp_path)
    assert (found["run-a"].state, found["run-a.bak"].state) == ("finished", "damaged")
