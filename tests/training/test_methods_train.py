"""Every shipped recipe through the runner: what the recipes' own tests, which run no runner, cannot see."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training.small import VOCAB, Quiet, make_corpus, make_request

from specbench import checkpoint
from specbench.bench.request import Setting
from specbench.training import train

TRIMMED = {
    "redrafter": {"head": "target", "vocabulary": "12", "depth": "2", "num_layers": "1"},
    "lstm": {"head": "target", "embedding": "target", "vocabulary": "12", "num_heads": "2"},
    "ctc": {"head": "target", "vocabulary": "12", "labels": "2"},
}


@pytest.mark.parametrize("method", TRIMMED)
def test_a_trimmed_drafter_learns_the_words_that_its_data_uses_most(method: str, target: Path, tmp_path: Path) -> None:
    """The runner counts labels before the first step; without it a trimmed head could say nothing and lose nothing."""
    corpus, progress = make_corpus(), Quiet()
    request = make_request(target, tmp_path, learn="kd", max_steps=8, method=method)
    settings = tuple(Setting(method, name, value) for name, value in TRIMMED[method].items())
    outcome = train(replace(request, settings=settings, methods_dirs=()), progress, corpus=corpus)
    assert outcome.folder is not None
    assert progress.losses[-1] < progress.losses[0]
    state = checkpoint.load(outcome.folder, method=method).state
    [ids] = [tensor for name, tensor in state.items() if name.endswith("vocabulary.ids")]
    counts = corpus.train.pack(48, seed=0).label_counts(VOCAB)
    least = counts[ids].sort().values[2]  # stop ids are always among them, however rare
    missing = torch.ones(VOCAB, dtype=torch.bool)
    missing[ids] = False
    assert len(ids) == 12 and int(counts[missing].max()) <= int(least)


def test_a_part_of_the_anchors_is_the_same_part_however_a_batch_is_cut(target: Path, tmp_path: Path) -> None:
    options = {**TRIMMED["ctc"], "anchors": "3", "lambda_text": "0.5", "first_frame": "anchor"}
    settings = tuple(Setting("ctc", name, value) for name, value in options.items())
    losses = []
    for micro_batch in (4, 3):
        progress = Quiet()
        request = make_request(target, tmp_path, max_steps=3, method="ctc", micro_batch=micro_batch, lr=1e-3)
        train(replace(request, settings=settings, methods_dirs=()), progress, corpus=make_corpus())
        losses.append(progress.losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_noise_of_the_released_form_is_the_same_however_a_batch_is_cut(target: Path, tmp_path: Path) -> None:
    """Micro-batches are memory alone. Without the noise, which is ten times its default here, losses differ."""
    losses = []
    for micro_batch, noise in ((4, "2"), (3, "2"), (1, "2"), (4, "0")):
        progress = Quiet()
        request = make_request(target, tmp_path, max_steps=3, method="ctc", micro_batch=micro_batch, lr=1e-3)
        settings = (Setting("ctc", "form", "eagle"), Setting("ctc", "noise", noise))
        train(replace(request, settings=settings, methods_dirs=()), progress, corpus=make_corpus())
        losses.append(progress.losses)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5) and losses[2] == pytest.approx(losses[0], rel=1e-5)
    assert losses[3] != pytest.approx(losses[0], rel=1e-3)


@pytest.mark.parametrize(
    ("method", "form"), [*((name, None) for name in TRIMMED), ("ctc", "eagle")], ids=lambda value: value or ""
)
@pytest.mark.parametrize("loss", ["ce", "kd", "lk"])
def test_every_loss_learns_in_half_precision(
    method: str, form: str | None, loss: str, target: Path, tmp_path: Path
) -> None:
    corpus, progress = make_corpus(), Quiet()
    request = make_request(target, tmp_path, learn="kd", max_steps=6, method=method, precision="bf16", loss=loss)
    settings = tuple(Setting(method, name, value) for name, value in TRIMMED[method].items())
    if form is not None:
        settings = (*settings, Setting(method, "form", form))
    outcome = train(replace(request, settings=settings, methods_dirs=()), progress, corpus=corpus)
    assert outcome.folder is not None and all(math.isfinite(each) for each in progress.losses)
    if loss != "lk":  # which wanders in so few steps, in float32 as well
        assert progress.losses[-1] < progress.losses[0]
    state = checkpoint.load(outcome.folder, method=method).state
    assert {tensor.dtype for tensor in state.values() if tensor.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("form", ["nar", "eagle"])
def test_a_target_in_half_precision_is_learnt_from_and_every_evaluation_drafts_over_it(
    form: str, target: Path, tmp_path: Path
) -> None:
    """The drafter's live weights are float32, what it reads of the target is not."""
    request = make_request(target, tmp_path, learn="kd", max_steps=2, eval_every=1, method="ctc", dtype="bfloat16")
    settings = tuple(Setting("ctc", name, value) for name, value in {**TRIMMED["ctc"], "form": form}.items())
    outcome = train(replace(request, settings=settings, methods_dirs=()), Quiet(), corpus=make_corpus())
    assert outcome.state == "finished" and outcome.best["tau"] >= 1
