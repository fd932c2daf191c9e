"""LoRA layers: they add exactly (alpha / r) B A, cost nothing while they are zero, and never touch the base."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import plain_logits, tiny_lm, tokens_of
from torch import Tensor

from specbench.adapt.lora import ALL_LINEAR, LoraLayers, LoraShape
from specbench.errors import UsageError
from specbench.linear import lay_out_linears
from specbench.lm.cached_lm import CachedLM
from specbench.lm.packed import packed_logits
from tests.adapt.adapted import noisy_weights

SHAPE = LoraShape(rank=4, alpha=8.0)
TEXT = tokens_of(3, 12)


def _base(lm: CachedLM) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}


def _learning_logits(lm: CachedLM) -> Tensor:
    tokens = torch.tensor([TEXT])
    return packed_logits(lm, tokens, torch.zeros_like(tokens), torch.arange(len(TEXT)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_without_an_adapter_the_logits_are_the_models_own_bit_by_bit(dtype: torch.dtype) -> None:
    lm = tiny_lm(dtype=dtype)
    lay_out_linears(lm.model)
    wanted = plain_logits(lm, TEXT)
    LoraLayers(lm.model, SHAPE).attach()
    assert torch.equal(plain_logits(lm, TEXT), wanted)


def test_an_adapter_is_the_sum_of_both_matrices() -> None:
    """Against the dense oracle: a copy of the model whose weights are W + (alpha / r) B A."""
    lm = tiny_lm()
    dense = CachedLM(copy.deepcopy(lm.model), name="dense")
    layers = LoraLayers(lm.model, SHAPE)
    layers.attach()
    weights = noisy_weights(layers)
    layers.set(weights)
    with torch.no_grad():
        for name in layers.layers:
            delta = SHAPE.scale * weights[f"{name}.lora_B.weight"] @ weights[f"{name}.lora_A.weight"]
            dense.model.get_submodule(name).weight += delta
    found = plain_logits(lm, TEXT)
    torch.testing.assert_close(found, plain_logits(dense, TEXT), rtol=0, atol=1e-5)
    assert not torch.allclose(found, plain_logits(tiny_lm(), TEXT), atol=0.1), "the adapter changes something"


def test_learning_computes_what_drafting_computes() -> None:
    lm = tiny_lm()
    layers = LoraLayers(lm.model, SHAPE)
    layers.attach()
    layers.set(noisy_weights(layers))
    with layers.learning():
        learnt = _learning_logits(lm)
    # Norms and rotary tables are float32 in any dtype: rounding of theirs is all that differs.
    torch.testing.assert_close(learnt.detach(), plain_logits(lm, TEXT), rtol=0, atol=1e-5)


def test_gradient_reaches_every_matrix_and_nothing_of_the_base() -> None:
    lm = tiny_lm()
    layers = LoraLayers(lm.model, SHAPE)
    layers.attach()
    layers.set(noisy_weights(layers))
    with layers.learning() as module:
        _learning_logits(lm).square().sum().backward()
        assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in module.parameters())
        assert all(p.grad is None for p in lm.model.parameters())
    assert not any(p.requires_grad for p in module.parameters())


def test_swaps_and_rollbacks_restore_the_same_bits_and_leave_the_base_alone() -> None:
    lm = tiny_lm(dtype=torch.float32)
    before = _base(lm)
    layers = LoraLayers(lm.model, SHAPE)
    layers.attach()
    none = plain_logits(lm, TEXT)
    first, second = noisy_weights(layers, seed=1), noisy_weights(layers, seed=2)
    layers.set(first)
    with_first = plain_logits(lm, TEXT)
    for weights in (first, second, first):  # twice the same, another, back
        layers.set(weights)
    assert torch.equal(plain_logits(lm, TEXT), with_first)
    layers.set(None)
    assert torch.equal(plain_logits(lm, TEXT), none)
    layers.set(first)
    layers.detach()
    assert torch.equal(plain_logits(lm, TEXT), none)
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.model.state_dict().items())


def test_only_the_named_layers_carry_one_and_the_head_never_does() -> None:
    lm = tiny_lm()
    some = LoraLayers(lm.model, LoraShape(rank=2, alpha=4.0, targets=("q_proj", "v_proj")))
    assert {name.rpartition(".")[2] for name in some.layers} == {"q_proj", "v_proj"}
    every = LoraLayers(lm.model, LoraShape(rank=2, alpha=4.0, targets=(ALL_LINEAR,)))
    assert len(every.layers) == 14 and not any("lm_head" in name for name in every.layers)


def test_a_layer_that_is_not_there_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="no linear layer named 'q_prj'") as refused:
        LoraLayers(tiny_lm().model, LoraShape(targets=("q_prj",)))
    assert "q_proj" in str(refused.value.try_)


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape", "nan"])
def test_matrices_that_do_not_fit_are_refused_and_change_nothing(fault: str) -> None:
    lm = tiny_lm()
    layers = LoraLayers(lm.model, SHAPE)
    layers.attach()
    was = plain_logits(lm, TEXT)
    weights = noisy_weights(layers)
    first = next(iter(weights))
    if fault == "missing":
        del weights[first]
    elif fault == "unknown":
        weights["model.layers.9.self_attn.q_proj.lora_A.weight"] = torch.zeros(4, 32)
    elif fault == "shape":
        weights[first] = weights[first][:-1]
    else:
        weights[first] = torch.full_like(weights[first], float("nan"))
    with pytest.raises(UsageError, match="does not fit"):
        layers.set(weights)
    assert torch.equal(plain_logits(lm, TEXT), was)


def test_a_quantised_base_gets_its_adapter_beside_it() -> None:
    """No W to add to: base product plus the two small ones, the base's bits untouched."""
    pytest.importorskip("torchao", reason="torchao is not installed")
    from specbench.lm.quantise import quantise

    lm = tiny_lm(dtype=torch.float32)
    quantise(lm.model, "int8", device=lm.device, where="test")
    was = plain_logits(lm, TEXT)
    layers = LoraLayers(lm.model, SHAPE)
    layers.attach()
    assert torch.equal(plain_logits(lm, TEXT), was)
    linear = lm.model.get_submodule("model.layers.0.self_attn.q_proj")
    weights = noisy_weights(layers)
    layers.set(weights)
    x = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    name = "model.layers.0.self_attn.q_proj"
    low = SHAPE.scale * x @ weights[f"{name}.lora_A.weight"].T @ weights[f"{name}.lora_B.weight"].T
    torch.testing.assert_close(linear(x), layers.layers[name].plain(x) + low)
    with layers.learning() as module:
        _learning_logits(lm).square().sum().backward()
        assert all(p.grad is not None for p in module.parameters())
