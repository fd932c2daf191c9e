"""What a run came to: its journal in the store, its summary, the checks it failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from specbench import paths
from specbench.bench.request import RunOutcome, RunRequest
from specbench.errors import EnvironmentFailed, SpecbenchError
from specbench.metrics import Interval, is_too_noisy
from specbench.store.absent import is_absent, where_to_ingest
from specbench.store.attempts import Tally, tallies
from specbench.store.words import count

if TYPE_CHECKING:
    from specbench.store.records import MethodRow, RunSummary

State = Literal["finished", "interrupted"]


def outcome_of(
    request: RunRequest, folder: Path, state: State, *, complaint: str = "", say: Callable[[str], None]
) -> RunOutcome:
    """Ingest the run of `folder` and sum it up; its checks are those of the whole run, earlier parts included.
    complaint: what may be the reason where answers differ.

    A machine without DuckDB (a borrowed GPU) keeps the journal, to be ingested elsewhere, and has no summary. Raises
    SpecbenchError where the store refuses, or where --fail-under asks for figures that only a store has; the journal is
    whole then.
    """
    found = tallies(folder)
    # A lossy rule promises no equality.
    bugs = () if request.rule == "typical" else _bugs(found)
    if bugs and complaint:
        bugs = (*bugs, complaint)
    failed = (*bugs, *_without_answers(found)) if state == "finished" else bugs
    if is_absent():
        return _without_store(request, folder, state, failed, say)
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
    return RunOutcome(
        run_id=run_id,
        state=state,
        summary=summary,
        failed_checks=(*failed, *too_slow(summary, least=request.fail_under)),
        undecided=undecided(summary, least=request.fail_under),
    )


def _bugs(found: Mapping[str, Tally]) -> tuple[str, ...]:
    return tuple(
        f"{label}: {count(number, 'answer')} {'differs' if number == 1 else 'differ'} from the target's own "
        "and no rounding explains it"
        for label, (_, _, number) in found.items()
        if number
    )


def _without_answers(found: Mapping[str, Tally]) -> tuple[str, ...]:
    """A method of which nothing finished, the baseline above all, leaves no figure: single failed questions do."""
    if found and not any(each.num_answers for each in found.values()):
        total = sum(each.num_failed for each in found.values())
        return (f"nothing was measured: all {count(total, 'timed generation')} failed",)
    return tuple(
        f"{label}: nothing was measured: {count(each.num_failed, 'timed generation')} of it failed, none finished"
        for label, each in found.items()
        if not each.num_answers
    )


def _without_store(
    request: RunRequest, folder: Path, state: State, failed: tuple[str, ...], say: Callable[[str], None]
) -> RunOutcome:
    where = where_to_ingest(folder)
    if request.fail_under is not None:
        raise EnvironmentFailed(
            f"DuckDB is not installed, so no speed-up can be held against --fail-under; {where}",
            try_="pip install duckdb, then specbench results ingest",
        )
    say(f"DuckDB is not installed, so there is no table here; {where}")
    return RunOutcome(run_id=folder.name, state=state, failed_checks=failed)


def too_slow(summary: RunSummary, *, least: float | None) -> list[str]:
    """A sentence for every method that does not reach `--fail-under`, or has no number to hold against it.

    A row that is ranked, or would be but for a failed A/A control, is judged by its speed-up: the control takes the
    ranks, not this question. Any other row is too slow where its whole interval is, or where it has none to doubt by.
    """
    if least is None:
        return []
    found = []
    for row in summary.rows:
        if row.kind == "baseline":
            continue
        if row.speedup is None:
            failed = f" ({count(row.num_failed, 'generation')} failed)" if row.num_failed else ""
            found.append(f"{row.method}: no speed-up was measured{failed}, so it cannot be said to reach {least:g}")
        elif row.speedup_ci is None or _goes_by_speedup(row, row.speedup, row.speedup_ci):
            if row.speedup < least:
                found.append(f"{row.method}: speed-up {row.speedup:.3f} is under {least:g}")
        elif row.speedup_ci.high < least:
            low, high = row.speedup_ci
            found.append(
                f"{row.method}: speed-up {row.speedup:.3f} is not ranked, and its whole interval, {low:.3f} to "
                f"{high:.3f}, is under {least:g}"
            )
    return found


def undecided(summary: RunSummary, *, least: float | None) -> tuple[str, ...]:
    """A sentence for every method that `too_slow` lets pass although its speed-up is below: its interval says
    neither."""
    found = []
    for row in summary.rows:
        speedup, interval = row.speedup, row.speedup_ci
        if least is None or row.kind == "baseline" or speedup is None or interval is None:
            continue
        if speedup >= least or interval.high < least or _goes_by_speedup(row, speedup, interval):
            continue
        why = "too noisy to judge; more questions (--limit) or --repeats can tell"
        if not row.too_noisy and not row.control_failed:
            why = f"passed without a rank to judge by: {'; '.join(row.reasons)}"
        found.append(
            f"{row.method}: speed-up {speedup:.3f} is under {least:g}, but its interval, {interval.low:.3f} to "
            f"{interval.high:.3f}, reaches it: {why}"
        )
    return tuple(found)


def _goes_by_speedup(row: MethodRow, speedup: float, interval: Interval) -> bool:
    """It is ranked, or would be but for a failed A/A control."""
    return row.ranked or (row.control_failed and not is_too_noisy(speedup, interval))
