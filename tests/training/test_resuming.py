"""What a resumed training needs, and what is left of steps that it no longer has."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from training.small import METHODS, Quiet, make_corpus, make_request

from specbench.errors import EnvironmentFailed
from specbench.store.training import read_training
from specbench.training import TrainRequest, train


class Interrupting(Quiet):
    """Presses Ctrl-C when a step is over."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._at = at

    def step(self, *, step: int, share: float, loss: float, tokens_per_s: float, eta_s: float | None) -> None:
        super().step(step=step, share=share, loss=loss, tokens_per_s=tokens_per_s, eta_s=eta_s)
        if step == self._at:
            os.kill(os.getpid(), signal.SIGINT)


class Keeping(Interrupting):
    """... and keeps the states that were saved by then."""

    def __init__(self, at: int, store: Path) -> None:
        super().__init__(at)
        self._store = store

    def step(self, *, step: int, share: float, loss: float, tokens_per_s: float, eta_s: float | None) -> None:
        super().step(step=step, share=share, loss=loss, tokens_per_s=tokens_per_s, eta_s=eta_s)
        if step == self._at:
            [state] = self._store.glob("runs/*/state")
            shutil.copytree(state, self._store / "kept")


def losses(store: Path, run_id: str) -> list[float]:
    return [step.loss for step in read_training(store / "runs" / run_id).steps]


def resume(store: Path, run_id: str) -> TrainRequest:
    return TrainRequest(resume=run_id, store=store, methods_dirs=(METHODS,))


def test_a_training_that_started_from_a_drafter_goes_on_without_it(target: Path, tmp_path: Path) -> None:
    """Its state holds every weight: the drafter may be gone by then."""
    first = train(make_request(target, tmp_path / "first", max_steps=2), Quiet(), corpus=make_corpus())
    assert first.folder is not None
    options = {"weights": str(first.folder)}
    whole = train(make_request(target, tmp_path / "whole", options=options), Quiet(), corpus=make_corpus())
    stopped = train(make_request(target, tmp_path, options=options), Interrupting(5), corpus=make_corpus())
    shutil.rmtree(first.folder)
    finished = train(resume(tmp_path, stopped.run_id), Quiet(), corpus=make_corpus())
    assert finished.state == "finished"
    assert losses(tmp_path, stopped.run_id) == losses(tmp_path / "whole", whole.run_id)
    shutil.rmtree(tmp_path / "runs" / stopped.run_id / "state")
    with pytest.raises(EnvironmentFailed, match="no drafter"):
        train(resume(tmp_path, stopped.run_id), Quiet(), corpus=make_corpus())


@pytest.mark.parametrize("schema", [5, 4])
def test_steps_that_a_resumed_training_no_longer_has_are_told_nowhere(
    target: Path, tmp_path: Path, schema: int
) -> None:
    """Saved at 4, evaluated at 6, killed at 7, resumed and stopped at 5: it has five steps and no evaluation, the best
    one least of all. Journals of schema 4 did not say where a training went on."""
    stopped = train(make_request(target, tmp_path), Keeping(7, tmp_path), corpus=make_corpus())
    folder = tmp_path / "runs" / stopped.run_id
    assert read_training(folder).best is not None
    # As after a kill: Ctrl-C saves a state of its own.
    shutil.rmtree(folder / "state")
    shutil.copytree(tmp_path / "kept", folder / "state")
    train(resume(tmp_path, stopped.run_id), Interrupting(5), corpus=make_corpus())
    journal = folder / "events.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    behind = [line["behind"] for line in lines if line["e"] == "run_started"]
    assert behind == [None, 4]
    if schema == 4:
        for line in lines:
            line.pop("behind", None)
        journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_training(folder)
    assert [step.step for step in found.steps] == [1, 2, 3, 4, 5]
    assert found.evals == () and found.best is None
    assert train(resume(tmp_path, stopped.run_id), Quiet(), corpus=make_corpus()).steps == 12
    assert [step.step for step in read_training(folder).steps] == list(range(1, 13))
    assert losses(tmp_path, stopped.run_id)[:7] == losses_of_first(lines)


def losses_of_first(lines: list[dict[str, Any]]) -> list[float]:
    """Of the attempt before the first resume."""
    at = [number for number, line in enumerate(lines) if line["e"] == "run_started"][1]
    return [line["loss"] for line in lines[:at] if line["e"] == "train_step"]
