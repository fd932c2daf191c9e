"""Commands of a recipe or an experiment, looked at before the first of them is paid for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from typer import TyperException
from typer.core import TyperGroup

from specbench import registry
from specbench.bench.defaults import DEMO_TARGETS
from specbench.cli import options
from specbench.cli.app import root_command
from specbench.errors import UsageError


def check_words(words: Sequence[str], *, where: str) -> None:
    """Raises UsageError where `specbench WORDS` would not be taken by its command line, and, of `run`, for a method
    that there is not or an option that it has not. What a command finds out by itself (a suite, a rule, ranges) is not
    looked at; nothing is run or loaded. where: what says the words."""
    try:
        given = _parsed(words)
    except TyperException as error:
        path = error.ctx.command_path if getattr(error, "ctx", None) is not None else "specbench"  # type: ignore[attr-defined]
        raise UsageError(error.format_message(), where=where, try_=f"{path} --help") from error
    if words[0] != "run":
        return
    try:
        _check_methods(given)
    except UsageError as error:
        raise UsageError(error.what, where=where, try_=error.try_) from error


def _check_methods(given: Mapping[str, Any]) -> None:
    """Raises UsageError for a method that there is not, and for an option that it has not."""
    folders = tuple(Path(each) for each in given["methods_dir"] or ())
    for name in options.names(given["methods"]) or ():
        registry.card(name, methods_dirs=folders)
    of_method: dict[str, dict[str, Any]] = defaultdict(dict)
    for item in options.settings(given["set_"]):
        of_method[item.method][item.option] = item.value
    for name, values in of_method.items():
        card = registry.card(name, methods_dirs=folders, named_by="--set")
        registry.check_options(card, values, target_is_demo=given["target"] in DEMO_TARGETS)


def _parsed(words: Sequence[str]) -> Mapping[str, Any]:
    """The command's parameters by name. Raises TyperException."""
    group: Any = root_command()
    context = group.context_class(group, info_name="specbench")
    rest = list(words)
    while True:
        name, command, rest = group.resolve_command(context, rest)
        if not isinstance(command, TyperGroup):
            break
        group, context = command, command.context_class(command, info_name=name, parent=context)
    parsed: Mapping[str, Any] = command.make_context(name, rest, parent=context).params
    return parsed
