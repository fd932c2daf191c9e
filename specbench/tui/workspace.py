"""What all views share: the store, the run that is looked at, what was summed up. No Textual, no DuckDB."""

from __future__ import annotations

import os
import shlex
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from specbench import paths
from specbench.errors import UsageError
from specbench.store.files import is_training
from specbench.tui.freshness import AsOf, Rows, Written, size_of, written
from specbench.tui.reader import Asking, Reader

if TYPE_CHECKING:
    from specbench.store.records import Listing
    from specbench.tui.figures import Summed

LIVE_LOOKS, LIVE_FPS, REPLAY_FPS = 4, 8, 24
"""A second: looks at the journal of a live run, each at most one frame; frames of a replay while a run is live; frames
of a replay otherwise. The journal itself grows ten times a second, and nobody reads what stands for a tenth of one."""


_MOST_KEPT = 8
"""Runs summed up: about a megabyte each in memory. What a screen shows it holds itself."""


class Figures(Protocol):
    """Something that was made of a run's figures."""

    @property
    def as_of(self) -> AsOf | None:
        """Of which state of the files; None: not known."""
        ...


class Workspace:
    """One store and what is known of it. What asks the reader blocks: it is meant for threads."""

    def __init__(self, store: Path | None, *, reader: Asking | None = None) -> None:
        self.store = store
        self.reader = reader or Reader()
        self.run_id = ""
        """The run that Race, Accept and Speed show; empty until one is chosen."""
        self.training_id = ""
        self._summed: dict[str, Summed] = {}
        """The last ones, oldest first."""
        self._rows = Rows()
        self._summing = threading.Lock()

    def folder(self, run_id: str) -> Path:
        """A run's folder."""
        return paths.run_dir(self.store, run_id)

    def listing(self) -> Listing:
        """All runs, newest first; a busy store costs the speed-ups and a note says so."""
        file = written(paths.store_file(self.store))
        found: Listing = self.reader.ask("listing", self.store)
        self._rows.learn(found, file)
        return found

    def signature(self) -> object:
        """Changes whenever a list of runs might: asked every two seconds, so it opens no file."""
        runs = [(name, size_of(f"{name}/events.jsonl"), size_of(f"{name}/run.lock")) for name in self._folders()]
        return sorted(runs), written(paths.store_file(self.store))

    def being_written(self) -> list[Path]:
        """Folders with a lock in them, live or left behind by a crash; a released one is empty."""
        return [Path(name) for name in self._folders() if size_of(f"{name}/run.lock") > 0]

    def _folders(self) -> list[str]:
        """Of runs, in no order. Text and one question a file: asked every two seconds on the screen's own thread, where
        globbing took four times as long."""
        try:
            with os.scandir(paths.run_dir(self.store, "")) as entries:
                return [entry.path for entry in entries]
        except OSError:  # no run yet
            return []

    def live_here(self, *, but: str = "") -> str:
        """A run or training that a process of this machine writes now: nothing heavy is begun beside it. Empty without
        one. but: the id of one that does not count."""
        from specbench.tui.yielding import live_here

        return next((folder.name for folder in self.being_written() if folder.name != but and live_here(folder)), "")

    def resolve(self, run: str) -> str:
        """RUN as typed: an id, its unique beginning or end, or a run's folder, whose store is taken. Raises UsageError
        with the nearest, and for a folder that no store holds."""
        given = Path(run)
        if (given / "manifest.json").exists() or is_training(given):
            return self._resolve_folder(given)
        known = [path.name for path in paths.run_dir(self.store, "").glob("*") if path.is_dir()]
        if run in known:
            return run
        near = [name for name in known if name.startswith(run) or name.endswith(run)]
        if len(near) == 1:
            return near[0]
        from specbench.store.files import unknown_run

        if near:
            raise UsageError(f"{run!r} is the beginning of several runs: {', '.join(sorted(near))}", where="RUN")
        raise unknown_run(run, known)

    def _resolve_folder(self, given: Path) -> str:
        # As it was named, and where links lead: either may be the one that stands in a store.
        named, real = Path(os.path.abspath(given)), given.resolve()  # noqa: PTH100 - resolve would follow the link
        for folder in (named, real):
            if self.folder(folder.name).resolve() == real:
                return folder.name
            if folder.parent.name == "runs":
                self.store = folder.parent.parent
                return folder.name
        # By its id alone the store's own run of that name would be shown in its place.
        runs = shlex.quote(str(named.parent / "runs"))
        raise UsageError(
            f"{given} is a run's folder that no store holds: those lie in a folder named runs",
            where="RUN",
            try_=f"mkdir -p {runs} && mv {shlex.quote(str(named))} {runs}/, and name it there",
        )

    def summed(self, run_id: str) -> Summed:
        """The run in figures; the last ones are kept until journal or row change. Seconds for a long run."""
        # One at a time: two screens that ask for the same run must not sum it up twice.
        with self._summing:
            kept = self._summed.get(run_id)
            if kept is None or not self.is_as_of_now(run_id, kept):
                journal, file = self._files(run_id)
                found: Summed = self.reader.ask("summed", self.store, run_id)
                kept = found._replace(as_of=AsOf(journal, file, found.row))
            self._summed.pop(run_id, None)
            self._summed[run_id] = kept
            if len(self._summed) > _MOST_KEPT:
                del self._summed[next(iter(self._summed))]
            return kept

    def is_as_of_now(self, run_id: str, found: Figures | None) -> bool:
        """Nothing that its figures are made of has changed since."""
        if found is None or found.as_of is None:
            return False
        journal, file = self._files(run_id)
        return self._rows.is_as_of_now(run_id, found.as_of, journal=journal, file=file)

    def _files(self, run_id: str) -> tuple[int, Written]:
        return size_of(self.folder(run_id) / "events.jsonl"), written(paths.store_file(self.store))

    def freshness(self, run_id: str) -> object:
        """Changes whenever a run that could not be summed up might be."""
        return size_of(self.folder(run_id) / "events.jsonl"), self._rows.of(run_id)
