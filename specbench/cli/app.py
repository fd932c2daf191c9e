"""The root command: which commands there are, which module holds each. A module is imported when its command is called.

`specbench --help` must answer in 0.2 s, so help lines stand here and not in the modules.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from specbench.cli import failures
from specbench.cli.help import SETTINGS, examples

if TYPE_CHECKING:
    # Typer carries its own copy of click; only its types are wanted here.
    from typer._click import Command, Context, HelpFormatter


class _Line(NamedTuple):
    module: str
    panel: str
    help: str


_COMMANDS: Final = {
    "run": _Line("specbench.cli.run", "Measure", "Run methods on a suite, paired, and print who is faster."),
    "generate": _Line("specbench.cli.generate", "Measure", "Answer one prompt with one method."),
    "chat": _Line("specbench.cli.chat", "Measure", "Talk to a target with any method; see what was accepted."),
    "demo": _Line("specbench.cli.demo", "Measure", "A short adaptation of the embedded draft model, before and after."),
    "trace": _Line("specbench.cli.trace", "Measure", "Replay one stored answer; keep the draft tree of every step."),
    "tune": _Line("specbench.cli.tune", "Measure", "Find the options that make a method fastest here."),
    "data": _Line("specbench.cli.data", "Train", "List datasets, show what is learnt of them, generate answers."),
    "train": _Line("specbench.cli.train", "Train", "Train a method's drafter on a target."),
    "eval": _Line("specbench.cli.eval", "Train", "Accuracy by depth and simulated acceptance of a trained drafter."),
    "experiment": _Line("specbench.cli.experiment", "Train", "A matrix of trainings and evaluations, resumable."),
    "adapt": _Line("specbench.cli.adapt", "Train", "Adapters of a draft model that learn from rejected drafts."),
    "tui": _Line("specbench.cli.tui", "Look", "Watch runs token by token, replay, compare and start them."),
    "results": _Line("specbench.cli.results", "Look", "List, show, compare, export and import runs."),
    "leaderboard": _Line("specbench.cli.leaderboard", "Look", "Write the results as one offline HTML page."),
    "suites": _Line("specbench.cli.suites", "Extend", "List the suites, show their prompts."),
    "methods": _Line("specbench.cli.methods", "Extend", "List the methods, show or check one."),
    "weights": _Line("specbench.cli.weights", "Extend", "Trained drafters in other programs' layouts, both ways."),
    "doctor": _Line("specbench.cli.doctor", "Check", "Is this machine fit to measure on, and if not, why."),
}


class _Lazy(TyperGroup):
    """Lists stubs; swaps in the real command when one is called."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, line in _COMMANDS.items():
            self.add_command(TyperCommand(name, help=line.help))

    def resolve_command(self, ctx: Context, args: list[str]) -> tuple[str | None, Command | None, list[str]]:
        name, _, rest = super().resolve_command(ctx, args)
        assert name is not None, "an unknown command has raised"
        app: typer.Typer = importlib.import_module(_COMMANDS[name].module).app
        command = typer.main.get_command(app)
        command.name = name
        return name, command, rest

    def invoke(self, ctx: Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            # A run that had measured something ends by itself, with the command that continues it: nothing to add then.
            failures.note("interrupted before there was a result")
            raise typer.Exit(130) from None

    def format_commands(self, ctx: Context, formatter: HelpFormatter) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for name, line in _COMMANDS.items():
            panels.setdefault(line.panel, []).append((name, line.help))
        for title, rows in panels.items():
            with formatter.section(title):
                formatter.write_dl(rows, col_spacing=4)


_app = typer.Typer(
    cls=_Lazy,
    context_settings=SETTINGS,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    epilog=examples(
        "specbench run demo",
        "specbench run suites/mtbench.yaml --target ./my-model --limit 20",
        after="Exit codes: 0 ok, 1 a check failed, 2 usage, 3 environment, 130 interrupted.",
    ),
)


def _version(asked: bool) -> None:
    if asked:
        from specbench import __version__

        typer.echo(f"specbench {__version__}")
        raise typer.Exit


@_app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Which speculative-decoding method is fastest on this target, this device and these prompts?"""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def root_command() -> TyperGroup:
    """The whole command line, its commands not yet imported."""
    command = typer.main.get_command(_app)
    assert isinstance(command, TyperGroup)
    return command
