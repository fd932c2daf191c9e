"""Layers that read the same states are found by looking, and one product gives each of them what its own would."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn

from specbench.lm import compiled
from specbench.lm.cached_lm import CachedLM
from specbench.lm.joint import JointLinear, joinable
from tests.helpers import plain_logits, tiny_lm

QKV, GATE_UP = ["q_proj", "k_proj", "v_proj"], ["gate_proj", "up_proj"]


def _prefilled(lm: CachedLM, tokens: tuple[int, ...] = (1, 2, 3, 4)) -> Tensor:
    lm.allocate(max_batch=1, max_len=40, max_nodes=8)
    lm.begin(1)
    return lm.prefill(0, torch.tensor(tokens))[0]


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", [QKV, GATE_UP]),
        ("qwen2", [QKV, GATE_UP]),  # with biases
        ("gemma2", [QKV, GATE_UP]),
        ("opt", [QKV]),
        ("mixtral", [QKV]),  # experts are no linear layers
        ("phi3", []),  # joined where it was trained
        ("gpt2", []),
    ],
)
def test_the_layers_that_read_the_same_states_are_found(family: str, expected: list[list[str]]) -> None:
    lm = tiny_lm(family)
    _prefilled(lm)  # the first forward runs everything twice
    names = {module: name.split(".") for name, module in lm.model.named_modules()}
    groups = joinable(lm.model, lambda: _prefilled(lm))
    found = [[names[layer][-1] for layer in group] for group in groups]
    assert found == expected * lm.config.num_hidden_layers
    assert all(len({tuple(names[layer][:-1]) for layer in group}) == 1 for group in groups)


class _Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = (nn.Linear(6, width, dtype=torch.float64) for width in (4, 3, 5))
        self.way = "same"

    def forward(self, x: Tensor) -> None:
        self.first(x)
        if self.way == "twice":
            self.first(x)
        if self.way == "written":
            x.mul_(2)
        self.second(x.clone() if self.way == "equal" else x)
        if self.way == "two of three":
            x = x + 1
        self.third(x)


def _joinable(layers: _Layers, way: str) -> list[list[nn.Linear]]:
    layers.way = way
    return joinable(layers, lambda: layers(torch.ones(2, 6, dtype=torch.float64)))


def test_only_layers_that_are_called_once_with_one_tensor_are_joined() -> None:
    layers = _Layers()
    first, second, third = layers.first, layers.second, layers.third
    assert _joinable(layers, "same") == [[first, second, third]]
    assert _joinable(layers, "two of three") == [[first, second]]
    assert _joinable(layers, "equal") == [], "equal states, and each of its own"
    assert _joinable(layers, "written") == [[second, third]], "the states were written to after the first"
    assert _joinable(layers, "twice") == [], "a layer that is called again may be handed other states then"


def test_layers_that_are_no_plain_products_stay_by_themselves() -> None:
    for spoil in ("tied", "watched", "replaced", "of another type", "without bias", "another type of weight"):
        layers = _Layers()
        second: Any = layers.second
        if spoil == "tied":
            layers.first = nn.Linear(6, 3, dtype=torch.float64)
            layers.first.weight = second.weight
        elif spoil == "watched":
            second.register_forward_hook(lambda *_: None)
        elif spoil == "replaced":
            second.forward = second.forward
        elif spoil == "of another type":
            layers.second = type("Special", (nn.Linear,), {})(6, 3, dtype=torch.float64)
        elif spoil == "without bias":
            layers.second = nn.Linear(6, 3, bias=False, dtype=torch.float64)
        else:
            second.weight = nn.Parameter(second.weight.detach().as_subclass(type("Packed", (Tensor,), {})))
        found = _joinable(layers, "same")
        assert not any(layers.second in group for group in found), spoil


def test_each_layer_gets_what_its_own_product_would_give() -> None:
    layers = _Layers()
    group = [layers.first, layers.second, layers.third]
    x, other = torch.randn(2, 3, 6, dtype=torch.float64), torch.randn(1, 6, dtype=torch.float64)
    own = [[each(states) for each in group] for states in (x, other)]
    before = [(each.weight.clone(), each.bias.clone()) for each in group]
    product = JointLinear(group)
    for states, expected in ((x, own[0]), (other, own[1]), (x, own[0])):
        torch.testing.assert_close([product.part(index, states) for index in range(3)], expected)
    # Whoever is called out of turn, or with states of its own, is served as well.
    torch.testing.assert_close(product.part(1, x), own[0][1])
    torch.testing.assert_close(product.part(2, other), own[1][2])
    for layer, (weight, bias) in zip(group, before, strict=True):
        assert torch.equal(layer.weight, weight) and torch.equal(layer.bias, bias)
        assert layer.weight.is_contiguous() and isinstance(layer.weight, nn.Parameter)
    assert len({each.weight.untyped_storage().data_ptr() for each in group}) == 1, "nothing is held twice"
    layers.second.weight.data.zero_()
    torch.testing.assert_close(product.part(1, x), layers.second.bias.expand(2, 3, -1))


def test_nothing_is_held_behind_the_last_layer() -> None:
    layers = _Layers()
    product = JointLinear([layers.first, layers.second])
    x = torch.ones(1, 6, dtype=torch.float64)
    product.part(0, x)
    product.part(1, x)
    assert not any(type(value) is Tensor for value in vars(product).values())


@pytest.fixture
def traced() -> Iterator[list[Any]]:
    """Graphs of everything that is compiled by the backend `seen`."""
    graphs: list[Any] = []

    def seen(module: Any, _inputs: Any) -> Any:
        graphs.append(module.graph)
        return module.forward

    torch._dynamo.register_backend(seen, name="seen")  # type: ignore[no-untyped-call]
    yield graphs
    del torch._dynamo.backends.registry._COMPILER_FNS["seen"]


def _num_products(graph: Any) -> int:
    return sum(node.target is torch._C._nn.linear for node in graph.nodes)


@pytest.mark.parametrize("is_whole", [False, True])
def test_a_compiled_layer_has_four_products_instead_of_seven(is_whole: bool, traced: list[Any]) -> None:
    torch.compiler.reset()
    lm = tiny_lm("llama")
    lm.compile(is_whole=is_whole, backend="seen")
    _prefilled(lm)
    num_layers = lm.config.num_hidden_layers if is_whole else 1
    assert max(map(_num_products, traced)) == 4 * num_layers
    traced.clear()
    torch.compiler.reset()
    lm.run_uncompiled()
    torch.compile(lm.model.model.layers[0].mlp, backend="seen")(torch.ones(1, 1, 32, dtype=torch.float64))
    assert [_num_products(graph) for graph in traced] == [3]


def test_a_target_that_was_joined_holds_no_byte_more() -> None:
    lm = tiny_lm("qwen2")

    def num_bytes() -> int:
        storages = {each.untyped_storage().data_ptr(): each.untyped_storage() for each in lm.model.parameters()}
        return sum(storage.nbytes() for storage in storages.values())

    before, facts = num_bytes(), (lm.weight_bytes_per_token(), lm.num_parameters())
    logits = plain_logits(lm, [1, 2, 3, 4])[-1]
    lm.compile(backend="eager")
    torch.testing.assert_close(_prefilled(lm), logits)
    assert num_bytes() == before and (lm.weight_bytes_per_token(), lm.num_parameters()) == facts
    with lm.uncompiled():
        assert torch.equal(plain_logits(lm, [1, 2, 3, 4])[-1], logits)


def test_texts_read_whole_go_through_the_layers_own_products(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    lm.compile(backend="eager")
    expected = _prefilled(lm)
    monkeypatch.setattr(JointLinear, "part", lambda *_: pytest.fail("a joint product"))
    torch.testing.assert_close(plain_logits(lm, [1, 2, 3, 4])[-1], expected)


@pytest.mark.parametrize("is_whole", [False, True])
def test_the_full_precision_copy_of_a_compiled_target_runs_its_own_layers(is_whole: bool) -> None:
    """What near-ties are judged by. The forwards that stand in the modules' place are the first model's."""
    expected = tiny_lm("llama", dtype=torch.bfloat16).fresh_logits([1, 2, 3, 4], full_precision=True)
    lm = tiny_lm("llama", dtype=torch.bfloat16)
    lm.compile(is_whole=is_whole, backend="eager")
    _prefilled(lm)
    assert torch.equal(lm.fresh_logits([1, 2, 3, 4], full_precision=True), expected)
    assert lm.is_compiled and compiled.CompiledDecoder.__name__ == type(lm._compiled).__name__
