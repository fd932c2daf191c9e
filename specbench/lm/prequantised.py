"""Checkpoints whose config.json brings a quantization_config: recognised, named, and refused where they would not run
as what they are. They are read by transformers' own loader for their kind."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from specbench.errors import UsageError
from specbench.lm.quantise import BITSANDBYTES, EAGER, INPUT_ROUNDED, TORCHAO, Library, Scheme, hush, require, typed
from specbench.lm.quantised import is_quantised, quantised_layers
from specbench.quantisation import NONE

_LIBRARIES = {
    "torchao": (TORCHAO,),
    "bitsandbytes": (BITSANDBYTES,),
    "gptq": (Library("gptqmodel", "pip install gptqmodel"), Library("optimum", "pip install optimum")),
    "awq": (Library("gptqmodel", "pip install gptqmodel"),),
    "fp8": (),
}
"""Kinds of checkpoints whose layers stay quantised while they run, and what each needs. The last three have never been
run here."""


def carried_by(config: PretrainedConfig) -> dict[str, Any] | None:
    """The checkpoint's own quantization_config, as plain values; None where its weights are plain."""
    found = getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(), "quantization_config", None
    )
    if found is None:
        return None
    return dict(found if isinstance(found, dict) else found.to_dict())


def check_carried(
    carried: dict[str, Any], *, name: str, asked: str, where: str, device: torch.device, is_split: bool
) -> Scheme:
    """The scheme of a checkpoint that comes quantised. Raises UsageError for a kind that would not stay quantised and
    for one that is asked for on top, EnvironmentFailed for a library that is not installed."""
    scheme = _named(carried)
    if asked != NONE:
        raise UsageError(
            f"{name} comes quantised ({scheme.name}) and cannot be quantised again",
            where=typed(where, asked),
            try_=f"without {where}",
        )
    method = str(carried.get("quant_method", ""))
    if method not in _LIBRARIES:
        raise UsageError(
            f"{name} is quantised by {method or 'an unnamed method'}, whose weights transformers widens before or "
            "while they run: what would be measured is no quantised target",
            try_=f"an unquantised checkpoint with {where}, or one of {', '.join(_LIBRARIES)}",
        )
    for library in _LIBRARIES[method]:
        require(library, what=f"{name}, which is quantised by {method},")
    if is_split:
        raise UsageError("a quantised target is not split over processes", try_="the same command without torchrun")
    if method == "fp8":
        capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
        if capability < (8, 9):
            raise UsageError(
                f"the 8-bit floats of {name} need a GPU of capability 8.9; elsewhere transformers widens them",
                where=f"--device {device}",
                try_=f"an unquantised checkpoint with {typed(where, 'int8')}",
            )
    return scheme


def steadied(carried: dict[str, Any]) -> dict[str, Any]:
    """The checkpoint's quantization_config without what makes a token's law depend on its neighbours (see
    `loading_options`); the scheme's notes say it."""
    return {**carried, "llm_int8_threshold": 0.0} if _has_outliers(carried) else carried


def check_loaded(model: PreTrainedModel, scheme: Scheme, *, name: str) -> None:
    """Of a checkpoint that came quantised. Raises UsageError where transformers has widened its weights, or where they
    are held for another dtype than the run's."""
    layers = quantised_layers(model)
    if not layers:
        raise UsageError(
            f"transformers has widened the {scheme.name} weights of {name} on {model.device}: no quantised target",
            try_="a device that its kernels run on, or an unquantised checkpoint",
        )
    for what, module in (("head", model.get_output_embeddings()), ("embedding table", model.get_input_embeddings())):
        if is_quantised(module) or type(getattr(module, "weight", None)) not in (torch.Tensor, nn.Parameter):
            raise UsageError(
                f"the {what} of {name} is quantised too, and drafters read it as a plain matrix",
                try_="a checkpoint whose head and embeddings are not quantised, or an unquantised one",
            )
    for layer in layers:
        weight = getattr(layer, "weight", None)
        held = getattr(weight, "dtype", model.dtype)
        if hasattr(weight, "__tensor_flatten__") and held != model.dtype:
            short = str(held).removeprefix("torch.")
            raise UsageError(
                f"{name} was quantised for {short} products",
                where=f"--dtype {str(model.dtype).removeprefix('torch.')}",
                try_=f"--dtype {short}",
            )
    hush("bitsandbytes")


def _named(carried: dict[str, Any]) -> Scheme:
    method = str(carried.get("quant_method", ""))
    if method == "torchao":
        kind = str(carried.get("quant_type", {}).get("default", {}).get("_type", "of its own"))
        return Scheme(name=f"torchao {kind.removesuffix('Config')}", notes=_rounds_input(kind))
    if method == "bitsandbytes":
        is_8bit = bool(carried.get("load_in_8bit"))
        outliers = "its outlier columns, chosen over all positions at once, are multiplied in 8 bits like the others"
        notes = (EAGER, *((INPUT_ROUNDED,) if is_8bit else ()), *((outliers,) if _has_outliers(carried) else ()))
        return Scheme(name=f"bitsandbytes-{8 if is_8bit else 4}bit", notes=notes, is_capturable=False)
    bits = carried.get("bits")
    name = f"{method}-{bits}bit" if bits else f"{method}-checkpoint"
    return Scheme(name=name, notes=(f"{method} kernels: run eagerly, without CUDA graphs",), is_capturable=False)


def _has_outliers(carried: dict[str, Any]) -> bool:
    return bool(carried.get("load_in_8bit")) and float(carried.get("llm_int8_threshold", 6.0)) > 0


def _rounds_input(kind: str) -> tuple[str, ...]:
    return (f"{kind} rounds the input of its products too",) if "Activation" in kind else ()
