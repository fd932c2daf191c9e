"""`specbench` commands that a training asks for or ends with. The front end runs them: this room starts nothing, and
loads no torch."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from specbench.quantisation import NONE

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
    """The `specbench run` line that measures the drafter; `b` on the Train screen fills its form in with the same."""
    suite = "demo" if request.target == "demo" else "mtbench"
    words = ["specbench", "run", suite]
    if request.target != "demo":
        words += ["--target", request.target]
    if request.quantisation != NONE:
        words += ["--quantisation", request.quantisation]
    words += ["--methods", f"autoregressive,{request.method}", "--set", f"{request.method}.weights={folder}"]
    for each in request.methods_dirs:
        words += ["--methods-dir", str(each)]
    return shlex.join(words)
