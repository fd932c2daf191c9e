"""`specbench doctor`: is this machine fit to measure on, and if not, why."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from specbench import paths
from specbench.cli import options
from specbench.cli.failures import note
from specbench.cli.findings import show_findings
from specbench.cli.help import examples, new_app
from specbench.cli.text import show_json

app = new_app()


@app.command(
    epilog=examples(
        "specbench doctor",
        "specbench doctor --viewer --store ./results",
        after="Exit codes: 0 fit (warnings included), 3 something is missing.",
    )
)
def doctor(
    data: options.DataDirs = None,
    store: options.Store = None,
    methods_dir: options.MethodsDirs = None,
    viewer: Annotated[
        bool,
        typer.Option(
            "--viewer",
            help="First measure what `specbench tui` costs a run here (three minutes), and keep it.",
        ),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Versions, devices, threads, load, memory, methods, suites, store: each with what it means and what to do."""
    from specbench.doctor import examine

    if viewer:
        # A measured run: torch and the store, only when asked for
        from specbench.bench.viewer_cost import measure_viewer
        from specbench.store.viewer_cost import write_viewer_cost

        write_viewer_cost(paths.results_dir(store), measure_viewer(say=note))
    findings = examine(store=store, data=tuple(data or ()), methods_dirs=tuple(methods_dir or ()))
    is_fit = all(each.state != "failed" for each in findings)
    if as_json:
        show_json({"schema": 1, "fit": is_fit, "findings": [dataclasses.asdict(each) for each in findings]})
    else:
        show_findings(findings)
    if not is_fit:
        raise typer.Exit(3)
