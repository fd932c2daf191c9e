"""What all views share: the store, the run that is looked at, what was summed up. No Textual, no DuckDB."""

from __future__ import annotations

import os
import shlex
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from specbench import paths
from specbench.errors import UsageError
from specbench.store.files import is_training
from specbench.tui.reader import Asking, Reader

if TYPE_CHECKING:
    from specbench.store.records import Listing
    from specbench.tui.figures import Summed

LIVE_LOOKS, LIVE_FPS, REPLAY_FPS = 4, 8, 24
"""A second: looks at the journal of a live run, each at most one frame; frames of a replay while a run is live; frames
of a replay otherwise. The journal itself grows ten times a second, and nobody reads what stands for a tenth of one."""


class Workspace:
    """One store and what is known of it. What asks the reader blocks: it is meant for threads."""

    def __init__(self, store: Path | None, *, reader: Asking | None = None) -> None:
        self.store = store
        self.reader = reader or Reader()
        self.run_id = ""
        """The run that Race, Accept and Speed show; empty until one is chosen."""
        self.training_id = ""
        self._summed: dict[str, tuple[object, Summed]] = {}
        self._summing = threading.Lock()

    def folder(self, run_id: str) -> Path:
        """A run's folder."""
        return paths.run_dir(self.store, run_id)

    def listing(self) -> Listing:
        """All runs, newest first; a busy store costs the speed-ups and a note says so."""
        found: Listing = self.reader.ask("listing", self.store)
        return found

    def signature(self) -> object:
        """Changes whenever a list of runs might: asked every two seconds, so it opens no file."""
        runs = [(name, _size(f"{name}/events.jsonl"), _size(f"{name}/run.lock")) for name in self._folders()]
        return sorted(runs), _written(paths.store_file(self.store))

    def being_written(self) -> list[Path]:
        """Folders with a lock in them, live or left behind by a crash; a released one is empty."""
        return [Path(name) for name in self._folders() if _size(f"{name}/run.lock") > 0]

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
        """The run in figures; kept until its journal or its row in the store changes. Seconds for a long run."""
        # One at a time: two screens that ask for the same run must not sum it up twice.
        with self._summing:
            key = self.freshness(run_id)
            kept = self._summed.get(run_id)
            if kept is not None and kept[0] == key:
                return kept[1]
            found: Summed = self.reader.ask("summed", self.store, run_id)
            self._summed[run_id] = (key, found)
            return found

    def is_as_of_now(self, run_id: str, found: Summed | None) -> bool:
        """`found` is what `summed` would answer, and at once; another screen may have had the run summed up since."""
        kept = self._summed.get(run_id)
        return kept is not None and kept[1] is found and kept[0] == self.freshness(run_id)

    def freshness(self, run_id: str) -> object:
        """Changes whenever its figures might."""
        return _size(self.folder(run_id) / "events.jsonl"), _written(paths.store_file(self.store))


def _written(path: Path) -> tuple[int, int]:
    """Size and time of a store, which grows by blocks: a run more may find room in those there are."""
    try:
        found = path.stat()
    except OSError:
        return -1, 0
    return found.st_size, found.st_mtime_ns


def _size(path: Path | str) -> int:
    """-1 where there is no such file, or it cannot be seen."""
    try:
        return os.stat(path).st_size  # noqa: PTH116 - making a Path costs more than the question
    except OSError:
        return -1
