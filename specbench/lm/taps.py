"""Hidden states of chosen layers, recorded by forward hooks so that no model code changes and nothing untapped is kept.

A tap is a decoder layer's output (0-based), or "final": what the language-model head reads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from specbench.errors import UsageError


def decoder_of(model: PreTrainedModel) -> nn.Module:
    """The stack under the head (`LlamaModel` of `LlamaForCausalLM`)."""
    get_decoder = getattr(model, "get_decoder", None)
    decoder = get_decoder() if callable(get_decoder) else model.base_model
    assert isinstance(decoder, nn.Module)
    return decoder


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers: the one ModuleList as long as the config says."""
    wanted = model.config.get_text_config().num_hidden_layers
    for module in decoder_of(model).modules():
        if isinstance(module, nn.ModuleList) and len(module) == wanted:
            return module
    raise UsageError(
        f"{type(model).__name__} has no list of {wanted} decoder layers to tap",
        try_="choose a method that reads no hidden states (specbench methods)",
    )


def _first(output: Any) -> Tensor:
    state = output[0] if not isinstance(output, Tensor) else output
    assert isinstance(state, Tensor)
    return state


class TapRecorder:
    """Keeps the tapped states of the last forward; `take` hands them over once."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._taps: tuple[int | str, ...] = ()
        self._handles: list[RemovableHandle] = []
        self._states: dict[int | str, Tensor] = {}

    @property
    def taps(self) -> tuple[int | str, ...]:
        """What is tapped now."""
        return self._taps

    def set(self, taps: tuple[int | str, ...]) -> None:
        """Tap these from now on. Raises UsageError for a layer the model does not have."""
        if taps == self._taps:
            return
        modules = [self._module(tap) for tap in taps]
        for handle in self._handles:
            handle.remove()
        self._taps = taps
        self._handles = [
            module.register_forward_hook(self._recorder(tap)) for tap, module in zip(taps, modules, strict=True)
        ]

    def _module(self, tap: int | str) -> nn.Module:
        if tap == "final":
            return decoder_of(self._model)
        layers = layers_of(self._model)
        if not isinstance(tap, int) or not 0 <= tap < len(layers):
            raise UsageError(f"no layer {tap!r} to tap", try_=f"layers are 0 .. {len(layers) - 1}, or 'final'")
        return layers[tap]

    def _recorder(self, tap: int | str) -> Any:
        def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self._states[tap] = _first(output)

        return record

    @property
    def has_layers(self) -> bool:
        """Whether any of what is tapped now is a layer's output."""
        return any(tap != "final" for tap in self._taps)

    def take(self) -> Tensor | None:
        """(B, M, K, D) of the last forward, None without taps."""
        if not self._taps:
            return None
        states = torch.stack([self._states[tap] for tap in self._taps], dim=2)
        self._states = {}
        return states
