"""`specbench results ls`: the runs of a store, newest first."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from specbench import paths
from specbench.cli.failures import note
from specbench.cli.text import Column, show_json, show_table, visible

if TYPE_CHECKING:
    from specbench.store.records import RunEntry


def show_runs(store: Path | None, *, as_json: bool) -> None:
    """Newest first, with what is to be done about cut ones."""
    from specbench.store.listing import list_runs

    listing = list_runs(store)
    for sentence in listing.notes:
        note(visible(sentence))
    if as_json:
        show_json([dataclasses.asdict(entry) for entry in listing.runs])
        return
    if not listing.runs:
        note(f"no runs in {paths.results_dir(store)}; make one: specbench run demo")
    else:
        show_table(
            [
                *(Column("run"), Column("kind"), Column("created"), Column("suite"), Column("target")),
                *(Column("state"), Column("speed-ups")),
            ],
            [
                (
                    entry.run_id,
                    entry.kind,
                    entry.created[:19],
                    entry.suite,
                    entry.target,
                    entry.state,
                    entry.headline
                    or _figures(entry)
                    or ("" if entry.is_stored or entry.kind == "train" else "not ingested"),
                )
                for entry in listing.runs
            ],
        )
    where = "" if store is None else f" --store {store}"
    cut = [entry for entry in listing.runs if entry.state in ("lost", "interrupted") and entry.has_journal]
    for kind in dict.fromkeys(entry.kind for entry in cut):
        names = visible(", ".join(entry.run_id for entry in cut if entry.kind == kind))
        note(f"not finished, {names}; to continue one: specbench {kind} --resume RUN{visible(where)}")
    _note_imports(store)


def _figures(entry: RunEntry) -> str:
    """What a stored run came to: speed-ups, and the methods of which nothing finished."""
    if entry.failed and not entry.num_answers:
        return "all failed"
    figures = [_figure(entry, method) for method in entry.speedups]
    return ", ".join([*figures, *(f"{method} failed" for method in entry.failed)])


def _figure(entry: RunEntry, method: str) -> str:
    """`suffix 1.94×`, `oracle 4.00× (not ranked)`: `results show` and `--json` say why."""
    why = entry.unranked.get(method, "").partition(":")[0]
    return f"{method} {entry.speedups[method]:.2f}×" + (f" ({why})" if why else "")


def _note_imports(store: Path | None) -> None:
    """Imported rows are no runs; without this line nothing but the page would show that they are there."""
    from specbench.errors import EnvironmentFailed
    from specbench.store.db import open_store
    from specbench.store.external import external_rows

    file = paths.store_file(store)
    if not file.exists():
        return
    try:
        with open_store(file, read_only=True, timeout_s=1.0) as connection:
            rows = external_rows(connection)
    except EnvironmentFailed:
        return  # busy or damaged: the listing has said so
    if rows:
        known = "; ".join(f"{row.method} on {row.suite} ({row.target}), id {row.import_id}" for row in rows)
        note(visible(f"imported, not ranked: {known}. specbench leaderboard shows them"))
