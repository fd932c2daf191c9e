"""`specbench train`: options in, a drafter and the command that runs it out."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast

import typer

from specbench import registry
from specbench.bench.request import Dtype
from specbench.cli import options
from specbench.cli.children import run_specbench
from specbench.cli.failures import note
from specbench.cli.help import Sections, examples, new_app
from specbench.cli.options import HOW, OUTPUT, WHAT, option
from specbench.cli.progress import duration
from specbench.cli.stages import check_layout, check_words
from specbench.cli.text import show, show_json, visible
from specbench.cli.train_progress import open_train_progress
from specbench.errors import UsageError
from specbench.training.request import Learn, LossName, Precision, Schedule, TrainOutcome, TrainRequest

app = new_app()
DATA, LOSS, EVALUATION = "Data", "Loss", "Evaluation"


@app.command(
    cls=Sections,
    epilog=examples(
        "specbench train --method redrafter",
        "specbench train --method lstm --target ./my-model --dataset sharegpt --epochs 2 --report-to tensorboard",
        "accelerate launch --num-processes 4 -m specbench train --method ctc --target ./my-model --dataset alpaca",
        "torchrun --nproc-per-node 2 -m specbench train --method lstm --device cpu",
        after="On CPUs torchrun starts several processes; accelerate launch --cpu --num-processes 2 starts one. "
        "Exit codes: 0 ok, 1 the loss is no number, 2 usage, 3 environment, 130 interrupted.",
    ),
)
def train(
    context: typer.Context,
    method: Annotated[str | None, option("--method", WHAT, "M", "A method with a train.py.")] = None,
    target: options.Target = None,
    set_: options.Settings = None,
    resume: Annotated[str | None, option("--resume", WHAT, "RUN_ID", "Continue a training.")] = None,
    recipe: Annotated[
        Path | None,
        option("--recipe", WHAT, "FILE", "data, train, export, bench as a YAML, which says all options."),
    ] = None,
    skip: Annotated[str | None, option("--skip", WHAT, "A,B", "Stages of the recipe that are left out.")] = None,
    out: Annotated[Path | None, option("--out", OUTPUT, "DIR", "The drafter's folder.")] = None,
    dataset: Annotated[
        str | None,
        option("--dataset", DATA, "D", "See `specbench data ls`; `self:D`: the target answers D's prompts itself."),
    ] = None,
    columns: Annotated[str | None, option("--columns", DATA, "SPEC", "Which columns hold what.")] = None,
    template: Annotated[
        str | None,
        option("--template", DATA, "NAME", "Of conversations: `chat` (the target's own) or a plain one, as for `run`."),
    ] = None,
    documents: Annotated[int | None, option("--documents", DATA, "N", "A seeded subset of N rows.")] = None,
    assistant_only: Annotated[
        bool | None,
        typer.Option("--assistant-only/--no-assistant-only", help="Learn answers only.", rich_help_panel=DATA),
    ] = None,
    response_tokens: Annotated[
        int | None, option("--response-tokens", DATA, "N", "Longest answer under `self`.")
    ] = None,
    response_temperature: Annotated[
        float | None, option("--response-temperature", DATA, "T", "Of answers under `self`; default 0.")
    ] = None,
    max_length: Annotated[int | None, option("--max-length", DATA, "N", "Tokens of a packed row.")] = None,
    learn: Annotated[
        str | None,
        option("--learn", LOSS, "gt|kd|seq", "Text, target's laws (default), its continuations."),
    ] = None,
    loss: Annotated[str | None, option("--loss", LOSS, "ce|kd|tv|lk", "Default: what --learn implies.")] = None,
    kd_temperature: Annotated[
        float | None, option("--kd-temperature", LOSS, "T", "Of both laws under kd; default 1.")
    ] = None,
    kd_alpha: Annotated[
        float | None, option("--kd-alpha", LOSS, "A", "Under kd: A x kd + (1 - A) x ce; default 1.")
    ] = None,
    depth_decay: Annotated[float | None, option("--depth-decay", LOSS, "D", "Depth i weighs D ** i.")] = None,
    lr: Annotated[
        float | None,
        option("--lr", HOW, "X", "Highest; default 1e-3, the method's own on `demo`."),
    ] = None,
    schedule: Annotated[str | None, option("--schedule", HOW, "S", "cosine (default), linear or constant.")] = None,
    warmup: Annotated[float | None, option("--warmup", HOW, "SHARE", "Of the training; default 0.05.")] = None,
    weight_decay: Annotated[float | None, option("--weight-decay", HOW, "X", "Default 0.")] = None,
    beta1: Annotated[float | None, option("--beta1", HOW, "X", "Default 0.9.")] = None,
    beta2: Annotated[float | None, option("--beta2", HOW, "X", "Default 0.95.")] = None,
    clip: Annotated[float | None, option("--clip", HOW, "X", "Largest gradient norm; default 1, 0 = off.")] = None,
    batch_size: Annotated[int | None, option("--batch-size", HOW, "N", "Rows of a step, of all devices.")] = None,
    micro_batch: Annotated[
        int | None, option("--micro-batch", HOW, "N", "Rows of a forward on one device; memory only.")
    ] = None,
    max_steps: Annotated[int | None, option("--max-steps", HOW, "N", "Ends the training.")] = None,
    epochs: Annotated[float | None, option("--epochs", HOW, "X", "Ends the training.")] = None,
    max_tokens: Annotated[int | None, option("--max-tokens", HOW, "N", "Ends the training.")] = None,
    max_minutes: Annotated[float | None, option("--max-minutes", HOW, "X", "Ends the training.")] = None,
    seed: Annotated[int | None, option("--seed", HOW, "N", "Default 0.")] = None,
    data_seed: Annotated[
        int | None, option("--data-seed", DATA, "N", "Which documents are held out; default: --seed.")
    ] = None,
    precision: Annotated[
        str | None,
        option("--precision", HOW, "fp32|bf16", "Of the drafter's arithmetic; default fp32 on a CPU and on `demo`."),
    ] = None,
    cache_states: Annotated[
        bool,
        option("--cache-states", HOW, "", "Write the target's states to disk once; the plan says bytes first."),
    ] = False,
    teacher_top_k: Annotated[
        int | None,
        option(
            "--teacher-top-k",
            HOW,
            "K",
            "With --cache-states and kd, tv or lk: laws kept as K entries and the tail; 0 = remade.",
        ),
    ] = None,
    eval_every: Annotated[int | None, option("--eval-every", EVALUATION, "N", "Steps.")] = None,
    eval_documents: Annotated[int | None, option("--eval-documents", EVALUATION, "N", "Held out.")] = None,
    eval_prompts: Annotated[
        int | None, option("--eval-prompts", EVALUATION, "N", "For the simulated acceptance; 0 = best by loss.")
    ] = None,
    eval_new_tokens: Annotated[int | None, option("--eval-new-tokens", EVALUATION, "N", "Per prompt.")] = None,
    patience: Annotated[
        int | None,
        option("--patience", EVALUATION, "N", "Stop after N evaluations without a better one; 0 = never."),
    ] = None,
    save_every: Annotated[int | None, option("--save-every", HOW, "N", "Steps between resumable states.")] = None,
    report_to: Annotated[
        list[str] | None, option("--report-to", OUTPUT, "T", "tensorboard, wandb, … Repeatable.")
    ] = None,
    dtype: options.TargetDtype = None,
    quantisation: options.Quantisation = None,
    device: options.Device = None,
    threads: options.Threads = None,
    attention: options.Attention = None,
    trust_remote_code: options.TrustRemoteCode = False,
    data: options.DataDirs = None,
    store: options.Store = None,
    methods_dir: options.MethodsDirs = None,
    dry_run: Annotated[bool, option("--dry-run", OUTPUT, "", "Print the plan: bytes, tokens, time.")] = False,
    as_json: options.Json = False,
) -> None:
    """Train a method's drafter on a target, and print the command that runs it.

    Stopped (Ctrl-C) or killed, it goes on with --resume and ends with the same losses. --set METHOD.OPTION=VALUE sets
    the method's training options; METHOD.weights=DIR starts from a finished drafter.
    """
    if recipe is not None:
        _refuse_beside_recipe(context, recipe)
        _cook(recipe, skip=tuple((skip or "").split(",")) if skip else (), store=store, dry_run=dry_run)
        return
    if skip is not None:
        raise UsageError("--skip names stages of a recipe", where="--skip", try_="--recipe FILE --skip A,B")
    request = TrainRequest(
        method=method,
        target=target,
        dataset=dataset,
        columns=columns,
        template=template,
        documents=documents,
        assistant_only=assistant_only,
        response_tokens=response_tokens,
        response_temperature=response_temperature,
        # Choices are checked by TrainRequest, which names the nearest.
        learn=cast("Learn | None", learn),
        loss=cast("LossName | None", loss),
        kd_temperature=kd_temperature,
        kd_alpha=kd_alpha,
        depth_decay=depth_decay,
        max_length=max_length,
        batch_size=batch_size,
        micro_batch=micro_batch,
        max_steps=max_steps,
        epochs=epochs,
        max_tokens=max_tokens,
        max_minutes=max_minutes,
        lr=lr,
        schedule=cast("Schedule | None", schedule),
        warmup=warmup,
        weight_decay=weight_decay,
        beta1=beta1,
        beta2=beta2,
        clip=clip,
        precision=cast("Precision | None", precision),
        seed=seed,
        data_seed=data_seed,
        eval_every=eval_every,
        eval_documents=eval_documents,
        eval_prompts=eval_prompts,
        eval_new_tokens=eval_new_tokens,
        patience=patience,
        save_every=save_every,
        cache_states=cache_states,
        teacher_top_k=teacher_top_k,
        report_to=tuple(name for text in report_to or () for name in text.split(",")),
        threads=threads,
        device=device,
        dtype=cast("Dtype | None", dtype),
        quantisation=quantisation,
        attention=attention,
        settings=options.settings(set_),
        out=out,
        resume=resume,
        dry_run=dry_run,
        data=tuple(data or ()),
        store=store,
        methods_dirs=tuple(methods_dir or ()),
        trust_remote_code=trust_remote_code,
        command=("specbench", *sys.argv[1:]),
    )
    if options.is_only_checked():
        if request.method is not None:
            card = registry.card(request.method, methods_dirs=request.methods_dirs)
            registry.check_training_options(card, {item.option: item.value for item in request.settings})
        return
    from specbench import training

    with open_train_progress() as progress:
        outcome = training.train(request, progress)
    if outcome.is_main:
        _print(outcome, as_json=as_json, store=store)
    if outcome.state == "interrupted":
        raise typer.Exit(130)


_BESIDE_RECIPE = ("recipe", "skip", "store", "dry_run")


def _refuse_beside_recipe(context: typer.Context, recipe: Path) -> None:
    """Raises UsageError naming the options that were given and would change nothing."""
    given = []
    for each in context.command.params:
        source = context.get_parameter_source(str(each.name))
        if each.name not in _BESIDE_RECIPE and source is not None and source.name == "COMMANDLINE":
            is_no = context.params[str(each.name)] is False and bool(each.secondary_opts)
            given.append(each.secondary_opts[0] if is_no else each.opts[0])
    if given:
        raise UsageError(
            f"{', '.join(given)} beside --recipe: the recipe says every option of its stages",
            where="--recipe",
            try_=f"write them under `train:` in {recipe}; --skip, --store and --dry-run may stand beside it",
        )


def _cook(file: Path, *, skip: tuple[str, ...], store: Path | None, dry_run: bool) -> None:
    """Every stage in a process of its own: what one loaded does not weigh on the next, and each can be repeated."""
    from specbench.training.recipe_file import Kitchen, read_recipe

    kitchen = Kitchen(read_recipe(file), store=store)
    planned = kitchen.plan(skip=skip)
    for each in planned:
        if each.note:
            note(visible(each.note))
        if not each.is_done:
            check_words(each.argv, where=f"{each.stage}: in {file}")
            layout = (kitchen.recipe.export or {}).get("layout")
            if each.stage == "export" and layout is not None:
                folders = [Path(each) for each in kitchen.recipe.methods_dir]
                check_layout(kitchen.recipe.method, str(layout), methods_dirs=folders, where=f"export: in {file}")
    if dry_run:
        for each in planned:
            show(
                f"{each.stage:<7} {'done' if each.is_done else shlex.join(['specbench', *(each.resume or each.argv)])}"
            )
        return

    wants_stop = False

    def run(argv: Sequence[str]) -> int:
        nonlocal wants_stop
        if wants_stop:
            return 130
        note(visible(shlex.join(["specbench", *argv])))
        ended = run_specbench(argv)
        wants_stop = ended.was_interrupted
        return ended.code

    code = kitchen.carry_out(planned, run)
    if code != 0:
        note(f"a stage ended with exit code {code}; the same command goes on from there")
        raise typer.Exit(code)
    show(str(kitchen.drafter))


def _print(outcome: TrainOutcome, *, as_json: bool, store: Path | None) -> None:
    if as_json:
        show_json({"schema": 1, **dataclasses.asdict(outcome)})
        return
    if outcome.plan is not None and outcome.state == "planned":
        for line in outcome.plan.lines():
            show(line)
        return
    where = f" --store {store}" if store is not None else ""
    if outcome.state == "interrupted":
        note(f"interrupted at step {outcome.steps}. Continue: specbench train --resume {outcome.run_id}{where}")
        return
    best = outcome.best
    tau = f"τ {best['tau']:.3f}, " if best.get("tau") is not None else ""
    note(
        f"{outcome.steps} steps, {outcome.tokens:,} tokens in {duration(outcome.seconds)}; "
        f"best at step {best['step']}: {tau}held-out loss {best['loss']:.4f}"
    )
    note(f"curves: specbench results plot {outcome.run_id}{where}")
    show(visible(outcome.command))
