"""The state of an experiment: `cells.jsonl`, append-only, one finished or failed cell a line. No torch, no DuckDB.

Of two lines with one id the later one counts. A killed writer leaves at most one torn line, at the end: readers stop
before it, the next writer cuts it off.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from specbench.errors import EnvironmentFailed
from specbench.store.files import RunLock, cannot_write
from specbench.store.journal import end_of_whole_lines

SCHEMA = 1
CELLS = "cells.jsonl"
Kind = Literal["training", "evaluation", "bench"]
State = Literal["finished", "failed", "open"]
Scalar = str | int | float | bool


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training, or what was measured of one."""

    kind: Kind
    cell_id: str
    """The hash of `options`: other options are another cell."""
    training_id: str
    """Of the training it belongs to; its own for a training."""
    method: str
    seed: int
    axes: dict[str, Scalar]
    """What varies between the experiment's trainings, seeds left out."""
    measure: dict[str, Scalar]
    """What varies between its evaluations; empty for a training."""
    options: dict[str, Any]
    """Everything the cell depends on."""
    state: State = "open"
    error: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    """What came out; empty unless finished."""
    time: str = ""
    """ISO 8601, UTC."""


class CellLog:
    """The one writer of an experiment's folder; a context manager.

    Raises UsageError when another process holds the folder, EnvironmentFailed when the disk refuses.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / CELLS
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(folder, error) from error
        self._lock = RunLock(folder)
        try:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            os.ftruncate(self._file, end_of_whole_lines(self._file))
        except OSError as error:
            self._lock.release()
            raise cannot_write(self._path, error) from error

    def write(self, cell: Cell) -> None:
        """Appends the cell, on the disk itself when it returns: hours may stand behind it."""
        line = json.dumps({"schema": SCHEMA, **dataclasses.asdict(cell)}, separators=(",", ":"), allow_nan=False)
        try:
            os.write(self._file, (line + "\n").encode("ascii"))
            os.fsync(self._file)
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def __enter__(self) -> CellLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)
        self._lock.release()


def read_cells(folder: Path) -> dict[str, Cell]:
    """What is known of every cell by its id; empty where nothing was done yet.

    Raises EnvironmentFailed naming the line that is damaged or newer than this specbench.
    """
    path = folder / CELLS
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise EnvironmentFailed(f"{CELLS} cannot be read: {error}", where=str(path)) from error
    found: dict[str, Cell] = {}
    # What follows the last newline is torn, or nothing.
    for number, line in enumerate(lines[:-1], 1):
        try:
            body = json.loads(line)
            schema = body.pop("schema")
            if schema > SCHEMA:
                raise EnvironmentFailed(
                    f"the experiment was written by a newer specbench (schema {schema}, this one reads {SCHEMA})",
                    where=f"{path}:{number}",
                    try_="pip install --upgrade specbench",
                )
            cell = Cell(**body)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise EnvironmentFailed(
                f"line {number} of {CELLS} is damaged: {error}",
                where=str(path),
                try_="remove that line: its cell is then made again",
            ) from error
        found[cell.cell_id] = cell
    return found
