"""What a run came to: its journal in the store, its summary, the checks it failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from specbench import paths
from specbench.bench.request import RunOutcome, RunRequest
from specbench.errors import EnvironmentFailed, SpecbenchError
from specbench.store.absent import is_absent, where_to_ingest
from specbench.store.words import count

if TYPE_CHECKING:
    from specbench.store.records import RunSummary

State = Literal["finished", "interrupted", "failed"]


def outcome_of(
    request: RunRequest, folder: Path, state: State, *, num_bugs: Mapping[str, int], say: Callable[[str], None]
) -> RunOutcome:
    """Ingest the run of `folder` and sum it up. num_bugs: answers per method that differ without a reason.

    A machine without DuckDB (a borrowed GPU) keeps the journal, to be ingested elsewhere, and has no summary. Raises
    SpecbenchError where the store refuses, or where --fail-under asks for figures that only a store has; the journal is
    whole then.
    """
    bugs = tuple(
        f"{label}: {count(number, 'answer')} {'differs' if number == 1 else 'differ'} from the target's own "
        "and no rounding explains it"
        for label, number in num_bugs.items()
    )
    if is_absent():
        return _without_store(request, folder, state, bugs, say)
    # 0.1 s of DuckDB and its store, not needed while anything is timed.
    from specbench.store.db import open_store
    from specbench.store.ingest import ingest
    from specbench.store.summary import summarise

    store, run_id = paths.store_file(request.store), folder.name
    try:
        ingest(store, folder)
    except SpecbenchError as error:
        say(f"{error.what}; the journal is whole: specbench results ingest {run_id}")
        raise
    with open_store(store, read_only=True) as connection:
        summary = summarise(connection, run_id)
    failed = (*bugs, *too_slow(summary, least=request.fail_under))
    return RunOutcome(run_id=run_id, state=state, summary=summary, failed_checks=failed)


def _without_store(
    request: RunRequest, folder: Path, state: State, bugs: tuple[str, ...], say: Callable[[str], None]
) -> RunOutcome:
    where = where_to_ingest(folder)
    if request.fail_under is not None:
        raise EnvironmentFailed(
            f"DuckDB is not installed, so no speed-up can be held against --fail-under; {where}",
            try_="pip install duckdb, then specbench results ingest",
        )
    say(f"DuckDB is not installed, so there is no table here; {where}")
    return RunOutcome(run_id=folder.name, state=state, failed_checks=bugs)


def too_slow(summary: RunSummary, *, least: float | None) -> list[str]:
    """A sentence for every method under `--fail-under`. A failed A/A control takes the ranks, not this question."""
    if least is None:
        return []
    return [
        f"{row.method}: speed-up {row.speedup:.3f} is under {least:g}"
        for row in summary.rows
        if (row.ranked or row.control_failed)
        and row.kind != "baseline"
        and row.speedup is not None
        and row.speedup < least
    ]
