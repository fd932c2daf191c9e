"""Held-out figures mean one thing, however many words a drafter can say: what it cannot say is a miss."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from specbench import registry
from specbench.lm.cached_lm import CachedLM
from specbench.losses import DepthCounts, LossName, Objective
from specbench.recipe import Features, windows
from specbench.training.evaluate import figures
from tests.helpers import VOCAB
from tests.methods.ctc_features import features_of, small_lm, texts, view_of

WORDS = 16
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "redrafter": ("redrafter", {"depth": 3}),
    "lstm": ("lstm", {"num_heads": 3}),
    "ctc, nar": ("ctc", {"labels": 3}),
    "ctc, nar, as few frames as labels": ("ctc", {"labels": 3, "frames": 3}),
    "ctc, nar, ce": ("ctc", {"labels": 3, "loss": "ce"}),
    "ctc, eagle": ("ctc", {"form": "eagle"}),
}


@pytest.fixture(scope="module")
def lm() -> CachedLM:
    return small_lm()


@pytest.fixture(scope="module")
def features(lm: CachedLM) -> Features:
    """Labels that follow themselves, labels that cannot be said, and windows that end early are all among them."""
    tokens_BT, document_BT, learn_BT = texts(5, rows=3, tokens=60)
    tokens_BT[:, ::4] = tokens_BT[:, 1::4]
    return features_of(lm, tokens_BT, document_BT, learn_BT)


def _counts(lm: CachedLM, features: Features, kind: str, *, vocabulary: int, loss: LossName = "ce") -> DepthCounts:
    method, changed = KINDS[kind]
    options = {name: option.default for name, option in registry.card(method).training.items()}
    options |= {**changed, "vocabulary": vocabulary, "only_generated": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        recipe = registry.load_recipe(method)(options, view_of(lm))
    recipe.see_labels(_label_counts(features))
    recipe.module.double().eval()
    with torch.no_grad():
        return recipe.loss(features, Objective(loss=loss)).counts


def _label_counts(features: Features) -> torch.Tensor:
    return torch.bincount(features.tokens_BT.flatten(), minlength=VOCAB)


def _most_frequent(features: Features) -> set[int]:
    """Of equally frequent ids the lower."""
    counts = _label_counts(features).tolist()
    return set(sorted(range(VOCAB), key=lambda token: (-counts[token], token))[:WORDS])


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_labels_and_anchors_are_counted_whatever_can_be_said(
    lm: CachedLM, features: Features, kind: str
) -> None:
    every, trimmed = (_counts(lm, features, kind, vocabulary=number) for number in (0, WORDS))
    assert torch.equal(trimmed.num_n, every.num_n) and torch.equal(trimmed.whole_n, every.whole_n)
    assert int(trimmed.said_n[0]) < int(every.num_n[0]), "some labels cannot be said"
    assert bool((trimmed.correct_nR[:, -1] <= trimmed.said_n).all())


def test_every_method_counts_the_same_anchors(lm: CachedLM, features: Features) -> None:
    """Where the first label may be learnt; the others stop at the first that may not, frames without a blank do not."""
    counts = {kind: _counts(lm, features, kind, vocabulary=WORDS) for kind in KINDS}
    whole = {kind: found.whole_n.tolist() for kind, found in counts.items()}
    for kind, found in whole.items():
        assert found == whole["redrafter"][: len(found)], kind
    assert {tuple(found.said_n[:1].tolist()) for found in counts.values()} == {(int(counts["lstm"].said_n[0]),)}


@pytest.mark.parametrize("loss", ["ce", "kd", "tv"])
@pytest.mark.parametrize("kind", ["redrafter", "lstm", "ctc, eagle", "ctc, nar, ce"])
def test_what_can_be_said_is_counted_label_by_label(
    lm: CachedLM, features: Features, kind: str, loss: LossName
) -> None:
    counts = _counts(lm, features, kind, vocabulary=WORDS, loss=loss)
    depth = len(counts.num_n)
    found = windows(features, depth=depth)
    words = _most_frequent(features)
    for at in range(depth):
        labels = [
            token
            for token, valid in zip(found.ahead_AF[:, at + 1].tolist(), found.valid_AF[:, at + 1].tolist(), strict=True)
            if valid
        ]
        assert int(counts.num_n[at]) == len(labels)
        assert int(counts.said_n[at]) == sum(token in words for token in labels)


def test_the_loss_is_divided_by_what_can_be_said_and_the_share_is_told() -> None:
    counts = DepthCounts(
        num_n=torch.tensor([10, 8]),
        loss_n=torch.tensor([16.0, 4.0], dtype=torch.float64),
        correct_nR=torch.tensor([[5, 6], [2, 4]]),
        whole_n=torch.tensor([10, 8]),
        right_n=torch.tensor([5, 2]),
        said_n=torch.tensor([8, 4]),
    )
    found = figures(counts, None)
    assert found.depth_loss == (2.0, 1.0)
    assert found.accuracy == ((0.5, 0.6), (0.25, 0.5)) and found.chain == 0.75
    # What a journal holds: its readers divide by the number of labels.
    assert found.summed_loss == (20.0, 8.0) and found.loss == 28 / 18
    assert "66.7 % of the labels can be said" in found.unsaid
    whole = figures(counts._replace(said_n=counts.num_n), None)
    assert whole.summed_loss == (16.0, 4.0) and whole.loss == 20 / 18 and whole.unsaid == ""
