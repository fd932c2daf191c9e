"""The LSTM speculator learns what its losses ask for, at the right shift, and drafts what enumeration finds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.lstm.drafter import SpeculatorDrafter, build, over
from methods.lstm.module import SumLSTM
from methods.lstm.train import SpeculatorRecipe
from methods.lstm.train import build as build_recipe
from specbench import checkpoint, registry
from specbench.conformance import check_method
from specbench.conformance.targets import random_target, table_target
from specbench.engine.decode import Engine
from specbench.errors import UsageError
from specbench.lm.cached_lm import CachedLM
from specbench.losses import Law, Objective
from specbench.method import Request, TargetView
from specbench.recipe import Features, Loss
from specbench.sampling import Sampling

CARD = registry.card("lstm")
OPTIONS = {name: option.default for name, option in CARD.options.items()}
TRAINING = {name: option.default for name, option in CARD.training.items()}
VOCAB = 48
CELLS: dict[str, dict[str, Any]] = {
    "published": {},
    "untied gates": {"tie_lstm_embs": False, "scale_input": False},
    "narrow": {"inner_dim": "12"},
    "factored, trimmed": {"embedding": "factored", "embedding_rank": 5, "vocabulary": 30},
    "borrowed": {"embedding": "target", "head": "target", "inner_dim": "20"},
    "borrowed, trimmed": {"embedding": "target", "head": "target", "vocabulary": 30},
    "rnn": {"method": "sum_rnn"},
    "rnn untied, stages": {
        "method": "sum_rnn", "tie_weights": False, "inner_dim": "24.16", "proj_dim": "32.24", "emb_dim": "8.24",
    },
}  # fmt: skip


def view_of(lm: CachedLM, *, temperature: float = 0.0, max_batch: int = 4, penalty: float = 1.0) -> TargetView:
    sampling = Sampling(temperature=temperature, repetition_penalty=penalty)
    return Engine(lm, sampling=sampling, max_batch=max_batch, max_len=64).view()


def recipe_of(
    training: Mapping[str, Any] | None = None, *, view: TargetView | None = None, seed: int = 0
) -> SpeculatorRecipe:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        recipe = build_recipe({**TRAINING, **(training or {})}, view or view_of(random_target("llama")))
    if recipe.network.vocabulary.ids is not None:
        recipe.see_labels(torch.arange(recipe.network.vocabulary.target_size))
    return recipe


@dataclass
class TableTeacher:
    """Laws by flat state index."""

    logp_SV: Tensor

    def law(self, index_N: Tensor) -> Law:
        return Law(self.logp_SV[index_N])


def features_of(*, seed: int = 0, rows: int = 2, tokens: int = 16, hidden: int = 32) -> Features:
    """Random text, states and laws; two documents a row, the first three tokens of each a prompt."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(VOCAB, (rows, tokens), generator=generator)
    document = (torch.arange(tokens) >= tokens // 2).long().expand(rows, -1).clone()
    learn = (torch.arange(tokens) % (tokens // 2) >= 3).expand(rows, -1).clone()
    logits = 2 * torch.randn(rows * tokens, VOCAB, generator=generator)
    return Features(
        tokens_BT=text,
        document_BT=document,
        learn_BT=learn,
        states_BTKD=torch.randn(rows, tokens, 1, hidden, generator=generator),
        teacher=TableTeacher(logits.log_softmax(-1)),
    )


def mean_of(loss: Loss) -> Tensor:
    return loss.total / loss.num_anchors


def teach(recipe: SpeculatorRecipe, batches: list[Features], objective: Objective, *, steps: int, rate: float) -> float:
    optimiser = torch.optim.Adam(recipe.module.parameters(), lr=rate)
    value = float("nan")
    for step in range(steps):
        optimiser.zero_grad()
        loss = mean_of(recipe.loss(batches[step % len(batches)], objective))
        loss.backward()
        optimiser.step()
        value = float(loss.detach())
    return value


# --- learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["ce", "kd", "tv", "lk"])
@pytest.mark.parametrize("cell", CELLS)
def test_every_parameter_learns_from_every_loss(cell: str, loss: str) -> None:
    """All of them but the rows of the first projection that make the forget gate: there is nothing to forget yet."""
    recipe = recipe_of(CELLS[cell])
    mean_of(recipe.loss(features_of(), Objective(loss=loss))).backward()  # type: ignore[arg-type]
    idle = {
        name
        for name, parameter in recipe.module.named_parameters()
        if parameter.grad is None or not parameter.grad.any() or not parameter.grad.isfinite().all()
    }
    assert idle == set()
    if isinstance(recipe.network, SumLSTM):
        gradient = recipe.network.projections[0].grad
        assert gradient is not None
        of_gates = gradient.unflatten(0, (4, -1))
        assert not of_gates[0].any() and all(gate.any() for gate in of_gates[1:])


@pytest.mark.parametrize("cell", ["published", "borrowed", "rnn untied, stages"])
def test_one_batch_is_learnt_by_heart(cell: str) -> None:
    recipe = recipe_of(CELLS[cell])
    assert teach(recipe, [features_of(rows=1)], Objective(loss="ce"), steps=80, rate=2e-2) < 0.02


def test_a_distilled_batch_is_learnt_by_heart() -> None:
    recipe = recipe_of()
    assert teach(recipe, [features_of(rows=1)], Objective(loss="kd"), steps=150, rate=1e-2) < 0.02


def _sums(seed: int, *, lie: int = 0) -> Features:
    """x_{t+2} = x_{t+1} + r_t mod 6; h_t tells r_t and r_{t+1} and nothing else, so depth i needs r_{t+i} from the
    state of the anchor: any other shift of states, tokens, labels or laws leaves a coin to guess. The teacher says the
    label plus `lie`."""
    generator = torch.Generator().manual_seed(seed)
    rows, tokens, size = 8, 40, 6
    steps = torch.randint(3, (rows, tokens + 1), generator=generator)
    text = torch.zeros(rows, tokens, dtype=torch.long)
    text[:, :2] = torch.randint(size, (rows, 2), generator=generator)
    for place in range(2, tokens):
        text[:, place] = (text[:, place - 1] + steps[:, place - 2]) % size
    states = torch.zeros(rows, tokens, 1, 32)
    states[:, :, 0, :3] = torch.nn.functional.one_hot(steps[:, :tokens], 3).float()
    states[:, :, 0, 3:6] = torch.nn.functional.one_hot(steps[:, 1:], 3).float()
    after = torch.roll(text, -1, dims=1)
    told = torch.nn.functional.one_hot((after + lie) % size, VOCAB).flatten(0, 1)
    return Features(
        tokens_BT=text,
        document_BT=torch.zeros_like(text),
        learn_BT=torch.ones_like(text, dtype=torch.bool),
        states_BTKD=states,
        teacher=TableTeacher((told * 12.0).log_softmax(-1)),
    )


@pytest.mark.parametrize("loss", ["ce", "kd"])
def test_a_task_that_only_the_right_shift_solves_is_solved_on_unseen_text(loss: str) -> None:
    recipe = recipe_of({"num_heads": 2, "inner_dim": "48", "scale_input": False})
    lie = 0 if loss == "ce" else 1
    teach(recipe, [_sums(seed, lie=lie) for seed in range(6)], Objective(loss=loss), steps=90, rate=1e-2)  # type: ignore[arg-type]
    with torch.no_grad():
        found = recipe.loss(_sums(99, lie=lie), Objective(loss=loss))  # type: ignore[arg-type]
    assert (found.counts.loss_n / found.counts.num_n).max() < 0.1
    right_n = found.counts.correct_nR[:, 0] / found.counts.num_n
    assert bool((right_n > 0.97).all() if loss == "ce" else (right_n < 0.03).all())


def test_depths_weigh_what_the_objective_says_and_prompts_are_read_but_not_learnt() -> None:
    recipe = recipe_of()
    features = features_of()
    with torch.no_grad():
        once = recipe.loss(features, Objective(loss="ce"))
        twice = recipe.loss(features, Objective(loss="ce", depth_decay=0.5))
    weights = torch.tensor([1, 0.5, 0.25], dtype=torch.float64)
    assert float(once.total) == pytest.approx(float(once.counts.loss_n.sum()), rel=1e-5)
    assert float(twice.total) == pytest.approx(float((weights * once.counts.loss_n).sum()), rel=1e-5)
    # Four documents of eight tokens, three of them prompt. Labels of depth 0 and 1 are tokens 3 .. 7; no anchor lies
    # far enough ahead for depth 2 to be asked for token 3.
    assert once.counts.num_n.tolist() == [4 * 5, 4 * 5, 4 * 4]
    assert int(once.num_anchors) == 4 * 6


# --- drafting --------------------------------------------------------------------------------------------------------


class Noise:
    """Fixed numbers per depth."""

    def __init__(self, num_rows: int, size: int) -> None:
        generator = torch.Generator().manual_seed(3)
        self.values = torch.randn(8, num_rows, size, generator=generator)

    def at_depth(self, depth: int) -> Tensor:
        return self.values[depth]


def _set_off(drafter: SpeculatorDrafter, roots: list[int], *, width: int, dtype: torch.dtype) -> Tensor:
    hidden = torch.randn(len(roots), width, generator=torch.Generator().manual_seed(4), dtype=dtype)
    drafter.begin([Request(key=row, prompt=(1, 2), max_new_tokens=9) for row in range(len(roots))])
    for row in range(len(roots)):
        drafter.prefill(row, torch.tensor([1, 2]), hidden[row].expand(2, 1, -1), 0)
    drafter.start([3] * len(roots), torch.tensor(roots))
    return hidden


@pytest.mark.parametrize("with_noise", [False, True])
@pytest.mark.parametrize("penalty", [1.0, 1.7])
@pytest.mark.parametrize("cell", ["published", "rnn"])
@torch.no_grad()
def test_a_tree_is_the_best_of_all_paths(cell: str, penalty: float, with_noise: bool) -> None:
    """Against every path of three tokens over four, each walked alone: the budget's nodes are those of the largest
    sum of terms, log q without noise, s - max s with it."""
    target = view_of(table_target(), temperature=0.9, penalty=penalty)
    recipe = recipe_of({**CELLS[cell], "inner_dim": "16"}, view=target)
    network = recipe.network.double()
    drafter = over(network, target, {**OPTIONS, "beam_width": 64, "max_nodes": 9})
    roots, noise = [3, 0], Noise(2, 4)
    hidden = _set_off(drafter, roots, width=target.hidden_size, dtype=torch.float64)
    tree = drafter.draft(noise if with_noise else None)
    assert tree.num_nodes == drafter.max_nodes == 9
    for row, root in enumerate(roots):
        found: dict[tuple[int, ...], float] = {}
        for length in (1, 2, 3):
            for path in itertools.product(range(4), repeat=length):
                state, before, total = network.start(hidden[row : row + 1]), root, 0.0
                seen = torch.zeros(1, 4, dtype=torch.bool)
                seen[0, [1, 2, root]] = True
                for depth, token in enumerate(path):
                    state = network.step(depth, torch.tensor([before]), state)
                    logits = network.logits(depth, state)
                    if penalty != 1.0:
                        punished = torch.where(logits < 0, logits * penalty, logits / penalty)
                        logits = torch.where(seen, punished, logits)
                    terms = (logits / 0.9).log_softmax(-1)[0]
                    if with_noise:
                        terms = terms + noise.at_depth(depth + 1)[row]
                        terms = terms - terms.max()
                    total += float(terms[token])
                    seen[0, token] = True
                    before = token
                found[path] = total
        best = sorted(found, key=lambda path: -found[path])[:9]
        drafted: list[tuple[int, ...]] = []
        for token, parent in zip(tree.tokens_BN[row].tolist(), tree.parents_BN[row].tolist(), strict=True):
            drafted.append((*(drafted[parent] if parent >= 0 else ()), token))
        assert set(drafted) == set(best)


@pytest.mark.parametrize("with_noise", [False, True])
@torch.no_grad()
def test_a_chain_is_the_tree_of_one_branch(with_noise: bool) -> None:
    target = view_of(random_target("llama"), temperature=1.0 if with_noise else 0.0)
    recipe = recipe_of({"vocabulary": 30}, view=target)
    noise = Noise(3, VOCAB) if with_noise else None
    drafts = []
    for options in ({}, {"beam_width": 5, "branch": 1, "max_nodes": 3}):
        drafter = over(recipe.network, target, {**OPTIONS, **options})
        drafter._is_chain = not options  # a tree of width one takes the chain's path by itself
        _set_off(drafter, [7, 8, 9], width=target.hidden_size, dtype=torch.float32)
        drafts.append(drafter.draft(noise))
    assert torch.equal(drafts[0].tokens_BN, drafts[1].tokens_BN)
    assert set(drafts[0].tokens_BN.flatten().tolist()) <= set(range(VOCAB - 30, VOCAB))


@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_a_saved_drafter_drafts_as_the_live_one(cell: str, tmp_path: Path) -> None:
    target = view_of(random_target("llama"))
    recipe = recipe_of(CELLS[cell], view=target)
    folder = tmp_path / "drafter"
    checkpoint.save(
        folder,
        checkpoint.Checkpoint(
            method="lstm",
            architecture=recipe.architecture,
            target=checkpoint.trained_on(target, weights_hash="abc"),
            state=recipe.module.state_dict(),
        ),
    )
    for options in (OPTIONS, {**OPTIONS, "beam_width": 3}):
        live = recipe.drafter(target, options)
        # One row alone takes the layout by columns.
        loaded = [
            build({**options, "weights": str(folder)}, view_of(random_target("llama"), max_batch=size))
            for size in (4, 1)
        ]
        trees = []
        for drafter in (live, *loaded):
            assert isinstance(drafter, SpeculatorDrafter)
            _set_off(drafter, [7], width=target.hidden_size, dtype=torch.float64)
            trees.append(drafter.draft(None))
        for tree in trees[1:]:
            assert torch.equal(tree.tokens_BN, trees[0].tokens_BN)
            assert torch.equal(tree.parents_BN, trees[0].parents_BN)
        assert loaded[0].trained_on == "abc" and loaded[0].weights_hash
        assert loaded[0].num_parameters() == sum(each.numel() for each in recipe.module.parameters())


@pytest.mark.parametrize(
    ("options", "training"),
    [
        ({}, {}),
        ({"beam_width": 3, "branch": 2, "max_nodes": 4}, {"vocabulary": 20, "tie_lstm_embs": False}),
        ({"draft": "plain"}, {"method": "sum_rnn", "embedding": "target", "head": "target", "tie_weights": False}),
    ],
    ids=["as published", "trimmed tree", "plain, borrowed"],
)
def test_every_form_keeps_the_promises(options: dict[str, Any], training: dict[str, Any]) -> None:
    findings = check_method("lstm", options=options, training=training, quick=True)
    assert [finding for finding in findings if finding.state != "ok"] == []


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"tie_weights": False}, "one set of weights"),
        ({"inner_dim": "32.16"}, "no further stages"),
        ({"proj_dim": "16"}, "proj_dim ends with width 16"),
        ({"method": "sum_rnn", "emb_dim": "32.8"}, "emb_dim ends with width 8"),
        ({"inner_dim": "wide"}, "no width"),
        ({"inner_dim": "0"}, "no width"),
        ({"vocabulary": 1}, "no room for the target's 1 stop id"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(training: dict[str, Any], message: str) -> None:
    target = replace(view_of(random_target("llama")), stop_ids=(7,))
    with pytest.raises(UsageError, match=message):
        recipe_of(training, view=target)


def test_more_tokens_than_trained_depths_need_tied_weights() -> None:
    target = view_of(random_target("llama"))
    assert over(recipe_of().network, target, {**OPTIONS, "num_tokens": 7}).max_nodes == 7
    untied = recipe_of({"method": "sum_rnn", "tie_weights": False})
    with pytest.raises(UsageError, match="weights for 3 depths, not 4"):
        over(untied.network, target, {**OPTIONS, "num_tokens": 4})
