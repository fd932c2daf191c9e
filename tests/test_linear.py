"""Products in another order are the same products, follow their weights, and leave gradients to torch."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from specbench.linear import FrozenLinear, input_major, is_reordered

needs_order = pytest.mark.skipif(not is_reordered(torch.empty(1, 1)), reason="this torch has no MKL or no oneDNN")


def weights(*, bias: bool = False, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor | None]:
    torch.manual_seed(0)
    return torch.randn(96, 40, dtype=dtype), torch.randn(96, dtype=dtype) if bias else None


@pytest.mark.parametrize(
    "shape", [(1, 40), (1, 1, 40), (2, 40), (1, 5, 40), (3, 17, 40), (300, 40), (0, 40), (2, 0, 40)]
)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("order", [input_major, torch.Tensor.contiguous])
def test_any_number_of_rows_gives_what_torch_gives(shape: tuple[int, ...], bias: bool, order) -> None:
    weight, offset = weights(bias=bias)
    x = torch.randn(shape)
    found, wanted = FrozenLinear(order(weight), offset)(x), F.linear(x, weight, offset)
    assert found.shape == wanted.shape and found.is_contiguous() == wanted.is_contiguous()
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_go_torch_s_own_way_bit_for_bit(dtype: torch.dtype) -> None:
    weight, offset = weights(bias=True, dtype=dtype)
    x = torch.randn(5, 40, dtype=dtype)
    assert torch.equal(FrozenLinear(weight, offset)(x), F.linear(x, weight, offset))


def test_rows_seen_through_strides_are_read_right() -> None:
    weight, _ = weights()
    x = torch.randn(40, 7).t()
    torch.testing.assert_close(FrozenLinear(weight)(x), F.linear(x, weight), atol=1e-4, rtol=1e-5)


@needs_order
def test_a_weight_written_to_is_packed_again() -> None:
    weight, _ = weights()
    linear, x = FrozenLinear(weight), torch.randn(4, 40)
    linear(x)
    with torch.no_grad():
        weight.mul_(2)
    torch.testing.assert_close(linear(x), F.linear(x, weight), atol=1e-4, rtol=1e-5)
    weight[3, 5] = float("nan")
    assert linear(x)[:, 3].isnan().all(), "what spoils a weight is seen"


@needs_order
def test_gradients_are_torch_s_own() -> None:
    weight, _ = weights()
    linear = FrozenLinear(weight)
    x = torch.randn(4, 40, requires_grad=True)
    linear(x).square().sum().backward()
    ours = x.grad
    x.grad = None
    F.linear(x, weight).square().sum().backward()
    assert ours is not None and torch.equal(ours, x.grad)
    with torch.no_grad():
        assert not linear(x).requires_grad


def test_a_copy_has_the_copied_weight() -> None:
    weight, _ = weights()
    linear, x = FrozenLinear(weight), torch.randn(4, 40)
    linear(x)
    other = copy.deepcopy(linear)
    with torch.no_grad():
        weight.zero_()
    assert linear(x).abs().max() == 0 and other(x).abs().max() > 0
