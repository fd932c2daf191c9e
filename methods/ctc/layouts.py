"""EAGLE-1's checkpoint layout, which the released CTC drafter shares, both ways.

    fc.weight, fc.bias                                  bias: unless config.json says "bias": false
    layers.0.self_attn.{q,k,v,o}_proj.weight
    layers.0.mlp.{gate,up,down}_proj.weight
    layers.0.post_attention_layernorm.weight
    embed_tokens.weight                                 a frozen copy of the target's: not kept, not written

config.json is the target's Llama config with one layer and the drafter's own numbers of heads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from methods.ctc.architecture import Architecture
from methods.ctc.module import CtcNetwork
from specbench.errors import UsageError
from specbench.layouts import Layout, Read, Written

_EMBEDDING = "embed_tokens.weight"
_DRAFTED = 4
"""What the card's num_tokens 0 stands for in this form."""


class EagleLayout:
    """EAGLE-1 as serving engines know it: no bias is written, either is read."""

    name = "eagle"
    summary = "EAGLE-1 (SafeAILab/EAGLE, vLLM): form eagle with fc_bias=false; files with a bias are read too"
    writes_bias = False

    def write(
        self, architecture: Mapping[str, Any], state: Mapping[str, Tensor], *, target: Mapping[str, Any]
    ) -> Written:
        """Raises UsageError: not the form eagle with its layer, a trimmed vocabulary, another embedding's width, or a
        bias the layout's readers do not take."""
        arch = Architecture.read(architecture, where="architecture")
        for is_so, what, instead in (
            (arch.form != "eagle", "parallel frames (form nar)", "train with form=eagle"),
            (arch.module != "layer", "a linear map instead of the layer", "train with module=layer"),
            (arch.trimmed > 0, "a trimmed vocabulary", "train with vocabulary=0"),
            (arch.embed_size != arch.hidden_size, "an embedding of another width than the hidden states", ""),
            (arch.fc_bias and not self.writes_bias, "a bias of fc", "--layout ctc, or train with fc_bias=false"),
        ):
            if is_so:
                raise UsageError(f"the layout {self.name!r} has no place for {what}", where="--layout", try_=instead)
        config = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": arch.hidden_size,
            "intermediate_size": arch.intermediate_size,
            "num_attention_heads": arch.heads,
            "num_key_value_heads": arch.kv_heads,
            "num_hidden_layers": 1,
            "rms_norm_eps": arch.norm_eps,
            "rope_theta": arch.rope_theta,
            "vocab_size": arch.vocab_size,
            "bias": arch.fc_bias,
            "torch_dtype": str(next(iter(state.values())).dtype).removeprefix("torch."),
        }
        return Written(config=config, tensors=dict(state))

    def read(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Read:
        """Raises UsageError: a config without a fact or of another shape of drafter, missing or unknown tensors, wrong
        shapes."""
        arch = _architecture(config, has_bias="fc.bias" in tensors)
        with torch.device("meta"):
            shapes = {name: tuple(each.shape) for name, each in CtcNetwork(arch).state_dict().items()}
        wanted = {**shapes, _EMBEDDING: (arch.vocab_size, arch.hidden_size)}
        problems = [f"missing {name}" for name in shapes if name not in tensors]
        problems += [f"unknown {name}" for name in tensors if name not in wanted]
        problems += [
            f"{name} is {tuple(tensors[name].shape)}, not {shape}"
            for name, shape in wanted.items()
            if name in tensors and tuple(tensors[name].shape) != shape
        ]
        if problems:
            raise UsageError(
                f"the tensors do not fit what config.json says: {'; '.join(problems)}",
                where=f"--layout {self.name}",
                try_="check hidden_size, intermediate_size and the numbers of heads in config.json",
            )
        notes: tuple[str, ...] = ()
        if _EMBEDDING in tensors:
            notes = (f"{_EMBEDDING} is left out: the target's own embedding is read instead",)
        return Read(
            architecture=arch.as_dict(),
            state={name: tensors[name] for name in shapes},
            hidden_size=arch.hidden_size,
            vocab_size=arch.vocab_size,
            notes=notes,
        )

    def num_tokens(self, architecture: Mapping[str, Any], options: Mapping[str, Any]) -> int:
        """The labels of its windows, of which the weights say nothing; unknown: what the card drafts."""
        return int(options.get("labels", _DRAFTED))

    def serving(self, folder: str, *, target: str, num_tokens: int) -> str:
        """vLLM's command line."""
        config = json.dumps({"method": "eagle", "model": folder, "num_speculative_tokens": num_tokens})
        return f"vllm serve {target} --speculative-config '{config}'"


class CtcLayout(EagleLayout):
    """The released CTC drafter's files, whose fc has a bias unless config.json says otherwise."""

    name = "ctc"
    summary = "ZhuofanWen/CTC-drafter: EAGLE-1's tensors and fc.bias"
    writes_bias = True

    def serving(self, folder: str, *, target: str, num_tokens: int) -> str:
        """Empty: no serving engine reads the bias, and the released evaluation changes the text."""
        return ""


def _architecture(config: Mapping[str, Any], *, has_bias: bool) -> Architecture:
    for field in ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"):
        if not isinstance(config.get(field), int):
            raise UsageError(f"config.json has no whole number {field!r}", where="config.json")
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    act, head_dim = config.get("hidden_act", "silu"), config.get("head_dim")
    for is_so, what in (
        (config.get("num_hidden_layers", 1) != 1, f"{config.get('num_hidden_layers')} layers; one is supported"),
        # swish is silu by its older name.
        (act not in ("silu", "swish"), f"hidden_act {json.dumps(act)}; silu is supported"),
        (
            head_dim is not None and head_dim * heads != hidden,
            f"head_dim {head_dim}, but {heads} heads of a width of {hidden} have {hidden / heads:g} columns each",
        ),
        (
            isinstance(config.get("bias"), bool) and config["bias"] != has_bias,
            f'"bias": {json.dumps(config.get("bias"))}, but the tensors {"hold" if has_bias else "lack"} fc.bias',
        ),
    ):
        if is_so:
            raise UsageError(f"config.json says {what}", where="config.json")
    return Architecture(
        form="eagle",
        module="layer",
        hidden_size=hidden,
        embed_size=hidden,
        vocab_size=config["vocab_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        intermediate_size=config["intermediate_size"],
        fc_bias=has_bias,
        rope_theta=_rope_theta(config),
        norm_eps=float(config.get("rms_norm_eps") or 1e-6),
    )


def _rope_theta(config: Mapping[str, Any]) -> float:
    """Base of the plain rotary embedding: `rope_parameters` as transformers 5 writes it, else `rope_theta` beside
    `rope_scaling` as earlier ones did. Raises UsageError for any other kind, and for two bases."""
    bases = {float(config["rope_theta"])} if config.get("rope_theta") else set()
    for field in ("rope_parameters", "rope_scaling"):
        found = config.get(field) or {}
        is_one = isinstance(found, Mapping) and not any(isinstance(each, Mapping) for each in found.values())
        kind = (found.get("rope_type") or found.get("type") or "default") if is_one else None
        turned = (found.get("partial_rotary_factor") or 1.0) if is_one else None
        if kind != "default" or turned != 1.0:
            raise UsageError(
                f"config.json says {field} {json.dumps(found)}, which is not supported",
                where="config.json",
                try_="a drafter whose rotary embedding is plain (rope_type default)",
            )
        if found.get("rope_theta"):
            bases.add(float(found["rope_theta"]))
    if len(bases) > 1:
        both = " and ".join(f"{each:g}" for each in sorted(bases))
        raise UsageError(f"config.json says rope_theta {both}", where="config.json", try_="keep the one it learnt with")
    return bases.pop() if bases else 10000.0


LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (EagleLayout(), CtcLayout())}
