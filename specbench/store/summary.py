"""`summarise`: a run of the store as the RunSummary that `specbench run --json`, `results show` and the page read.

Ratios come from views.sql and intervals from metrics.py; here the rows are ranked. No torch.
"""

from __future__ import annotations

import dataclasses

import duckdb

from specbench.metrics import standings
from specbench.store.contrasts import contrasts
from specbench.store.control import REMEDY, failure
from specbench.store.facts import Facts, Row, load_run, run_ids
from specbench.store.pairs import fetch
from specbench.store.records import (
    SUMMARY_SCHEMA,
    BaselineMeter,
    CategoryRow,
    Contrast,
    Control,
    Equality,
    ExternalRow,
    MethodRow,
    PhaseSeconds,
    Positions,
    RunSummary,
    Theory,
    Waterfall,
    to_json,
)
from specbench.store.rows import method_row
from specbench.store.words import count, unit

__all__ = [
    "SUMMARY_SCHEMA",
    "BaselineMeter",
    "CategoryRow",
    "Contrast",
    "Control",
    "Equality",
    "ExternalRow",
    "MethodRow",
    "PhaseSeconds",
    "Positions",
    "RunSummary",
    "Theory",
    "Waterfall",
    "run_ids",
    "summarise",
    "to_json",
]

MIN_REPEATS = 3
MAX_JOURNAL_SHARE = 0.005
"""Of a method's timed seconds (measurement 20)."""


def summarise(connection: duckdb.DuckDBPyConnection, run_id: str) -> RunSummary:
    """Sums up one run. Nearly all of its time is the bootstrap. Raises UsageError for an unknown run."""
    run = load_run(connection, run_id)
    facts = Facts(connection, run)
    rows = _ranked(facts, [method_row(facts, method) for method in facts.methods])
    given = {field.name: run[field.name] for field in dataclasses.fields(RunSummary) if field.name in run}
    given["stop"] = tuple(run["stop"])
    return RunSummary(
        schema=SUMMARY_SCHEMA,
        rows=tuple(rows),
        control=facts.control,
        notes=tuple(_run_notes(connection, run, facts)),
        contrasts=tuple(contrasts(facts)),
        **given,
    )


def _ranked(facts: Facts, rows: list[MethodRow]) -> list[MethodRow]:
    """Fills rank and tied_with of the rows that are ranked."""
    columns = [index for index, row in enumerate(rows) if row.ranked]
    if not columns:
        return rows
    places = standings(facts.pairs.select(methods=columns).logs_UK(), facts.bootstrap)
    ranked = list(rows)
    for column, place in zip(columns, places, strict=True):
        tied = tuple(rows[columns[other]].method for other in place.tied_with)
        ranked[column] = dataclasses.replace(rows[column], rank=place.rank, tied_with=tied)
    return ranked


def _run_notes(connection: duckdb.DuckDBPyConnection, run: Row, facts: Facts) -> list[str]:
    notes = []
    measured = fetch(connection, "SELECT count(*) AS num FROM groups WHERE run_id = ?", run["run_id"])[0]["num"]
    if measured < run["num_groups"]:
        notes.append(f"{run['state']}: {measured} of {run['num_groups']} planned generations were measured")
    if run["repeats"] < MIN_REPEATS:
        notes.append(f"{count(run['repeats'], 'repeat')}: a published number has at least {MIN_REPEATS}")
    if facts.baseline is None:
        notes.append("no autoregressive baseline in this run: no speed-ups")
    if facts.control is None:
        notes.append("no A/A control in this run: nothing shows how still the machine was")
    elif failure(facts.control):
        notes.append(
            f"the A/A control failed: {failure(facts.control)}; differences of that size mean nothing here and no "
            f"method is ranked. To get ranks, {REMEDY}"
        )
    notes += _compiling(connection, run)
    notes += _device_notes(connection, run)
    notes += _journal_notes(facts)
    if run["batch_size"] > 1:
        notes.append(
            f"batch {run['batch_size']}: the unit is a group of questions, no speed-up belongs to one question"
        )
    return notes


def _compiling(connection: duckdb.DuckDBPyConnection, run: Row) -> list[str]:
    """What torch.compile took for target and draft models, before anything was timed; a resumed run compiles again."""
    query = "SELECT sum(value) AS s FROM measurements WHERE run_id = ? AND name = 'compile_s'"
    seconds = fetch(connection, query, run["run_id"])[0]["s"]
    return [f"compiling took {seconds:.0f} s, in no method's time"] if seconds else []


def _journal_notes(facts: Facts) -> list[str]:
    """Of methods whose timed seconds went into the journal above the bound; every method pays for its own lines."""
    shares = {label: row["journal_share"] for (label, category), row in facts.totals.items() if category is None}
    above = {label: share for label, share in shares.items() if share > MAX_JOURNAL_SHARE}
    if not above:
        return []
    named = ", ".join(f"{label} {above[label]:.1%}" for label in sorted(above, key=above.__getitem__, reverse=True))
    return [
        f"writing the journal took more than {MAX_JOURNAL_SHARE:.1%} of timed seconds ({named}): a slow or busy disk, "
        "and part of these figures; --store DIR on another disk"
    ]


def _device_notes(connection: duckdb.DuckDBPyConnection, run: Row) -> list[str]:
    """What the machine did beside measuring (measurement 17): flagged, never dropped."""
    notes = []
    for flags in fetch(connection, "SELECT * FROM device_flags WHERE run_id = ?", run["run_id"]):
        if flags["num_dated"] and not flags["num_watched"]:
            notes.append("the machine was not watched during this run: nothing shows whether it was busy or throttled")
        for what, why in (
            ("throttled", "the machine was throttled"),
            ("crowded", f"other processes took more than {flags['busy_limit']:.0%} of the CPUs"),
        ):
            if flags[f"num_{what}_groups"]:
                notes.append(
                    f"{flags[f'num_{what}_units']} of {count(flags['num_units'], unit(run['batch_size']))} "
                    f"({flags[f'num_{what}_groups']} of {count(flags['num_groups'], 'timed generation')}) "
                    f"were measured while {why}"
                )
    query = "SELECT DISTINCT gpu_missing FROM device_sampler WHERE run_id = ? AND gpu_missing IS NOT NULL ORDER BY 1"
    for row in fetch(connection, query, run["run_id"]):
        notes.append(f"the GPU's clocks, heat and throttling were not recorded: {row['gpu_missing']}")
    return notes
