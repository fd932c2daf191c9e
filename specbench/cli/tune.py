"""`specbench tune`: the options that make a method fastest here, predicted and then measured."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from specbench.bench.defaults import DEMO_TARGETS, with_defaults
from specbench.bench.request import Dtype, RunRequest
from specbench.cli import options
from specbench.cli.failures import note
from specbench.cli.help import Sections, examples, new_app
from specbench.cli.options import HOW, WHAT, option
from specbench.cli.progress import open_progress
from specbench.cli.text import Column, show, show_json, show_table, visible
from specbench.errors import SpecbenchError, UsageError
from specbench.quantisation import precision

if TYPE_CHECKING:
    from specbench.bench.candidates import Tuned

app = new_app()
_LIMIT = 12
_NEW_TOKENS = 128


@app.command(
    cls=Sections,
    epilog=examples(
        "specbench tune --method prompt_lookup",
        "specbench tune --method redrafter --target T --set redrafter.weights=DIR --suite gsm8k",
        "specbench tune --method draft_model --grid draft_model.num_tokens=2,3,4 --top 1",
    ),
)
def tune(
    method: Annotated[str, option("--method", WHAT, "M", "The method to tune.")],
    target: options.Target = None,
    suite: Annotated[
        str | None, option("--suite", WHAT, "SUITE", "Whose prompts; default: demo, or mtbench for another target.")
    ] = None,
    set_: options.Settings = None,
    grid: Annotated[
        list[str] | None, option("--grid", WHAT, "M.K=1,2,4", "What to try, instead of the card's list. Repeatable.")
    ] = None,
    limit: Annotated[int, option("--limit", WHAT, "N", "Questions.")] = _LIMIT,
    max_new_tokens: Annotated[int, option("--max-new-tokens", HOW, "N", "Per question.")] = _NEW_TOKENS,
    top: Annotated[int, option("--top", HOW, "N", "The best N are confirmed by measurement; 0 = none.")] = 3,
    repeats: Annotated[int | None, option("--repeats", HOW, "R", "Of the confirming run; default 3.")] = None,
    temperature: Annotated[float | None, option("--temperature", HOW, "T", "0 = greedy.")] = None,
    seed: Annotated[int | None, option("--seed", HOW, "N", "Default 0.")] = None,
    dtype: options.TargetDtype = None,
    quantisation: options.Quantisation = None,
    device: options.Device = None,
    threads: options.Threads = None,
    attention: options.Attention = None,
    graphs: options.Graphs = None,
    compile_target: options.Compile = None,
    data: options.DataDirs = None,
    store: options.Store = None,
    methods_dir: options.MethodsDirs = None,
    as_json: options.Json = False,
) -> None:
    """Find the options that make a method fastest on this target, device and prompts.

    Verification and drafting are timed once, acceptance is simulated exactly on the target's own answers; the best
    predictions are then measured in a paired run.
    """
    if top < 0:
        raise UsageError(f"--top {top} is out of range", where="--top", try_="--top 3, or 0 to confirm nothing")
    request = RunRequest(
        suite=suite or ("demo" if target is None or target in DEMO_TARGETS else "mtbench"),
        target=target,
        methods=("autoregressive", method),
        limit=limit,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        repeats=repeats,
        batch_size=1,
        dtype=cast("Dtype | None", dtype),
        quantisation=quantisation,
        device=device,
        threads=threads,
        attention=attention,
        graphs=graphs,
        compile=compile_target,
        settings=options.settings(set_),
        grid=options.grid(grid),
        data=tuple(data or ()),
        store=store,
        methods_dirs=tuple(cast("list[Path]", methods_dir or [])),
        command=("specbench", *sys.argv[1:]),
    )
    from specbench.suite.reading import read_suite_file, resolve_spec

    assert request.suite is not None
    request = with_defaults(request, read_suite_file(resolve_spec(request.suite)).defaults).request
    # 2 s of torch, after everything that can be refused without it.
    from specbench.bench.tuning import confirm, predict

    with open_progress() as progress:
        found = predict(request, method, progress, will_confirm=top > 0)
    if top:
        try:
            with open_progress() as progress:
                found = confirm(found, request, method, progress, top=top)
        except SpecbenchError:
            # What was predicted took minutes and holds without the run that was to confirm it.
            if as_json:  # stdout is the error's
                _note_predictions(found)
            else:
                _print(found)
            raise
    if as_json:
        show_json(found.as_dict())
    else:
        _print(found)
    for sentence in found.failed_checks:
        note(f"✗ {visible(sentence)}")
    if found.state == "interrupted":
        where = f" --store {store}" if store is not None else ""
        note(f"interrupted; what was finished is kept. Continue: specbench run --resume {found.run_id}{where}")
        raise typer.Exit(130)
    if found.failed_checks:
        raise typer.Exit(1)
    if top and not any(each.decode is not None for each in found.confirmed):
        note("the confirming run has no number: see specbench results show " + found.run_id)
        raise typer.Exit(1)


def _note_predictions(found: Tuned) -> None:
    for each in found.candidates:
        note(f"predicted {each.predicted:.2f}×: {visible(','.join(f'{name}={value}' for name, value in each.options))}")


def _print(found: Tuned) -> None:
    show(
        f"{found.method} on {found.target} · {found.device}, {found.threads} thread{'s' * (found.threads != 1)} · "
        f"{precision(found.dtype, found.quantisation)} · T {found.temperature:g} · "
        f"{found.num_texts} answers of {found.suite}, "
        f"{found.num_tokens:,} tokens"
    )
    costs = ", ".join(f"{nodes}: {cost:.2f}" for nodes, cost in found.verify_cost)
    show(f"a step of the target {found.step_s * 1e3:.2f} ms; verifying n nodes costs, in steps, {costs}")
    show_table(
        [
            Column("options"),
            *(Column(title, right=True) for title in ("nodes", "τ", "verify", "draft", "rest, ms", "predicted")),
        ],
        [
            (
                ",".join(f"{name}={value}" for name, value in each.options),
                f"{each.num_nodes:.1f}",
                f"{each.acceptance_length:.2f}",
                *(f"{seconds * 1e3:.2f}" for seconds in (each.verify_s, each.draft_s, each.rest_s)),
                f"{each.predicted:.2f}×",
            )
            for each in found.candidates
        ],
    )
    for line in found.skipped:
        note(f"not tried: {visible(line)}")
    if found.confirmed:
        show("")
        show_table(
            [
                Column("measured"),
                *(
                    Column(title, right=True)
                    for title in ("predicted", "decode", "end to end", "95 % interval", "rank")
                ),
            ],
            [
                (
                    ",".join(f"{name}={value}" for name, value in each.options),
                    f"{each.predicted:.2f}×",
                    *(f"{value:.2f}×" if value is not None else "–" for value in (each.decode, each.speedup)),
                    "–" if each.speedup_ci is None else f"[{each.speedup_ci[0]:.2f}, {each.speedup_ci[1]:.2f}]",
                    "–" if each.rank is None else f"{each.rank}{'=' * bool(each.tied_with)}",
                )
                for each in found.confirmed
            ],
        )
        for each in found.confirmed:
            if each.rank is None and each.notes:
                note(f"{','.join(f'{name}={value}' for name, value in each.options)}: {visible(each.notes[0])}")
    show("")
    show(f"chosen: {visible(found.choice)}")
    show(found.command)
