"""What a resumed training needs, and what is left of steps that it no longer has."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

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
