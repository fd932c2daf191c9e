"""ReDrafter's recipe: every parameter learns at every depth, and from the right tokens.

The offset task has four tokens drawn at random, so no token says anything about another. Only the state does: h_t
holds x_{t+1} + x_{t+2} and x_{t+2} + x_{t+3} (mod 4). Depth 0 can answer if it reads x_{t+1} beside h_t and is asked
for x_{t+2}; depth 1 if it reads x_{t+2} and is asked for x_{t+3}. Shift anything by one and it cannot.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import methods.redrafter.train as train
from methods.redrafter.train import ReDrafterRecipe
from specbench import registry
from specbench.conformance.targets import table_target
from specbench.engine.decode import Engine
from specbench.errors import UsageError
from specbench.lm.packed import continue_all, head_logits, packed_states
from specbench.losses import Law, LossName, Objective, whole_law
from specbench.method import TargetView
from specbench.recipe import Features, Windows, windows
from specbench.sampling import Sampling
from tests.helpers import tiny_lm

LOSSES: tuple[LossName, ...] = ("ce", "kd", "tv", "lk")


def _recipe(view: TargetView, **changed: Any) -> ReDrafterRecipe:
    defaults = {name: option.default for name, option in registry.card("redrafter").training.items()}
    torch.manual_seed(0)
    recipe = train.build({**defaults, **changed}, view)
    assert isinstance(recipe, ReDrafterRecipe)
    return recipe


class _Teacher:
    """Laws by flat state index; counts what was asked."""

    def __init__(self, logits_SV: Tensor) -> None:
        self.logits_SV = logits_SV

    def law(self, index_N: Tensor) -> Law:
        return whole_law(self.logits_SV[index_N])


def _text(seed: int = 0, *, num_rows: int = 2, num_tokens: int = 12) -> tuple[TargetView, Features]:
    """Random texts, two documents a row and padding, with a tiny target's states and laws."""
    lm = tiny_lm("llama", dtype=torch.float32)
    view = Engine(lm, sampling=Sampling(), max_len=32).view()
    generator = torch.Generator().manual_seed(seed)
    # Not 0: the padding token's embedding is zero, and a sum of embeddings would not notice that it was read.
    tokens = torch.randint(1, 64, (num_rows, num_tokens), generator=generator)
    document = (torch.arange(num_tokens) >= num_tokens // 2).long().expand(num_rows, -1).clone()
    document[-1, -2:] = -1
    states = packed_states(lm, tokens, document, ("final",))
    teacher = _Teacher(head_logits(lm, states[:, :, 0].flatten(0, 1)))
    learn = torch.ones_like(tokens, dtype=torch.bool)
    return view, Features(
        tokens_BT=tokens, document_BT=document, learn_BT=learn, states_BTKD=states, teacher=teacher
    )  # fmt: skip


def _fit(
    recipe: ReDrafterRecipe, batch: Callable[[int], Features], objective: Objective, *, steps: int, rate: float = 5e-3
) -> list[float]:
    optimiser = torch.optim.Adam(recipe.module.parameters(), lr=rate)
    losses = []
    for step in range(steps):
        loss = recipe.loss(batch(step), objective)
        mean = loss.total / loss.num_anchors
        optimiser.zero_grad()
        mean.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(float(mean.detach()))
    return losses


# --- gradient --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("depth", range(3))
def test_every_parameter_learns_from_every_depth_alone(
    loss: LossName, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only(*args: Any, **kwargs: Any) -> Windows:
        found = windows(*args, **kwargs)
        valid = found.valid_AF.clone()
        valid[:, 1:] &= torch.arange(3) == depth
        return found._replace(valid_AF=valid)

    monkeypatch.setattr(train, "windows", only)
    view, features = _text()
    recipe = _recipe(view, depth=3, exit_dim=48)
    recipe.loss(features, Objective(loss=loss)).total.backward()  # type: ignore[no-untyped-call]
    for name, parameter in recipe.module.named_parameters():
        # s_0 = 0: at depth 0 the recurrent matrix has nothing to multiply.
        learns = not (name == "rnn_u.weight" and depth == 0)
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()) == learns, name
    assert all(not parameter.requires_grad for parameter in view.lm_head.parameters())


def test_a_batch_without_labels_costs_nothing_and_breaks_nothing() -> None:
    view, features = _text()
    loss = _recipe(view).loss(replace(features, learn_BT=torch.zeros_like(features.learn_BT)), Objective(loss="ce"))
    loss.total.backward()  # type: ignore[no-untyped-call]
    assert float(loss.total.detach()) == 0 and int(loss.num_anchors) == 0


# --- what is learnt --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed", [{}, {"rnn": False}, {"exit_dim": 32}, {"head": "target"}, {"vocabulary": 50}], ids=str
)
def test_one_batch_is_learnt_by_heart(changed: dict[str, Any]) -> None:
    """The target's random states tell its positions apart, so nothing hinders the loss from going to zero."""
    view, features = _text()
    recipe = _recipe(view, depth=2, **changed)
    recipe.see_labels(torch.bincount(features.tokens_BT.flatten(), minlength=64))
    losses = _fit(recipe, lambda _: features, Objective(loss="ce"), steps=100, rate=1e-2)
    assert losses[0] > 5
    assert losses[-1] < 0.05


def _offset_batch(step: int, view: TargetView) -> Features:
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, 4, (8, 34), generator=generator)
    first, second = tokens[:, 1:-2] + tokens[:, 2:-1], tokens[:, 2:-1] + tokens[:, 3:]
    states = torch.zeros(8, 34, 1, 16)
    states[:, :-3, 0] = torch.eye(16)[first % 4 * 4 + second % 4] * 4
    # The teacher is sure of the next token.
    following = torch.nn.functional.one_hot(tokens.roll(-1, 1), 4).float() * 12
    return Features(
        tokens_BT=tokens,
        document_BT=torch.zeros_like(tokens),
        learn_BT=torch.ones_like(tokens, dtype=torch.bool),
        states_BTKD=states,
        teacher=_Teacher(following.flatten(0, 1)),
    )


def _accuracy(recipe: ReDrafterRecipe, view: TargetView) -> list[float]:
    """Of depths 0 and 1 on fresh text, by a loop over positions that uses the network alone."""
    features = _offset_batch(10_000, view)
    network, embed = recipe.module, view.embed_tokens
    right = [0, 0]
    count = 0
    with torch.no_grad():
        for row in range(8):
            for t in range(31):
                h = features.states_BTKD[row, t, 0]
                state = torch.zeros(1, 16)
                for depth in range(2):
                    state = network.next_state(embed(features.tokens_BT[row, t + 1 + depth])[None].float(), state)  # type: ignore[operator]
                    logits = network.logits_with(None)(torch.cat([h[None], state], 1))  # type: ignore[operator]
                    right[depth] += int(logits.argmax() == features.tokens_BT[row, t + 2 + depth])
                count += 1
    return [number / count for number in right]


def _trained(loss: LossName, view: TargetView) -> list[float]:
    recipe = _recipe(view, depth=2, exit_dim=32, num_layers=1)
    _fit(recipe, lambda step: _offset_batch(step, view), Objective(loss=loss), steps=150, rate=1e-2)
    return _accuracy(recipe, view)


@pytest.mark.parametrize("loss", ["ce", "kd"])
def test_labels_and_teacher_stand_where_only_they_can_be_learnt(loss: LossName) -> None:
    view = Engine(table_target(), sampling=Sampling(), max_len=8).view()
    assert min(_trained(loss, view)) > 0.95


@pytest.mark.parametrize(
    ("loss", "plant"),
    [
        ("ce", lambda found: found._replace(anchor_A=(found.anchor_A - 1).clamp(min=0))),
        ("ce", lambda found: found._replace(ahead_AF=found.ahead_AF.roll(1, 1))),
        ("kd", lambda found: found._replace(state_AF=(found.state_AF - 1).clamp(min=0))),
        ("kd", lambda found: found._replace(state_AF=found.state_AF + 1)),
    ],
    ids=["state early", "tokens shifted", "teacher early", "teacher late"],
)
def test_an_off_by_one_is_seen(
    loss: LossName, plant: Callable[[Windows], Windows], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "windows", lambda *args, **kwargs: plant(windows(*args, **kwargs)))
    view = Engine(table_target(), sampling=Sampling(), max_len=8).view()
    assert min(_trained(loss, view)) < 0.6


def test_a_teacher_that_is_the_drafter_itself_costs_nothing() -> None:
    view, features = _text()
    recipe = _recipe(view, depth=1)
    found = windows(features, depth=1)
    with torch.no_grad():
        state = recipe.module.next_state(  # type: ignore[operator]
            view.embed_tokens(found.ahead_AF[:, 0]), torch.zeros(found.anchor_A.shape[0], 32)
        )
        joined = torch.cat([features.states_BTKD[:, :, 0].flatten(0, 1)[found.anchor_A], state], 1)
        own = recipe.module.logits_with(None)(joined)  # type: ignore[operator]
    laws = torch.zeros(features.tokens_BT.numel(), 64)
    laws[found.state_AF[:, 0]] = own
    itself = replace(features, teacher=_Teacher(laws))
    assert float(recipe.loss(itself, Objective(loss="kd")).total.detach()) == pytest.approx(0, abs=1e-4)
    assert float(recipe.loss(itself, Objective(loss="tv")).total.detach()) == pytest.approx(0, abs=1e-4)
    assert float(recipe.loss(features, Objective(loss="kd")).total.detach()) > 1


def test_continuations_of_the_target_are_learnt_in_place_of_the_text() -> None:
    lm = tiny_lm("llama", dtype=torch.float32)
    view, features = _text()
    written, states = continue_all(lm, features.tokens_BT, features.document_BT, length=3)
    recipe = _recipe(view, depth=2)
    laws = torch.cat(
        [head_logits(lm, part) for part in (features.states_BTKD[:, :, 0].flatten(0, 1), states.flatten(0, 2))]
    )
    seq = replace(features, continuations=written, teacher=_Teacher(laws))
    losses = _fit(recipe, lambda _: seq, Objective(loss="ce"), steps=150)
    assert losses[-1] < 0.05
    counts = recipe.loss(seq, Objective(loss="ce")).counts
    assert torch.equal(counts.num_n, counts.whole_n)
    assert float(counts.right_n[1] / counts.whole_n[1]) > 0.99
    # The laws of the same states agree with what the target wrote there.
    assert float(recipe.loss(seq, Objective(loss="kd")).counts.num_n.sum()) == float(counts.num_n.sum())


def test_a_deeper_label_may_weigh_less() -> None:
    view, features = _text()
    recipe = _recipe(view, depth=3)
    whole, halved = (recipe.loss(features, Objective(loss="ce", depth_decay=decay)) for decay in (1.0, 0.5))
    per_depth = whole.counts.loss_n
    assert float(whole.total.detach()) == pytest.approx(float(per_depth.sum()), rel=1e-5)
    assert float(halved.total.detach()) == pytest.approx(
        float((per_depth * torch.tensor([1, 0.5, 0.25])).sum()), rel=1e-5
    )


def test_only_generated_roots_are_learnt_from_when_asked() -> None:
    view, features = _text()
    learn = features.learn_BT.clone()
    learn[:, :4] = False
    prompted = replace(features, learn_BT=learn)
    free, strict = (
        _recipe(view, only_generated=strict).loss(prompted, Objective(loss="ce")) for strict in (False, True)
    )
    assert int(strict.num_anchors) < int(free.num_anchors)


# --- heads -----------------------------------------------------------------------------------------------------------


def test_a_trimmed_head_says_the_most_frequent_labels_and_every_stop_token() -> None:
    view, _ = _text()
    recipe = _recipe(replace(view, stop_ids=(60,)), vocabulary=3)
    recipe.see_labels(torch.arange(64) % 10)
    assert recipe.module.vocabulary.ids.tolist() == [9, 19, 60]  # type: ignore[union-attr]
    assert recipe.module.head.weight.shape == (3, 64)  # type: ignore[union-attr]


def test_a_trimmed_head_does_not_learn_before_its_words_are_chosen() -> None:
    view, features = _text()
    with pytest.raises(AssertionError, match="see_labels"):
        _recipe(view, vocabulary=9).loss(features, Objective(loss="ce"))


def test_a_borrowed_trimmed_head_follows_ids_that_are_loaded_later() -> None:
    view, features = _text()
    recipe, other = _recipe(view, vocabulary=9, head="target"), _recipe(view, vocabulary=9, head="target")
    counts = torch.bincount(features.tokens_BT.flatten(), minlength=64)
    recipe.see_labels(counts)
    recipe.loss(features, Objective(loss="ce"))
    other.see_labels(-counts)
    recipe.module.load_state_dict(other.module.state_dict())
    objective = Objective(loss="ce")
    assert float(recipe.loss(features, objective).total) == float(other.loss(features, objective).total)


def test_a_borrowed_head_has_no_parameters_and_one_width() -> None:
    view, _ = _text()
    recipe = _recipe(view, head="target")
    assert not any(name.startswith("head") for name, _ in recipe.module.named_parameters())
    assert recipe.architecture["exit_dim"] == 32
    with pytest.raises(UsageError, match="width 32") as refused:
        _recipe(view, head="target", exit_dim=64)
    assert "redrafter.exit_dim=32" in str(refused.value.try_)


def test_no_room_beside_the_stop_tokens_is_refused() -> None:
    view, _ = _text()
    with pytest.raises(UsageError, match="no room"):
        _recipe(replace(view, stop_ids=(1, 2, 3)), vocabulary=2)


@pytest.mark.parametrize(
    ("layers", "rnn", "exit_dim", "wanted"),
    [(2, True, 8192, 429_936_640), (1, True, 8192, 362_819_584), (2, True, 4096, 231_751_680)],
)
def test_parameters_of_vicuna_7b_are_those_of_the_paper(layers: int, rnn: bool, exit_dim: int, wanted: int) -> None:
    from methods.redrafter.module import Architecture, ReDrafterNetwork

    arch = Architecture(
        hidden_size=4096, embed_size=4096, vocab_size=32000, exit_dim=exit_dim, num_layers=layers, rnn=rnn
    )
    with torch.device("meta"):
        network = ReDrafterNetwork(arch)
    by_formula = layers * (exit_dim**2 + exit_dim) + exit_dim * 32000 + rnn * (2 * 4096**2 + 4096)
    by_formula += (exit_dim != 8192) * (2 * 4096 * exit_dim + exit_dim)
    assert sum(parameter.numel() for parameter in network.parameters()) == by_formula == wanted
