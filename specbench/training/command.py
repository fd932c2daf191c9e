"""`specbench` commands that a training asks for or ends with. The front end runs them: this room starts nothing, and
loads no torch."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from specbench.report.drafter_run import DEMO, use_values

if TYPE_CHECKING:
    from specbench.training.defaults import Settled


class Ran(NamedTuple):
    """A command that is over."""

    code: int
    """Its exit code."""
    out: str
    """What it printed on stdout, where that was asked for."""
    was_interrupted: bool = False
    """Somebody pressed Ctrl-C while it ran; it may have finished all the same."""


RunCommand = Callable[[Sequence[str]], Ran]
"""Runs `specbench` with these words in a process of its own: what is timed shares none with a training."""


def use_command(request: Settled, folder: Path) -> str:
    """The `specbench run` line that measures the drafter."""
    values = use_values(
        target=request.target,
        method=request.method,
        weights=str(folder),
        quantisation=request.quantisation,
        template=request.template,
        methods_dirs=tuple(map(str, request.methods_dirs)),
    )
    words = ["specbench", "run", values["suite"]]
    if request.target != DEMO:
        words += ["--target", values["target"]]
    if "quantisation" in values:
        words += ["--quantisation", values["quantisation"]]
    if "template" in values:
        words += ["--template", values["template"]]
    words += ["--methods", values["methods"], "--set", *shlex.split(values["settings"])]
    for each in shlex.split(values.get("methods_dirs", "")):
        words += ["--methods-dir", each]
    return shlex.join(words)
