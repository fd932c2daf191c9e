"""A training stopped in its very last step is judged, when it is resumed, as one that nobody stopped."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from training.small import METHODS, Quiet, make_corpus, make_request

from specbench import checkpoint
from specbench.store.training import read_training
from specbench.training import TrainRequest, train

LAST = 7


class _StopsLast(Quiet):
    """Presses Ctrl-C in the last step."""

    def step(self, *, step: int, share: float, loss: float, tokens_per_s: float, eta_s: float | None) -> None:
        super().step(step=step, share=share, loss=loss, tokens_per_s=tokens_per_s, eta_s=eta_s)
        if step == LAST:
            os.kill(os.getpid(), signal.SIGINT)


def _judged(store: Path, run_id: str) -> list[tuple[int, tuple[float, ...], bool]]:
    return [(each.step, each.loss, each.is_best) for each in read_training(store / "runs" / run_id).evals]


def _resume(store: Path, run_id: str) -> TrainRequest:
    return TrainRequest(resume=run_id, store=store, methods_dirs=(METHODS,))


@pytest.mark.parametrize("eval_every", [3, 50])
def test_the_weights_of_a_last_step_that_was_interrupted_are_judged_by_the_resume(
    target: Path, tmp_path: Path, eval_every: int
) -> None:
    changed = {"max_steps": LAST, "eval_every": eval_every}
    whole = train(make_request(target, tmp_path / "whole", **changed), Quiet(), corpus=make_corpus())
    wanted = _judged(tmp_path / "whole", whole.run_id)
    assert wanted[-1][0] == LAST and wanted[-1][2], "the last weights are the best: those that would be lost"
    stopped = train(make_request(target, tmp_path, **changed), _StopsLast(), corpus=make_corpus())
    assert stopped.state == "interrupted" and _judged(tmp_path, stopped.run_id) == wanted[:-1]
    progress = Quiet()
    resumed = train(_resume(tmp_path, stopped.run_id), progress, corpus=make_corpus())
    assert (resumed.state, resumed.why, progress.losses) == ("finished", "max_steps", [])
    assert _judged(tmp_path, stopped.run_id) == wanted and {**resumed.best} == {**whole.best}
    assert resumed.folder is not None and whole.folder is not None
    weights = checkpoint.load(resumed.folder, method="shallow").state
    for name, tensor in checkpoint.load(whole.folder, method="shallow").state.items():
        assert torch.equal(weights[name], tensor)
    again = train(_resume(tmp_path, stopped.run_id), Quiet(), corpus=make_corpus())
    assert again.state == "finished" and _judged(tmp_path, stopped.run_id) == wanted, "and once only"


def test_a_state_of_before_says_its_last_step_was_judged(target: Path, tmp_path: Path) -> None:
    """What it does not say cannot be known; a training that had ended is not judged anew."""
    request = make_request(target, tmp_path, max_steps=LAST, eval_every=3)
    done = train(request, Quiet(), corpus=make_corpus())
    wanted = _judged(tmp_path, done.run_id)
    [file] = (tmp_path / "runs" / done.run_id / "state").glob("*/state.json")
    body = json.loads(file.read_text())
    assert body.pop("evaluated") == LAST
    file.write_text(json.dumps(body))
    again = train(_resume(tmp_path, done.run_id), Quiet(), corpus=make_corpus())
    assert again.state == "finished" and _judged(tmp_path, done.run_id) == wanted
