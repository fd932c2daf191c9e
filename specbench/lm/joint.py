"""Linear layers that read the same states multiplied as one: queries, keys and values; gate and up.

A step of one token reads every weight once, and a product with a small matrix ends before it has reached the memory's
full speed. Which layers read the same states is seen in one forward, not known by their names.

I input and O output width of a layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class JointLinear:
    """Layers called one after another with the same states: the first multiplies for all, the others take their part.

    Their weights lie behind each other in one matrix; each layer's own becomes a view of it, with the values it had.
    Written to be traced: what is handed on from layer to layer is gone from the compiled code.
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        """layers: as `joinable` names them. The weights are moved, one matrix at a time."""
        # A normal tensor, whatever mode the first forward runs in: it is there as long as the model.
        with torch.inference_mode(False), torch.no_grad():
            # A parameter's shape is a constant to the compiler.
            self._weight_OI = nn.Parameter(torch.cat([each.weight.detach() for each in layers]), requires_grad=False)
            self._bias_O = None
            if layers[0].bias is not None:
                self._bias_O = nn.Parameter(torch.cat([each.bias.detach() for each in layers]), requires_grad=False)
            self._ends: list[int] = []
            end = 0
            for each in layers:
                start, end = end, end + each.out_features
                self._ends.append(end)
                each.weight.data = self._weight_OI[start:end]
                if self._bias_O is not None:
                    each.bias.data = self._bias_O[start:end]
        self._read: Tensor | None = None
        self._product: Tensor | None = None

    def part(self, index: int, x: Tensor) -> Tensor:
        """x (..., I) -> (..., O) of layer `index`."""
        if index == 0 or self._read is not x:
            self._read, self._product = x, F.linear(x, self._weight_OI, self._bias_O)
        assert self._product is not None
        part = self._product[..., self._ends[index - 1] if index else 0 : self._ends[index]]
        if index == len(self._ends) - 1:
            self._read = self._product = None
        return part


def joinable(module: nn.Module, run: Callable[[], object]) -> list[list[nn.Linear]]:
    """Plain layers of `module` that `run`, a forward, calls once each, one after another with the very same tensor."""
    plain = [each for each in module.modules() if _is_plain(each)]
    shared = Counter(id(each.weight) for each in plain)
    calls: Counter[nn.Module] = Counter()
    groups: list[list[nn.Linear]] = []
    last: tuple[Tensor, int] | None = None

    def see(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal last
        assert isinstance(layer, nn.Linear)
        calls[layer] += 1
        now = (inputs[0], _version(inputs[0]))
        if last is not None and last[0] is now[0] and last[1] == now[1] and _is_alike(groups[-1][0], layer):
            groups[-1].append(layer)
        else:
            groups.append([layer])
        last = now

    handles = [each.register_forward_pre_hook(see) for each in plain if shared[id(each.weight)] == 1]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return [group for group in groups if len(group) > 1 and all(calls[each] == 1 for each in group)]


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version


def _is_plain(module: nn.Module) -> bool:
    return (
        type(module) is nn.Linear
        and "forward" not in vars(module)
        and not module._forward_pre_hooks
        and not module._forward_hooks
        and type(module.weight) in (Tensor, nn.Parameter)
    )


def _is_alike(first: nn.Linear, other: nn.Linear) -> bool:
    return (
        first.in_features == other.in_features
        and (first.bias is None) == (other.bias is None)
        and first.weight.dtype == other.weight.dtype
        and first.weight.device == other.weight.device
    )
