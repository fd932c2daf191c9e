"""LoRA on the linear layers of a frozen draft model: y = W x + (alpha / r) B A x (Hu 2021, arXiv:2106.09685, Eq. 3).

While drafting, an adapted layer multiplies with W' = W + (alpha / r) B A, a buffer of its own that is computed anew
from the untouched W at every swap: a draft costs what it costs without an adapter, captured steps find W' where it was,
and W never changes. While learning it computes both products. Layers whose weights are quantised have no W to add to:
they always compute both.

r rank, I and O widths of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from specbench.adapt.shape import ALL_LINEAR as ALL_LINEAR
from specbench.adapt.shape import LoraShape as LoraShape
from specbench.errors import UsageError, did_you_mean
from specbench.linear import FrozenLinear, stored
from specbench.lm.quantised import is_quantised


class LoraLayers:
    """The adapted layers of one model. Between `attach` and `detach` their `forward` is ours; `W` is never written.

    A model may carry one at a time. The matrices are float32 (float64 where the model is), whatever the model's type.
    """

    def __init__(self, model: PreTrainedModel, shape: LoraShape, *, seed: int = 0) -> None:
        """Raises UsageError where no layer of the model has one of the names."""
        self.shape = shape
        self._seed = seed
        head = model.get_output_embeddings()
        linears = {
            name: module
            for name, module in model.named_modules()
            if module is not head and (isinstance(module, nn.Linear) or is_quantised(module))
        }
        wanted = [name for name in linears if ALL_LINEAR in shape.targets or name.rpartition(".")[2] in shape.targets]
        last_parts = {name.rpartition(".")[2] for name in linears}
        unknown = next((name for name in shape.targets if name != ALL_LINEAR and name not in last_parts), None)
        if unknown is not None or not wanted:
            raise UsageError(
                f"the draft model has no linear layer named {unknown or shape.targets!r}",
                where="target_modules",
                try_=did_you_mean(str(unknown), [*last_parts, ALL_LINEAR]),
            )
        self.layers = {name: _Layer(linears[name], shape) for name in wanted}
        self.set(None)

    # --- weights -----------------------------------------------------------------------------------------------------

    def set(self, weights: Mapping[str, Tensor] | None) -> None:
        """Draft with these matrices from now on; None: as the base does, and a fresh start for learning (A uniform as
        PEFT draws it, B zero). Computed from W itself, so setting twice is setting once, bit by bit.

        weights: as `weights()` gives them. Raises UsageError naming what is missing, unknown or of another shape.
        """
        if weights is None:
            weights = self.fresh()
        self._check(weights)
        # A normal tensor may be written while the engine runs in inference mode, but must not become one of its own.
        with torch.inference_mode(False), torch.no_grad():
            for name, layer in self.layers.items():
                layer.set(weights[f"{name}.lora_A.weight"], weights[f"{name}.lora_B.weight"])

    def fresh(self) -> dict[str, Tensor]:
        """Matrices that change nothing, fit to learn from: the same for the same seed."""
        generator = torch.Generator().manual_seed(self._seed)
        found: dict[str, Tensor] = {}
        for name, layer in self.layers.items():
            bound = 1 / math.sqrt(layer.num_in)  # kaiming_uniform with a = sqrt(5)
            a_rI = (torch.rand(self.shape.rank, layer.num_in, generator=generator, dtype=torch.float64) * 2 - 1) * bound
            found[f"{name}.lora_A.weight"] = a_rI.to(layer.dtype)
            found[f"{name}.lora_B.weight"] = torch.zeros(layer.num_out, self.shape.rank, dtype=layer.dtype)
        return found

    def weights(self) -> dict[str, Tensor]:
        """Copies on the CPU: `<module>.lora_A.weight` (r, I) and `<module>.lora_B.weight` (O, r)."""
        return {
            f"{name}.{part}.weight": parameter.detach().cpu().clone()
            for name, layer in self.layers.items()
            for part, parameter in (("lora_A", layer.a_rI), ("lora_B", layer.b_Or))
        }

    def _check(self, weights: Mapping[str, Tensor]) -> None:
        problems: list[str] = []
        for name, layer in self.layers.items():
            for part, parameter in (("lora_A", layer.a_rI), ("lora_B", layer.b_Or)):
                key = f"{name}.{part}.weight"
                if key not in weights:
                    problems.append(f"missing {key}")
                elif weights[key].shape != parameter.shape:
                    problems.append(f"{key} is {tuple(weights[key].shape)}, not {tuple(parameter.shape)}")
                elif not bool(weights[key].isfinite().all()):
                    problems.append(f"{key} is not finite")
        known = {f"{name}.{part}.weight" for name in self.layers for part in ("lora_A", "lora_B")}
        problems += [f"unknown {key}" for key in weights if key not in known]
        if problems:
            more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise UsageError(
                f"the adapter does not fit this draft model: {'; '.join(problems[:3])}{more}",
                try_="name the draft model and the target_modules that it was trained with",
            )

    # --- running -----------------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """The layers compute with the adapter from now on."""
        for layer in self.layers.values():
            layer.attach()

    def detach(self) -> None:
        """The model is as it was before `attach`, bit by bit."""
        for layer in self.layers.values():
            layer.detach()

    @contextmanager
    def learning(self) -> Iterator[LoraModule]:
        """Inside, forwards have gradient into A and B (of the module handed out) and into nothing else; `set` decides
        what is drafted with afterwards."""
        module = LoraModule(self.layers)
        before = [layer.product for layer in self.layers.values()]
        try:
            for layer in self.layers.values():
                layer.learn()
            yield module
        finally:
            for layer, product in zip(self.layers.values(), before, strict=True):
                layer.product = product
                layer.a_rI.requires_grad_(False)
                layer.b_Or.requires_grad_(False)
                layer.a_rI.grad = layer.b_Or.grad = None

    @contextmanager
    def silenced(self) -> Iterator[None]:
        """Inside, forwards are the base's."""
        before = [layer.product for layer in self.layers.values()]
        try:
            for layer in self.layers.values():
                layer.product = layer.plain
            yield
        finally:
            for layer, product in zip(self.layers.values(), before, strict=True):
                layer.product = product


class LoraModule(nn.Module):
    """A and B as a module's parameters, for optimisers."""

    def __init__(self, layers: Mapping[str, _Layer]) -> None:
        super().__init__()
        self.a = nn.ParameterList([layer.a_rI for layer in layers.values()])
        self.b = nn.ParameterList([layer.b_Or for layer in layers.values()])


class _Layer:
    """One adapted layer: what its module's `forward` is while attached."""

    def __init__(self, linear: nn.Module, shape: LoraShape) -> None:
        self._linear = linear
        self._scale = shape.scale
        self.num_in = int(linear.in_features)  # type: ignore[arg-type]
        self.num_out = int(linear.out_features)  # type: ignore[arg-type]
        self.plain = linear.forward
        """The base's own product; laid-out linears have set it on the instance."""
        weight = linear.weight
        self._base_OI: Tensor | None = None if is_quantised(linear) else weight.detach()  # type: ignore[operator]
        device = next(linear.parameters(), torch.empty(0)).device
        plain_type = torch.float32 if self._base_OI is None else self._base_OI.dtype
        self.dtype = torch.promote_types(plain_type, torch.float32)
        self.a_rI = nn.Parameter(torch.zeros(shape.rank, self.num_in, dtype=self.dtype, device=device), False)
        self.b_Or = nn.Parameter(torch.zeros(self.num_out, shape.rank, dtype=self.dtype, device=device), False)
        self.product: Any = self._both
        self._merged_OI: Tensor | None = None
        if self._base_OI is not None:
            self._merged_OI = stored(self._base_OI.clone())
            self.product = FrozenLinear(self._merged_OI, linear.bias)  # type: ignore[arg-type]

    def __call__(self, x: Tensor) -> Tensor:
        product: Tensor = self.product(x)
        return product

    def _both(self, x: Tensor) -> Tensor:
        plain: Tensor = self.plain(x)
        low = F.linear(F.linear(x.to(self.dtype), self.a_rI), self.b_Or)
        return plain + (self._scale * low).to(plain.dtype)

    def set(self, a_rI: Tensor, b_Or: Tensor) -> None:
        self.a_rI.copy_(a_rI)
        self.b_Or.copy_(b_Or)
        if self._merged_OI is not None:
            assert self._base_OI is not None
            if not bool(b_Or.any()):
                self._merged_OI.copy_(self._base_OI)
                return
            delta_OI = self._scale * (self.b_Or @ self.a_rI)
            self._merged_OI.copy_(self._base_OI.to(self.dtype) + delta_OI)

    def learn(self) -> None:
        self.product = self._both
        self.a_rI.requires_grad_(True)
        self.b_Or.requires_grad_(True)

    def attach(self) -> None:
        self._linear.forward = self

    def detach(self) -> None:
        self._linear.forward = self.plain
