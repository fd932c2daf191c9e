"""ReDrafter drafts what its equations and a plain search say, and keeps the promises of every method."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from methods.redrafter.drafter import ReDrafter
from methods.redrafter.layouts import LAYOUTS
from methods.redrafter.module import Architecture, ReDrafterNetwork
from specbench import checkpoint, registry
from specbench.conformance import check_method
from specbench.conformance.watch import Watched, inspect_tree
from specbench.engine.decode import Engine
from specbench.errors import EnvironmentFailed, UsageError
from specbench.lm.cached_lm import CachedLM
from specbench.method import Drafter, Options, Request, TargetView
from specbench.sampling import Sampling
from specbench.tree import DraftTree
from tests.helpers import requests_for, tiny_lm
from tests.methods.redrafter_reference import apple_checkpoint, apple_logits

H, V, D = 32, 6, 3
DEFAULTS: Options = {name: option.default for name, option in registry.card("redrafter").options.items()}


def _lm() -> CachedLM:
    return tiny_lm("llama", vocab_size=V, eos_token_id=None, bos_token_id=None)


class _Noise:
    """Fixed noise per depth (from 1)."""

    def __init__(self, seed: int, num_rows: int = 1) -> None:
        self.noise_DBV = torch.randn(D + 1, num_rows, V, generator=torch.Generator().manual_seed(seed))

    def at_depth(self, depth: int) -> Tensor:
        return self.noise_DBV[depth]


class _Case:
    """A random Apple checkpoint in float64 over a vocabulary of six, its drafter, and all paths by the definition."""

    def __init__(self, options: dict[str, Any], *, sampling: Sampling = Sampling(), seed: int = 0) -> None:  # noqa: B008
        self.config, self.tensors = apple_checkpoint(
            hidden=H, vocab=V, exit_dim=2 * H, layers=1, rnn=True, seed=seed, dtype=torch.float64
        )
        read = LAYOUTS["apple"].read(self.config, self.tensors)
        self.network = ReDrafterNetwork(Architecture.read(read.architecture, where="test")).double()
        self.network.load_state_dict(read.state)
        self.view: TargetView = Engine(_lm(), sampling=sampling, max_batch=4, max_len=32).view()
        self.drafter = ReDrafter(self.network, self.view, {**DEFAULTS, "num_tokens": D, **options})
        self.h = torch.randn(4, H, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.roots = [2, 5, 0, 3]

    def draft(self, noise: _Noise | None = None, rows: tuple[int, ...] = (0,)) -> DraftTree:
        request = Request(key=0, prompt=(1,), max_new_tokens=8)
        self.drafter.begin([request] * len(rows))
        for place, row in enumerate(rows):
            self.drafter.prefill(place, torch.tensor([1]), self.h[row][None, None], 0)
        self.drafter.start([2] * len(rows), torch.tensor([self.roots[row] for row in rows]))
        return self.drafter.draft(noise)

    def gains(self, noise: _Noise | None, *, top_k: int = V, tau: float = 1.0) -> dict[tuple[int, ...], float]:
        """Priority of every path of up to D tokens, from the numpy network."""
        table = self.view.embed_tokens.weight.detach().numpy()  # type: ignore[operator]
        found: dict[tuple[int, ...], float] = {(): 0.0}
        for depth in range(1, D + 1):
            for path in itertools.product(range(V), repeat=depth):
                read = [table[token] for token in (self.roots[0], *path[:-1])]
                logits = apple_logits(self.tensors, self.config, self.h[0].numpy(), read) / tau
                logits = np.where(logits >= np.sort(logits)[-top_k], logits, -np.inf)
                gain = logits - np.log(np.exp(logits).sum())
                if noise is not None:
                    gain = gain + noise.noise_DBV[depth, 0].double().numpy()
                    gain = gain - gain.max()
                found[path] = found[path[:-1]] + gain[path[-1]]
        return found


def _paths(tree: DraftTree, row: int = 0) -> set[tuple[int, ...]]:
    host = inspect_tree(tree, num_rows=tree.tokens_BN.shape[0], max_nodes=tree.num_nodes, vocab_size=V)[row]
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(host.tokens, host.parents, strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    return set(paths)


ALL = V**D
NOISY = Sampling(temperature=0.7)
KINDS = pytest.mark.parametrize("sampling", [Sampling(), NOISY], ids=["greedy", "noisy"])


@KINDS
@pytest.mark.parametrize("max_nodes", [0, 4, 11])
def test_beams_wide_enough_for_all_are_the_enumeration_of_all_paths(sampling: Sampling, max_nodes: int) -> None:
    case = _Case({"beam_width": ALL, "max_nodes": max_nodes}, sampling=sampling)
    noise = None if sampling.is_greedy else _Noise(1)
    gains = case.gains(noise, tau=sampling.temperature or 1.0)
    del gains[()]
    # The best by priority; of equals the shorter, which stands before its child.
    ranked = sorted(gains, key=lambda path: (-round(gains[path], 9), len(path)))
    assert _paths(case.draft(noise)) == set(ranked[: max_nodes or len(ranked)])


@KINDS
def test_narrow_beams_are_the_textbook_search(sampling: Sampling) -> None:
    for seed in range(3):
        case = _Case({"beam_width": 3}, sampling=sampling, seed=seed)
        noise = None if sampling.is_greedy else _Noise(seed)
        gains = case.gains(noise, tau=sampling.temperature or 1.0)
        beams: list[tuple[int, ...]] = [()]
        wanted: set[tuple[int, ...]] = set()
        for _ in range(D):
            children = [(*path, token) for path in beams for token in range(V)]
            beams = sorted(children, key=lambda path: -gains[path])[:3]
            wanted |= set(beams)
        assert _paths(case.draft(noise)) == wanted


@KINDS
def test_one_beam_is_the_chain_of_first_choices(sampling: Sampling) -> None:
    case = _Case({"beam_width": 1}, sampling=sampling)
    noise = None if sampling.is_greedy else _Noise(2)
    gains = case.gains(noise, tau=sampling.temperature or 1.0)
    path: tuple[int, ...] = ()
    for _ in range(D):
        path = max(((*path, token) for token in range(V)), key=lambda longer: gains[longer])
    tree = case.draft(noise)
    assert tree.is_chain
    assert tuple(tree.tokens_BN[0].tolist()) == path


def test_plain_drafting_does_not_listen_to_the_noise() -> None:
    for width in (1, 4):
        case = _Case({"beam_width": width, "draft": "plain"}, sampling=NOISY)
        assert _paths(case.draft(_Noise(1))) == _paths(case.draft(_Noise(2)))
        heard = _Case({"beam_width": width}, sampling=NOISY)
        assert len({frozenset(_paths(heard.draft(_Noise(seed)))) for seed in range(5)}) > 1


def test_a_law_cut_to_its_best_tokens_proposes_no_others_and_no_dead_beams() -> None:
    case = _Case({"beam_width": 16, "draft_top_k": 2})
    gains = case.gains(None, top_k=2)
    del gains[()]
    assert _paths(case.draft()) == {path for path, gain in gains.items() if gain > -np.inf}


def test_each_row_of_a_batch_drafts_what_it_drafts_alone() -> None:
    for options in ({"beam_width": 3}, {"beam_width": 1}, {"beam_width": 4, "branch": 2, "max_nodes": 5}):
        case = _Case(options)
        together = case.draft(rows=(2, 0, 1))
        for place, row in enumerate((2, 0, 1)):
            assert _paths(together, place) == _paths(case.draft(rows=(row,)))


def test_the_budget_is_what_is_reserved() -> None:
    assert _Case({"beam_width": 4}).drafter.max_nodes == 12
    assert _Case({"beam_width": 4, "max_nodes": 5}).drafter.max_nodes == 5
    assert _Case({"beam_width": 1, "max_nodes": 2}).draft().num_nodes == 2


# --- weights on disk -------------------------------------------------------------------------------------------------


def _training(**changed: Any) -> dict[str, Any]:
    defaults = {name: option.default for name, option in registry.card("redrafter").training.items()}
    return {**defaults, **changed}


def _save(folder: Path, lm: CachedLM, view: TargetView, **changed: Any) -> tuple[Path, Drafter]:
    """Random weights from the method's recipe, and the recipe's drafter over them."""
    torch.manual_seed(0)
    recipe = registry.load_recipe("redrafter")(_training(**changed), view)
    recipe.module.to(view.dtype)
    recipe.see_labels(torch.arange(lm.vocab_size))
    checkpoint.save(
        folder,
        checkpoint.Checkpoint(
            method="redrafter",
            architecture=recipe.architecture,
            target=checkpoint.trained_on(view, weights_hash="abc"),
            state=recipe.module.state_dict(),
        ),
    )
    return folder, recipe.drafter(view, DEFAULTS)


@pytest.mark.parametrize("training", [{}, {"head": "target", "vocabulary": 9}, {"rnn": False, "exit_dim": 24}], ids=str)
def test_saved_and_loaded_it_drafts_what_the_live_weights_draft(tmp_path: Path, training: dict[str, Any]) -> None:
    lm = tiny_lm("gpt2")
    engine = Engine(lm, sampling=Sampling(), max_batch=4, max_len=64)
    folder, live = _save(tmp_path / "d", lm, engine.view(), **training)
    loaded = registry.load("redrafter")({**DEFAULTS, "weights": str(folder)}, engine.view())
    engine.reserve(live.max_nodes)
    assert loaded.trained_on == "abc" and len(loaded.weights_hash) == 64
    assert loaded.num_parameters() == live.num_parameters() > 0
    seen = []
    for drafter in (live, loaded):
        watched = Watched(drafter, vocab_size=lm.vocab_size)
        engine.generate(watched, requests_for(max_new_tokens=8))
        seen.append(watched.drafts)
    assert seen[0] == seen[1]
    assert any(row.tokens for step in seen[0] for row in step)


def test_weights_for_another_target_are_refused_with_both_sizes(tmp_path: Path) -> None:
    lm, other = tiny_lm("llama"), tiny_lm("llama", vocab_size=50)
    folder, _ = _save(tmp_path / "d", lm, Engine(lm, sampling=Sampling(), max_len=8).view())
    view = Engine(other, sampling=Sampling(), max_len=8).view()
    with pytest.raises(UsageError, match=r"a vocabulary of 64 .* has 50"):
        registry.load("redrafter")({**DEFAULTS, "weights": str(folder)}, view)


def test_an_architecture_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    lm = tiny_lm("llama")
    view = Engine(lm, sampling=Sampling(), max_len=8).view()
    folder, _ = _save(tmp_path / "d", lm, view)
    config = (folder / "config.json").read_text().replace('"num_layers"', '"layers"')
    (folder / "config.json").write_text(config)
    with pytest.raises(EnvironmentFailed, match="layers"):
        registry.load("redrafter")({**DEFAULTS, "weights": str(folder)}, view)


# --- every method's promises -----------------------------------------------------------------------------------------


def _failed(**kwargs: Any) -> dict[str, str]:
    return {found.name: found.what for found in check_method("redrafter", **kwargs) if found.state != "ok"}


def test_it_keeps_every_promise_on_three_architectures() -> None:
    assert _failed() == {}


@pytest.mark.parametrize(
    ("options", "training"),
    [
        ({"beam_width": 1, "num_tokens": 3}, {"vocabulary": 3}),
        ({"beam_width": 5, "max_nodes": 6, "draft_top_k": 3, "draft": "plain"}, {"rnn": False, "head": "target"}),
    ],
    ids=["trimmed chain", "cut tree"],
)
def test_other_options_keep_the_promises_too(options: dict[str, Any], training: dict[str, Any]) -> None:
    assert _failed(options=options, training=training, quick=True) == {}
