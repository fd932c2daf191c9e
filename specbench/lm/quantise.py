"""`--quantisation`: what a device and a dtype can do, and who does it. Checkpoints that come quantised: `prequantised`.

torchao's `quantize_` on the loaded model rather than transformers' `TorchAoConfig`: the weights are first read whole
from safetensors and checked for missing tensors like any other's, the model's classes stay transformers' own (only the
`weight` of its linear layers becomes a tensor that multiplies by itself), nothing is fetched, and which layers are
meant is said here instead of following a library's default. bitsandbytes replaces layers while a model is loaded, so it
goes through `from_pretrained`.

Left as they are: the head and the embedding table (as every library's default has it; drafters read them), norms and
biases. A product's input is never rounded by a scale that positions share, so that a token's law does not depend on
what is verified beside it.
"""

from __future__ import annotations

import importlib.util
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from specbench.errors import EnvironmentFailed, SpecbenchError, UsageError
from specbench.lm.quantised import is_quantised, quantised_layers
from specbench.quantisation import NONE, check_quantisation

_GROUPS = (128, 64, 32)
"""Weights of a row that share scale and zero point under int4: the largest that divides every layer's width."""
EAGER = "bitsandbytes runs eagerly, without CUDA graphs: not to be ranked with targets that run under them"
INPUT_ROUNDED = "bitsandbytes rounds the input of its 8-bit products too, each position by its own scale"


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """How a target's weights are held."""

    name: str
    """As recorded and compared: 'none', 'int8', 'int4-g64', 'fp8', 'bnb-int8', 'bnb-int4', or a checkpoint's own
    ('gptq-4bit')."""
    notes: tuple[str, ...] = ()
    is_capturable: bool = True
    """Fit for CUDA graphs, as far as it is known."""


@dataclass(frozen=True)
class Library:
    """A package that quantised weights need."""

    module: str
    install: str


TORCHAO = Library("torchao", "pip install 'specbench[quant]'")
BITSANDBYTES = Library("bitsandbytes", "pip install bitsandbytes")


def check_asked(name: str, *, device: torch.device, dtype: torch.dtype, is_split: bool, where: str) -> None:
    """Before any weight is read. Raises UsageError for what this device, dtype or split cannot do, EnvironmentFailed
    for a library that is not installed; each says what to type instead. where: the option that asked."""
    check_quantisation(name, where=where)
    if name == NONE:
        return

    own_dtype = where.replace("quantisation", "dtype")

    def refuse(what: str, try_: str) -> SpecbenchError:
        return UsageError(what, where=typed(where, name), try_=try_)

    if is_split:
        raise refuse("a quantised target is not split over processes", "the same command without torchrun")
    if device.type not in ("cpu", "cuda"):
        raise refuse(f"quantised products have no kernels here for {device.type}", "--device cpu, or without it")
    require(BITSANDBYTES if name.startswith("bnb-") else TORCHAO, what=typed(where, name))
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    shown = str(dtype).removeprefix("torch.")
    if name == "int8" and dtype == torch.float64:
        raise refuse(
            "torchao quantises no float64 weights to 8-bit integers",
            f"{typed(own_dtype, 'float32')}, or {typed(where, 'fp8')}",
        )
    if name == "int4":
        if capability is None:
            raise refuse("torchao has no 4-bit product for CPUs (its int4 layouts are CUDA's)", typed(where, "int8"))
        if capability < (8, 0):
            raise refuse(
                f"4-bit products need a GPU of capability 8.0, this one has {_version(capability)}",
                typed(where, "int8"),
            )
        if dtype != torch.bfloat16:
            raise refuse(f"4-bit products are of bfloat16, not {shown}", typed(own_dtype, "bfloat16"))
    if name == "fp8" and capability is not None and capability < (8, 9):
        raise refuse(
            f"8-bit floats need a GPU of capability 8.9, this one has {_version(capability)}", typed(where, "int8")
        )
    if name == "bnb-int4" and capability is None:
        raise refuse(
            "bitsandbytes' 4-bit product fails on CPUs for widths that its tiles do not divide",
            typed(where, "bnb-int8"),
        )
    if name.startswith("bnb-") and dtype.itemsize != 2:
        raise refuse(
            f"bitsandbytes multiplies in 16 bits, whatever the dtype; {shown} would be a pretence",
            typed(own_dtype, "bfloat16"),
        )


def loading_options(name: str, *, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` is told: nothing for torchao, whose turn comes when the weights are there."""
    if name == "bnb-int8":
        # threshold 0: LLM.int8's outlier columns are those of all positions of a product together, so that a token's
        # law would depend on the draft beside it (logits moved by 0.18 on the embedded target, measured), which no
        # speculative decoding can be exact for.
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    elif name == "bnb-int4":
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    else:
        return {}
    return {"quantization_config": config, "device_map": {"": device}}


def quantise(model: PreTrainedModel, name: str, *, device: torch.device, where: str) -> Scheme:
    """Quantise the loaded model in place, its linear layers then on `device`; of a model that bitsandbytes loaded, see
    that nothing was left out.

    Raises UsageError for a model whose weights are elsewhere than in linear layers (mixtures of experts, GPT-2), or of
    widths that no group divides: half a quantised target would be none.
    """
    if name == NONE:
        return Scheme(name=NONE)
    _refuse_other_weights(model, asked=typed(where, name))
    if name.startswith("bnb-"):
        assert quantised_layers(model), "bitsandbytes has replaced the linear layers"
        hush("bitsandbytes")
        notes = (EAGER, INPUT_ROUNDED) if name == "bnb-int8" else (EAGER,)
        return Scheme(name=name, notes=notes, is_capturable=False)
    head = model.get_output_embeddings()
    layers = {id(each): each for each in model.modules() if isinstance(each, nn.Linear) and each is not head}
    group = _group_for(layers.values(), asked=typed(where, name)) if name == "int4" else 0
    from torchao.quantization import quantize_  # 1 s, only for quantised targets

    quantize_(model, _torchao_config(name, group), filter_fn=lambda each, _: id(each) in layers, device=device)
    left = sum(not is_quantised(each) for each in layers.values())
    assert not left, f"torchao left {left} of {len(layers)} layers as they were"
    return Scheme(name=f"int4-g{group}" if group else name)


def _torchao_config(name: str, group: int) -> Any:
    from torchao.quantization import Float8WeightOnlyConfig, Int4WeightOnlyConfig, Int8WeightOnlyConfig

    # set_inductor_config would change torch.compile for the whole program.
    if name == "int8":
        return Int8WeightOnlyConfig(set_inductor_config=False)
    if name == "fp8":
        return Float8WeightOnlyConfig(set_inductor_config=False)
    # tinygemm, whose product is torch's own; the other layouts need a package beside torchao.
    return Int4WeightOnlyConfig(group_size=group, int4_packing_format="tile_packed_to_4d", set_inductor_config=False)


def _group_for(layers: Any, *, asked: str) -> int:
    widths = sorted({int(each.in_features) for each in layers})
    found = next((group for group in _GROUPS if not any(width % group for width in widths)), None)
    if found is None:
        raise UsageError(
            f"no group of {', '.join(map(str, _GROUPS))} weights divides layers {', '.join(map(str, widths))} wide",
            where=asked,
            try_="int8, whose scales are a row's",
        )
    return found


def _refuse_other_weights(model: PreTrainedModel, *, asked: str) -> None:
    """Raises UsageError naming the first matrix that is neither a linear layer's nor an embedding table."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            continue
        other = next((each for each, weight in module.named_parameters(recurse=False) if weight.ndim > 1), None)
        if other is not None:
            raise UsageError(
                f"{name}.{other} of this {model.config.get_text_config().model_type} is no linear layer's weight and "
                "would stay as it is",
                where=asked,
                try_="a model of linear layers, a checkpoint that comes quantised, or no quantisation",
            )


def require(library: Library, *, what: str) -> None:
    """Raises EnvironmentFailed saying what to install."""
    if importlib.util.find_spec(library.module) is None:
        raise EnvironmentFailed(f"{what} needs {library.module}, which is not installed", try_=library.install)


def hush(logger: str) -> None:
    """Errors only from here on: bitsandbytes says at every product, inside timed regions, that it casts the input."""
    logging.getLogger(logger).setLevel(logging.ERROR)


def typed(option: str, value: str) -> str:
    """The option as it is given a value on the command line: a method's own goes through --set."""
    return f"{option} {value}" if option.startswith("--") else f"--set {option}={value}"


def _version(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
