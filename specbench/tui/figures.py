"""What takes DuckDB, pyarrow and a processor: listing, summing up, comparing, deleting. Runs in the reader's process.

Results are plain data and the dataclasses of store/records.py, so that the viewer that receives them loads none of it.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from specbench import paths
from specbench.errors import EnvironmentFailed, SpecbenchError, UsageError
from specbench.events import TrainEval, TrainStep
from specbench.manifest import read_manifest
from specbench.store.files import holder
from specbench.store.journal import MAY_GROW, run_state
from specbench.tui.lines import Line

if TYPE_CHECKING:
    import duckdb

    from specbench.store.records import Listing, RunSummary, Stored
    from specbench.store.stream_records import StreamCurve
    from specbench.store.training import TrainingReplay
    from specbench.tui.freshness import AsOf

_BUSY_S = 0.3


class Summed(NamedTuple):
    """A run in figures, from the store or, where that cannot tell, from its journal through a store of its own."""

    summary: RunSummary
    positions: list[dict[str, Any]]
    """Rows of the view acceptance_by_position; category None = all."""
    units: list[dict[str, Any]]
    """Rows of unit_pairs: one question (a batch of them) of one method beside the baseline."""
    worst: list[dict[str, Any]]
    """method, question_id, category, turn, tau: answers with the fewest tokens per step, ascending."""
    flags: list[dict[str, Any]]
    """Of the machine, from device_flags."""
    source: str
    """'store', or why the journal was asked."""
    streams: tuple[StreamCurve, ...] = ()
    """Acceptance along the stream, of a run in which a method learns."""
    row: Stored | None = None
    """The run's in the store, also where that could not tell; None where it has none, or no store was to be had."""
    as_of: AsOf | None = None
    """Known to the asker, who looked at the files before."""


class Board(NamedTuple):
    """The leaderboard's data, and the runs that could not be summed up, with why."""

    data: dict[str, Any]
    left_out: list[str]


class Course(NamedTuple):
    """A training, read: `store.training.Training` without the modules behind it."""

    run_id: str
    record: dict[str, Any]
    state: str
    message: str
    steps: tuple[TrainStep, ...]
    evals: tuple[TrainEval, ...]
    best_step: int | None


_WORST = """
    SELECT g.method, g.question_id, g.category, g.turn,
           sum(g.num_new_tokens - 1) / nullif(sum(g.num_steps), 0) AS tau, sum(g.num_steps)::BIGINT AS num_steps
    FROM generations AS g JOIN methods AS m USING (run_id, method)
    WHERE g.run_id = ? AND m.kind <> 'baseline'
    GROUP BY ALL HAVING sum(g.num_steps) >= 5
    ORDER BY tau, g.method, g.question_id LIMIT 60
"""
_BATCHES = """
    SELECT r.batch_size, t.method, t.tokens_per_s
    FROM totals AS t JOIN runs AS r USING (run_id) JOIN runs AS this ON this.run_id = ?
    WHERE t.category IS NULL AND {alike}
    QUALIFY row_number() OVER (PARTITION BY r.batch_size, t.method ORDER BY r.created DESC, run_id DESC) = 1
    ORDER BY r.batch_size, t.method
"""


def listing(store: Path | None) -> Listing:
    """A busy store costs the speed-ups, and a note says so. Without ranks: the list shows those of the summaries."""
    from specbench.store.listing import list_runs

    return list_runs(store, timeout_s=_BUSY_S, with_ranks=False)


def summed(store: Path | None, run_id: str) -> Summed:
    """The run in figures. Seconds for a long run that is not in the store."""
    from specbench.store.db import open_store

    file = paths.store_file(store)
    why, row = "there is no store yet", None
    if file.exists():
        try:
            with open_store(file, read_only=True, timeout_s=_BUSY_S) as connection:
                row = _row(connection, run_id)
                if row is not None and _is_whole(row, paths.run_dir(store, run_id)):
                    return _read(connection, run_id, "store")._replace(row=row)
            why = "the run is not in the store, or only a part of it"
        except EnvironmentFailed as error:
            # Busy, damaged, newer: the journals are there all the same, and the source says what was in the way.
            why = error.what
    return _from_journal(store, run_id, why)._replace(row=row)


def _row(connection: duckdb.DuckDBPyConnection, run_id: str) -> Stored | None:
    from specbench.store.records import Stored

    query = "SELECT state, (SELECT count(*) FROM generations WHERE run_id = $1) FROM runs WHERE run_id = $1"
    rows = connection.execute(query, [run_id]).fetchall()
    return Stored(*rows[0]) if rows else None


def _is_whole(row: Stored, folder: Path) -> bool:
    # Of a journal that may have grown since it was ingested the state says nothing.
    state = run_state(folder)
    return not (folder / "events.jsonl").exists() or (row.state == state and state not in MAY_GROW)


def _from_journal(store: Path | None, run_id: str, why: str) -> Summed:
    """Through a store of its own, thrown away: the same views and the same intervals, no second definition."""
    from specbench.store.db import open_store
    from specbench.store.ingest import ingest
    from specbench.store.invariants import InvariantViolation

    with tempfile.TemporaryDirectory(prefix="specbench-tui-") as name:
        file = Path(name) / "specbench.duckdb"
        try:
            ingest(file, paths.run_dir(store, run_id))
        except InvariantViolation as error:
            # For `results ingest` a defect; here a run whose figures cannot be shown, beside others whose can.
            raise EnvironmentFailed(
                f"the journal's counts contradict each other: {error}", try_=f"specbench results ingest {run_id}"
            ) from error
        with open_store(file, read_only=True) as connection:
            return _read(connection, run_id, f"read from the journal: {why}")


def _read(connection: duckdb.DuckDBPyConnection, run_id: str, source: str) -> Summed:
    from specbench.store.pairs import fetch
    from specbench.store.streams import stream_curves
    from specbench.store.summary import summarise

    return Summed(
        summary=summarise(connection, run_id),
        positions=fetch(connection, "SELECT * FROM acceptance_by_position WHERE run_id = ?", run_id),
        units=fetch(connection, "SELECT * FROM unit_pairs WHERE run_id = ? ORDER BY unit, method", run_id),
        worst=fetch(connection, _WORST, run_id),
        flags=fetch(connection, "SELECT * FROM device_flags WHERE run_id = ?", run_id),
        source=source,
        streams=stream_curves(connection, run_id),
    )


def batches(store: Path | None, run_id: str) -> list[dict[str, Any]]:
    """batch_size, method, tokens_per_s of runs that differ from this one in the batch size alone: of each pair the
    newest. None where one batch size was measured, and of a run that is not in the store. Raises StoreBusy.

    Apart from the figures: every run of a store would carry those of all the others."""
    from specbench.store.compare import CONDITIONS
    from specbench.store.db import open_store
    from specbench.store.pairs import fetch

    file = paths.store_file(store)
    if not file.exists():
        return []
    alike = " AND ".join(
        f"r.{column} IS NOT DISTINCT FROM this.{column}" for column in CONDITIONS if column != "batch_size"
    )
    with open_store(file, read_only=True, timeout_s=_BUSY_S) as connection:
        found = fetch(connection, _BATCHES.format(alike=alike), run_id)
    return found if len({row["batch_size"] for row in found}) > 1 else []


def board(store: Path | None) -> Board:
    """Every run that is not being written; without a free store, from the journals."""
    from specbench.report.board import RunRecord, build_board
    from specbench.store.db import open_store
    from specbench.store.external import external_rows
    from specbench.store.records import ExternalRow

    records, left_out = [], []
    for entry in listing(store).runs:
        if entry.kind != "run" or not entry.has_journal or entry.state in MAY_GROW:
            continue
        try:
            read = summed(store, entry.run_id)
            manifest = read_manifest(paths.run_dir(store, entry.run_id))
            records.append(RunRecord(summary=read.summary, manifest=manifest, streams=read.streams))
        except SpecbenchError as error:
            left_out.append(f"{entry.run_id}: {error.what}")
    externals: tuple[ExternalRow, ...] = ()
    file = paths.store_file(store)
    if file.exists():
        try:
            with open_store(file, read_only=True, timeout_s=_BUSY_S) as connection:
                externals = external_rows(connection)
        except SpecbenchError as error:
            left_out.append(f"imported rows: {error.what}")
    return Board(build_board(records, externals), left_out)


def write_board(store: Path | None, out: Path) -> Path:
    """The leaderboard's page. Raises StoreBusy."""
    from specbench.report.page import write_leaderboard

    return write_leaderboard(paths.store_file(store), out)


def comparison(store: Path | None, run_ids: list[str]) -> list[Line]:
    """Runs beside each other, as lines. Raises UsageError where they are not alike."""
    from specbench.store.compare import compare
    from specbench.store.db import open_store
    from specbench.tui.draw_board import comparison_lines

    with open_store(paths.store_file(store), read_only=True, timeout_s=1.0) as connection:
        return comparison_lines(compare(connection, run_ids))


_replays: dict[Path, TrainingReplay] = {}


def training(store: Path | None, run_id: str) -> Course:
    """A training's journal; of the one that was asked for last, what it has got since."""
    from specbench.store.training import TrainingReplay

    folder = paths.run_dir(store, run_id)
    # One: it is read every two seconds while it is shown, and the next one is another screen's.
    if folder not in _replays:
        _replays.clear()
        _replays[folder] = TrainingReplay(folder)
    found = _replays[folder].read()
    best = found.best.step if found.best is not None else None
    return Course(run_id, found.record, found.state, found.message, found.steps, found.evals, best)


def write_training(store: Path | None, run_id: str, out: Path) -> Path:
    """A training's curves as the page that `results plot` writes."""
    from specbench.report.training_page import write_training_page
    from specbench.store.training import read_training

    return write_training_page(read_training(paths.run_dir(store, run_id)), out)


def delete(store: Path | None, run_id: str) -> None:
    """A run's folder and its rows. UsageError while a process writes it, StoreBusy before anything is removed."""
    from specbench.store.db import open_store, transaction
    from specbench.store.ingest import remove_run
    from specbench.store.training import TRAIN_TABLES

    folder = paths.run_dir(store, run_id)
    live = holder(folder) if folder.exists() else None
    if live is not None:
        raise UsageError(
            f"{run_id} is being written by process {live.pid} on {live.host}", where=str(folder), try_="stop it: x"
        )
    file = paths.store_file(store)
    if file.exists():
        with open_store(file, timeout_s=2.0) as connection, transaction(connection):
            remove_run(connection, run_id)
            for table in TRAIN_TABLES:
                connection.execute(f"DELETE FROM {table} WHERE run_id = ?", [run_id])
    if folder.exists():
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise EnvironmentFailed(f"{folder} could not be removed: {error}", where=str(folder)) from error


JOBS = {
    each.__name__: each
    for each in (listing, summed, batches, board, write_board, comparison, training, write_training, delete)
}
"""What the reader can be asked for, by name."""
