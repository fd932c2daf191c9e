"""A `specbench` command in a process of its own, which Ctrl-C lets save itself."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from specbench.training.command import Ran

_BREAKING_OFF_S = 10.0
"""Seconds a child has between the second Ctrl-C and its end by force."""


def run_specbench(words: Sequence[str], *, captured: bool = False) -> Ran:
    """Run `specbench WORDS` and wait for its end. captured: its stdout comes back instead of being printed.

    A terminal's Ctrl-C reaches the child as well as us: it stops behind its step and saves, and we wait for that
    (`subprocess.run` would kill it a quarter of a second later). Raises KeyboardInterrupt at the second one.
    """
    with _one_ctrl_c_waits() as told:
        child = subprocess.Popen(
            [sys.executable, "-m", "specbench", *words],
            stdout=subprocess.PIPE if captured else None,
            text=True,
            encoding="utf-8",
        )
        try:
            out, _ = child.communicate()
        except KeyboardInterrupt:
            _let_break_off(child)
            raise
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
    return Ran(child.returncode, out or "", was_interrupted=told.is_set())


def _let_break_off(child: subprocess.Popen[str]) -> None:
    # What does not end by itself is killed by the caller.
    with suppress(subprocess.TimeoutExpired):
        child.wait(_BREAKING_OFF_S)


@contextmanager
def _one_ctrl_c_waits() -> Iterator[threading.Event]:
    """The first Ctrl-C sets the event, the second raises. Signals reach the main thread only."""
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield told
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if told.is_set():
            raise KeyboardInterrupt
        told.set()

    was = signal.signal(signal.SIGINT, handle)
    try:
        yield told
    finally:
        signal.signal(signal.SIGINT, was)
