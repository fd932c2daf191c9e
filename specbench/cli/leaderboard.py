"""`specbench leaderboard`: the store's runs as one offline HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from specbench import paths
from specbench.cli import options
from specbench.cli.failures import note
from specbench.cli.help import examples, new_app
from specbench.cli.text import show, show_json
from specbench.errors import EnvironmentFailed

app = new_app()


@app.command(
    epilog=examples(
        "specbench leaderboard -o board.html",
        "specbench leaderboard -o board.html --run 20260101T120000-mtbench",
        after="Exit codes: 0 ok, 2 unknown run, 3 no permission, disk full or store busy.",
    )
)
def leaderboard(
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="The page to write.")] = Path("board.html"),
    run: Annotated[
        list[str] | None, typer.Option("--run", metavar="ID", help="Only these runs. Repeatable; default all.")
    ] = None,
    store: options.Store = None,
    as_json: options.Json = False,
) -> None:
    """Write one self-contained page: figures, sortable table, conditions, definitions. It opens without a network."""
    from specbench.report.page import write_leaderboard

    file = paths.store_file(store)
    # A page without a run would be written over a good one for a mistyped path.
    if store is not None and not file.exists():
        raise EnvironmentFailed(
            f"there is no store at {file}",
            where="--store",
            try_=f"specbench results ls --store {store}; specbench results ingest --store {store} reads journals again",
        )
    written = write_leaderboard(file, out, run_ids=run)
    if not file.exists():
        note(f"there is no run in {file.parent} yet; the page says how to make one")
    if as_json:
        show_json({"schema": 1, "file": str(written.resolve()), "num_bytes": written.stat().st_size})
        return
    show(str(written))
    note(f"{written.stat().st_size / 1e6:.2f} MB; open it in any browser")
