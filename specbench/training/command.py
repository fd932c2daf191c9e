"""A `specbench` command that a training asks for, and how it ended. The front end runs it: this room starts nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple


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
