"""Linear layers whose weights are not plain floats: which they are, what they hold, what they stand for.

Library by library nothing is known here but this: such a layer is a module with `in_features` and `out_features` that
multiplies by something other than a floating tensor of 16 bits or more: a tensor subclass (torchao), integers
(bitsandbytes), buffers under names of their own (GPTQ, AWQ).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

_UNITS = 1024
"""Unit vectors multiplied at a time: a layer 14 336 wide would otherwise answer with 400 MB at once."""


def is_quantised(module: nn.Module) -> bool:
    """Whether it is such a layer. A weight that is split over devices (DTensor) is a plain one."""
    if not all(isinstance(getattr(module, name, None), int) for name in ("in_features", "out_features")):
        return False
    weight = getattr(module, "weight", None)
    if type(weight) not in (Tensor, nn.Parameter, DTensor):
        return True
    assert isinstance(weight, Tensor)
    return not weight.is_floating_point() or weight.itemsize < 2


def quantised_layers(model: nn.Module) -> list[nn.Module]:
    """Every such layer, once, in the model's order."""
    return [module for module in model.modules() if is_quantised(module)]


# --- what they hold --------------------------------------------------------------------------------------------------


def stored_bytes(module: nn.Module) -> int:
    """Bytes of everything a product with this layer may read: quantised data, scales, zero points, tables, bias."""
    found = {(each.data_ptr(), each.nbytes): each for each in _tensors(module)}
    return sum(each.nbytes for each in found.values())


def num_values(module: nn.Module) -> int:
    """Parameters it stands for, however they are packed."""
    bias = getattr(module, "bias", None)
    values = int(module.in_features) * int(module.out_features)  # type: ignore[arg-type]
    return values + (bias.numel() if isinstance(bias, Tensor) else 0)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    for each in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        yield from _inside(each)
    # bitsandbytes moves scales from the weight to a state beside it in the first product.
    yield from _inside(vars(module).get("state"))


def _inside(value: Any) -> Iterator[Tensor]:
    """The plain tensors that a weight is made of."""
    if isinstance(value, Tensor):
        if hasattr(value, "__tensor_flatten__"):
            for name in value.__tensor_flatten__()[0]:
                yield from _inside(getattr(value, name))
            return
        yield value
    if type(value).__module__.partition(".")[0] == "bitsandbytes":
        for each in vars(value).values():
            yield from _inside(each)


# --- what they stand for ---------------------------------------------------------------------------------------------


def plain_layer(module: nn.Module, *, dtype: torch.dtype, wide: torch.dtype) -> nn.Linear:
    """An ordinary layer of type `wide` with the weights this one multiplies by: its answers to the unit vectors.

    dtype: what the model's activations are of. The answer to a unit vector is one weight, scaled as the layer scales
    it, without a sum: whatever the library and its layout, this is the matrix the target is run with. (For layers that
    quantise their input too, such as bitsandbytes' 8 bits: the matrix without the rounding of the input.)
    """
    width, height = int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
    device = next(_tensors(module)).device
    bias: Tensor | None = getattr(module, "bias", None)
    if bias is not None:
        module.bias = None  # type: ignore[assignment]
    try:
        with torch.inference_mode():
            units = torch.eye(width, dtype=dtype, device=device).split(_UNITS)
            weight_IO = torch.cat([module.forward(part).to(wide) for part in units])
    finally:
        if bias is not None:
            module.bias = bias
    plain = nn.Linear(width, height, bias=bias is not None, device="meta")
    plain.weight = nn.Parameter(weight_IO.t().contiguous(), requires_grad=False)
    if bias is not None:
        plain.bias = nn.Parameter(bias.detach().to(wide), requires_grad=False)
    return plain


def full_precision_copy(model: PreTrainedModel) -> PreTrainedModel:
    """The model in at least float32, quantised layers by what they stand for; the model itself is left as it is.

    `deepcopy().float()` would not do: torchao's tensors keep their type through it, or break.
    """
    wide = torch.promote_types(model.dtype, torch.float32)
    # deepcopy takes what its memo has for these objects instead of copying them.
    memo: dict[int, Any] = {
        id(each): plain_layer(each, dtype=model.dtype, wide=wide) for each in quantised_layers(model)
    }
    copied: PreTrainedModel = copy.deepcopy(model, memo)
    nn.Module.to(copied, dtype=wide)
    return copied
