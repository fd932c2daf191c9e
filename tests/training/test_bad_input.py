"""What is wrong is said in words, and what was saved before stays."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from training.small import METHODS, Quiet, make_corpus, make_documents, make_request, make_target

from specbench import checkpoint
from specbench.bench.request import Setting
from specbench.errors import CheckFailed, EnvironmentFailed, UsageError
from specbench.store.training import read_training
from specbench.training import TrainRequest, train
from specbench.training.corpus import Corpus


def _only_run(store: Path) -> Path:
    [folder] = (store / "runs").iterdir()
    return folder


def test_a_loss_that_is_no_number_stops_names_the_documents_and_keeps_the_last_good_state(
    target: Path, tmp_path: Path
) -> None:
    request = make_request(target, tmp_path, options={"explode_at": 8}, eval_every=4)
    with pytest.raises(CheckFailed, match="not a number at step 8") as caught:
        train(request, Quiet(), corpus=make_corpus())
    assert caught.value.exit_code == 1
    assert caught.value.where.startswith("documents ") and any(letter.isdigit() for letter in caught.value.where)
    folder = _only_run(tmp_path)
    found = read_training(folder)
    assert found.state == "failed" and "not a number" in found.message and found.steps[-1].step == 7
    assert [each.name for each in (folder / "state").iterdir()] == ["00000004"]
    assert checkpoint.load(folder / "best", method="shallow").training["steps"] == 4


def test_a_full_disk_leaves_the_checkpoint_before_it(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second state fails half-written: the first one stays, and the training can go on from it."""
    from specbench.training import state

    real, calls = state.save_file, []

    def _full(tensors: Any, file: Path, **more: Any) -> None:
        calls.append(file)
        if len(calls) > 3:  # three files a state
            file.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(tensors, file, **more)

    monkeypatch.setattr(state, "save_file", _full)
    with pytest.raises(EnvironmentFailed, match="No space left") as caught:
        train(make_request(target, tmp_path), Quiet(), corpus=make_corpus())
    assert caught.value.exit_code == 3
    folder = _only_run(tmp_path)
    assert [each.name for each in (folder / "state").iterdir()] == ["00000004"]
    monkeypatch.setattr(state, "save_file", real)
    request = TrainRequest(resume=folder.name, store=tmp_path, methods_dirs=(METHODS,))
    assert train(request, Quiet(), corpus=make_corpus()).state == "finished"


class _Limiting(Quiet):
    """From step 5 on no file may grow beyond 200 kB: a state's 524 kB of weights meet a real refusal of the system."""

    def step(self, *, step: int, share: float, loss: float, tokens_per_s: float, eta_s: float | None) -> None:
        if step == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_a_write_that_the_system_refuses_leaves_the_checkpoint_before_it(target: Path, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(EnvironmentFailed, match="cannot be written"):
            train(make_request(target, tmp_path, eval_every=12), _Limiting(), corpus=make_corpus())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    folder = _only_run(tmp_path)
    assert [each.name for each in (folder / "state").iterdir()] == ["00000004"]
    assert read_training(folder).state == "failed"


def test_a_full_disk_while_exporting_leaves_the_drafter_that_was_there(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "drafter"
    first = train(make_request(target, tmp_path / "a", out=out, max_steps=2), Quiet(), corpus=make_corpus())
    before = checkpoint.load(out, method="shallow").weights_hash
    assert first.folder == out
    real = checkpoint.save_file

    def _full(tensors: Any, file: Path, **more: Any) -> None:
        if file.parent.name.startswith(".drafter"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(tensors, file, **more)

    monkeypatch.setattr(checkpoint, "save_file", _full)
    with pytest.raises(EnvironmentFailed, match="No space left"):
        train(make_request(target, tmp_path / "b", out=out, max_steps=3), Quiet(), corpus=make_corpus())
    assert checkpoint.load(out, method="shallow").weights_hash == before


def test_nothing_to_learn_behind_the_masks_is_an_error(target: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="every one is masked") as caught:
        train(make_request(target, tmp_path), Quiet(), corpus=make_corpus(masked=True))
    assert "--no-assistant-only" in caught.value.try_


def test_an_empty_part_is_an_error(target: Path, tmp_path: Path) -> None:
    corpus = Corpus(name="memory", train=make_documents(4), held_out=make_documents(4).take([]))
    with pytest.raises(UsageError, match="no held-out document is left"):
        train(make_request(target, tmp_path), Quiet(), corpus=corpus)


def test_documents_of_another_vocabulary_are_refused(tmp_path: Path) -> None:
    small = make_target(tmp_path / "small", vocab_size=32)
    with pytest.raises(UsageError, match=r"but .* has a vocabulary of 32"):
        train(make_request(small, tmp_path), Quiet(), corpus=make_corpus())


@pytest.mark.parametrize(("changed", "named"), [({"hidden_size": 32}, "width 16"), ({"vocab_size": 64}, "4096")])
def test_a_drafter_of_another_targets_shape_is_refused(
    target: Path, tmp_path: Path, changed: dict[str, int], named: str
) -> None:
    """As the start of a training and in `specbench eval`."""
    from specbench.training.measure import evaluate

    drafter = train(make_request(target, tmp_path, max_steps=1), Quiet(), corpus=make_corpus()).folder
    other = make_target(tmp_path / "other", **changed)
    request = make_request(other, tmp_path, options={"weights": str(drafter)})
    with pytest.raises(UsageError, match=named):
        train(request, Quiet(), corpus=make_corpus())
    with pytest.raises(UsageError, match=named):
        evaluate(request, Quiet(), documents=make_documents(4))


def test_a_drafter_of_another_method_is_refused(target: Path, tmp_path: Path) -> None:
    from specbench.training.measure import evaluate

    drafter = train(make_request(target, tmp_path, max_steps=1), Quiet(), corpus=make_corpus()).folder
    assert drafter is not None
    config = json.loads((drafter / "config.json").read_text())
    (drafter / "config.json").write_text(json.dumps({**config, "method": "lstm"}))
    request = make_request(target, tmp_path, options={"weights": str(drafter)})
    with pytest.raises(UsageError, match="is of method 'lstm', not 'shallow'"):
        evaluate(request, Quiet(), documents=make_documents(4))


def test_training_starts_from_a_finished_drafters_weights(target: Path, tmp_path: Path) -> None:
    first = train(make_request(target, tmp_path, max_steps=8), Quiet(), corpus=make_corpus())
    again, anew = Quiet(), Quiet()
    options = {"weights": str(first.folder)}
    train(make_request(target, tmp_path, max_steps=1, options=options), again, corpus=make_corpus())
    train(make_request(target, tmp_path, max_steps=1), anew, corpus=make_corpus())
    assert again.losses[0] < 0.9 * anew.losses[0]


def test_a_folder_that_is_no_drafter_is_not_replaced(target: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("precious")
    with pytest.raises(UsageError, match="no drafter"):
        train(make_request(target, tmp_path, out=tmp_path / "thesis"), Quiet(), corpus=make_corpus())


def test_the_states_of_a_data_set_that_the_disk_cannot_hold_are_not_begun(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(EnvironmentFailed, match="but the disk has"):
        train(make_request(target, tmp_path, cache_states=True), Quiet(), corpus=make_corpus())


def test_a_tracker_that_is_not_installed_names_the_command(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFailed, match="--report-to wandb") as caught:
        train(make_request(target, tmp_path, report_to=("wandb",)), Quiet(), corpus=make_corpus())
    assert caught.value.try_ == "pip install wandb"


@pytest.mark.parametrize(
    ("changed", "what", "remedy"),
    [
        ({"method": "shalow"}, "unknown method", "shallow"),
        ({"method": "prompt_lookup"}, "is not trained", "shallow"),
        ({"settings": (Setting("shallow", "deptj", "2"),)}, "unknown option 'deptj'", "depth"),
        ({"settings": (Setting("shallow", "depth", "99"),)}, "above the maximum", "methods show"),
        ({"settings": (Setting("lstm", "depth", "2"),)}, "is not the method", "--method lstm"),
        ({"learn": "kdd"}, "not a choice of --learn", "kd"),
        ({"loss": "kl"}, "not a choice of --loss", "kd"),
        ({"report_to": ("tensorbord",)}, "not a choice of --report-to", "tensorboard"),
        ({"lr": 0.0}, "out of range", "--lr"),
        ({"beta1": 1.0}, "out of range", "--beta1"),
        ({"depth_decay": 1.5}, "out of range", "--depth-decay"),
        ({"warmup": float("nan")}, "out of range", "--warmup"),
        ({"teacher_top_k": 16, "learn": "kd"}, "without it laws are made whole", "--cache-states --teacher-top-k 16"),
        ({"teacher_top_k": 16, "cache_states": True}, "--learn gt with --loss ce reads none", "--learn kd"),
    ],
)
def test_wrong_names_and_numbers_are_refused_before_anything_is_loaded(
    tmp_path: Path, changed: dict[str, Any], what: str, remedy: str
) -> None:
    with pytest.raises(UsageError, match=what) as caught:
        train(make_request(tmp_path / "no-such-model", tmp_path, **changed), Quiet(), corpus=make_corpus())
    assert remedy in str(caught.value)


def test_a_measurement_is_not_resumed_as_a_training(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "measured"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(UsageError, match="is a measurement") as caught:
        train(TrainRequest(resume="measured", store=tmp_path), Quiet())
    assert "specbench run --resume measured" in caught.value.try_


def test_a_second_control_c_breaks_off_at_once(target: Path, tmp_path: Path) -> None:
    class _Impatient(Quiet):
        def step(self, *, step: int, share: float, loss: float, tokens_per_s: float, eta_s: float | None) -> None:
            if step == 6:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)

    outcome = train(make_request(target, tmp_path), _Impatient(), corpus=make_corpus())
    assert outcome.state == "interrupted"
    assert [each.name for each in (_only_run(tmp_path) / "state").iterdir()] == ["00000004"]
