"""Apple's checkpoints, and the names and configs that others put on them, mean the same network here."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from methods.redrafter.laid_out import LaidOut, Table
from methods.redrafter.layouts import LAYOUTS
from methods.redrafter.module import Architecture, ReDrafterNetwork
from specbench.engine.decode import Engine
from specbench.errors import UsageError
from specbench.layouts import Read
from specbench.method import TargetView
from specbench.sampling import Sampling
from tests.helpers import tiny_lm
from tests.methods.redrafter_reference import apple_checkpoint, apple_logits

H, V = 32, 64
SHAPES = pytest.mark.parametrize(
    ("exit_dim", "layers", "rnn"), [(2 * H, 2, True), (2 * H, 1, False), (H, 2, True), (48, 1, True), (H, 3, False)]
)


def _view() -> TargetView:
    return Engine(tiny_lm("llama", dtype=torch.float32), sampling=Sampling(), max_len=8).view()


def _network(read: Read) -> ReDrafterNetwork:
    network = ReDrafterNetwork(Architecture.read(read.architecture, where="test"))
    network.load_state_dict(read.state)
    return network.eval().requires_grad_(False)


def _inputs(view: TargetView, seed: int = 0) -> tuple[Tensor, Tensor]:
    """h (H,) and four tokens, the root first."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(H, generator=generator), torch.randint(0, V, (4,), generator=generator)


@SHAPES
@pytest.mark.parametrize("table", ["on", "off"])
def test_an_imported_checkpoint_says_what_the_equations_say_in_training_and_in_drafting(
    exit_dim: int, layers: int, rnn: bool, table: Table
) -> None:
    config, tensors = apple_checkpoint(hidden=H, vocab=V, exit_dim=exit_dim, layers=layers, rnn=rnn)
    view = _view()
    network = _network(LAYOUTS["apple"].read(config, tensors))
    h, tokens = _inputs(view)
    embedded = view.embed_tokens(tokens).detach()
    for live in (False, True):
        drafting = LaidOut(network, view, table=table, live=live)
        context = drafting.context(h[None])
        training, state = network.initial_state(1, embedded), None
        for depth in range(4):
            plain = [row.double().numpy() for row in embedded[: depth + 1]]
            wanted = apple_logits(tensors, config, h.double().numpy(), plain)
            training = network.next_state(embedded[depth : depth + 1], training)
            state = drafting.next_state(tokens[depth : depth + 1], state)
            from_training = network.logits_with(None)(torch.cat([h[None], training], 1))[0]
            np.testing.assert_allclose(from_training.numpy(), wanted, atol=1e-5)
            np.testing.assert_allclose(drafting.logits(context, state)[0].numpy(), wanted, atol=1e-5)


def test_the_order_of_context_and_state_matters() -> None:
    """The comparison above can fail: with [s ; h] it would."""
    config, tensors = apple_checkpoint(hidden=H, vocab=V, exit_dim=2 * H, layers=1, rnn=True)
    swapped = {**tensors, "lm_head.0.linear.weight": tensors["lm_head.0.linear.weight"].roll(H, 1)}
    h = np.ones(H)
    difference = apple_logits(tensors, config, h, [h / 2]) - apple_logits(swapped, config, h, [h / 2])
    assert abs(difference).max() > 1e-2


@SHAPES
@pytest.mark.parametrize("layout", ["apple", "speculators"])
def test_written_and_read_again_every_bit_is_the_same(exit_dim: int, layers: int, rnn: bool, layout: str) -> None:
    config, tensors = apple_checkpoint(hidden=H, vocab=V, exit_dim=exit_dim, layers=layers, rnn=rnn)
    read = LAYOUTS["apple"].read(config, tensors)
    written = LAYOUTS[layout].write(read.architecture, read.state, target={"hidden_size": H, "vocab_size": V})
    again = LAYOUTS[layout].read(written.config, written.tensors)
    assert again.architecture == read.architecture
    assert written.tensors.keys() == tensors.keys()
    assert all(torch.equal(written.tensors[name], tensors[name]) for name in tensors)
    if layout == "apple":
        assert written.config == config


def _renamed(tensors: dict[str, Tensor], style: str) -> dict[str, Tensor]:
    def rename(name: str) -> str:
        if style == "numbered":
            return "0." + name.removeprefix("lm_head.") if name.startswith("lm_head.") else name
        return name.replace("lm_head.", "lm_heads.").replace("input_proj.", "input_projs.")

    return {rename(name): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("style", ["numbered", "plural"])
def test_names_that_tensorrt_llm_accepts_are_accepted(style: str) -> None:
    config, tensors = apple_checkpoint(hidden=H, vocab=V, exit_dim=H, layers=2, rnn=True)
    renamed = _renamed(tensors, style)
    assert renamed.keys() != tensors.keys()
    plain, other = LAYOUTS["apple"].read(config, tensors), LAYOUTS["apple"].read(config, renamed)
    assert plain.state.keys() == other.state.keys()
    assert all(plain.state[name] is other.state[name] for name in plain.state)


def test_an_embedding_norm_is_left_out_with_a_note() -> None:
    config, tensors = apple_checkpoint(hidden=H, vocab=V, exit_dim=2 * H, layers=1, rnn=True)
    read = LAYOUTS["apple"].read({**config, "emb_norm": True}, {**tensors, "emb_norm.weight": torch.ones(H)})
    assert len(read.notes) == 1 and "emb_norm" in read.notes[0]
    assert LAYOUTS["apple"].read(config, tensors).notes == ()


def _refusal(config: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    with pytest.raises(UsageError) as refused:
        LAYOUTS["apple"].read(config, tensors)
    return str(refused.value)


def test_what_does_not_fit_is_listed_by_its_own_name() -> None:
    config, tensors = apple_checkpoint(hidden=H, vocab=V, exit_dim=2 * H, layers=2, rnn=True)
    lost = {name: tensor for name, tensor in tensors.items() if name not in ("rnn_u.bias", "lm_head.1.linear.weight")}
    text = _refusal(config, {**lost, "stray.weight": torch.ones(1)})
    assert "missing rnn_u.bias" in text and "missing lm_head.1.linear.weight" in text and "unknown stray.weight" in text
    assert "unknown rnn_w.weight" in _refusal({**config, "rnn": False}, tensors)
    assert "missing input_proj.weight" in _refusal({**config, "exit_dim": H}, tensors)
    assert "unknown lm_head.2.weight" in _refusal({**config, "num_draft_layers": 1}, tensors)
    assert f"lm_head.2.weight is {(V, 2 * H)}, not {(V + 1, 2 * H)}" in _refusal(
        {**config, "vocab_size": V + 1}, tensors
    )
    twice = {**tensors, "lm_heads.0.linear.bias": tensors["lm_head.0.linear.bias"]}
    assert "two tensors are lm_head.0.linear.bias" in _refusal(config, twice)
    assert "hidden_size" in _refusal({name: value for name, value in config.items() if name != "hidden_size"}, tensors)


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"head": "target"}, "borrowed head"), ({"trimmed": 8}, "trimmed"), ({"embed_size": 16}, "another width")],
)
def test_what_the_layout_has_no_place_for_is_not_written(changed: dict[str, Any], words: str) -> None:
    arch = Architecture(hidden_size=H, embed_size=H, vocab_size=V, exit_dim=H, num_layers=1, rnn=True)
    with pytest.raises(UsageError, match=words):
        LAYOUTS["apple"].write(replace(arch, **changed).as_dict(), {}, target={})


def test_the_serving_command_counts_drafted_tokens_without_the_root() -> None:
    command = LAYOUTS["apple"].serving("out", target="vicuna", num_tokens=4)
    assert "--drafter_model_dir out" in command and command.endswith("--redrafter_draft_len_per_beam 4")
    assert LAYOUTS["speculators"].serving("out", target="vicuna", num_tokens=4) == ""
