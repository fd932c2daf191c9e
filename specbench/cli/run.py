"""`specbench run`: options in, one comparison table (or one JSON object) out."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, cast

import typer

from specbench.bench.competitors import competitors
from specbench.bench.defaults import with_defaults
from specbench.bench.request import Carry, Dtype, PlanSummary, RunOutcome, RunRequest
from specbench.bench.request import Rule as RuleName
from specbench.cli import options
from specbench.cli.failures import note
from specbench.cli.help import Sections, examples, new_app
from specbench.cli.options import HOW, OUTPUT, WHAT, WHERE, option
from specbench.cli.progress import duration, open_progress
from specbench.cli.text import console, show, show_json, visible
from specbench.quantisation import precision

app = new_app()


@app.command(
    cls=Sections,
    epilog=examples(
        "specbench run demo --methods autoregressive,prompt_lookup --limit 4",
        "specbench run gsm8k --target ./my-model --set draft_model.model=./my-draft",
        after="Exit codes: 0 ok, single failed questions included; 1 not lossless, a method of which every question "
        "failed, or --fail-under; 2 usage, 3 environment, 130 interrupted.",
    ),
)
def run(
    suite: Annotated[
        str | None, typer.Argument(metavar="SUITE", help="A name (specbench suites), a YAML or a JSONL of questions.")
    ] = None,
    target: Annotated[str | None, option("--target", WHAT, "MODEL", "Hub id, folder, or `demo`.")] = None,
    methods: Annotated[
        list[str] | None,
        option("--methods", WHAT, "A,B,…", "Or `ready`: all that can run. Default: the suite's, usually that."),
    ] = None,
    set_: options.Settings = None,
    grid: Annotated[
        list[str] | None,
        option("--grid", WHAT, "M.K=1,2,4", "Each value competes, in one paired plan. Repeatable."),
    ] = None,
    variant: Annotated[
        list[str] | None,
        option("--variant", WHAT, "[NAME=]M:K=V,…", "These options together compete, as M:NAME. Repeatable."),
    ] = None,
    limit: Annotated[int | None, option("--limit", WHAT, "N", "A seeded subset of N questions.")] = None,
    stop: Annotated[
        list[str] | None,
        option("--stop", HOW, "TEXT", "Ends an answer, beside the target's stop ids. Repeatable."),
    ] = None,
    template: Annotated[
        str | None, option("--template", WHAT, "NAME", "`chat` (the target's own) or a named plain one.")
    ] = None,
    max_new_tokens: Annotated[int | None, option("--max-new-tokens", HOW, "N", "Per turn.")] = None,
    temperature: Annotated[float | None, option("--temperature", HOW, "T", "0 = greedy.")] = None,
    top_k: Annotated[int | None, option("--top-k", HOW, "K", "0 = off.")] = None,
    top_p: Annotated[float | None, option("--top-p", HOW, "P", "1 = off.")] = None,
    min_p: Annotated[float | None, option("--min-p", HOW, "P", "0 = off.")] = None,
    repetition_penalty: Annotated[float | None, option("--repetition-penalty", HOW, "R", "1 = off.")] = None,
    rule: Annotated[
        str | None, option("--rule", HOW, "RULE", "coupled (default), rejection, or typical, which is lossy.")
    ] = None,
    seed: Annotated[int | None, option("--seed", HOW, "N", "Of the plan and of sampling; default 0.")] = None,
    batch_size: Annotated[int | None, option("--batch-size", HOW, "B", "Questions decoded together.")] = None,
    repeats: Annotated[int | None, option("--repeats", HOW, "R", "Of every question; default 3.")] = None,
    carry: Annotated[
        str | None,
        option("--carry", HOW, "MODE", "none (default): nothing is remembered; stream: state grows."),
    ] = None,
    adapt: Annotated[
        str | None,
        option("--adapt", HOW, "on|off", "Methods that can learn between questions do; on is a stream."),
    ] = None,
    dtype: options.TargetDtype = None,
    quantisation: options.Quantisation = None,
    device: options.Device = None,
    threads: options.Threads = None,
    attention: options.Attention = None,
    graphs: options.Graphs = None,
    compile_target: options.Compile = None,
    max_len: Annotated[
        int | None, option("--max-len", WHERE, "N", "Tokens of cache per sequence; default: what the suite needs.")
    ] = None,
    trust_remote_code: options.TrustRemoteCode = False,
    data: options.DataDirs = None,
    store: options.Store = None,
    methods_dir: options.MethodsDirs = None,
    resume: Annotated[str | None, option("--resume", WHAT, "RUN_ID", "Continue a run; needs nothing else.")] = None,
    fail_under: Annotated[
        float | None,
        option(
            "--fail-under",
            OUTPUT,
            "X",
            "Exit 1 when a method has no number or a speed-up below X; without a rank (too noisy): when its whole "
            "interval is below X.",
        ),
    ] = None,
    dry_run: Annotated[bool, option("--dry-run", OUTPUT, "", "Print the plan and the time it would take.")] = False,
    as_json: options.Json = False,
) -> None:
    """Run methods on a suite, paired question by question, and print who is faster.

    What is left open comes from the suite's defaults; the first line on stderr then says the command in full.
    """
    options.silence_followers()
    request = RunRequest(
        suite=suite,
        target=target,
        methods=options.names(methods),
        limit=limit,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        # Choices are checked by RunRequest, which names the nearest.
        rule=cast("RuleName | None", rule),
        seed=seed,
        batch_size=batch_size,
        repeats=repeats,
        carry=cast("Carry | None", carry),
        adapt=adapt,
        dtype=cast("Dtype | None", dtype),
        quantisation=quantisation,
        device=device,
        threads=threads,
        attention=attention,
        graphs=graphs,
        compile=compile_target,
        max_len=max_len,
        stop=tuple(stop or ()),
        settings=options.settings(set_),
        grid=options.grid(grid),
        variants=options.variants(variant),
        resume=resume,
        fail_under=fail_under,
        dry_run=dry_run,
        data=tuple(data or ()),
        store=store,
        methods_dirs=tuple(methods_dir or ()),
        template=template,
        trust_remote_code=trust_remote_code,
        command=("specbench", *sys.argv[1:]),
    )
    if options.is_only_checked():
        _check(request)
        return
    if request.suite is not None:
        request = _fill(request, request.suite)
    from specbench import bench

    with open_progress(quiet=dry_run) as progress:
        outcome = bench.run(request, progress)
    _print(outcome, as_json=as_json, store=store)
    if outcome.state == "interrupted":
        raise typer.Exit(130)
    if outcome.failed_checks:
        raise typer.Exit(1)


def _fill(request: RunRequest, suite: str) -> RunRequest:
    from specbench.suite.reading import read_suite_file, resolve_spec

    filled = with_defaults(request, read_suite_file(resolve_spec(suite)).defaults)
    if filled.taken:
        note(f"{suite} leaves the rest to its defaults; in full: {visible(filled.command)}")
    for line in filled.left_out:
        note(f"left out: {visible(line)}")
    return filled.request


def _check(request: RunRequest) -> None:
    """What can be known of a run without its target. Raises UsageError, EnvironmentFailed for files that are not
    there."""
    from specbench.suite.reading import read_suite_file, resolve_spec

    if request.suite is not None:  # a resumed run's manifest decides
        competitors(with_defaults(request, read_suite_file(resolve_spec(request.suite)).defaults).request)


def _print(outcome: RunOutcome, *, as_json: bool, store: Path | None) -> None:
    from specbench.report.table import print_summary
    from specbench.store.records import to_json

    if outcome.plan is not None:
        if as_json:
            show_json({"schema": 1, "dry_run": True, **dataclasses.asdict(outcome.plan)})
        else:
            _print_plan(outcome.plan)
        return
    if outcome.summary is not None:
        if as_json:
            show_json(to_json(outcome.summary))
        else:
            print_summary(outcome.summary, console())
    for sentence in outcome.failed_checks:
        note(f"✗ {visible(sentence)}")
    for sentence in outcome.undecided:
        note(f"⚠ {visible(sentence)}")
    where = f" --store {store}" if store is not None else ""
    if outcome.state == "interrupted":
        note(f"interrupted; what was finished is kept. Continue: specbench run --resume {outcome.run_id}{where}")
    elif outcome.summary is not None:
        note(f"run {outcome.run_id}. More: specbench results show {outcome.run_id}{where}")


def _print_plan(plan: PlanSummary) -> None:
    show(f"suite       {plan.suite}, {plan.num_questions} questions")
    show(f"target      {plan.target}, {precision(plan.dtype, plan.quantisation)} on {plan.device}")
    show(f"methods     {', '.join(plan.methods)}")
    repeats = "1 repeat" if plan.num_repeats == 1 else f"{plan.num_repeats} repeats"
    show(f"plan        {plan.num_groups} timed generations in {repeats}")
    show(f"length      at most {plan.max_new_tokens} new tokens a turn")
    estimate = "unknown" if plan.estimated_s is None else f"about {duration(plan.estimated_s)}"
    show(f"time        {estimate} ({plan.estimate_basis})")
