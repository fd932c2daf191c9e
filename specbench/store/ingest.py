"""A run folder into the store: replay the journal, check it, then replace the run in one transaction. No torch.

The journal is read before the store is opened, so that the file is locked for the insert alone. Ingesting again (a run
that went on, a store that was busy) replaces what was there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from specbench.errors import EnvironmentFailed
from specbench.events import AdapterRound, Measured, ReferenceFinished, RunFinished, RunStarted
from specbench.manifest import Manifest, read_manifest
from specbench.store.attempts import Attempts
from specbench.store.columns import RunColumns
from specbench.store.db import BUSY_S, insert_table, open_store, transaction
from specbench.store.device import read_device
from specbench.store.files import UNTOUCHED
from specbench.store.journal import replay, run_state
from specbench.store.observed import read_observed

RUN_TABLES = (
    "runs",
    "methods",
    "questions",
    "reference_answers",
    "groups",
    "generations",
    "steps",
    "failures",
    "measurements",
    "device_sampler",
    "device_sample",
    "group_energy",
    "observed",
    "adapter_rounds",
)
"""Tables with a run_id: all of a measured run."""


@dataclass(frozen=True, kw_only=True)
class Ingested:
    """What went into the store."""

    run_id: str
    state: str
    num_generations: int
    num_failed: int
    num_steps: int
    read_s: float
    """Replaying and checking the journal."""
    write_s: float
    """Holding the store."""


def ingest(store: Path, run_folder: Path, *, timeout_s: float = BUSY_S) -> Ingested:
    """Puts a run's folder into the DuckDB file `store`, whole or not at all; the journal is only read.

    Raises StoreBusy, EnvironmentFailed (damaged or missing files) and InvariantViolation (counts that cannot be).
    """
    began = time.perf_counter()
    manifest = read_manifest(run_folder)
    try:
        columns, last_word = _read(run_folder, manifest)
        state = run_state(run_folder)
        read_s = time.perf_counter() - began
        tables = columns.tables()
        run = _run_row(manifest, state=state, last_word=last_word)
        with open_store(store, timeout_s=timeout_s) as connection:
            _replace(connection, manifest.run_id, run, tables)
    # Fields of events are not checked one by one, there are millions: one of another kind breaks what works with it.
    except (ArithmeticError, LookupError, TypeError, ValueError, duckdb.DataError) as error:
        raise EnvironmentFailed(
            f"the run's files hold what nothing writes: {type(error).__name__}: {error}",
            where=str(run_folder),
            try_=UNTOUCHED,
        ) from error
    return Ingested(
        run_id=manifest.run_id,
        state=state,
        num_generations=columns.num_generations(),
        num_failed=columns.num_failures(),
        num_steps=len(columns.steps),
        read_s=read_s,
        write_s=time.perf_counter() - began - read_s,
    )


def _read(run_folder: Path, manifest: Manifest) -> tuple[RunColumns, RunFinished | None]:
    """Everything beside the manifest, and the run's last word, if it said one."""
    columns = RunColumns(manifest)
    attempts = Attempts({record.group: len(record.question_ids) for record in manifest.groups})
    last_word: RunFinished | None = None
    for event in replay(run_folder):
        match event:
            case ReferenceFinished():
                columns.add_reference(event)
            case Measured():
                columns.add_measurement(event)
            case AdapterRound():
                columns.add_round(event)
            case RunStarted():
                last_word = None
            case RunFinished():
                last_word = event
            case _:
                pass
        attempt = attempts.feed(event)
        if attempt is not None:
            columns.add_attempt(attempt)
    columns.add_device(read_device(run_folder))
    columns.add_observed(read_observed(run_folder))
    return columns, last_word


def remove_run(connection: duckdb.DuckDBPyConnection, run_id: str) -> None:
    """Deletes a run from every table; its folder is untouched."""
    for table in RUN_TABLES:
        connection.execute(f"DELETE FROM {table} WHERE run_id = ?", [run_id])


def _replace(connection: duckdb.DuckDBPyConnection, run_id: str, run: dict[str, Any], tables: dict[str, Any]) -> None:
    with transaction(connection):
        remove_run(connection, run_id)
        marks = ", ".join("?" for _ in run)
        connection.execute(f"INSERT INTO runs ({', '.join(run)}) VALUES ({marks})", list(run.values()))
        for name, table in tables.items():
            insert_table(connection, name, table)


def _run_row(manifest: Manifest, *, state: str, last_word: RunFinished | None) -> dict[str, Any]:
    suite, target, device = manifest.suite, manifest.target, manifest.device
    return {
        "run_id": manifest.run_id,
        "created": manifest.created,
        "state": state,
        "finished": last_word.time if last_word else None,
        "message": last_word.message if last_word else "",
        "suite": suite.name,
        "suite_hash": suite.hash,
        "template": suite.template,
        "num_questions": suite.num_questions,
        "has_answers": suite.has_answers,
        "target": target.name,
        "target_hash": target.weights_hash,
        "model_type": target.model_type,
        "num_parameters": target.num_parameters,
        "dtype": target.dtype,
        "quantisation": target.quantisation,
        "weight_bytes_per_token": target.weight_bytes_per_token,
        "cache_bytes_per_token": target.cache_bytes_per_token,
        "device_kind": device.kind,
        "device": device.name,
        "threads": device.threads,
        "attention": device.attention,
        "execution": device.execution,
        "copy_bandwidth": device.copy_bandwidth,
        **manifest.sampling.model_dump(),
        "rule": manifest.rule,
        "seed": manifest.seed,
        "batch_size": manifest.batch_size,
        "repeats": manifest.repeats,
        "max_new_tokens": manifest.max_new_tokens,
        "carry": manifest.carry,
        "stop": sorted(set(manifest.stop)),
        "num_groups": len(manifest.groups),
        "manifest": manifest.model_dump_json(),
    }
