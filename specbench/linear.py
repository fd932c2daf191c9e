"""Products with frozen weights, for the few rows of a step: the same numbers, laid out as the CPU likes them.

One row: the weight stored input-major, multiplied by MKL. More rows: a second copy in the order oneDNN packs it.
Measured on an AMD EPYC, one thread, torch 2.13, float32, microseconds for 1 / 2 / 5 / 9 / 64 / 512 rows of 320 x 4096:

    MKL, output-major (torch's own)   107 / 213 / 341 / 441 / 2017 / 15350
    MKL, input-major                   85 / 168 / 388 / 489 / 2128 / 14444
    oneDNN, packed                     85 /  88 / 139 / 227 / 1497 / 12362

Small matrices gain less: 320 x 320 takes 9 (MKL) or 19 (oneDNN) for one row, 25 or 24 for five.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PACKED_BYTES = 2 << 30
"""Most that packed copies of a model's weights may take; a larger one keeps one copy and torch's own products."""
_PACKED_FOR_ROWS = 8
"""What oneDNN is told to expect; the order it chooses was the same for 2 to 17."""


def is_reordered(weight: Tensor) -> bool:
    """Whether products with this weight are done here in another order than torch's own: float32 on a CPU with MKL and
    oneDNN. On other devices and for other types the libraries choose well themselves; a quantised weight that calls
    itself float32 (a tensor subclass) brings its own product."""
    return (
        type(weight) in (Tensor, nn.Parameter)
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def input_major(weight_OI: Tensor) -> Tensor:
    """The same matrix, stored input-major and seen through a transpose."""
    return weight_OI.detach().t().contiguous().t()


def stored(weight_OI: Tensor) -> Tensor:
    """A finished weight as it is best stored: input-major where `is_reordered`, else in rows without gaps."""
    return input_major(weight_OI) if is_reordered(weight_OI) else weight_OI.detach().contiguous()


class FrozenLinear:
    """x (..., I) -> x @ weight.T + bias (..., O). The weight may be replaced or written to; a product that needs
    a gradient, and weights that `is_reordered` does not name, go torch's own way."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> None:
        self._weight, self._bias = weight_OI, bias_O
        self._width = weight_OI.shape[1]
        self._is_reordered = is_reordered(weight_OI)
        self._packed: Tensor | None = None
        self._version = -1

    def __call__(self, x: Tensor) -> Tensor:
        # Under autocast x may be of another type than the weight: torch then casts, we do not.
        is_plain = not self._is_reordered or x.dtype != self._weight.dtype or x.numel() == self._width
        if is_plain or (torch.is_grad_enabled() and self._learns(x)):
            return F.linear(x, self._weight, self._bias)
        if self._version != self._weight._version:
            self._pack()
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")
        return product

    def _learns(self, x: Tensor) -> bool:
        return x.requires_grad or self._weight.requires_grad

    def _pack(self) -> None:
        contiguous = self._weight.detach().contiguous()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(contiguous, _PACKED_FOR_ROWS)
        self._version = self._weight._version

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenLinear:
        """Of the weight that `memo` has; packed orders cannot be copied and are made anew."""
        from copy import deepcopy

        return FrozenLinear(deepcopy(self._weight, memo), deepcopy(self._bias, memo))


def lay_out_linears(module: nn.Module) -> None:
    """Every plain `nn.Linear` in it multiplies as `FrozenLinear` does, for good: shapes, names and values stay, hooks
    run as ever, `forward` is set on the instances. Weights that `is_reordered` does not name are left alone."""
    linears = [each for each in module.modules() if type(each) is nn.Linear and is_reordered(each.weight)]
    distinct = {id(each.weight): each.weight for each in linears}
    for weight in distinct.values():
        # A tied embedding shares the head's weight; a row of it is then gathered with a stride, once per token.
        weight.data = input_major(weight)
    if sum(weight.nbytes for weight in distinct.values()) <= PACKED_BYTES:
        for each in linears:
            each.forward = FrozenLinear(each.weight, each.bias)  # type: ignore[assignment]
