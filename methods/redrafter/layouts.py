"""ReDrafter checkpoints of other programs: Apple's (and TensorRT-LLM's names for it), and a speculators config over the
same tensors.

    input_proj.{weight,bias}               only where exit_dim != 2H
    lm_head.{k}.linear.{weight,bias}       block k
    lm_head.{N}.weight                     the head; its index is the number of blocks
    rnn_u.{weight,bias}, rnn_w.weight      only with rnn; U carries the bias
    emb_norm.weight                        in some exports; no program applies it

V vocabulary, E exit_dim, H hidden size of the target.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from methods.redrafter.module import Architecture, ReDrafterNetwork
from specbench.errors import UsageError
from specbench.layouts import Layout, Read, Written

_ALIASES = (
    (re.compile(r"^input_projs\."), "input_proj."),
    (re.compile(r"^lm_heads\."), "lm_head."),
    (re.compile(r"^0\.(?=\d+\.)"), "lm_head."),
)
"""Names that TensorRT-LLM's converter accepts beside Apple's."""
_BLOCK = re.compile(r"^lm_head\.(\d+)\.linear\.(weight|bias)$")
_DRAFTED = 4
"""The card's num_tokens."""
_HEAD = re.compile(r"^lm_head\.(\d+)\.weight$")


class _AppleTensors:
    """What both layouts share: the tensors' names and the facts in config.json."""

    name: str
    summary: str
    _marks: Mapping[str, Any]
    """Fields of config.json that say which program it is for."""

    def write(
        self, architecture: Mapping[str, Any], state: Mapping[str, Tensor], *, target: Mapping[str, Any]
    ) -> Written:
        """Raises UsageError: a borrowed or trimmed head, or an embedding of another width than the hidden states."""
        arch = Architecture.read(architecture, where="architecture")
        for is_so, what, instead in (
            (arch.head != "own", "a borrowed head", "--set redrafter.head=own"),
            (arch.trimmed > 0, "a trimmed vocabulary", "--set redrafter.vocabulary=0"),
            (arch.embed_size != arch.hidden_size, "an embedding of another width than the hidden states", ""),
        ):
            if is_so:
                raise UsageError(
                    f"the layout {self.name!r} has no place for {what}",
                    where="--layout",
                    try_=f"train with {instead}" if instead else "",
                )
        tensors = {_theirs(name, arch.num_layers): tensor for name, tensor in state.items()}
        config = {
            **self._marks,
            "vocab_size": arch.vocab_size,
            "hidden_size": arch.hidden_size,
            "exit_dim": arch.exit_dim,
            "num_draft_layers": arch.num_layers,
            "rnn": arch.rnn,
            "torch_dtype": str(next(iter(state.values())).dtype).removeprefix("torch."),
        }
        return Written(config=config, tensors=tensors)

    def num_tokens(self, architecture: Mapping[str, Any], options: Mapping[str, Any]) -> int:
        """The depth it was trained with, of which the weights say nothing; unknown: what the card drafts."""
        return int(options.get("depth", _DRAFTED))

    def read(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Read:
        """Raises UsageError: a config that lacks a fact; missing, unknown or doubled tensors; wrong shapes."""
        for field in ("vocab_size", "hidden_size", "exit_dim", "num_draft_layers"):
            if not isinstance(config.get(field), int):
                raise UsageError(f"config.json has no whole number {field!r}", where="config.json")
        arch = Architecture(
            hidden_size=config["hidden_size"],
            embed_size=config["hidden_size"],
            vocab_size=config["vocab_size"],
            exit_dim=config["exit_dim"],
            num_layers=config["num_draft_layers"],
            rnn=bool(config.get("rnn", False)),
        )
        notes: list[str] = []
        state: dict[str, Tensor] = {}
        strange: list[str] = []
        for name, tensor in tensors.items():
            plain = name
            for pattern, ours in _ALIASES:
                plain = pattern.sub(ours, plain)
            if plain == "emb_norm.weight":
                notes.append("emb_norm.weight is left out: no program that reads this layout applies it")
                continue
            own = _ours(plain, arch.num_layers)
            if own is None:
                strange.append(name)
            elif own in state:
                raise UsageError(f"two tensors are {plain}", where=name)
            else:
                state[own] = tensor
        self._demand_all(arch, state, strange)
        return Read(
            architecture=arch.as_dict(),
            state=state,
            hidden_size=arch.hidden_size,
            vocab_size=arch.vocab_size,
            notes=tuple(notes),
        )

    def _demand_all(self, arch: Architecture, state: Mapping[str, Tensor], strange: list[str]) -> None:
        wanted = {name: tuple(tensor.shape) for name, tensor in _shapes(arch).items()}
        problems = [f"missing {_theirs(name, arch.num_layers)}" for name in wanted if name not in state]
        problems += [f"unknown {_theirs(name, arch.num_layers)}" for name in state if name not in wanted]
        problems += [f"unknown {name}" for name in strange]
        problems += [
            f"{_theirs(name, arch.num_layers)} is {tuple(state[name].shape)}, not {shape}"
            for name, shape in wanted.items()
            if name in state and tuple(state[name].shape) != shape
        ]
        if problems:
            raise UsageError(
                f"the tensors do not fit what config.json says: {'; '.join(problems)}",
                where=f"--layout {self.name}",
                try_="check exit_dim, num_draft_layers and rnn in config.json",
            )


class AppleLayout(_AppleTensors):
    """ml-recurrent-drafter's folder; TensorRT-LLM's converter reads it too."""

    name = "apple"
    summary = "apple/ml-recurrent-drafter and TensorRT-LLM's converter"
    _marks: Mapping[str, Any] = {
        "model_type": "recurrent_drafting_drafter",
        "architectures": ["Drafter"],
        "num_lookback_tokens": -1,
    }

    def serving(self, folder: str, *, target: str, num_tokens: int) -> str:
        """TensorRT-LLM's converter, run in its examples/redrafter; beams and length are built into its engine."""
        return (
            f"python convert_checkpoint.py --model_dir {target} --drafter_model_dir {folder} "
            "--output_dir redrafter-trt --dtype float16 --redrafter_num_beams 5 "
            f"--redrafter_draft_len_per_beam {num_tokens}"
        )


class SpeculatorsLayout(_AppleTensors):
    """The config of eplatero97's fork of speculators over the same tensors."""

    name = "speculators"
    summary = "eplatero97/speculators, model type recurrent_drafting"
    _marks: Mapping[str, Any] = {
        "speculators_model_type": "recurrent_drafting",
        "architectures": ["RecurrentDraftingSpeculator"],
        "emb_norm": False,
        "rms_norm_eps": 1e-5,
    }

    def serving(self, folder: str, *, target: str, num_tokens: int) -> str:
        """Empty: the engine behind this config loses tokens (README, Differences)."""
        return ""


def _shapes(arch: Architecture) -> Mapping[str, Tensor]:

    with torch.device("meta"):
        return ReDrafterNetwork(arch).state_dict()


def _theirs(name: str, num_layers: int) -> str:
    block = re.match(r"^blocks\.(\d+)\.(weight|bias)$", name)
    if block is not None:
        return f"lm_head.{block[1]}.linear.{block[2]}"
    return f"lm_head.{num_layers}.weight" if name == "head.weight" else name


def _ours(name: str, num_layers: int) -> str | None:
    """Our name of one of theirs; None where there is none."""
    block, head = _BLOCK.match(name), _HEAD.match(name)
    if block is not None:
        return f"blocks.{int(block[1])}.{block[2]}"
    if head is not None:
        return "head.weight" if int(head[1]) == num_layers else None
    known = ("input_proj.weight", "input_proj.bias", "rnn_u.weight", "rnn_u.bias", "rnn_w.weight")
    return name if name in known else None


LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in (AppleLayout(), SpeculatorsLayout())}
