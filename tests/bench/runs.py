"""A small request, and what a run of it left behind."""

from __future__ import annotations

from specbench import paths
from specbench.api import Silent
from specbench.bench.request import RunRequest
from specbench.store.journal import read_events
from specbench.store.summary import to_json

CHAIN_HEAD = """
import torch
from specbench.method import Drafter
from specbench.tree import chain, empty, from_lists
"""


def request_for(tiny_suite, target, store, **changes) -> RunRequest:
    values = {
        "suite": str(tiny_suite),
        "target": str(target),
        "methods": ("autoregressive", "prompt_lookup"),
        "max_new_tokens": 12,
        "repeats": 2,
        "threads": 1,
        "store": store,
        **changes,
    }
    return RunRequest(**values)


def events_of(store, run_id, kind):
    return [line.event for line in read_events(paths.run_dir(store, run_id)) if isinstance(line.event, kind)]


def rows_of(outcome):
    return {row["method"]: row for row in to_json(outcome.summary)["rows"]}


class Listening(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


class Impatient(Silent):
    """Ctrl-C after so many groups."""

    def __init__(self, after: int) -> None:
        self._left = after

    def group_done(self, **_):
        self._left -= 1
        if not self._left:
            raise KeyboardInterrupt
