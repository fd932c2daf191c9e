"""A training's journal into the store, and trainings in the list of runs. No torch.

A resumed training goes on behind its last saved state: steps and evaluations beyond that are gone, however it ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import duckdb

from specbench.errors import EnvironmentFailed
from specbench.events import Event, RunFinished, RunStarted, TrainEval, TrainStep
from specbench.store.db import BUSY_S, insert_table, open_store, transaction
from specbench.store.files import TRAIN_JSON as TRAIN_JSON
from specbench.store.files import UNTOUCHED
from specbench.store.files import is_training as is_training
from specbench.store.journal import events_file, read_events, run_state

if TYPE_CHECKING:
    import pyarrow as pa

TRAIN_TABLES = ("train_runs", "train_steps", "train_evals")
"""Tables with a run_id: all of a training."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training's folder, read: what the page, the store and `results ls` are made of."""

    run_id: str
    record: dict[str, Any]
    """train.json."""
    state: str
    finished: str | None
    message: str
    steps: tuple[TrainStep, ...]
    evals: tuple[TrainEval, ...]

    @property
    def best(self) -> TrainEval | None:
        """The evaluation whose weights were kept."""
        return next((each for each in reversed(self.evals) if each.is_best), None)


def read_training(folder: Path) -> Training:
    """Replay the journal. Raises EnvironmentFailed: no training here, damaged or newer files."""
    return TrainingReplay(folder).read()


class TrainingReplay:
    """A training that may still be written: every `read` goes on where the one before stopped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._forget_all()

    def _forget_all(self) -> None:
        self._steps: dict[int, TrainStep] = {}
        self._evals: dict[int, TrainEval] = {}
        self._last_word: RunFinished | None = None
        self._is_first = False
        """The next step is the first one of a training that went on."""
        self._offset = 0
        self._file = _identity(self.folder)

    def read(self) -> Training:
        """As far as it has been written. Raises EnvironmentFailed: no training here, damaged or newer files."""
        record = _read_record(self.folder)
        now = _identity(self.folder)
        if now.inode != self._file.inode or now.size < self._offset:
            # Another journal lies there now: what was read is not of it.
            self._forget_all()
        for event, next_offset in read_events(self.folder, offset=self._offset):
            self._take(event)
            self._offset = next_offset
        last_word, steps, evals = self._last_word, self._steps, self._evals
        return Training(
            run_id=self.folder.name,
            record=record,
            state=run_state(self.folder),
            finished=last_word.time if last_word else None,
            message=last_word.message if last_word else "",
            steps=tuple(steps[number] for number in sorted(steps)),
            evals=tuple(evals[number] for number in sorted(evals)),
        )

    def _take(self, event: Event) -> None:
        match event:
            case TrainStep():
                if self._is_first:
                    # Journals from before schema 5 say by their next step alone where a training went on.
                    _forget(event.step - 1, self._steps, self._evals)
                    self._is_first = False
                self._steps[event.step] = event
            case TrainEval():
                self._evals[event.step] = event
            case RunStarted():
                self._last_word = None
                self._is_first = event.resumed
                if event.behind is not None:
                    _forget(event.behind, self._steps, self._evals)
            case RunFinished():
                self._last_word = event
            case _:
                pass


class _Identity(NamedTuple):
    """Of a journal's file; zeros where there is none."""

    inode: int
    size: int


def _identity(folder: Path) -> _Identity:
    try:
        found = events_file(folder).stat()
    except OSError:
        return _Identity(0, 0)
    return _Identity(found.st_ino, found.st_size)


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / TRAIN_JSON
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        method, target = record["method"], record["target"]["name"]
    except FileNotFoundError as error:
        raise EnvironmentFailed(f"no training here: {path} is missing", try_="specbench results ls") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EnvironmentFailed(f"{TRAIN_JSON} is damaged: {error}", where=str(path)) from error
    assert method and target is not None
    return record


def _forget(behind: int, *kinds: dict[int, Any]) -> None:
    """What is of later steps."""
    for found in kinds:
        for step in [each for each in found if each > behind]:
            del found[step]


def ingest_training(store: Path, folder: Path, *, timeout_s: float = BUSY_S) -> Training:
    """Puts a training into the DuckDB file `store`, whole or not at all, replacing what was there; returns it.

    Raises StoreBusy, and EnvironmentFailed for missing or damaged files.
    """
    try:
        training = read_training(folder)
        # Made before the store is opened: its file is locked for the insert alone.
        tables = _tables(training)
        with open_store(store, timeout_s=timeout_s) as connection, transaction(connection):
            for name, table in tables.items():
                connection.execute(f"DELETE FROM {name} WHERE run_id = ?", [training.run_id])
                insert_table(connection, name, table)
    # Fields of events are not checked one by one: one of another kind breaks what works with it.
    except (ArithmeticError, LookupError, TypeError, ValueError, duckdb.DataError, duckdb.IntegrityError) as error:
        raise EnvironmentFailed(
            f"the training's files hold what nothing writes: {type(error).__name__}: {error}",
            where=str(folder),
            try_=UNTOUCHED,
        ) from error
    return training


def training_folders(runs: Path) -> Iterator[Path]:
    """Run folders that hold a training."""
    if runs.is_dir():
        yield from sorted(path.parent for path in runs.glob(f"*/{TRAIN_JSON}"))


def headline(folder: Path) -> str:
    """`τ 2.31 at step 400`, of the drafter kept so far; empty before the first evaluation. Reads no journal."""
    try:
        figures = json.loads((folder / "best" / "config.json").read_text(encoding="utf-8"))["training"]["figures"]
        if figures["tau"] is not None:
            return f"τ {figures['tau']:.2f} at step {figures['step']}"
        return f"loss {figures['loss']:.3f} at step {figures['step']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _tables(training: Training) -> dict[str, pa.Table]:
    """Table name -> rows to insert, one table a name of TRAIN_TABLES."""
    import pyarrow as pa  # 0.1 s, only where something is stored

    whole, real = pa.int64(), pa.float64()
    wholes, reals = pa.list_(whole), pa.list_(real)
    # Said, not guessed: a column of empty lists, or of no rows, would have no type.
    step_types = dict.fromkeys(("step", "num_tokens", "num_anchors"), whole)
    step_types |= dict.fromkeys(("epoch", "seconds", "loss", "lr", "grad_norm"), real)
    eval_types = dict.fromkeys(("step", "num_steps", "num_new_tokens"), whole)
    eval_types |= dict.fromkeys(("num", "whole", "right_", "accepted_at", "proposed_at"), wholes)
    eval_types |= {"loss": reals, "correct": pa.list_(wholes), "seconds": real, "is_best": pa.bool_()}

    def table(rows: list[dict[str, Any]], types: dict[str, pa.DataType]) -> pa.Table:
        return pa.Table.from_pylist(rows, schema=pa.schema({"run_id": pa.string(), **types}))

    return {
        "train_runs": pa.Table.from_pylist([_run_row(training)]),
        "train_steps": table([_step_row(training.run_id, step) for step in training.steps], step_types),
        "train_evals": table([_eval_row(training.run_id, each) for each in training.evals], eval_types),
    }


def _run_row(training: Training) -> dict[str, Any]:
    record = training.record
    return {
        "run_id": training.run_id,
        "created": record["created"],
        "state": training.state,
        "finished": training.finished,
        "message": training.message,
        "method": record["method"],
        "target": record["target"]["name"],
        "target_hash": record["target"]["weights_hash"],
        "dataset": record["dataset"]["name"],
        "dataset_hash": record["dataset"]["hash"],
        "num_parameters": record["plan"]["parameters"]["total"],
        "device_kind": record["device"]["kind"],
        "device": record["device"]["name"],
        "num_processes": record["device"]["processes"],
        "seed": record["request"]["seed"],
        "record": json.dumps(record),
    }


def _step_row(run_id: str, step: TrainStep) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "step": step.step,
        "epoch": step.epoch,
        "num_tokens": step.num_tokens,
        "seconds": step.seconds,
        "num_anchors": step.num_anchors,
        "loss": step.loss,
        "lr": step.lr,
        "grad_norm": step.grad_norm,
    }


def _eval_row(run_id: str, each: TrainEval) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "step": each.step,
        "num": list(each.num),
        "loss": list(each.loss),
        "correct": [list(hits) for hits in each.correct],
        "whole": list(each.whole),
        "right_": list(each.right),
        "num_steps": each.num_steps,
        "num_new_tokens": each.num_new_tokens,
        "accepted_at": list(each.accepted_at),
        "proposed_at": list(each.proposed_at),
        "seconds": each.seconds,
        "is_best": each.is_best,
    }
