"""Commands of a recipe or an experiment, looked at before the first of them is paid for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typer import TyperException
from typer.core import TyperGroup

from specbench.cli import options
from specbench.cli.app import root_command
from specbench.errors import SpecbenchError, UsageError, did_you_mean

_CHECK_THEMSELVES = ("run", "train")


def check_words(words: Sequence[str], *, where: str) -> None:
    """Raises UsageError (EnvironmentFailed for a suite's file that is not there) where `specbench WORDS` would refuse
    its command line, and of `run` and `train` what they refuse before torch is loaded: choices and ranges, suite,
    methods and their options. Nothing is run or loaded. where: what says the words."""
    try:
        context = _context(words)
    except TyperException as error:
        path = error.ctx.command_path if getattr(error, "ctx", None) is not None else "specbench"  # type: ignore[attr-defined]
        raise UsageError(error.format_message(), where=where, try_=f"{path} --help") from error
    if words[0] not in _CHECK_THEMSELVES:
        return
    try:
        with options.only_checked(), context:
            context.command.invoke(context)
    except SpecbenchError as error:
        raise type(error)(
            error.what, where=f"{where}: {error.where}" if error.where else where, try_=error.try_
        ) from error


def check_layout(method: str, layout: str, *, methods_dirs: Sequence[Path], where: str) -> None:
    """Raises UsageError for an export layout that the method's drafters cannot be written in."""
    from specbench.weights import NATIVE, layouts  # 2 s of torch, only for recipes that name a layout

    known = [NATIVE, *layouts(method, methods_dirs=methods_dirs)]
    if layout not in known:
        raise UsageError(
            f"{method} has no layout {layout!r}",
            where=where,
            try_=f"{did_you_mean(layout, known) or ', '.join(known)}  (specbench weights layouts {method})",
        )


def _context(words: Sequence[str]) -> Any:
    """The command with its parameters. Raises TyperException."""
    group: Any = root_command()
    context = group.context_class(group, info_name="specbench")
    rest = list(words)
    while True:
        name, command, rest = group.resolve_command(context, rest)
        if not isinstance(command, TyperGroup):
            return command.make_context(name, rest, parent=context)
        group, context = command, command.context_class(command, info_name=name, parent=context)
