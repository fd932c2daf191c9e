"""`specbench tui`: the workbench in a terminal. Loads Textual and never torch."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer

from specbench.cli import options
from specbench.cli.failures import note
from specbench.cli.help import examples, new_app
from specbench.errors import EnvironmentFailed, UsageError

app = new_app()


class Theme(StrEnum):
    """What `--theme` takes."""

    auto = "auto"
    dark = "dark"
    light = "light"
    terminal = "terminal"


@app.command(
    epilog=examples(
        "specbench tui",
        "specbench tui 20260101-120000-mtbench-1f3a --store ./results",
        "specbench tui ssh://HOST/~/results/runs/RUN_ID",
        after="Over SSH also: ssh -t HOST specbench tui. Exit codes: 0 ok, 1 a defect of ours, 2 usage, 3 no terminal.",
    )
)
def tui(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="A run to open: id, its end, a folder, ssh://HOST/PATH.")
    ] = None,
    store: options.Store = None,
    theme: Annotated[
        Theme, typer.Option("--theme", help="auto reads COLORFGBG; terminal keeps your sixteen colours.")
    ] = Theme.auto,
) -> None:
    """Watch runs and replay them, compare, start and stop them. Reads journals and gives way to a run of this machine;
    what watching costs a run all the same, specbench doctor --viewer measures."""
    # Textual draws on stderr.
    if not (sys.stdin.isatty() and sys.stdout.isatty() and sys.stderr.isatty()):
        raise EnvironmentFailed(
            "specbench tui needs a terminal on stdin, stdout and stderr, and one of them is a pipe or a file",
            try_="specbench results ls and specbench results show RUN print the same figures",
        )
    # 0.2 s of Textual, only for this command
    from specbench.tui.app import SpecbenchApp
    from specbench.tui.workspace import Workspace

    stream = None
    try:
        if run is not None and run.startswith("ssh://"):
            from specbench.tui.remote import Stream, parse

            if store is not None:
                raise UsageError("a run of another machine brings its own store", where="--store", try_="leave it out")
            place = parse(run)
            # A host that does not answer is waited for.
            note(f"asking {place.host} …")
            stream = Stream(place)
            run, store = place.run_id, stream.store
        elif run is not None:
            # An unknown run is an error of the command, not a screen.
            workspace = Workspace(store)
            run = workspace.resolve(run)
            store = workspace.store
        viewer = SpecbenchApp(store, run or "", theme=theme.value, stream=stream)
        viewer.run()
    finally:
        if stream is not None:
            stream.close()
    if viewer.defect is not None:
        raise viewer.defect
    if viewer.return_code:
        raise typer.Exit(viewer.return_code)
