"""What learning has come to and goes on from, promoted or not: an adapter with its optimiser's moments.

A round is too short for a draft model to pass through the first steps, in which it is often worse than before; the next
one goes on where it ended. On disk, beside the answers of a store, for rounds that are processes of their own:

    STORE/candidates/<sha256 of the domain, 12 digits>.safetensors
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from specbench.errors import EnvironmentFailed

_FOLDER = "candidates"
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """weights: as `LoraLayers.weights`."""

    weights: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]
    """AdamW's, `<parameter>.exp_avg` and `<parameter>.exp_avg_sq`."""
    num_updates: int
    """Optimiser steps behind the moments."""
    alpha: float
    """The scale it was learnt at, times the rank."""
    began: int
    """The version it was begun from: under another one it is not gone on with."""
    num_worse: int = 0
    """Judged rounds in a row in which it did not seem better than what was drafted with."""


def moments_of(optimiser: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """Copies, on the CPU; of a parameter that no step reached (an expert nothing was routed to), zeros."""
    return {
        f"{name}.{kind}": optimiser.state[parameter].get(kind, torch.zeros_like(parameter)).detach().cpu().clone()
        for name, parameter in module.named_parameters()
        for kind in _MOMENTS
    }


def put_moments(optimiser: torch.optim.Optimizer, module: nn.Module, candidate: Candidate) -> None:
    """Into an AdamW that has made no step, over the parameters of `module`."""
    for name, parameter in module.named_parameters():
        # As AdamW's own load_state_dict leaves them: moments where the parameter is, the count on the CPU.
        optimiser.state[parameter] = {
            "step": torch.tensor(float(candidate.num_updates)),
            **{kind: candidate.moments[f"{name}.{kind}"].to(parameter, copy=True) for kind in _MOMENTS},
        }


def fits(candidate: Candidate, weights: Mapping[str, Tensor], *, alpha: float) -> bool:
    """Whether it is of the layers, the rank and the scale that these weights are of: options may have changed since."""
    return candidate.alpha == alpha and {name: tensor.shape for name, tensor in candidate.weights.items()} == {
        name: tensor.shape for name, tensor in weights.items()
    }


def _path(store: Path, domain: str) -> Path:
    return store / _FOLDER / f"{hashlib.sha256(domain.encode()).hexdigest()[:12]}.safetensors"


def save(store: Path, domain: str, candidate: Candidate | None, *, base_hash: str) -> None:
    """Beside, then renamed; None: there is none any more. Raises EnvironmentFailed where the disk refuses."""
    path = _path(store, domain)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        if candidate is None:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {f"weights.{name}": tensor.contiguous() for name, tensor in candidate.weights.items()}
        tensors |= {f"moments.{name}": tensor.contiguous() for name, tensor in candidate.moments.items()}
        facts = {name: getattr(candidate, name) for name in ("num_updates", "alpha", "began", "num_worse")}
        save_file(tensors, part, metadata={"candidate": json.dumps({"base_hash": base_hash, **facts})})
        part.replace(path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise EnvironmentFailed(
            f"cannot write what was learnt: {error}", where=str(path), try_="free some space"
        ) from error


def load(store: Path, domain: str, *, base_hash: str, began: int) -> Candidate | None:
    """None: there is none, or it was begun from another version or base. Raises EnvironmentFailed where the file is
    damaged."""
    path = _path(store, domain)
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["candidate"])
            # One that does not say its scale was written before scales were kept.
            if (facts.pop("base_hash"), facts["began"]) != (base_hash, began) or "alpha" not in facts:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        parts: dict[str, dict[str, Tensor]] = {"weights": {}, "moments": {}}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            parts[kind][rest] = tensor
        if len(parts["moments"]) != len(_MOMENTS) * len(parts["weights"]):
            raise ValueError(f"{len(parts['weights'])} matrices with {len(parts['moments'])} moments")
        return Candidate(weights=parts["weights"], moments=parts["moments"], **facts)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise EnvironmentFailed(
            f"what was learnt so far cannot be read: {error}",
            where=str(path),
            try_="delete it: learning begins anew from the version in use",
        ) from error


def purge(store: Path) -> None:
    """Delete those of every domain."""
    shutil.rmtree(store / _FOLDER, ignore_errors=True)
