"""The replay that makes a trace, as a process beside the viewer: started, watched, its end told. No Textual."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from specbench.errors import UsageError
from specbench.store.journal import run_state
from specbench.store.traces import Which
from specbench.tui import children


def words_of(run_id: str, which: Which, *, store: Path | None) -> list[str]:
    """`specbench` and these words make the trace."""
    words = ["trace", run_id, which.question_id, "--method", which.method]
    words += ["--turn", str(which.turn + 1), "--repeat", str(which.repeat + 1)]
    return words + ([] if store is None else ["--store", str(store)])


class Ended(NamedTuple):
    """A replay that is over."""

    path: Path
    problem: str
    """Empty where the trace is there."""


class Replaying:
    """At most one replay at a time: each loads a target."""

    def __init__(self) -> None:
        self._child: children.Child | None = None
        self._path = Path()

    def start(self, folder: Path, which: Which, path: Path, *, store: Path | None, live: str = "") -> children.Child:
        """Make `path`. Raises UsageError while another replay, the run itself or `live`, another run of this machine,
        is under way."""
        if self._child is not None:
            raise UsageError("a replay is under way", try_="wait for it: one at a time")
        if run_state(folder) == "running":
            raise UsageError(
                "the run is still being measured: a replay beside it would slow it", try_="when it is over"
            )
        if live:
            raise UsageError(f"{live} runs on this machine: a replay beside it would slow it", try_="when it is over")
        self._child = children.start(words_of(folder.name, which, store=store), store=store)
        self._path = path
        return self._child

    def is_making(self, path: Path | None) -> bool:
        """That file is on its way."""
        return self._child is not None and self._path == path

    def log(self) -> list[str]:
        """The last it said."""
        if self._child is None or not self._child.log.exists():
            return []
        return children.end_of(self._child.log)[-8:]

    def ended(self) -> Ended | None:
        """Once, when it is over."""
        child = self._child
        if child is None or child.process.poll() is None:
            return None
        self._child = None
        # Exit 1 is a replay that differs from the journal: its file is there and says so.
        if self._path.exists() and child.process.returncode in (0, 1):
            return Ended(self._path, "")
        told = children.last_words(child)
        return Ended(self._path, f"the replay failed (exit {child.process.returncode}): {told}; log {child.log}")
