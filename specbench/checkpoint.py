"""A trained drafter on disk: `config.json` + `model.safetensors`, written whole or not at all, checked when read.

    {"specbench": 1, "method": "redrafter", "architecture": {...}, "target": {...}, "training": {...}}

`--set redrafter.weights=DIR` names such a folder; `demo` is the drafter shipped for the embedded target. safetensors
only: a pickle is refused.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from specbench import paths
from specbench.errors import EnvironmentFailed, UsageError
from specbench.method import TargetView
from specbench.provenance import hash_weights
from specbench.swapping import part_of, put_right, swap_in

FORMAT = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """The target a drafter learnt from; another one is shown on the row (measurement 18)."""

    name: str
    weights_hash: str
    hidden_size: int
    vocab_size: int
    dtype: str = ""
    quantisation: str = "none"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What a drafter's folder holds."""

    method: str
    architecture: Mapping[str, Any]
    """Of the recipe; what `build` needs to make the module again."""
    target: TrainedOn
    state: Mapping[str, Tensor]
    training: Mapping[str, Any] = field(default_factory=dict)
    """Provenance: options, data, steps, tokens, figures, versions."""
    weights_hash: str = ""
    """Set when read."""


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write beside, then swap: whoever looks sees the old folder or the new one. Raises EnvironmentFailed where the
    disk refuses; what was there before is then untouched."""
    part = part_of(folder)
    config = {
        "specbench": FORMAT,
        "method": checkpoint.method,
        "architecture": dict(checkpoint.architecture),
        "target": asdict(checkpoint.target),
        "training": dict(checkpoint.training),
    }
    try:
        part.mkdir(parents=True)
        (part / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.state.items()}
        save_file(state, part / WEIGHTS, metadata={"format": "pt"})
        _sync(part)
        swap_in(part, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise EnvironmentFailed(
            f"cannot write the drafter: {error}",
            where=str(folder),
            try_="free some space or choose another --out; what was saved before is untouched",
        ) from error


def _sync(folder: Path) -> None:
    for file in folder.iterdir():
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def resolve(weights: str, method: str) -> Path:
    """The folder a `weights` option names: a path, or `demo`. Raises EnvironmentFailed where there is none."""
    folder = paths.demo_drafter(method) if weights == "demo" else paths.expanded(weights)
    if not folder.is_dir():
        put_right(folder, drops=False)
    if folder.is_dir():
        return folder
    if weights == "demo":
        raise EnvironmentFailed(
            f"no drafter of method {method!r} is shipped for the embedded target",
            where=f"{method}.weights",
            try_=f"specbench train --method {method}",
        )
    raise EnvironmentFailed(
        f"no drafter at {folder}",
        where=f"{method}.weights",
        try_=f"specbench train --method {method}   (it prints the folder it makes)",
    )


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as it is. Raises EnvironmentFailed: missing or damaged."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise EnvironmentFailed(
            f"{folder} holds no {CONFIG}", where=str(folder), try_="name a folder that `specbench train` wrote"
        ) from error
    except (OSError, ValueError) as error:
        raise EnvironmentFailed(f"{CONFIG} cannot be read: {error}", where=str(path)) from error
    if not isinstance(config, dict):
        raise EnvironmentFailed(f"{CONFIG} is not an object", where=str(path))
    return config


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All *.safetensors of a folder as one mapping, on the CPU. Raises EnvironmentFailed: none, damaged, or pickles."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in folder.glob(pattern))
        if pickles:
            raise EnvironmentFailed(
                f"{folder} holds only pickles ({', '.join(pickles)}), which can run any code when read",
                where=str(folder),
                try_="convert it to safetensors where it came from",
            )
        raise EnvironmentFailed(f"no *.safetensors in {folder}", where=str(folder))
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors.update(load_file(file))
        except (OSError, SafetensorError) as error:
            raise EnvironmentFailed(f"the weights cannot be read: {error}", where=str(file)) from error
    return tensors


def load(folder: Path, *, method: str) -> Checkpoint:
    """Read a drafter of this method. Raises EnvironmentFailed (unreadable, newer format) and UsageError (another
    method's, or another program's layout)."""
    config = read_config(folder)
    version = config.get("specbench")
    if version is None:
        raise UsageError(
            f"{folder} is not a drafter in specbench's layout",
            where=str(folder / CONFIG),
            try_=f"specbench weights import {folder} --method {method} --out DIR",
        )
    if not isinstance(version, int) or version > FORMAT:
        raise EnvironmentFailed(
            f"the drafter was written by a newer specbench (format {version}, this one reads {FORMAT})",
            where=str(folder / CONFIG),
            try_="pip install --upgrade specbench",
        )
    if config.get("method") != method:
        raise UsageError(
            f"the drafter in {folder} is of method {config.get('method')!r}, not {method!r}",
            where=f"{method}.weights",
            try_=f"--methods {config.get('method')} --set {config.get('method')}.weights={folder}",
        )
    try:
        target = TrainedOn(**config["target"])
        architecture, training = dict(config["architecture"]), dict(config.get("training", {}))
    except (KeyError, TypeError, ValueError) as error:
        raise EnvironmentFailed(f"{CONFIG} is damaged: {error!r}", where=str(folder / CONFIG)) from error
    return Checkpoint(
        method=method,
        architecture=architecture,
        target=target,
        training=training,
        state=read_tensors(folder),
        weights_hash=hash_weights(folder),
    )


def check_fits(checkpoint: Checkpoint, target: TargetView, *, folder: Path) -> None:
    """Raises UsageError where the drafter was made for a target of another width or vocabulary. Same shapes but other
    weights are allowed (and said on the row): the text stays the target's own, only acceptance suffers."""
    for what, theirs, ours in (
        ("hidden states of width", checkpoint.target.hidden_size, target.hidden_size),
        ("a vocabulary of", checkpoint.target.vocab_size, target.vocab_size),
    ):
        if theirs != ours:
            raise UsageError(
                f"the drafter in {folder} was trained for {what} {theirs} (target {checkpoint.target.name}), "
                f"but {target.name} has {ours}",
                where=f"{checkpoint.method}.weights",
                try_=f"specbench train --method {checkpoint.method} --target {target.name}",
            )


def load_state(module: nn.Module, state: Mapping[str, Tensor], *, folder: Path) -> None:
    """Fill the module. Raises UsageError listing missing and unknown names and wrong shapes: nothing is ignored."""
    wanted = module.state_dict()
    problems = [f"missing {name}" for name in wanted if name not in state]
    problems += [f"unknown {name}" for name in state if name not in wanted]
    problems += [
        f"{name} is {tuple(state[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in wanted
        if name in state and state[name].shape != wanted[name].shape
    ]
    if problems:
        raise UsageError(
            f"the weights in {folder} do not fit: {'; '.join(problems)}",
            where=str(folder / WEIGHTS),
            try_="specbench weights import, if another program wrote them",
        )
    module.load_state_dict(dict(state))


def trained_on(target: TargetView, *, weights_hash: str, quantisation: str = "none") -> TrainedOn:
    """The facts of a target, for a checkpoint made with it."""
    return TrainedOn(
        name=target.name,
        weights_hash=weights_hash,
        hidden_size=target.hidden_size,
        vocab_size=target.vocab_size,
        dtype=str(target.dtype).removeprefix("torch."),
        quantisation=quantisation,
    )


def as_dtype(module: nn.Module, target: TargetView) -> nn.Module:
    """The module on the target's device, in the target's dtype, frozen and in evaluation mode: how a drafter runs."""
    return module.to(device=target.device, dtype=target.dtype).eval().requires_grad_(False)


__all__ = [
    "CONFIG",
    "FORMAT",
    "WEIGHTS",
    "Checkpoint",
    "TrainedOn",
    "as_dtype",
    "check_fits",
    "load",
    "load_state",
    "read_config",
    "read_tensors",
    "resolve",
    "save",
    "trained_on",
]
