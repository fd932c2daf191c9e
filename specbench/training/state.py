"""A training's resumable state on disk: weights, optimiser, random streams, place in the data, metrics so far.

`state/00000120/` holds safetensors and one JSON, no pickle; it is written beside and renamed, and the older one goes
only then: a killed or full disk leaves the last good state. One format for one process, DDP and FSDP (version 2 on
CPUs; no other was run).
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from specbench.errors import EnvironmentFailed
from specbench.swapping import part_of, put_right_within, swap_in
from specbench.training.budget import Done
from specbench.training.corpus import Place

_FORMAT = 1
_JSON, _WEIGHTS = "state.json", "weights.safetensors"
_SEPARATOR = "|"
"""Between a parameter's name and a part of its optimiser state."""
_OPTIMISER, _RANDOM = "optimiser.safetensors", "random.safetensors"


@dataclass(frozen=True, kw_only=True)
class Progressed:
    """Everything of a training that is not a tensor."""

    method: str
    done: Done
    place: Place
    best: Mapping[str, Any]
    """Of the best evaluation so far; empty before the first."""
    evaluations_since_best: int
    evaluated: int
    """Step of the last evaluation; -1 before the first."""
    num_processes: int


@dataclass(frozen=True, kw_only=True)
class SavedState:
    """A state as read back."""

    progressed: Progressed
    folder: Path


def full_weights(learner: nn.Module) -> dict[str, Tensor]:
    """The drafter's whole weights on the CPU under the names of recipe.module; every process must call it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    found: dict[str, Any] = get_model_state_dict(learner, options=options)
    # Learner holds the recipe's module as `module`; the wrappers' own prefixes are taken off already.
    return {name.removeprefix("module."): tensor for name, tensor in found.items()}


def save_state(
    root: Path, accelerator: Accelerator, learner: nn.Module, optimiser: torch.optim.Optimizer, at: Progressed
) -> None:
    """Write the state of this step; every process must call it. Raises EnvironmentFailed where the disk refuses."""
    weights = full_weights(learner)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    found: dict[str, Any] = get_optimizer_state_dict(learner, optimiser, options=options)
    streams = _gathered(accelerator, _random_streams(accelerator.device))
    if not accelerator.is_main_process:
        return
    tensors = {
        f"{name}{_SEPARATOR}{part}": value.contiguous()
        for name, parts in found["state"].items()
        for part, value in parts.items()
    }
    body = {
        "specbench": _FORMAT,
        **asdict(at),
        "place": list(at.place),
        "optimiser": found["param_groups"],
        "python_random": [stream["python"] for stream in streams],
        "numpy_random": [stream["numpy"] for stream in streams],
    }
    folder = root / f"{at.done.steps:08d}"
    part = part_of(folder)
    try:
        part.mkdir(parents=True)
        (part / _JSON).write_text(json.dumps(body), encoding="utf-8")
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, part / _WEIGHTS)
        save_file(tensors, part / _OPTIMISER)
        save_file(
            {
                f"{rank}.{name}": tensor
                for rank, stream in enumerate(streams)
                for name, tensor in stream["torch"].items()
            },
            part / _RANDOM,
        )
        _sync(part)
        swap_in(part, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise EnvironmentFailed(
            f"the training's state cannot be written: {error}",
            where=str(root),
            try_="free some space, then specbench train --resume RUN_ID; the state before this one is untouched",
        ) from error
    for other in _states(root):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)


def find_state(root: Path) -> SavedState | None:
    """The newest whole state, one that a kill left moved aside included; None where there is none. Raises
    EnvironmentFailed where it cannot be read."""
    put_right_within(root)
    folders = _states(root)
    if not folders:
        return None
    folder = folders[-1]
    try:
        body = json.loads((folder / _JSON).read_text(encoding="utf-8"))
        progressed = Progressed(
            method=body["method"],
            done=Done(**body["done"]),
            place=Place(*body["place"]),
            best=body["best"],
            evaluations_since_best=body["evaluations_since_best"],
            # A state that does not say it is of a version that took the last step for evaluated.
            evaluated=body.get("evaluated", body["done"]["steps"] if body["best"] else -1),
            num_processes=body["num_processes"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(folder, error) from error
    return SavedState(progressed=progressed, folder=folder)


def load_state(
    saved: SavedState, accelerator: Accelerator, learner: nn.Module, optimiser: torch.optim.Optimizer
) -> None:
    """Put weights, optimiser and random streams back. The last thing before the first step: nothing may draw between.

    Raises EnvironmentFailed for files that are damaged or are another module's.
    """
    folder = saved.folder
    try:
        body = json.loads((folder / _JSON).read_text(encoding="utf-8"))
        weights: dict[str, Any] = {f"module.{name}": tensor for name, tensor in load_file(folder / _WEIGHTS).items()}
        moments: dict[str, Any] = {}
        for key, tensor in load_file(folder / _OPTIMISER).items():
            name, part = key.split(_SEPARATOR)
            moments.setdefault(name, {})[part] = tensor
        streams = load_file(folder / _RANDOM)
        set_model_state_dict(learner, weights, options=StateDictOptions(full_state_dict=True))
        both = {"state": moments, "param_groups": body["optimiser"]}
        set_optimizer_state_dict(learner, optimiser, both, options=StateDictOptions(full_state_dict=True))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise _unreadable(folder, error) from error
    rank = accelerator.process_index
    random.setstate(_as_tuple(body["python_random"][rank]))
    kind, keys, position, has_gauss, gauss = body["numpy_random"][rank]
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(streams[f"{rank}.cpu"])
    if f"{rank}.cuda" in streams and accelerator.device.type == "cuda":
        torch.cuda.set_rng_state(streams[f"{rank}.cuda"], accelerator.device)


def _random_streams(device: torch.device) -> dict[str, Any]:
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    streams = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        streams["cuda"] = torch.cuda.get_rng_state(device)
    return {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), position, has_gauss, gauss],
        "torch": streams,
    }


def _gathered(accelerator: Accelerator, mine: dict[str, Any]) -> list[dict[str, Any]]:
    if accelerator.num_processes == 1:
        return [mine]
    found: list[Any] = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(found, mine)
    return found


def _states(root: Path) -> list[Path]:
    return sorted(folder for folder in root.glob("[0-9]*") if folder.is_dir())


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value


def _unreadable(folder: Path, error: Exception) -> EnvironmentFailed:
    return EnvironmentFailed(
        f"the training's state cannot be read: {error}",
        where=str(folder),
        try_="start a new training; the drafter saved so far stays in the run's folder",
    )


def _sync(folder: Path) -> None:
    for file in folder.iterdir():
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
