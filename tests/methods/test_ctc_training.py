"""The CTC drafter learns: every parameter, every loss, the right shift, one batch to near nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.ctc.eagle_recipe import EagleRecipe
from methods.ctc.nar_recipe import NarRecipe
from specbench.errors import UsageError
from specbench.lm.cached_lm import CachedLM
from specbench.losses import LossName, Objective
from specbench.recipe import Features, Loss
from tests.helpers import tiny_lm
from tests.methods.ctc_features import features_of, recipe_of, small_lm, texts, view_of

FORMS: dict[str, dict[str, Any]] = {
    "nar": {},
    "nar, frames see each other, prefixes weighed": {"causal_frames": False, "prefix_weighted": True},
    "nar, linear": {"module": "linear"},
    "nar, own head, no bias": {"head": "own", "fc_bias": False},
    "nar, trimmed": {"vocabulary": 20},
    "nar, regression": {"lambda_reg": 0.5},
    "nar, ce": {"loss": "ce"},
    "nar, text": {"lambda_text": 1.0, "first_frame": "anchor"},
    "nar, ce, text": {"loss": "ce", "lambda_text": 0.5, "first_frame": "anchor"},
    "nar, ce, linear": {"loss": "ce", "module": "linear"},
    "eagle": {"form": "eagle", "labels": 2},
    "eagle, linear": {"form": "eagle", "module": "linear", "lambda_ctc": 0.0},
    "eagle, trimmed": {"form": "eagle", "vocabulary": 20, "labels": 1},
}


@pytest.fixture(scope="module")
def lm() -> CachedLM:
    return small_lm()


@pytest.fixture(scope="module")
def features(lm: CachedLM) -> Features:
    return features_of(lm, *texts())


def _ready(lm: CachedLM, features: Features, **changed: Any) -> NarRecipe | EagleRecipe:
    recipe = recipe_of(view_of(lm), **changed)
    recipe.see_labels(torch.bincount(features.tokens_BT.flatten(), minlength=lm.vocab_size))
    assert isinstance(recipe, NarRecipe | EagleRecipe)
    return recipe


@pytest.mark.parametrize("loss", ["ce", "kd", "tv", "lk"])
@pytest.mark.parametrize("form", FORMS)
def test_every_parameter_receives_gradient_under_every_loss(
    lm: CachedLM, features: Features, form: str, loss: LossName
) -> None:
    recipe = _ready(lm, features, **FORMS[form])
    found = recipe.loss(features, Objective(loss=loss, chunk=48, depth_decay=0.8))
    found.total.backward()
    idle = [name for name, each in recipe.module.named_parameters() if each.grad is None or not bool(each.grad.any())]
    assert idle == []
    assert all(bool(each.grad.isfinite().all()) for each in recipe.module.parameters() if each.grad is not None)
    assert int(found.num_anchors) > 0
    assert found.counts.num_n.shape == (recipe.depth,)
    assert all(not part.requires_grad for part in found.parts.values())


@pytest.mark.parametrize("form", ["nar", "nar, linear", "nar, ce", "eagle"])
@pytest.mark.parametrize("loss", ["ce", "kd"])
def test_the_cut_into_chunks_changes_nothing(lm: CachedLM, features: Features, form: str, loss: LossName) -> None:
    recipe = _ready(lm, features, **FORMS[form])
    recipe.module.eval()
    whole, cut = (recipe.loss(features, Objective(loss=loss, chunk=chunk)) for chunk in (4096, 9))
    torch.testing.assert_close(whole.total, cut.total, rtol=1e-12, atol=0)
    assert all(bool((a == b).all()) for a, b in zip(whole.counts[2:], cut.counts[2:], strict=True))


def _of_row(features: Features, row: int) -> Features:
    at = slice(row, row + 1)
    return Features(
        tokens_BT=features.tokens_BT[at],
        document_BT=features.document_BT[at],
        learn_BT=features.learn_BT[at],
        states_BTKD=features.states_BTKD[at],
    )


@pytest.mark.parametrize("form", ["nar", "nar, ce", "nar, text", "eagle"])
def test_a_batch_is_the_sum_of_its_rows(lm: CachedLM, features: Features, form: str) -> None:
    recipe = _ready(lm, features, **FORMS[form])
    recipe.module.eval()
    objective = Objective(loss="ce")
    parts = [recipe.loss(_of_row(features, row), objective) for row in range(2)]
    whole = recipe.loss(features, objective)
    torch.testing.assert_close(whole.total, parts[0].total + parts[1].total, rtol=1e-12, atol=0)
    assert int(whole.num_anchors) == sum(int(part.num_anchors) for part in parts)


@pytest.mark.parametrize("form", ["nar", "nar, ce, text", "eagle"])
def test_documents_of_a_row_do_not_see_each_other(lm: CachedLM, form: str) -> None:
    """Two documents packed give what they give alone."""
    tokens_BT, document_BT, learn_BT = texts(4, rows=1, tokens=24)
    document_BT = torch.where(torch.arange(24)[None] < 12, 0, 1)
    learn_BT[:] = True
    whole = features_of(lm, tokens_BT, document_BT, learn_BT)
    recipe = _ready(lm, whole, **FORMS[form])
    recipe.module.eval()
    apart = torch.zeros(1, 12, dtype=torch.long)
    losses = [
        recipe.loss(features_of(lm, half, apart, learn_BT[:, :12]), Objective(loss="ce")).total
        for half in (tokens_BT[:, :12], tokens_BT[:, 12:])
    ]
    packed = recipe.loss(whole, Objective(loss="ce")).total
    torch.testing.assert_close(packed, losses[0] + losses[1], rtol=1e-9, atol=0)


def _train(recipe: NarRecipe | EagleRecipe, features: Features, *, steps: int, rate: float, loss: LossName) -> Loss:
    optimiser = torch.optim.Adam(recipe.module.parameters(), lr=rate)
    for _ in range(steps):
        found = recipe.loss(features, Objective(loss=loss))
        optimiser.zero_grad()
        (found.total / found.num_anchors).backward()
        optimiser.step()
    return recipe.loss(features, Objective(loss=loss))


@pytest.mark.parametrize(
    ("form", "bound"),
    [("nar", 0.2), ("nar, ce, linear", 0.2), ("eagle", 0.2)],
)
def test_one_batch_is_learnt_by_heart(lm: CachedLM, form: str, bound: float) -> None:
    features = features_of(lm, *texts(1, rows=1))
    changed = {"lambda_reg": 0.0, "lambda_soft": 1.0, "lambda_ctc": 0.0, "noise": 0.0} if form == "eagle" else {}
    recipe = _ready(lm, features, **{"labels": 2, **FORMS[form], **changed})
    found = _train(recipe, features, steps=100, rate=1e-2, loss="ce")
    assert float(found.total.detach() / found.num_anchors) < bound
    assert bool((found.counts.right_n == found.counts.whole_n).all())


def _interleaved(pairs: list[tuple[int, int]]) -> Features:
    """Texts a, b, a + 1, b + 1, a + 2, ... modulo 8 whose state h_t says x_t and nothing else. From an anchor the first
    label is x_t + 1, known from its state alone, the second is the root + 1: any shift makes one of them a guess."""
    steps = torch.arange(6)
    tokens_BT = torch.stack([torch.stack([(a + steps) % 8, (b + steps) % 8], 1).flatten() for a, b in pairs])
    codes = torch.randn(8, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Features(
        tokens_BT=tokens_BT,
        document_BT=torch.zeros_like(tokens_BT),
        learn_BT=torch.ones_like(tokens_BT, dtype=torch.bool),
        states_BTKD=codes[tokens_BT][:, :, None],
    )


@pytest.mark.parametrize("form", ["nar, linear", "nar, ce", "eagle, linear"])
def test_depth_i_is_asked_for_the_token_i_places_behind_the_root(form: str) -> None:
    """Judged on pairs that were not learnt from."""
    lm = tiny_lm("llama", scale=30.0)  # embeddings and head of the states' size
    pairs = [(a, b) for a in range(8) for b in range(8)]
    unseen = [(a, (3 * a + 1) % 8) for a in range(8)]
    features = _interleaved([pair for pair in pairs if pair not in unseen])
    changed = {"lambda_reg": 0.0, "lambda_soft": 1.0, "noise": 0.0, "labels": 2}
    recipe = _ready(lm, features, **{**FORMS[form], **changed})
    _train(recipe, features, steps=40, rate=1e-2, loss="ce")
    counts = recipe.loss(_interleaved(unseen), Objective(loss="ce")).counts
    share = counts.correct_nR[:, 0] / counts.num_n
    assert bool((share > 0.7).all()), share


@pytest.mark.parametrize("form", ["nar", "nar, ce"])
def test_kd_pulls_towards_the_law_after_the_same_token_as_the_label(lm: CachedLM, form: str) -> None:
    """A teacher that is sure of the label of its own place: kd is then cross-entropy. A shifted index would differ."""
    features = features_of(lm, *texts(2))
    flat = features.tokens_BT.flatten().roll(-1)

    class Sure:
        def law(self, index_N: Tensor) -> Any:
            from specbench.losses import whole_law

            return whole_law(1000.0 * torch.nn.functional.one_hot(flat[index_N], 64).double())

    sure = Features(
        tokens_BT=features.tokens_BT,
        document_BT=features.document_BT,
        learn_BT=features.learn_BT,
        states_BTKD=features.states_BTKD,
        teacher=Sure(),
    )
    recipe = _ready(lm, features, **FORMS[form], lambda_first=0.0)
    found = recipe.loss(sure, Objective(loss="kd"))
    torch.testing.assert_close(found.total.detach(), found.counts.loss_n.sum(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", ["nar", "nar, linear", "nar, ce"])
def test_frames_learn_from_the_targets_own_continuations(lm: CachedLM, form: str) -> None:
    features = features_of(lm, *texts(3, rows=1), seq=5)
    recipe = _ready(lm, features, **FORMS[form])
    for loss in ("ce", "kd"):
        found = recipe.loss(features, Objective(loss=loss))
        assert bool(found.total.isfinite())
        assert int(found.counts.num_n[0]) == int(found.num_anchors)


def test_the_first_frame_as_the_anchor_says_what_the_layer_says_of_the_text(lm: CachedLM, features: Features) -> None:
    """So the loss of the text's own positions is, anchor by anchor, the loss of frame 1."""
    recipe = _ready(lm, features, loss="ce", labels=2, lambda_text=1.0, first_frame="anchor")
    found = recipe.loss(features, Objective(loss="ce"))
    assert isinstance(recipe, NarRecipe)
    torch.testing.assert_close(found.parts["text"], found.counts.loss_n[0].to(found.parts["text"].dtype))


def test_anchors_can_be_a_random_part_of_each_row_and_an_evaluation_looks_at_all(
    lm: CachedLM, features: Features
) -> None:
    recipe = _ready(lm, features, anchors=5)
    assert int(recipe.loss(features, Objective(loss="ce")).num_anchors) == 2 * 5
    every = _ready(lm, features).loss(features, Objective(loss="ce"))
    recipe.module.eval()
    looked = recipe.loss(features, Objective(loss="ce"))
    assert torch.equal(looked.total, every.total) and int(looked.num_anchors) == int(every.num_anchors) > 2 * 5


def test_how_a_batch_is_cut_decides_nothing_of_which_anchors_are_learnt(lm: CachedLM, features: Features) -> None:
    recipe = _ready(lm, features, anchors=4, lambda_text=1.0, first_frame="anchor")
    losses = []
    for keys in ([11, 12], [13, 14]):
        whole = replace(features, keys_B=torch.tensor(keys))
        one, other = (
            replace(
                features_of(lm, *(each[row : row + 1, :width] for each in texts())), keys_B=torch.tensor(keys[row:][:1])
            )
            # The first row ends in padding, which a batch of its own is not given.
            for row, width in ((0, 18), (1, 20))
        )
        total, first, second = (recipe.loss(each, Objective(loss="kd")).total.detach() for each in (whole, one, other))
        torch.testing.assert_close(first + second, total, rtol=1e-9, atol=1e-9)
        losses.append(float(total))
    assert losses[0] != losses[1], "another step draws others"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"loss": "ce", "frames": 8}, "frame i is asked for label i"),
        ({"loss": "ce", "prefix_weighted": True}, "prefix_weighted"),
        ({"form": "eagle", "loss": "ce"}, "ablation of form nar"),
        ({"form": "eagle", "head": "own"}, "target's head"),
        ({"form": "eagle", "lambda_text": 1.0}, "eagle learns from nothing else"),
        ({"module": "linear", "first_frame": "anchor"}, "none of them is the anchor's own output"),
        ({"frames": 2}, "2 frames cannot say 4 labels"),
        ({"form": "eagle", "frames": 2}, "2 frames cannot say 4 labels"),
        ({"form": "eagle", "lambda_reg": 0.0, "lambda_soft": 0.0}, "nothing would be learnt"),
        ({"vocabulary": 1}, "no room"),
        ({"heads": 5}, "do not divide"),
    ],
    ids=str,
)
def test_options_that_contradict_each_other_are_refused(lm: CachedLM, changed: dict[str, Any], said: str) -> None:
    target = view_of(lm)
    if "vocabulary" in changed:
        target = replace(target, stop_ids=(3, 4))
    with pytest.raises(UsageError, match=said):
        recipe_of(target, **changed)


def test_continuations_are_refused_where_next_states_are_learnt(lm: CachedLM) -> None:
    features = features_of(lm, *texts(3, rows=1), seq=5)
    for changed in ({"form": "eagle"}, {"lambda_text": 1.0}, {"lambda_reg": 1.0}):
        with pytest.raises(UsageError, match="continuations"):
            _ready(lm, features, **changed).loss(features, Objective(loss="ce"))
