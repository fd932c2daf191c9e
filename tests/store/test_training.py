"""A training's journal in the store: every value as it was written, the file locked for a few statements."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import pytest

from specbench.errors import EnvironmentFailed
from specbench.events import Event, RunFinished, RunStarted, TrainEval, TrainStep, to_line
from specbench.store import training
from specbench.store.db import open_store
from specbench.store.rebuilding import ingest_all
from specbench.store.training import ingest_training

RECORD = {
    "created": "2026-11-22T08:00:00+00:00",
    "method": "lstm",
    "target": {"name": "tiny", "weights_hash": "a"},
    "dataset": {"name": "memory", "hash": "b"},
    "plan": {"parameters": {"total": 12}},
    "device": {"kind": "cpu", "name": "CPU", "processes": 1},
    "request": {"seed": 0},
}
STARTED = RunStarted(schema=5, run_id="r", time="2026-11-22T08:00:00+00:00", pid=1, resumed=False)
FINISHED = RunFinished(state="finished", time="2026-11-22T09:00:00+00:00", message="")


def step(number: int, **changes: Any) -> TrainStep:
    values = {"epoch": 0.5, "num_tokens": 7 * number, "seconds": 0.25 * number, "num_anchors": 5, "loss": 0.1 + 0.2}
    return TrainStep(step=number, **{**values, "lr": 1e-3, "grad_norm": 2.0, **changes})


def evaluation(number: int, **changes: Any) -> TrainEval:
    values: dict[str, Any] = {
        "num": (5, 4), "loss": (1.5, math.inf), "correct": ((3, 4), (1, 2)), "whole": (5, 4), "right": (3, 1),
        "num_steps": 10, "num_new_tokens": 15, "accepted_at": (4, 1), "proposed_at": (10, 9),
    }  # fmt: skip
    return TrainEval(step=number, **{**values, "seconds": 0.5, "is_best": False, **changes})


def write(runs: Path, *events: Event, name: str = "r") -> Path:
    folder = runs / name
    folder.mkdir(parents=True)
    (folder / "train.json").write_text(json.dumps(RECORD))
    (folder / "events.jsonl").write_text("".join(to_line(event) + "\n" for event in (STARTED, *events)))
    return folder


def rows(store: Path, table: str) -> list[dict[str, Any]]:
    with open_store(store, read_only=True) as connection:
        found = connection.execute(f"SELECT * FROM {table} ORDER BY ALL")
        assert found.description is not None
        names = [column[0] for column in found.description]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def test_every_step_and_evaluation_is_stored_as_it_was_written(tmp_path: Path) -> None:
    """Infinite norms, no loss, no simulated run: what diverged is stored too."""
    store = tmp_path / "specbench.duckdb"
    steps = [step(1), step(2, loss=math.nan), step(3, grad_norm=math.inf, epoch=1, num_tokens=2**40)]
    evals = [evaluation(2), evaluation(3, num_steps=0, num_new_tokens=0, accepted_at=(), proposed_at=(), is_best=True)]
    folder = write(tmp_path, *steps[:2], evals[0], steps[2], evals[1])
    for _ in range(2):  # ingesting again replaces
        ingest_training(store, folder)
    shown = rows(store, "train_steps")
    assert [row.pop("run_id") for row in shown] == ["r"] * 3
    wanted = [{name: getattr(each, name) for name in shown[0]} for each in steps]
    assert repr(shown) == repr([{**row, "epoch": float(row["epoch"])} for row in wanted])  # NaN equals nothing
    first, second = rows(store, "train_evals")
    assert first["correct"] == [[3, 4], [1, 2]] and first["loss"] == [1.5, math.inf] and not first["is_best"]
    assert (first["right_"], first["accepted_at"], first["proposed_at"]) == ([3, 1], [4, 1], [10, 9])
    assert second["accepted_at"] == [] and second["proposed_at"] == [] and second["is_best"]
    [run] = rows(store, "train_runs")
    assert (run["state"], run["finished"], run["method"]) == ("lost", None, "lstm")
    assert json.loads(run["record"]) == RECORD


def test_a_training_that_ended_before_its_first_step_is_stored(tmp_path: Path) -> None:
    ingest_training(tmp_path / "specbench.duckdb", write(tmp_path, FINISHED))
    [run] = rows(tmp_path / "specbench.duckdb", "train_runs")
    assert run["state"] == "finished" and run["finished"] == FINISHED.time
    assert rows(tmp_path / "specbench.duckdb", "train_steps") == []


def test_the_store_is_not_held_for_a_statement_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Meanwhile nobody else can read it: 20,000 steps, row by row, were ten seconds."""
    said: list[str] = []

    class Counting:
        def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
            self._connection = connection

        def execute(self, statement: str, *values: Any) -> Any:
            said.append(statement)
            return self._connection.execute(statement, *values)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._connection, name)

    @contextmanager
    def counted(*args: Any, **how: Any) -> Iterator[Counting]:
        with open_store(*args, **how) as connection:
            yield Counting(connection)

    monkeypatch.setattr(training, "open_store", counted)
    events = [event for number in range(1, 301) for event in (step(number), evaluation(number))]
    ingest_training(tmp_path / "specbench.duckdb", write(tmp_path, *events, FINISHED))
    assert 0 < len(said) < 20
    assert len(rows(tmp_path / "specbench.duckdb", "train_steps")) == 300


@pytest.mark.parametrize(
    "changed", [{"loss": "low"}, {"num_tokens": [1]}, {"loss": None}, {"step": "x"}, {"step": 2**40}]
)
def test_values_of_another_kind_are_refused_by_folder_and_the_others_go_in(
    tmp_path: Path, changed: dict[str, Any]
) -> None:
    good = write(tmp_path, step(1), FINISHED)
    bad = write(tmp_path, step(1), step(2), FINISHED, name="bad")
    lines = (bad / "events.jsonl").read_text().splitlines()
    lines[2] = json.dumps({**json.loads(lines[2]), **changed})
    (bad / "events.jsonl").write_text("\n".join(lines) + "\n")
    done = ingest_all(tmp_path / "specbench.duckdb", [bad, good])
    assert [each.run_id for each in done.trainings] == ["r"]
    [refused] = done.refused
    assert isinstance(refused.error, EnvironmentFailed) and str(bad) in str(refused.error)
    assert [row["run_id"] for row in rows(tmp_path / "specbench.duckdb", "train_runs")] == ["r"]
