"""Options that several commands share, spelt the same everywhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import typer

from specbench import registry
from specbench.bench.request import GridAxis, Setting, Variant, parse_grid, parse_setting, parse_variant
from specbench.errors import UsageError
from specbench.quantisation import CHOICES

WHAT, HOW, WHERE, OUTPUT = "What", "How", "Where", "Output"
"""Sections of a long command's help."""


def option(name: str, panel: str, metavar: str, text: str, *more: str) -> Any:
    """An option in a section of the help, whose line says its default where it has one. more: other spellings."""
    return typer.Option(name, *more, metavar=metavar, help=text, rich_help_panel=panel, show_default=False)


Target = Annotated[str | None, option("--target", WHAT, "MODEL", "Hub id, folder, or `demo` (default).")]
TargetDtype = Annotated[
    str | None, option("--dtype", WHERE, "TYPE", "Of the target: auto, float64, float32, float16 or bfloat16.")
]
Quantisation = Annotated[str | None, option("--quantisation", WHERE, "NAME", f"Of the target: {', '.join(CHOICES)}.")]
Device = Annotated[str | None, option("--device", WHERE, "DEVICE", "auto, cpu, cuda, cuda:N or mps.")]
Threads = Annotated[int | None, option("--threads", WHERE, "N", "CPU threads; 1 on shared machines.")]
Attention = Annotated[
    str | None, option("--attention", WHERE, "NAME", "auto, sdpa, triton or plain (the slow, readable one).")
]
Graphs = Annotated[
    str | None, option("--graphs", WHERE, "WHEN", "Steps as CUDA graphs: auto (where it can be done), on or off.")
]
Compile = Annotated[
    str | None,
    option("--compile", WHERE, "WHEN", "Models through torch.compile: auto (CUDA, if faster), on, whole or off."),
]
TrustRemoteCode = Annotated[
    bool, option("--trust-remote-code", WHERE, "", "Let the target's folder run its own Python.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.", rich_help_panel=OUTPUT)]
Store = Annotated[
    Path | None,
    typer.Option(
        "--store",
        metavar="PATH",
        help="FILE.duckdb or its folder; default ./results, or SPECBENCH_RESULTS.",
        rich_help_panel=WHERE,
    ),
]
MethodsDirs = Annotated[
    list[Path] | None,
    typer.Option(
        "--methods-dir",
        metavar="DIR",
        help="Also find methods in DIR/NAME/method.yaml. Repeatable.",
        rich_help_panel=WHERE,
    ),
]
DataDirs = Annotated[
    list[Path] | None,
    typer.Option("--data", metavar="DIR", help="Look for suite files here first. Repeatable.", rich_help_panel=WHERE),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="M.K=V",
        help="Option K of method M (specbench methods show M). Repeatable.",
        rich_help_panel=WHAT,
    ),
]


_only_checked: ContextVar[bool] = ContextVar("_only_checked", default=False)


@contextmanager
def only_checked() -> Iterator[None]:
    """Commands that are called in here look at what they were given and return before they do anything."""
    token = _only_checked.set(True)
    try:
        yield
    finally:
        _only_checked.reset(token)


def is_only_checked() -> bool:
    """Asked by commands that others plan (`run`, `train`), when everything given has become a request."""
    return _only_checked.get()


def settings(texts: list[str] | None) -> tuple[Setting, ...]:
    """`--set` as typed."""
    return tuple(parse_setting(text) for text in texts or ())


def chosen(
    given: tuple[Setting, ...], method: str, *, target_is_demo: bool, methods_dirs: tuple[Path, ...], named_by: str
) -> registry.Choice:
    """The method with its options, for a command that runs one -> ready to be built. named_by: what names the method
    on that command's line, such as `--method`.

    Raises UsageError for a `--set` of any method but this one and the one it wraps, and what `registry.choose` raises.
    """
    said: dict[str, dict[str, str]] = {}
    for item in given:
        said.setdefault(item.method, {})[item.option] = item.value
    stray = next((item for item in given if item.method != method), None)
    if stray is not None and not registry.card(method, methods_dirs=methods_dirs).wraps:
        raise _stray(stray, method, named_by)
    choice = registry.choose(method, said, target_is_demo=target_is_demo, methods_dirs=methods_dirs)
    stray = next((item for item in given if item.method not in choice.members), None)
    if stray is not None:
        raise _stray(stray, choice.name, named_by)
    return choice


def _stray(item: Setting, method: str, named_by: str) -> UsageError:
    return UsageError(
        f"--set names method {item.method!r}, the command is about {method}",
        where="--set",
        try_=f"{named_by} {item.method}, or --set {method.partition('(')[0]}.{item.option}={item.value}",
    )


def silence_followers() -> None:
    """Of the processes that torchrun started for one target, the first speaks."""
    if int(os.environ.get("RANK") or "0") > 0:
        sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 - until the process ends


def grid(texts: list[str] | None) -> tuple[GridAxis, ...]:
    """`--grid` as typed."""
    return tuple(parse_grid(text) for text in texts or ())


def variants(texts: list[str] | None) -> tuple[Variant, ...]:
    """`--variant` as typed."""
    return tuple(parse_variant(text) for text in texts or ())


def names(texts: list[str] | None) -> tuple[str, ...] | None:
    """`--methods a,b` or `--methods a --methods b`; None where nothing was said."""
    if texts is None:
        return None
    return tuple(name.strip() for text in texts for name in text.split(",") if name.strip())
