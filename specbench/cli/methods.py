"""`specbench methods`: which methods there are, what each takes, and whether one keeps its promises."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from specbench import registry
from specbench.bench.defaults import DEMO_TARGETS
from specbench.bench.request import Setting
from specbench.card import MADE_HERE
from specbench.cli import options
from specbench.cli.findings import show_findings
from specbench.cli.help import examples, new_app, refuse_early_options
from specbench.cli.text import Column, show, show_json, show_table
from specbench.discovery import Entry

app = new_app(
    help="List the methods, show one's card, or check that one keeps its promises.",
    epilog=examples("specbench methods show draft_model", "specbench methods check prompt_lookup --target demo"),
)


@app.callback(invoke_without_command=True)
def methods(context: typer.Context, as_json: options.Json = False, methods_dir: options.MethodsDirs = None) -> None:
    if context.invoked_subcommand is None:
        _list(methods_dir, as_json=as_json)
    else:
        refuse_early_options(context, methods_dir, as_json)


@app.command("ls", epilog=examples("specbench methods ls", "specbench methods ls --methods-dir ./my-methods --json"))
def list_methods(methods_dir: options.MethodsDirs = None, as_json: options.Json = False) -> None:
    """Every method found, broken ones with their error."""
    _list(methods_dir, as_json=as_json)


@app.command("show", epilog=examples("specbench methods show draft_model", "specbench methods show oracle --json"))
def show_method(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    methods_dir: options.MethodsDirs = None,
    as_json: options.Json = False,
) -> None:
    """One method's card: what it is and every option with its default and range."""
    entry = registry.entry(name, methods_dirs=tuple(methods_dir or ()), named_by="methods show")
    card = entry.card
    assert card is not None, "entry() returns readable cards only"
    if as_json:
        show_json(_row(entry, tuple(methods_dir or ())) | {"card": card.model_dump(mode="json")})
        return
    show(f"{card.title}  ({card.name}, {card.kind}, from {entry.source})")
    show(card.summary)
    wraps = "another method, named by the option inner; its options are set under its own name" if card.wraps else ""
    for label, value in (
        ("paper", card.paper),
        ("requires", ", ".join(card.requires)),
        ("wraps", wraps),
        ("folder", str(entry.folder)),
    ):
        if value:
            show(f"{label:<9} {value}")
    for text in card.notes:
        show(f"{'note':<9} {text}")
    if not card.options:
        show("takes no options")
        return
    show("")
    show_table(
        [Column("--set"), Column("type"), Column("default"), Column("on demo"), Column("allowed"), Column("meaning")],
        [
            (
                f"{name}.{key}",
                option.type,
                "must be said" if option.default is None else str(option.default),
                str(card.demo.get(key, "")),
                _allowed(option.choices, option.minimum, option.maximum),
                option.help,
            )
            for key, option in card.options.items()
        ],
    )


@app.command(
    epilog=examples(
        "specbench methods check prompt_lookup",
        "specbench methods check draft_model --target ./m --set draft_model.model=./d",
        after="Exit codes: 0 every promise is kept, 1 one is not, 2 usage, 3 environment.",
    ),
)
def check(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    target: Annotated[str, typer.Option("--target", metavar="MODEL", help="Hub id, folder, or `demo`.")] = "demo",
    set_: options.Settings = None,
    methods_dir: options.MethodsDirs = None,
    as_json: options.Json = False,
) -> None:
    """Run one method through what every method must pass, then probe what it would gain on the target."""
    folders = tuple(methods_dir or ())
    given = options.settings(set_)
    is_demo = target in DEMO_TARGETS
    card = registry.card(name, methods_dirs=folders, named_by="methods check")
    is_named = any(item.option == "weights" for item in given) or (is_demo and "weights" in card.demo)
    if "weights" in card.requires and not is_named:
        given = (*given, Setting(name, "weights", MADE_HERE))
    # Refused here, before 2 s of torch.
    choice = options.chosen(given, name, target_is_demo=is_demo, methods_dirs=folders, named_by="methods check")
    from specbench.conformance import check_method

    findings = check_method(name, target=target, options=choice.recorded_options, methods_dirs=folders)
    if as_json:
        show_json({"schema": 1, "method": name, "findings": [dataclasses.asdict(each) for each in findings]})
    else:
        show_findings(findings)
    if any(each.state == "failed" for each in findings):
        raise typer.Exit(1)


def _list(methods_dir: list[Path] | None, *, as_json: bool) -> None:
    folders = tuple(methods_dir or ())
    found = registry.cards(methods_dirs=folders)
    if as_json:
        show_json([_row(entry, folders) for entry in found])
        return
    show_table(
        [Column("method"), Column("kind"), Column("on demo"), Column("from"), Column("what it is")],
        [
            (
                entry.name,
                entry.card.kind if entry.card else "broken",
                "ready" if _missing(entry, folders) is None else "–",
                entry.source,
                entry.card.summary if entry.card else entry.error,
            )
            for entry in found
        ],
    )


def _missing(entry: Entry, methods_dirs: tuple[Path, ...]) -> str | None:
    if entry.card is None:
        return entry.error
    return registry.why_not_ready(entry.card, {}, target_is_demo=True, methods_dirs=methods_dirs)


def _row(entry: Entry, methods_dirs: tuple[Path, ...]) -> dict[str, Any]:
    card = entry.card
    return {
        "name": entry.name,
        "title": card.title if card else None,
        "kind": card.kind if card else None,
        "summary": card.summary if card else None,
        "ranked": card.ranked if card else None,
        "source": entry.source,
        "folder": str(entry.folder) if entry.folder else None,
        "error": entry.error or None,
        "missing_on_demo": _missing(entry, methods_dirs),
    }


def _allowed(choices: tuple[int | float | str, ...] | None, minimum: float | None, maximum: float | None) -> str:
    if choices is not None:
        return ", ".join(str(choice) for choice in choices)
    low = "" if minimum is None else f"≥ {minimum:g}"
    high = "" if maximum is None else f"≤ {maximum:g}"
    return ", ".join(part for part in (low, high) if part)
