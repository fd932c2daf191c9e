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
from specbench.errors import UsageError

app = new_app()
_REPEATS = 12


@app.command(
    epilog=examples(
        "specbench doctor",
        "specbench doctor --viewer --target ./my-model --suite gsm8k --limit 120 --repeats 2",
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
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="MODEL", help="With --viewer: of the run; longer answers say more."),
    ] = None,
    suite: Annotated[str, typer.Option("--suite", metavar="SUITE", help="With --viewer: its prompts.")] = "demo",
    limit: Annotated[
        int | None, typer.Option("--limit", min=2, metavar="N", help="With --viewer: questions of the suite.")
    ] = None,
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, metavar="N", help="With --viewer: of each question.")
    ] = _REPEATS,
    as_json: options.Json = False,
) -> None:
    """Versions, devices, threads, load, memory, methods, suites, store: each with what it means and what to do."""
    from specbench.doctor import examine

    if not viewer and (target is not None or suite != "demo" or limit is not None or repeats != _REPEATS):
        raise UsageError(
            "--target, --suite, --limit and --repeats are of the run that the viewer watches",
            where="specbench doctor",
            try_="specbench doctor --viewer --target … --suite …",
        )
    if viewer:
        from specbench.bench.folders import check_folder

        # Refused here, before 2 s of torch and three minutes of measuring.
        results = paths.results_dir(store)
        check_folder(results)
        # A measured run: torch and the store, only when asked for
        from specbench.bench.viewer_cost import measure_viewer
        from specbench.store.viewer_cost import write_viewer_cost

        measured = measure_viewer(
            suite=suite, target=target, limit=limit, repeats=repeats, data=tuple(data or ()), say=note
        )
        # Said before it is kept: a disk that has filled up meanwhile does not take it away.
        note(measured.words())
        write_viewer_cost(results, measured)
    findings = examine(store=store, data=tuple(data or ()), methods_dirs=tuple(methods_dir or ()))
    is_fit = all(each.state != "failed" for each in findings)
    if as_json:
        show_json({"schema": 1, "fit": is_fit, "findings": [dataclasses.asdict(each) for each in findings]})
    else:
        show_findings(findings)
    if not is_fit:
        raise typer.Exit(3)
