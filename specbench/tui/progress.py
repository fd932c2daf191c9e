"""How far the runs of a list are that are being written. No Textual."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from specbench.errors import SpecbenchError
from specbench.store import pausing
from specbench.tui.index import RunIndex

if TYPE_CHECKING:
    from specbench.store.records import Listing

_BYTES_A_LOOK = 16_000_000


class Progress:
    """Reads on in every journal with `follow`."""

    def __init__(self) -> None:
        self.words: dict[str, str] = {}
        """By run id: `‖ paused, 412 of 5280`, or why the journal cannot be read."""
        self._indexes: dict[str, tuple[RunIndex, int]] = {}
        """With the number of answers planned."""

    def follow(self, found: Listing, folder_of: Callable[[str], Path]) -> bool:
        """True where one went on. folder_of: a run's, by its id."""
        from specbench.manifest import read_manifest  # 0.15 s of pydantic, only where a run is being written

        before = dict(self.words)
        for entry in found.runs:
            if entry.state != "running" or entry.kind == "train":
                continue
            folder = folder_of(entry.run_id)
            try:
                if entry.run_id not in self._indexes:
                    planned = sum(len(record.question_ids) for record in read_manifest(folder).groups)
                    self._indexes[entry.run_id] = (RunIndex(folder), planned)
                index, planned = self._indexes[entry.run_id]
                index.advance(limit_bytes=_BYTES_A_LOOK)
            except SpecbenchError as error:
                self.words[entry.run_id] = error.what
                continue
            waits = "‖ paused, " if pausing.is_waiting(folder) else "pausing, " if pausing.is_asked(folder) else ""
            self.words[entry.run_id] = f"{waits}{index.num_ended} of {planned}"
        return before != self.words
