"""`specbench experiment`: a matrix of trainings and evaluations, each cell once, one table and one page."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specbench.cli import options
from specbench.cli.children import run_specbench
from specbench.cli.failures import note
from specbench.cli.help import Sections, examples, new_app
from specbench.cli.options import HOW, OUTPUT, WHAT, option
from specbench.cli.stages import check_words
from specbench.cli.text import Column, show, show_json, show_table, visible
from specbench.cli.train_progress import open_train_progress
from specbench.errors import UsageError

if TYPE_CHECKING:
    from specbench.store.cells import Cell
    from specbench.training.command import Ran
    from specbench.training.experiment_plan import Plan

app = new_app()


@app.command(
    cls=Sections,
    epilog=examples(
        "specbench experiment",
        "specbench experiment redrafter-paper --dry-run",
        "specbench experiment redrafter-paper --target ./my-model --train-on alpaca,dolly --evaluate-on gsm8k,alpaca",
        "specbench experiment ./mine.yaml -o mine.html",
        after="The same command goes on where it was stopped. Exit codes: 0 ok, 1 a cell failed, 2 usage, "
        "3 environment, 130 interrupted.",
    ),
)
def experiment(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME|FILE]", help="A packaged experiment or a YAML; nothing: list them.")
    ] = None,
    target: Annotated[str | None, option("--target", WHAT, "MODEL", "In place of the experiment's own.")] = None,
    train_on: Annotated[list[str] | None, option("--train-on", WHAT, "A,B", "In place of its training sets.")] = None,
    evaluate_on: Annotated[
        list[str] | None, option("--evaluate-on", WHAT, "A,B", "In place of its evaluation sets.")
    ] = None,
    limit_cells: Annotated[
        int | None,
        typer.Option("--limit-cells", metavar="N", min=1, help="The first N measurements only.", rich_help_panel=HOW),
    ] = None,
    device: options.Device = None,
    threads: options.Threads = None,
    data: options.DataDirs = None,
    store: options.Store = None,
    methods_dir: options.MethodsDirs = None,
    out: Annotated[
        Path | None, option("-o", OUTPUT, "FILE", "The page; default report.html beside the cells.", "--output")
    ] = None,
    dry_run: Annotated[bool, option("--dry-run", OUTPUT, "", "Print cells, trainings and tokens.")] = False,
    as_json: options.Json = False,
) -> None:
    """Train and evaluate every combination of an experiment's axes; what is finished is never made again."""
    from specbench.training.experiment_file import packaged_experiments, read_experiment
    from specbench.training.experiment_plan import Machine, make_plan

    if name is None:
        found = packaged_experiments()
        if as_json:
            show_json([{"name": each.name, "title": each.title} for each in found.values()])
        else:
            show_table([Column("name"), Column("title")], [(each.name, each.title) for each in found.values()])
        return
    chosen = read_experiment(name)
    chosen = chosen.on(target, train_on=options.names(train_on) or (), evaluate_on=options.names(evaluate_on) or ())
    machine = Machine(
        store=store,
        data=tuple(each.resolve() for each in data or ()),
        methods_dirs=tuple(Path(each) for each in (*(methods_dir or ()), *chosen.methods_dir)),
        device=device,
        threads=threads,
    )
    plan = make_plan(chosen, machine)
    if limit_cells is not None:
        plan = plan.first(limit_cells)
    if not plan.measures:
        raise UsageError("the experiment has no cell", where=name)
    _check_benches(plan, where=name)
    if dry_run:
        _print_plan(plan, as_json=as_json)
        return
    _carry_out(plan, out, as_json=as_json)


def _check_benches(plan: Plan, *, where: str) -> None:
    """Raises UsageError for what a timed run would refuse, before its drafter is trained."""
    from specbench.training.experiment import bench_words
    from specbench.training.experiment_plan import Bench

    for words in {tuple(bench_words(plan, each)) for each in plan.measures if isinstance(each, Bench)}:
        check_words(words, where=f"bench: of {where}")


def _carry_out(plan: Plan, out: Path | None, *, as_json: bool) -> None:
    from specbench.report.experiment_page import write_experiment_page
    from specbench.training.experiment import carry_out, folder_of

    chosen = plan.experiment
    with open_train_progress() as progress:
        outcome = carry_out(plan, progress, _run)
    page = out or folder_of(plan.machine.store, chosen.name) / "report.html"
    write_experiment_page(chosen.name, chosen.title, chosen.target, outcome.cells, page)
    if as_json:
        state = "interrupted" if outcome.interrupted else "failed" if outcome.failed else "finished"
        show_json({**_about(plan), "state": state, "page": str(page), "cells": _as_dicts(outcome.cells)})
    else:
        _print_tables(outcome.cells)
        show(visible(str(page)))
    if outcome.interrupted:
        note("interrupted; what was finished is kept, and the same command goes on from there")
        raise typer.Exit(130)
    if outcome.failed:
        note(f"✗ {len(outcome.failed)} cells failed; the same command tries them again")
        raise typer.Exit(1)


def _run(words: Sequence[str]) -> Ran:
    """A timed run in a process of its own; its narration goes to our stderr."""
    note(visible(shlex.join(["specbench", *words])))
    return run_specbench(words, captured=True)


def _print_plan(plan: Plan, *, as_json: bool) -> None:
    from specbench.training.experiment import describe, known_cells
    from specbench.training.experiment_plan import estimated_tokens

    state = {cell.cell_id: cell.state for cell in known_cells(plan)}
    tokens = {each.cell.cell_id: estimated_tokens(each) for each in plan.trainings}
    left = [each for each in plan.trainings if state[each.cell.cell_id] != "finished"]
    known = [tokens[each.cell.cell_id] for each in left]
    total = None if None in known else sum(each for each in known if each is not None)
    if as_json:
        cells = [
            {**cell, "state": state[cell["cell_id"]], "max_tokens": tokens.get(cell["cell_id"])}
            for cell in _as_dicts(plan.cells)
        ]
        show_json({**_about(plan), "dry_run": True, "max_tokens": total, "cells": cells})
        return
    rows = []
    for cell in plan.cells:
        most = tokens.get(cell.cell_id)
        shown = "" if cell.kind != "training" else "by its data" if most is None else f"{most:,}"
        rows.append((cell.cell_id[:8], cell.kind, describe(cell), state[cell.cell_id], shown))
    columns = [Column("cell"), Column("kind"), Column("of"), Column("state"), Column("tokens at most", right=True)]
    show_table(columns, rows)
    amount = "as many tokens as its data has" if total is None else f"at most {total:,} tokens"
    show(f"{len(plan.trainings)} trainings ({len(left)} left, {amount}), {len(plan.measures)} measurements")


def _print_tables(cells: Sequence[Cell]) -> None:
    from specbench.report.experiment_page import counts_of, tables_of

    for table in tables_of(cells):
        show(table.title)
        is_text = table.title in ("Failed", "Not wholly held out")
        columns = [Column(text, right=place > 0 and not is_text) for place, text in enumerate(table.columns)]
        show_table(columns, table.rows)
        show("")
    show(counts_of(cells))


def _about(plan: Plan) -> dict[str, Any]:
    return {"schema": 1, "name": plan.experiment.name, "title": plan.experiment.title, "target": plan.experiment.target}


def _as_dicts(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    return [dataclasses.asdict(cell) for cell in cells]
