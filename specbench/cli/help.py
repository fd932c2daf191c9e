"""How help looks: plain text, sections by panel, examples at the end.

Typer's rich help imports rich's Markdown and syntax highlighting: 0.1 s more for every `--help` (measured).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from specbench.errors import UsageError

if TYPE_CHECKING:
    # Typer carries its own copy of click; only its types are wanted here.
    from typer._click import Context, HelpFormatter

SETTINGS: Final = {"help_option_names": ["-h", "--help"]}
_OTHER_OPTIONS = "Options"


def new_app(**attributes: Any) -> typer.Typer:
    """A Typer app whose help is plain, with `-h`, without completion options of its own."""
    return typer.Typer(
        cls=Commands,
        context_settings=SETTINGS,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        **attributes,
    )


def examples(*lines: str, after: str = "") -> str:
    """The end of a command's help; the \\b keeps each command on its line."""
    block = "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])
    return f"{block}\n\n{after}" if after else block


def refuse_early_options(context: typer.Context, *values: object) -> None:
    """Of a group that lists by itself: options before its command would be dropped without a word."""
    if any(value not in (None, False) for value in values):
        raise UsageError(
            "options stand after the command",
            where=f"{context.command_path} {context.invoked_subcommand}",
            try_=f"{context.command_path} {context.invoked_subcommand} --help",
        )


class Commands(TyperGroup):
    """A group that says each command's whole first sentence, where Typer would cut it with dots."""

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        found = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        rows = [(name, (each.help or "").partition("\n\n")[0]) for name, each in found.items() if each is not None]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class Sections(TyperCommand):
    """A command whose options stand under their `rich_help_panel`."""

    def format_options(self, ctx: Context, formatter: HelpFormatter) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is None:
                continue
            panel = "Arguments" if not isinstance(param, TyperOption) else param.rich_help_panel or _OTHER_OPTIONS
            panels.setdefault(panel, []).append(record)
        for title in sorted(panels, key=lambda panel: panel == _OTHER_OPTIONS):
            with formatter.section(title):
                formatter.write_dl(panels[title])
