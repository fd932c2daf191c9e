"""Many run folders into the store: a damaged one is named and does not keep the others out. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from specbench.errors import CheckFailed, EnvironmentFailed, StoreBusy
from specbench.store.db import open_store
from specbench.store.files import UNTOUCHED
from specbench.store.ingest import Ingested, ingest
from specbench.store.invariants import InvariantViolation
from specbench.store.journal import events_file
from specbench.store.training import Training, ingest_training, is_training

_Stored = TypeVar("_Stored", Ingested, Training)


class Refused(NamedTuple):
    """A folder that stayed out of the store."""

    folder: Path
    error: EnvironmentFailed | CheckFailed
    """CheckFailed: its counts cannot be."""


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """What went in, in the order of the folders, and what did not."""

    runs: tuple[Ingested, ...]
    trainings: tuple[Training, ...]
    refused: tuple[Refused, ...]


def ingest_all(store: Path, folders: Sequence[Path]) -> Rebuilt:
    """Puts each folder of a run or a training into the DuckDB file `store`.

    Raises StoreBusy and what else the store itself refuses, before a folder is read.
    """
    if any(folder.is_dir() for folder in folders):
        with open_store(store):
            pass  # a store that cannot be written is no fault of the folders
    refused: list[Refused] = []

    def put(into: Callable[[Path, Path], _Stored], those: Sequence[Path]) -> tuple[_Stored, ...]:
        stored = []
        for folder in those:
            try:
                stored.append(into(store, folder))
            except StoreBusy:
                raise
            except EnvironmentFailed as error:
                refused.append(Refused(folder, error))
            except InvariantViolation as error:
                refused.append(Refused(folder, _impossible(folder, error)))
        return tuple(stored)

    trainings = [folder for folder in folders if is_training(folder)]
    runs = put(ingest, [folder for folder in folders if folder not in trainings])
    trained = put(ingest_training, trainings)
    return Rebuilt(runs=runs, trainings=trained, refused=tuple(refused))


def _impossible(folder: Path, error: InvariantViolation) -> CheckFailed:
    return CheckFailed(
        f"its counts cannot be: {error}",
        where=str(events_file(folder)),
        try_=UNTOUCHED,
    )
