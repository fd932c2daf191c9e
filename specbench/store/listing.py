"""Which runs there are: from the run folders, which may be live or half written, and from the store. No torch."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path

import duckdb
import numpy as np

from specbench import paths
from specbench.errors import EnvironmentFailed
from specbench.metrics import geometric_mean
from specbench.store.db import open_store
from specbench.store.eligibility import eligibility_of
from specbench.store.facts import Bootstraps, Facts
from specbench.store.journal import run_state
from specbench.store.pairs import fetch
from specbench.store.records import Listing as Listing
from specbench.store.records import RunEntry as RunEntry
from specbench.store.training import headline, training_folders


def list_runs(results: Path | None, *, timeout_s: float = 1.0, with_ranks: bool = True) -> Listing:
    """Runs under a results folder (or beside a store file), newest first.

    with_ranks: say which methods have no rank, and why. That takes some bootstraps a run (30 ms at 80 questions of two
    turns): too much for a viewer that lists every two seconds beside a live run and shows the runs' own tables.

    A store that is busy or unreadable costs the speed-ups, and a note says so: the folders alone are listed then.
    """
    runs = paths.run_dir(results, "")
    entries = {entry.run_id: entry for entry in (*_from_folders(runs), *_trainings(runs))}
    notes: list[str] = []
    store = paths.store_file(results)
    if store.exists():
        try:
            with open_store(store, read_only=True, timeout_s=timeout_s) as connection:
                _add_stored(connection, entries, with_ranks=with_ranks)
        except EnvironmentFailed as error:
            notes.append(f"speed-ups are missing: {error.what}")
    ordered = sorted(entries.values(), key=lambda entry: (entry.created, entry.run_id), reverse=True)
    return Listing(runs=tuple(ordered), notes=tuple(notes))


def _from_folders(runs: Path) -> Iterator[RunEntry]:
    if not runs.is_dir():
        return
    for folder in runs.iterdir():
        manifest = folder / "manifest.json"
        if not manifest.exists():
            continue
        try:
            # Not validated: a thousand runs of ten thousand planned groups would take pydantic seconds.
            raw = json.loads(manifest.read_text(encoding="utf-8"))
            paths.check_run_id(raw["run_id"], manifest)
            created, suite, target = raw["created"], raw["suite"]["name"], raw["target"]["name"]
            state = run_state(folder)
        except (ValueError, KeyError, TypeError, EnvironmentFailed):
            created, suite, target, state = "", "?", "?", "damaged"
        yield RunEntry(
            run_id=folder.name,
            created=created,
            suite=suite,
            target=target,
            state=state,
            has_journal=(folder / "events.jsonl").exists(),
            is_stored=False,
            speedups={},
        )


def _trainings(runs: Path) -> Iterator[RunEntry]:
    for folder in training_folders(runs):
        try:
            record = json.loads((folder / "train.json").read_text(encoding="utf-8"))
            created, dataset, target = record["created"], record["dataset"]["name"], record["target"]["name"]
            state = run_state(folder)
        except (ValueError, KeyError, TypeError, EnvironmentFailed):
            created, dataset, target, state = "", "?", "?", "damaged"
        yield RunEntry(
            run_id=folder.name,
            created=created,
            suite=dataset,
            target=target,
            state=state,
            has_journal=(folder / "events.jsonl").exists(),
            is_stored=False,
            speedups={},
            kind="train",
            headline=headline(folder),
        )


def _add_stored(connection: duckdb.DuckDBPyConnection, entries: dict[str, RunEntry], *, with_ranks: bool) -> None:
    ratios: dict[str, dict[str, list[float]]] = {}
    query = """
        SELECT p.run_id, p.method, p.speedup
        FROM unit_pairs AS p JOIN methods AS m USING (run_id, method)
        WHERE m.kind <> 'baseline'
        ORDER BY m.position, p.unit
    """
    for row in fetch(connection, query):
        ratios.setdefault(row["run_id"], {}).setdefault(row["method"], []).append(row["speedup"])
    answers = dict(connection.execute("SELECT run_id, count(*) FROM generations GROUP BY run_id").fetchall())
    failed: dict[str, list[str]] = {}
    query = """
        SELECT m.run_id, m.method
        FROM methods AS m
        SEMI JOIN failures AS f USING (run_id, method)
        ANTI JOIN generations AS g USING (run_id, method)
        ORDER BY m.position
    """
    for row in fetch(connection, query):
        failed.setdefault(row["run_id"], []).append(row["method"])
    bootstraps: Bootstraps = {}
    for run in fetch(connection, "SELECT * EXCLUDE manifest FROM runs"):
        found = entries.get(run["run_id"])
        of_run = ratios.get(run["run_id"], {})
        entries[run["run_id"]] = RunEntry(
            **{name: run[name] for name in ("run_id", "created", "suite", "target")},
            # Without its folder a run that was ingested half way will never say more.
            state=found.state if found else run["state"].replace("running", "lost"),
            has_journal=found is not None and found.has_journal,
            is_stored=True,
            speedups={method: geometric_mean(np.array(of_method)) for method, of_method in of_run.items()},
            unranked=_unranked(Facts(connection, run, bootstraps), of_run) if with_ranks else {},
            num_answers=answers.get(run["run_id"], 0),
            failed=tuple(failed.get(run["run_id"], ())),
            stored_state=run["state"],
        )


def _unranked(facts: Facts, shown: Collection[str]) -> dict[str, str]:
    """Of the shown methods those without a rank, with the first reason."""
    eligible = {each["method"]: eligibility_of(facts, each) for each in facts.methods if each["method"] in shown}
    return {method: each.reasons[0] for method, each in eligible.items() if each.reasons}
