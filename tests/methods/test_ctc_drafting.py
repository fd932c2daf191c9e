"""The CTC drafter at work: its cache is the whole text read anew, its files draft what its live weights draft, and the
text stays the target's through repeats and id 0."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.ctc.context import FeatureCache
from methods.ctc.drafter import build
from methods.ctc.eagle_drafter import EagleDrafter
from methods.ctc.eagle_recipe import EagleRecipe
from methods.ctc.frame_attention import frames_of_anchors
from methods.ctc.module import CtcNetwork
from methods.ctc.nar_drafter import NarDrafter
from methods.hybrid import drafter as hybrid
from specbench import checkpoint, registry
from specbench.conformance.check import check_method
from specbench.conformance.targets import TableLM
from specbench.conformance.watch import PlainDrafter, Watched
from specbench.engine.decode import Engine
from specbench.errors import UsageError
from specbench.method import TargetView
from specbench.recipe import Features, Recipe
from specbench.sampling import Sampling
from tests.helpers import VOCAB, requests_for
from tests.methods.ctc_features import Walk, drafting, recipe_of, small_lm, view_of


def _frames_anew(network: CtcNetwork, view: TargetView, tokens: Tensor, states: Tensor) -> Tensor:
    """Frame states (U, D) of a whole text by the training pass: the last token is the root."""
    z_TD = network.features(view.embed_tokens(tokens[1:]), states)
    if network.layer is None:
        return network.mapped(z_TD[-1])
    last = torch.tensor([z_TD.shape[0] - 1])
    return frames_of_anchors(network, z_TD[-1:], last, z_TD[None], torch.zeros(1, z_TD.shape[0], dtype=torch.long))[0]


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"causal_frames": False},
        {"module": "linear"},
        {"kv_heads": 4, "heads": 4},
        {"heads": 2},
        {"first_frame": "anchor"},
        {"first_frame": "anchor", "causal_frames": False},
    ],
    ids=str,
)
@torch.no_grad()
def test_frames_from_the_cache_are_those_of_the_whole_text_read_anew(changed: dict[str, Any]) -> None:
    view = view_of(small_lm())
    recipe = recipe_of(view, **changed)
    network = recipe.module
    assert isinstance(network, CtcNetwork)
    drafter = recipe.drafter(view, drafting())
    assert isinstance(drafter, NarDrafter)
    walk = Walk(drafter, [7, 1, 12])
    for step in range(6):
        found = drafter.frame_logits()
        for row, (tokens, states) in enumerate(zip(walk.tokens, walk.states, strict=True)):
            wanted = network.logits(_frames_anew(network, view, tokens, states), network.borrowed_head(view))
            torch.testing.assert_close(found[row], wanted, rtol=1e-9, atol=1e-9)
        drafter.draft(None)
        walk.commit(4)
        if step == 3:
            walk.keep([0, 2])


@pytest.mark.parametrize("changed", [{}, {"module": "linear"}, {"kv_heads": 1}], ids=str)
@torch.no_grad()
def test_eagles_first_law_from_the_cache_is_that_of_the_training_pass(changed: dict[str, Any]) -> None:
    view = view_of(small_lm())
    recipe = recipe_of(view, form="eagle", **changed)
    assert isinstance(recipe, EagleRecipe)
    recipe.module.eval()
    drafter = recipe.drafter(view, drafting())
    assert isinstance(drafter, EagleDrafter)
    walk = Walk(drafter, [5, 9])
    for step in range(5):
        for row, (tokens, states) in enumerate(zip(walk.tokens, walk.states, strict=True)):
            whole = Features(
                tokens_BT=tokens[None],
                document_BT=torch.zeros_like(tokens)[None],
                learn_BT=torch.ones_like(tokens, dtype=torch.bool)[None],
                states_BTKD=torch.cat([states, states[:1]])[None, :, None],
            )
            wanted = recipe._states(whole)[0, len(states) - 1]
            torch.testing.assert_close(drafter._first_state()[row], wanted, rtol=1e-9, atol=1e-9)
        drafter.draft(None)
        walk.commit(5)
        if step == 2:
            walk.keep([1])


def _saved(recipe: Recipe, view: TargetView, folder: Path) -> Path:
    checkpoint.save(
        folder,
        checkpoint.Checkpoint(
            method="ctc",
            architecture=recipe.architecture,
            target=checkpoint.trained_on(view, weights_hash="abc"),
            state=recipe.module.state_dict(),
        ),
    )
    return folder


@pytest.mark.parametrize(
    "changed",
    [{}, {"loss": "ce"}, {"module": "linear"}, {"head": "own"}, {"form": "eagle"}, {"vocabulary": 20}],
    ids=str,
)
@torch.no_grad()
def test_saved_loaded_and_live_weights_draft_the_same(tmp_path: Path, changed: dict[str, Any]) -> None:
    view = view_of(small_lm())
    recipe = recipe_of(view, **changed)
    recipe.see_labels(torch.arange(VOCAB))
    folder = _saved(recipe, view, tmp_path / "drafter")
    loaded = build(drafting(weights=str(folder)), view)
    assert loaded.trained_on == "abc" and loaded.weights_hash
    trees = []
    for drafter in (recipe.drafter(view, drafting()), loaded):
        walk = Walk(drafter, [6, 3])
        walk.commit(3)
        trees.append(drafter.draft(None))
    assert torch.equal(trees[0].tokens_BN, trees[1].tokens_BN)
    assert torch.equal(trees[0].parents_BN, trees[1].parents_BN)
    if "vocabulary" in changed:
        assert bool((trees[0].tokens_BN >= VOCAB - 20).all())


def test_weights_for_another_width_are_refused(tmp_path: Path) -> None:
    view = view_of(small_lm())
    folder = _saved(recipe_of(view), view, tmp_path / "drafter")
    other = TableLM(torch.zeros(64, 64, dtype=torch.float64))
    with pytest.raises(UsageError, match="width 32"):
        build(drafting(weights=str(folder)), Engine(other, sampling=Sampling(), max_len=8).view())


@pytest.mark.parametrize("transform", ["off", "collapse"])
@pytest.mark.parametrize("form", ["nar", "eagle"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_texts_full_of_repeats_and_of_id_0_stay_the_targets(form: str, transform: str, temperature: float) -> None:
    """Every token follows itself as often as not, and 0 is one of them: what the released transform lost."""
    logits = 2.0 * torch.eye(6, dtype=torch.float64) + torch.randn(
        6, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64
    )
    logits[0, 0] = logits.max() + 1
    lm = TableLM(logits, name="stutter")
    engine = Engine(lm, sampling=Sampling(temperature=temperature), max_batch=3, max_len=64, max_nodes=8)
    requests = requests_for([(0, 0, 1, 0), (5, 5, 0, 0), (3,)], max_new_tokens=30)
    wanted = engine.generate(PlainDrafter(engine.view()), requests).generations
    recipe = recipe_of(engine.view(), form=form, labels=3)
    drafter = Watched(recipe.drafter(engine.view(), drafting(transform=transform)), vocab_size=6)
    found = engine.generate(drafter, requests).generations
    assert [each.tokens for each in found] == [each.tokens for each in wanted]
    assert any(a == b == 0 for each in wanted for a, b in zip(each.tokens, each.tokens[1:], strict=False))
    assert sum(step.num_accepted for each in found for step in each.steps) > 0


@torch.no_grad()
def test_a_blank_in_the_frames_is_never_proposed_though_it_is_the_likeliest() -> None:
    view = view_of(small_lm())
    recipe = recipe_of(view, blank_bias=50.0)
    drafter = recipe.drafter(view, drafting())
    Walk(drafter, [6, 3])
    tree = drafter.draft(None)
    assert bool((tree.tokens_BN < VOCAB).all())


def test_top_k_of_the_other_form_is_refused() -> None:
    view = view_of(small_lm())
    with pytest.raises(UsageError, match="prefix search"):
        recipe_of(view, form="eagle").drafter(view, drafting(top_k=4))


@pytest.mark.parametrize(
    ("training", "options"),
    [
        ({}, {}),
        ({"form": "eagle", "labels": 2}, {"transform": "collapse"}),
        pytest.param({"loss": "ce"}, {"beams": 1, "num_tokens": 3}, marks=pytest.mark.slow),
        pytest.param({"module": "linear", "vocabulary": 30}, {"top_k": 3, "branch": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_both_forms_keep_every_promise(training: dict[str, Any], options: dict[str, Any]) -> None:
    findings = check_method("ctc", options=options, training=training, quick=True)
    assert [finding for finding in findings if finding.state != "ok"] == []


@pytest.mark.parametrize("options", [{}, {"beams": 1}, {"beams": 3, "transform": "off"}], ids=str)
@pytest.mark.parametrize("form", ["nar", "eagle"])
@torch.no_grad()
def test_own_nan_is_told_and_forgotten_though_the_text_is_right(form: str, options: dict[str, Any]) -> None:
    engine = Engine(small_lm(), sampling=Sampling(), max_batch=2, max_len=60, max_nodes=30)
    recipe = recipe_of(engine.view(), form=form)
    drafter = Watched(recipe.drafter(engine.view(), drafting(**options)), vocab_size=VOCAB)
    weight = recipe.module.get_parameter("fc.weight")
    requests, long = (requests_for(prompts, max_new_tokens=6) for prompts in ([(1, 2, 3), (4, 5)], [(7,) * 30] * 2))
    wanted = engine.generate(drafter, requests)
    drafts = list(drafter.drafts)
    for num_new in (1, 6):
        kept = weight.clone()
        weight.fill_(float("nan"))
        poisoned = engine.generate(drafter, [replace(each, max_new_tokens=num_new) for each in long])
        weight.copy_(kept)
        assert wanted.is_draft_finite and not poisoned.is_draft_finite
        assert engine.generate(drafter, requests).is_draft_finite and drafter.drafts == drafts


def test_parameters_are_counted_without_the_targets() -> None:
    view = view_of(small_lm())
    recipe = recipe_of(view)
    assert recipe.drafter(view, drafting()).num_parameters() == sum(each.numel() for each in recipe.module.parameters())


# --- drafts on weights laid out anew ---------------------------------------------------------------------------------


@pytest.mark.parametrize("changed", [{}, {"kv_heads": 1}, {"fc_bias": False}, {"vocabulary": 20}], ids=str)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("options", [{"beams": 1}, {"beams": 3}, {"beams": 3, "transform": "collapse"}], ids=str)
@torch.no_grad()
def test_a_draft_on_laid_out_weights_is_that_of_the_layer(
    changed: dict[str, Any], options: dict[str, Any], rows: int
) -> None:
    view = view_of(small_lm())
    recipe = recipe_of(view, form="eagle", **changed)
    recipe.see_labels(torch.arange(VOCAB))
    recipe.module.eval()
    before = {name: tensor.clone() for name, tensor in recipe.module.state_dict().items()}
    drafters = [recipe.drafter(view, drafting(num_tokens=5, max_nodes=0, **options)) for _ in range(2)]
    plain, laid_out = drafters
    assert isinstance(plain, EagleDrafter) and isinstance(laid_out, EagleDrafter)
    laid_out.lay_out()
    assert laid_out._laid_out is not None
    walks = [Walk(each, [9, 5, 12][:rows]) for each in drafters]
    for step in range(6):
        torch.testing.assert_close(laid_out._first_state(), plain._first_state(), rtol=1e-9, atol=1e-9)
        found, wanted = laid_out.draft(None), plain.draft(None)
        if found.score_BN is not None and wanted.score_BN is not None:
            torch.testing.assert_close(found.score_BN, wanted.score_BN, rtol=1e-9, atol=1e-9)
        assert torch.equal(found.tokens_BN, wanted.tokens_BN)
        assert torch.equal(found.parents_BN, wanted.parents_BN)
        for walk in walks:
            walk.commit(4)
            if step == 3 and rows == 3:
                walk.keep([0, 2])
    assert all(torch.equal(before[name], tensor) for name, tensor in recipe.module.state_dict().items())


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=1.0, top_p=0.9, repetition_penalty=1.3)], ids=str
)
@pytest.mark.parametrize("beams", [1, 2])
def test_a_draft_on_laid_out_weights_has_as_much_accepted(sampling: Sampling, beams: int) -> None:
    lm = small_lm()
    engine = Engine(lm, sampling=sampling, max_batch=2, max_len=64, max_nodes=8)
    requests = requests_for([(4, 9, 1), (5, 5, 0, 0, 7)], max_new_tokens=30)
    recipe = recipe_of(engine.view(), form="eagle")
    results = []
    for is_laid_out in (False, True):
        drafter = recipe.drafter(engine.view(), drafting(beams=beams, num_tokens=4))
        assert isinstance(drafter, EagleDrafter)
        if is_laid_out:
            drafter.lay_out()
            assert drafter._laid_out is not None
        found = engine.generate(drafter, requests).generations
        results.append([(each.tokens, [step.num_accepted for step in each.steps]) for each in found])
    assert results[0] == results[1]


def test_a_network_without_a_layer_is_read_as_it_is() -> None:
    view = view_of(small_lm())
    drafter = recipe_of(view, form="eagle", module="linear").drafter(view, drafting(beams=1))
    assert isinstance(drafter, EagleDrafter)
    drafter.lay_out()
    assert drafter._laid_out is None


# --- behind another method's drafts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["nar", "eagle"])
def test_a_step_wider_than_the_room_behind_the_longest_row_is_followed(form: str) -> None:
    """The suffix draft of one row is many times as deep as a draft of ours, while another row's text is almost as long
    as the cache: its columns of that step are padding. 1, 2 and 3 follow each other for ever, and so do 4 to 15."""
    table = torch.zeros(16, 16, dtype=torch.float64)
    for cycle in ([1, 2, 3], list(range(4, 16))):
        for token, following in itertools.pairwise([*cycle, cycle[0]]):
            table[token, following] = 5.0
    engine = Engine(TableLM(table), sampling=Sampling(), max_batch=2, max_len=116, max_nodes=32)
    long = torch.randint(4, 16, (110,), generator=torch.Generator().manual_seed(2)).tolist()
    first, second = requests_for([tuple(long), (1, 2, 3) * 12], max_new_tokens=6)
    requests = [first, replace(second, max_new_tokens=70)]
    wanted = engine.generate(PlainDrafter(engine.view()), requests).generations
    inner = recipe_of(engine.view(), form=form).drafter(engine.view(), drafting(beams=1))
    options = registry.check_options(registry.card("hybrid"), {"max_tokens": 32, "max_spec_factor": 4.0})
    found = engine.generate(hybrid.build(options, engine.view(), inner), requests).generations
    assert [each.tokens for each in found] == [each.tokens for each in wanted]
    assert found[1].steps[0].num_accepted >= 24, "110 and 25 more are past the cache of either form"


def _cache_of(scratch: int) -> FeatureCache:
    """Of one row of at most 20 tokens: 20 + 2 * scratch + 2 slots."""
    network = recipe_of(view_of(small_lm()), form="eagle").module
    assert isinstance(network, CtcNetwork) and network.layer is not None
    arch = network.architecture
    view = view_of(small_lm(), max_batch=1, max_len=20)
    cache = FeatureCache(
        network.layer.self_attn, kv_heads=arch.kv_heads, head_dim=arch.head_dim, theta=1e4, target=view, scratch=scratch
    )
    cache.begin(1)
    return cache


@torch.no_grad()
def test_padding_behind_the_last_slot_is_let_go_and_what_counts_stands_where_it_would() -> None:
    cache, plain = _cache_of(3), _cache_of(3)
    z_BCD = torch.randn(1, 19, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for each, width in ((cache, 19), (plain, 2)):
        each.set_lengths(torch.tensor([18]), 18)
        each.append(z_BCD[:, :width], torch.tensor([2]))
        assert each.len_B.tolist() == [20]
    torch.testing.assert_close(cache._key[:, :20], plain._key[:, :20])
    torch.testing.assert_close(cache._value[:, :20], plain._value[:, :20])
    assert bool(cache._key[:, 18:20].any(-1).all())


@torch.no_grad()
def test_features_that_count_are_never_moved_to_another_slot() -> None:
    """More text than the cache was made for is our own mistake, and must not pass for padding."""
    cache = _cache_of(3)
    cache.set_lengths(torch.tensor([18]), 18)
    with pytest.raises(IndexError):
        cache.append(torch.randn(1, 19, 32, dtype=torch.float64), torch.tensor([19]))
