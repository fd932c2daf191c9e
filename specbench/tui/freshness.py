"""Which state of a run's files its figures are of. No Textual, no DuckDB."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from specbench.store.records import Listing, Stored


class Written(NamedTuple):
    """Of a store's file, which grows by blocks: a run more may find room in those there are."""

    size: int
    """-1 where there is none."""
    at_ns: int


class AsOf(NamedTuple):
    """What the figures of a run were read from."""

    journal: int
    """Its bytes."""
    file: Written
    row: Stored | None
    """The run's in the store; None where it has none, or the store could not be read."""


class Rows:
    """The runs' rows in the store, as the last list of runs that could read it told them."""

    def __init__(self) -> None:
        self._file: Written | None = None
        self._rows: dict[str, Stored | None] = {}

    def learn(self, found: Listing, file: Written) -> None:
        """file: of the store before it was read. A list with a note could not read it, and teaches nothing."""
        if not found.notes:
            self._file, self._rows = file, {entry.run_id: entry.stored for entry in found.runs}

    def of(self, run_id: str) -> Stored | None:
        """None: not in the store, or not known to be."""
        return self._rows.get(run_id)

    def is_as_of_now(self, run_id: str, then: AsOf, *, journal: int, file: Written) -> bool:
        """Read again, the figures would be the same. journal, file: as they are now.

        The store's file alone says nothing: it changes whenever any run is ingested, and summing up all the others
        again would take minutes of a core, beside the next measurement."""
        if journal != then.journal:
            return False
        if file == then.file:
            return True
        if file == self._file:
            return self.of(run_id) == then.row
        # Nobody has looked into this store yet. A run that had a row has it still, until a list says otherwise; one
        # that had none may have come into it.
        return then.row is not None


def written(path: Path) -> Written:
    """A store's file now."""
    try:
        found = path.stat()
    except OSError:
        return Written(-1, 0)
    return Written(found.st_size, found.st_mtime_ns)


def size_of(path: Path | str) -> int:
    """Bytes; -1 where there is no such file, or it cannot be seen."""
    try:
        return os.stat(path).st_size  # noqa: PTH116 - making a Path costs more than the question
    except OSError:
        return -1
