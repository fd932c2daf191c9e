"""The file layouts of Arctic's speculators, both ways: `arctic` (sum_lstm and sum_rnn) and `mlp`, the older MLP
speculator's names for a tied or untied one-stage sum_rnn.

Reading strips a `speculator.` prefix, takes projections fused (`projs.K`, rows forget, input, output, cell) or split
(`GATE_proj.K`), and wants every tied copy that is present to equal its twin. Writing leaves tied copies out.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.lstm.architecture import Architecture, Cell, join_widths, parse_widths
from methods.lstm.module import GATES, make_speculator
from specbench.checkpoint import CONFIG, read_config
from specbench.errors import UsageError, did_you_mean
from specbench.layouts import Layout, Read, Written

_PREFIX = "speculator."
_LSTM, _MLP = "ArcticLSTMSpeculatorPreTrainedModel", "ArcticMLPSpeculatorPreTrainedModel"
ARCHITECTURES = (_LSTM, _MLP, "MLPVariantSpeculatorPreTrainedModel", "MLPSpeculatorPreTrainedModel")
"""Accepted in a config's `architectures`."""


class ArcticLayout:
    """name `arctic`, or `mlp`: no stages, so no number of a stage in the names; one width for all."""

    def __init__(self, name: Literal["arctic", "mlp"], summary: str) -> None:
        self.name: str = name
        self.summary = summary

    # --- out ---------------------------------------------------------------------------------------------------------

    def write(
        self, architecture: Mapping[str, Any], state: Mapping[str, Tensor], *, target: Mapping[str, Any]
    ) -> Written:
        """A factored table is multiplied out. Raises UsageError for borrowed tables, trimmed heads and widths that the
        layout cannot say."""
        arch = Architecture.from_dict(architecture)
        self._refuse(arch)
        whole = dict(state)
        for name in [name for name in state if name.endswith(".map")]:
            table = f"{name.removesuffix('map')}weight"
            whole[table] = F.linear(whole[table], whole.pop(name))
        tensors = _layout_of(arch, whole)
        if self.name == "mlp":
            tensors = {_without_stage(name): tensor for name, tensor in tensors.items()}
        dtype = next(iter(tensors.values())).dtype
        return Written(config=self._config(arch, target, dtype), tensors=tensors)

    def _refuse(self, arch: Architecture) -> None:
        faults = []
        if arch.embedding == "target":
            faults.append("the embedding is the target's")
        if arch.head == "target":
            faults.append("the head is the target's")
        if arch.trimmed:
            faults.append(f"the head can say {arch.trimmed} of {arch.vocab_size} tokens")
        if any(len(set(widths)) > 1 for widths in (arch.proj_dim, arch.emb_dim)):
            faults.append("stages of proj_dim or emb_dim differ in width (there the norm is built with the wrong one)")
        if self.name == "mlp":
            widths = {*arch.inner_dim, *arch.proj_dim, *arch.emb_dim}
            if arch.method != "sum_rnn":
                faults.append(f"the cell is {arch.method}")
            if len(widths) > 1 or len(arch.inner_dim + arch.proj_dim + arch.emb_dim) > 3:
                faults.append("it has stages or several widths")
        if faults:
            raise UsageError(
                f"layout {self.name} has no place for this drafter: {'; '.join(faults)}",
                where="--layout",
                try_="train one with embedding=own head=own vocabulary=0 and one width, or keep specbench's own layout",
            )

    def _config(self, arch: Architecture, target: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
        common: dict[str, Any] = {
            "model_type": "mlp_speculator",
            "vocab_size": arch.vocab_size,
            "n_predict": arch.num_heads,
            "n_candidates": arch.num_heads,
            "top_k_tokens_per_head": [1] * arch.num_heads,
            "tie_weights": arch.tie_weights,
            "scale_input": arch.scale_input,
            "base_model_name_or_path": str(target.get("name", "")),
            "torch_dtype": str(dtype).removeprefix("torch."),
        }
        if arch.base_model_archs:
            # The loader of today asks for the list, an older one for the word.
            common |= {"base_model_archs": list(arch.base_model_archs), "base_model_arch": arch.base_model_archs[0]}
        if self.name == "mlp":
            return {
                "architectures": [_MLP], **common, "emb_dim": arch.hidden_size, "inner_dim": arch.inner_dim[0],
            }  # fmt: skip
        return {
            "architectures": [_LSTM],
            **common,
            "method": arch.method,
            "input_hidden_dim": arch.hidden_size,
            "inner_dim": join_widths(arch.inner_dim),
            "proj_dim": join_widths(arch.proj_dim),
            "emb_dim": join_widths(arch.emb_dim),
            "tie_lstm_embs": arch.tie_lstm_embs,
        }

    # --- in ----------------------------------------------------------------------------------------------------------

    def read(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Read:
        """Either layout under either name. Raises UsageError with the list of what does not fit."""
        arch = _architecture(config)
        notes: list[str] = []
        found, faults = _canonical(arch, tensors, notes)
        network = make_speculator(arch).state_dict()
        wanted = {name: tensor.shape for name, tensor in _layout_of(arch, network).items()}
        faults += [f"missing {name}" for name in wanted if name not in found]
        faults += [f"unknown {name}" for name in found if name not in wanted]
        faults += [
            f"{name} is {tuple(found[name].shape)}, not {tuple(shape)}"
            for name, shape in wanted.items()
            if name in found and found[name].shape != shape
        ]
        if faults:
            raise UsageError(f"the file is not a {arch.method} of its config: {'; '.join(faults)}", where="weights")
        state = _join_gates(arch, found) if arch.method == "sum_lstm" else found
        return Read(
            architecture=arch.as_dict(),
            state=state,
            hidden_size=arch.hidden_size,
            vocab_size=arch.vocab_size,
            notes=tuple(notes),
        )

    def num_tokens(self, architecture: Mapping[str, Any], options: Mapping[str, Any]) -> int:
        """One a head."""
        return Architecture.from_dict(architecture).num_heads

    def serving(self, folder: str, *, target: str, num_tokens: int) -> str:
        """vLLM with Arctic Inference's plug-in; empty for untied gate embeddings, which no engine runs."""
        if (Path(folder) / CONFIG).is_file():
            config = read_config(Path(folder))
            if config.get("method") == "sum_lstm" and not config.get("tie_lstm_embs"):
                return ""
        speculative = {"method": "arctic", "model": folder, "num_speculative_tokens": num_tokens}
        arguments = ["vllm", "serve", target, "--speculative-config", json.dumps(speculative)]
        return f"ARCTIC_INFERENCE_ENABLED=1 {shlex.join(arguments)}"


# --- config ----------------------------------------------------------------------------------------------------------


def _architecture(config: Mapping[str, Any]) -> Architecture:
    names = config.get("architectures") or [_LSTM]
    unknown = next((str(name) for name in names if name not in ARCHITECTURES), None)
    if unknown is not None:
        raise UsageError(
            f"{unknown!r} is no speculator of this kind; {did_you_mean(unknown, ARCHITECTURES)}", where=CONFIG
        )
    try:
        cell: Cell = "sum_lstm" if str(config.get("method", "sum_rnn")) == "sum_lstm" else "sum_rnn"
        if str(config.get("method", cell)) != cell:
            raise UsageError(f"method {config['method']!r} is neither sum_lstm nor sum_rnn", where=CONFIG)
        # An MLP speculator calls the target's width emb_dim and has one width of its own.
        is_mlp = "input_hidden_dim" not in config
        hidden_size = int(config["emb_dim"] if is_mlp else config["input_hidden_dim"])
        inner = parse_widths(config.get("inner_dim") or hidden_size, option="inner_dim", auto=hidden_size)
        archs = config.get("base_model_archs") or ([config["base_model_arch"]] if "base_model_arch" in config else [])
        widths = {
            name: inner if is_mlp else parse_widths(config[name], option=name, auto=inner[0])
            for name in ("proj_dim", "emb_dim")
        }
        return Architecture(
            method=cell,
            num_heads=int(config["n_predict"]),
            hidden_size=hidden_size,
            embed_size=hidden_size,
            vocab_size=int(config["vocab_size"]),
            inner_dim=inner,
            proj_dim=widths["proj_dim"],
            emb_dim=widths["emb_dim"],
            tie_weights=bool(config.get("tie_weights", False)),
            tie_lstm_embs=cell == "sum_lstm" and bool(config.get("tie_lstm_embs", False)),
            scale_input=bool(config.get("scale_input", False)),
            base_model_archs=tuple(str(name) for name in archs),
        )
    except KeyError as error:
        raise UsageError(f"the config has no {error.args[0]!r}", where=CONFIG) from error
    except (TypeError, ValueError) as error:
        raise UsageError(f"the config cannot be read: {error}", where=CONFIG) from error


# --- names -----------------------------------------------------------------------------------------------------------

_STAGED = re.compile(r"^(emb|proj|ln)\.(\d+)\.(weight|bias)$")
_FUSED = re.compile(r"^projs\.(\d+)\.weight$")


def _canonical(
    arch: Architecture, tensors: Mapping[str, Tensor], notes: list[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """The `arctic` names without copies, and what contradicts itself."""
    found: dict[str, Tensor] = {}
    faults: list[str] = []
    copies = []
    for name, tensor in tensors.items():
        for plain, part in _parts(name.removeprefix(_PREFIX), tensor):
            if plain in found:
                faults.append(f"{plain} is there twice")
            elif plain == _twin(arch, plain):
                found[plain] = part
            else:
                copies.append((plain, part))
    num_copies = 0
    for plain, part in sorted(copies, key=lambda copy: copy[0]):
        twin = _twin(arch, plain)
        if twin not in found:  # the file holds nothing but a copy
            found[twin] = part
            continue
        num_copies += 1
        if not torch.equal(found[twin], part):
            faults.append(f"{plain} differs from {twin}, with which it is tied")
    if num_copies:
        notes.append(f"{num_copies} tied copies left out, each equal to its twin")
    return found, faults


def _parts(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """A tensor under its `arctic` names: an MLP speculator's gains the stage, a fused projection is four."""
    staged, fused = _STAGED.match(name), _FUSED.match(name)
    if staged is not None:
        return [(f"{staged[1]}.{staged[2]}.0.{staged[3]}", tensor)]
    if fused is not None and tensor.shape[0] % len(GATES) == 0:
        return [
            (f"{gate}_proj.{fused[1]}.weight", part) for gate, part in zip(GATES, tensor.chunk(len(GATES)), strict=True)
        ]
    return [(name, tensor)]


def _twin(arch: Architecture, name: str) -> str:
    """Under which name a tied tensor is kept."""
    part, _, rest = name.partition(".")
    number, _, inside = rest.partition(".")
    if not arch.tie_weights or not number.isdigit():
        return name
    if arch.tie_lstm_embs and part in {f"{gate}_emb" for gate in GATES}:
        return f"{GATES[0]}_emb.0.{inside}"
    if part in ("head", "emb", "ln"):
        return f"{part}.0.{inside}"
    if part == "proj":
        return f"proj.{min(int(number), 1)}.{inside}"
    return name


def _without_stage(name: str) -> str:
    return re.sub(r"^(emb|proj|ln)\.(\d+)\.0\.", r"\1.\2.", name)


def _layout_of(arch: Architecture, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under the layout's names; those of a sum_rnn are the same."""
    return _split_gates(state) if arch.method == "sum_lstm" else dict(state)


def _split_gates(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our fused sum_lstm tensors -> the layout's, one per gate."""
    width = state["cell_norm.weight"].shape[0]
    table = state["embedding.weight"]
    tables = zip(GATES, table.split(width, dim=1), strict=False)
    tensors = {f"{gate}_emb.0.weight": part.contiguous() for gate, part in tables}
    for place in (0, 1):
        if f"projections.{place}" in state:
            parts = state[f"projections.{place}"].chunk(len(GATES))
            tensors |= {
                f"{gate}_proj.{place}.weight": part.contiguous() for gate, part in zip(GATES, parts, strict=True)
            }
    for norm in ("cell", "state"):
        tensors |= {f"{norm}_ln.0.{part}": state[f"{norm}_norm.{part}"] for part in ("weight", "bias")}
    return {**tensors, "head.0.weight": state["head.0.weight"]}


def _join_gates(arch: Architecture, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`_split_gates` undone."""
    tables = [tensors[f"{gate}_emb.0.weight"] for gate in GATES[: arch.num_gate_tables]]
    state = {"embedding.weight": torch.cat(tables, dim=1)}
    for place in range(arch.num_projections):
        state[f"projections.{place}"] = torch.cat([tensors[f"{gate}_proj.{place}.weight"] for gate in GATES])
    for norm in ("cell", "state"):
        state |= {f"{norm}_norm.{part}": tensors[f"{norm}_ln.0.{part}"] for part in ("weight", "bias")}
    return {**state, "head.0.weight": tensors["head.0.weight"]}


LAYOUTS: dict[str, Layout] = {
    "arctic": ArcticLayout("arctic", "Snowflake Arctic's LSTM and MLP speculators (vLLM with Arctic Inference)"),
    "mlp": ArcticLayout("mlp", "the MLP speculator's names, for a sum_rnn of one stage and one width"),
}
