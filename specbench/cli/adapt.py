"""`specbench adapt`: adapters of a draft model: observe, learn, look, choose, delete, hand on."""

from __future__ import annotations

import dataclasses
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer

from specbench import paths, registry
from specbench.adapt.domains import NO_DOMAIN, SYSTEM
from specbench.bench.defaults import DEMO_TARGETS
from specbench.bench.request import Rule, RunRequest, Setting
from specbench.cli import options
from specbench.cli.failures import note
from specbench.cli.help import examples, new_app
from specbench.cli.progress import open_progress
from specbench.cli.text import Column, show, show_json, show_table, visible
from specbench.errors import EnvironmentFailed, UsageError, did_you_mean

METHOD = "adaptive_lora"
app = new_app(help="Adapters of a draft model that learn from what the target rejects.")

_Store = Annotated[
    Path | None,
    typer.Option("--store", metavar="DIR", help="Adapter store; default ./results/adapters."),
]
_Model = Annotated[
    str | None, typer.Option("--model", metavar="DRAFT", help="The draft model: hub id, folder, or demo-draft.")
]
_Domain = Annotated[str, typer.Option("--domain", metavar="NAME", help="Of a store with an adapter per domain.")]
_Json = Annotated[bool, typer.Option("--json", help="One JSON value on stdout.")]
_Version = Annotated[int, typer.Argument(metavar="VERSION", min=0, help="See specbench adapt ls; 0 = no adapter.")]


@app.callback()
def default() -> None:
    """Adapters of a draft model that learn from what the target rejects."""


def _store(folder: Path | None) -> Any:
    from specbench.adapt.versions import AdapterStore  # 30 ms of safetensors; what reads tensors loads torch

    return AdapterStore(folder if folder is not None else paths.adapters_dir(None))


def _checked(set_: list[str] | None, model: str | None, *, is_demo: bool) -> dict[str, Any]:
    """The method's options with `--model` and `--set`. Raises UsageError."""
    given: dict[str, Any] = {}
    for item in options.settings(set_):
        if item.method != METHOD:
            raise UsageError(
                f"--set names method {item.method!r}, the command is about {METHOD}",
                where="--set",
                try_=f"--set {METHOD}.{item.option}={item.value}",
            )
        given[item.option] = item.value
    if model is not None:
        given["model"] = model
    card = registry.card(METHOD)
    values = registry.check_options(card, given, target_is_demo=is_demo)
    if values["model"] is None:
        raise UsageError("no draft model was named", where="--model", try_="--model DRAFT, or --model demo-draft")
    return values


@app.command(
    epilog=examples(
        "specbench adapt collect gsm8k --target T --model D --limit 200",
        after="Prompts and answers are kept in full: specbench adapt purge deletes them.",
    )
)
def collect(
    suite: Annotated[str, typer.Argument(metavar="SUITE", help="A name, a YAML or a JSONL of questions.")],
    target: Annotated[str, typer.Option("--target", metavar="MODEL", help="Hub id, folder, or `demo`.")] = "demo",
    model: _Model = None,
    set_: options.Settings = None,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1)] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", metavar="N", min=1)] = 256,
    temperature: Annotated[float, typer.Option("--temperature", metavar="T", min=0.0, help="0 = greedy.")] = 0.0,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0)] = 0,
    device: options.Device = None,
    threads: options.Threads = None,
    data: options.DataDirs = None,
    store: _Store = None,
    as_json: _Json = False,
) -> None:
    """Decode a suite's questions and keep what target and draft model said at every verified position."""
    # Refused here, before 2 s of torch.
    _checked(set_, model, is_demo=target in DEMO_TARGETS)
    from specbench.bench.collecting import collect as carry_out

    opened = _store(store)
    settings = [*options.settings(set_), Setting(METHOD, "adapt", "true"), Setting(METHOD, "store", str(opened.folder))]
    if model is not None:
        settings.append(Setting(METHOD, "model", model))
    request = RunRequest(
        suite=suite, target=target, methods=(METHOD,), limit=limit, max_new_tokens=max_new_tokens,
        temperature=temperature, seed=seed, device=device, threads=threads, data=tuple(data or ()), repeats=1,
        carry="stream", settings=tuple(settings),
    )  # fmt: skip
    with open_progress(quiet=as_json) as progress:
        made = carry_out(request, opened, progress)
    if made.warning:
        note(visible(made.warning))
    if as_json:
        show_json(dataclasses.asdict(made))
        return
    show(f"{made.num_positions} positions of {made.num_answers} answers in {opened.folder}")
    if made.num_skipped:
        show(f"{made.num_skipped} questions were there already")
    # Of several domains the first; every other one learns an adapter of its own likewise.
    domain = next(iter(made.domains), "")
    line = ["specbench", "adapt", "train", "--store", str(opened.folder), "--model", model or "demo-draft"]
    if temperature:
        line += ["--temperature", f"{temperature:g}"]
    show(f"learn from them  {visible(shlex.join([*line, *(['--domain', domain] if domain else [])]))}")
    if len(made.domains) > 1:
        show(f"their domains    {visible(', '.join(each or NO_DOMAIN for each in made.domains))}")


@app.command()
def train(
    model: _Model = None,
    set_: options.Settings = None,
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="T", min=0.0, help="Answers will be drawn at it; 0 = greedy.")
    ] = 0.0,
    rule: Annotated[
        str, typer.Option("--rule", metavar="RULE", help="They will be accepted by: coupled, rejection or typical.")
    ] = "coupled",
    domain: _Domain = "",
    device: options.Device = None,
    threads: options.Threads = None,
    version: Annotated[
        int | None, typer.Option("--version", metavar="N", min=0, help="Learn on from it; default: the active one.")
    ] = None,
    into: Annotated[
        Path | None, typer.Option("--into", metavar="DIR", help="Store for what comes of it; --store is only read.")
    ] = None,
    num_new: Annotated[
        int | None,
        typer.Option("--new", metavar="N", min=1, help="The last N answers are new, others were learnt; default: all."),
    ] = None,
    shared: Annotated[
        int | None,
        typer.Option("--shared", metavar="N", min=1, help="Ids that the target can say; default: the draft model's."),
    ] = None,
    store: _Store = None,
    as_json: _Json = False,
) -> None:
    """Learn one round from a store's answers; the new adapter is drafted with only if held-out answers say so."""
    if rule not in get_args(Rule):
        raise UsageError(f"{rule!r} is no acceptance rule", where="--rule", try_=did_you_mean(rule, get_args(Rule)))
    values = _checked(set_, model, is_demo=False)
    from specbench.training.adapter_jobs import train_store

    opened = _store(store)
    found = train_store(
        opened,
        values,
        temperature=temperature,
        rule=cast("Rule", rule),
        domain=domain,
        device=device or "auto",
        threads=threads,
        into=into,
        version=version,
        num_new=num_new,
        num_shared=shared,
    )
    if as_json:
        show_json(dataclasses.asdict(found))
        return
    losses = "" if found.first_loss is None else f", loss {found.first_loss:.4f} to {found.last_loss:.4f}"
    show(f"{found.num_steps} steps on {found.num_positions} positions in {found.seconds:.1f} s{losses}")
    show(f"{found.outcome}: {found.why}")
    if found.outcome == "promoted":
        show(f"draft with it  {visible(_drafting(domain, into or opened.folder))}")


def _drafting(domain: str, store: Path) -> str:
    """The command that drafts with a promoted version of a domain."""
    settings = [f"{METHOD}.store={store}"]
    is_of_chat = domain.startswith(SYSTEM)
    if domain:
        settings.append(f"{METHOD}.domains={'system' if is_of_chat else 'category'}")
    command = ["specbench", "chat", "--method"] if is_of_chat else ["specbench", "run", "SUITE", "--methods"]
    return shlex.join([*command, METHOD, *(word for each in settings for word in ("--set", each))])


@app.command()
def stats(store: _Store = None, as_json: _Json = False) -> None:
    """What a store's answers show: acceptance by depth and domain, how far the laws agree."""
    opened = _store(store)
    from specbench.training.adapter_jobs import stats_of

    found = stats_of(opened)
    if as_json:
        show_json({**dataclasses.asdict(found), "by_domain": {k: list(v) for k, v in found.by_domain.items()}})
        return
    if not found.num_answers:
        show(f"no answers in {opened.folder}: specbench adapt collect SUITE")
        return
    show(
        f"{found.num_answers} answers ({found.num_held_out} held out), {found.num_positions} positions, "
        f"{found.num_bytes / 1e6:.1f} MB"
    )
    show(f"overlap of both laws {found.overlap_sum / found.num_positions:.3f} at temperature 1, mean over positions")
    show(f"the target's mass outside the kept entries {found.tail_sum / found.num_positions:.3f}")
    rows = [
        (str(depth + 1), str(tried), f"{accepted / tried:.3f}" if tried else "")
        for depth, (accepted, tried) in enumerate(zip(found.accepted_at, found.tried_at, strict=True))
    ]
    show_table((Column("depth", True), Column("tried", True), Column("accepted", True)), rows)
    for name, (accepted, tried) in sorted(found.by_domain.items()):
        if name:
            show(f"{name}: {accepted} of {tried} accepted")


@app.command("ls")
def list_versions(store: _Store = None, as_json: _Json = False) -> None:
    """The versions of a store with their lineage and what held-out answers said; * is drafted with."""
    from specbench.adapt.adapter import read_lineage

    opened = _store(store)
    active = {numbers[-1]: domain for domain, numbers in opened.history().items() if numbers}
    found = []
    for number in opened.numbers():
        try:
            facts = dataclasses.asdict(read_lineage(opened.path(number)))
        except EnvironmentFailed as error:
            found.append({"version": number, "active": number in active, "error": error.what})
            continue
        found.append({"version": number, "active": number in active, **facts})
    if as_json:
        show_json(found)
        return
    if not found:
        show(f"no adapter in {opened.folder}: specbench adapt train")
        return
    rows = []
    for each in found:
        if "error" in each:
            note(visible(f"version {each['version']}: {each['error']}"))
            continue
        figures = each["figures"]
        gain = f"{figures['before']:.4f} → {figures['after']:.4f}" if "after" in figures else ""
        rows.append(
            (
                f"{each['version']}{'*' if each['active'] else ''}",
                "base" if each["parent"] is None else str(each["parent"]),
                each["domain"] or "all",
                str(each["num_positions"]),
                gain,
                _judged_for(figures),
                each["source"],
                each["created"],
            )
        )
    columns = ("version", "parent", "domain", "positions", "held-out acceptance", "of", "from", "made")
    show_table([Column(title) for title in columns], rows)


def _judged_for(figures: Mapping[str, Any]) -> str:
    """The answers that a held-out acceptance is of; '' where the version does not say."""
    if "rule" not in figures:
        return ""
    # The first choices are compared, whatever rule and draft.
    return f"T {figures['temperature']:g}, {figures['rule']}, {figures['draft']}" if figures["temperature"] else "T 0"


@app.command()
def activate(version: _Version, domain: _Domain = "", store: _Store = None) -> None:
    """Draft with this version from the next run on; 0 = with no adapter."""
    opened = _store(store)
    with opened.writing():
        opened.activate(version, domain)
    show(f"version {version} is drafted with" if version else "no adapter is drafted with")


@app.command()
def rollback(domain: _Domain = "", store: _Store = None) -> None:
    """Draft with the version before the active one."""
    opened = _store(store)
    with opened.writing():
        number = opened.rollback(domain)
    show(f"version {number} is drafted with" if number else "no adapter is drafted with")


@app.command()
def purge(
    everything: Annotated[bool, typer.Option("--all", help="The versions as well.")] = False,
    results: Annotated[
        Path | None,
        typer.Option("--results", metavar="PATH", help="Runs that used this adapter store; default ./results."),
    ] = None,
    store: _Store = None,
) -> None:
    """Delete every prompt, answer and position that was observed, those of runs that observed into the store too.

    A run that named no store keeps one beside its journal: --store RESULTS/runs/RUN_ID/adapters/METHOD. Versions, the
    runs' own measurements and their rounds of learning stay.
    """
    from specbench.store.purging import purge_observed, runs_that_filled

    opened = _store(store)
    if not opened.folder.is_dir():
        raise UsageError(
            f"no adapter store at {opened.folder}",
            where="--store",
            try_="--store DIR; of a run that named none, runs/RUN_ID/adapters/METHOD in its results",
        )
    with opened.writing():
        for folder in runs_that_filled(opened.folder, results):
            # runs/RUN_ID lies in the results folder.
            num = purge_observed(paths.store_file(folder.parent.parent), folder)
            show(f"{num} observed positions of run {visible(folder.name)} deleted")
        freed = opened.rows.purge()
        if everything:
            opened.purge_versions()
    show(f"{freed} bytes of observed answers deleted{', and all versions' if everything else ''}")


@app.command()
def export(
    version: _Version,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder to make; must be new.")],
    store: _Store = None,
) -> None:
    """A version as a folder that PEFT loads (`PeftModel.from_pretrained`), its lineage beside it."""
    opened = _store(store)
    if out.exists():
        raise UsageError(f"{out} exists already", where="--out", try_="name a new folder")
    shutil.copytree(opened.path(version), out)
    show(f"{out}: version {version} in PEFT's layout")


@app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An adapter that PEFT or SpecLoRA wrote.")],
    model: _Model = None,
    set_: options.Settings = None,
    store: _Store = None,
) -> None:
    """Another program's adapter (safetensors) as a version of the store; `activate` drafts with it."""
    values = _checked(set_, model, is_demo=False)
    from specbench.training.adapter_jobs import import_adapter

    opened = _store(store)
    number = import_adapter(folder, opened, values)
    show(f"version {number}; draft with it  specbench adapt activate {number} --store {opened.folder}")
