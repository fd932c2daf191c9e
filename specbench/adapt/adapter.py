"""Adapter files: PEFT's layout with a lineage beside it, and the reference implementation's layout, read only.

    adapter_model.safetensors    base_model.model.<module>.lora_A.weight (r, I), .lora_B.weight (O, r)
    adapter_config.json          PEFT's own keys: r, lora_alpha, target_modules, base_model_name_or_path, ...
    lineage.json                 ours: the base's weights hash, parent, data, figures

safetensors only. An adapter is relative to one base: its hash is checked wherever it is loaded.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from specbench.adapt.shape import LoraShape
from specbench.errors import EnvironmentFailed, UsageError, cannot_write
from specbench.provenance import hash_weights

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
WEIGHTS, CONFIG, LINEAGE = "adapter_model.safetensors", "adapter_config.json", "lineage.json"
_PREFIX = "base_model.model."
_REFERENCE_WEIGHTS = "adapters.safetensors"


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Where an adapter comes from."""

    base: str
    """The draft model's name."""
    base_hash: str
    """sha256 of its weights; '' is never written."""
    parent: int | None = None
    """The version it was trained on from; None: the base itself."""
    domain: str = ""
    data_hash: str = ""
    """sha256 over the answers it learnt from."""
    num_positions: int = 0
    """Positions it learnt from in its round."""
    figures: Mapping[str, Any] = field(default_factory=dict)
    """Held-out expected acceptance before and after, the interval, under which temperature, rule and draft, steps. Of
    versions before those stood there it was sum min(p, q) at every temperature above 0."""
    created: str = ""
    source: str = "round"
    """'round', 'peft' or 'reference'."""


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """An adapter in memory. weights: as `LoraLayers.weights`."""

    shape: LoraShape
    weights: Mapping[str, Tensor]
    lineage: Lineage
    weights_hash: str = ""
    """Of the file; set when read."""


def save(folder: Path, adapter: Adapter) -> None:
    """Write beside, then rename: whoever looks sees the whole folder or none. Raises EnvironmentFailed where the disk
    refuses or the folder exists."""
    from safetensors.torch import save_file  # 2 s of torch, which a list of versions does without

    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    names = sorted({key.removesuffix(".weight").rpartition(".")[0] for key in adapter.weights})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.lineage.base,
        "r": adapter.shape.rank,
        "lora_alpha": adapter.shape.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted({name.rpartition(".")[2] for name in names}),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }
    lineage = {"specbench": FORMAT, **asdict(adapter.lineage), "targets": list(adapter.shape.targets)}
    try:
        if folder.exists():
            raise FileExistsError(17, "it exists already", str(folder))
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        (part / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        (part / LINEAGE).write_text(json.dumps(lineage, indent=1) + "\n", encoding="utf-8")
        tensors = {f"{_PREFIX}{name}": tensor.contiguous() for name, tensor in adapter.weights.items()}
        save_file(tensors, part / WEIGHTS, metadata={"format": "pt"})
        for file in part.iterdir():
            handle = os.open(file, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        part.rename(folder)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise cannot_write(folder, error) from error
    except SafetensorError as error:
        # What the library wraps has lost its number.
        shutil.rmtree(part, ignore_errors=True)
        raise cannot_write(folder, OSError(0, str(error))) from error


def load(folder: Path, *, base_hash: str | None = None) -> Adapter:
    """Read an adapter that specbench wrote. base_hash: of the draft model it is to be used on; None: not checked.

    Raises EnvironmentFailed (missing, damaged), UsageError (of another base, of another program).
    """
    found, targets = _lineage_of(folder)
    shape = _shape_of(_read(folder / CONFIG), folder, targets=targets)
    if base_hash is not None and found.base_hash != base_hash:
        raise UsageError(
            f"the adapter in {folder} belongs to the draft model {found.base} (weights {found.base_hash[:12]}), "
            f"not to this one (weights {base_hash[:12]})",
            where=str(folder / LINEAGE),
            try_="name the draft model that it was trained on, or start an adapter of this one's own",
        )
    weights = _tensors(folder / WEIGHTS)
    return Adapter(shape=shape, weights=weights, lineage=found, weights_hash=hash_weights(folder))


def read_lineage(folder: Path) -> Lineage:
    """Where an adapter comes from, its weights unread. Raises as `load`."""
    return _lineage_of(folder)[0]


def _lineage_of(folder: Path) -> tuple[Lineage, Any]:
    """... and the layers that its shape was asked for."""
    body = _read_lineage(folder)
    targets, version = body.pop("targets", None), body.pop("specbench", None)
    if not isinstance(version, int) or version > FORMAT:
        raise EnvironmentFailed(
            f"the adapter was written by a newer specbench (format {version}, this one reads {FORMAT})",
            where=str(folder / LINEAGE),
            try_="pip install --upgrade specbench",
        )
    try:
        return Lineage(**body), targets
    except TypeError as error:
        raise EnvironmentFailed(f"{LINEAGE} is damaged: {error}", where=str(folder / LINEAGE)) from error


def import_foreign(folder: Path, *, base: str, base_hash: str) -> Adapter:
    """An adapter that PEFT or the reference implementation (`adapters.safetensors`) wrote, taken to belong to this
    base: neither says which weights it was trained on. Raises UsageError, EnvironmentFailed."""
    if (folder / _REFERENCE_WEIGHTS).is_file():
        return _import_reference(folder, base=base, base_hash=base_hash)
    config = _read(folder / CONFIG)
    if config.get("peft_type") != "LORA" or config.get("use_dora") or config.get("bias", "none") != "none":
        raise UsageError(
            f"{folder} holds no plain LoRA adapter: peft_type {config.get('peft_type')!r}, and no DoRA or bias is read",
            where=str(folder / CONFIG),
        )
    patterns = [name for name in ("rank_pattern", "alpha_pattern") if config.get(name)]
    if patterns:
        raise UsageError(
            f"{folder} gives layers ranks or scales of their own ({', '.join(patterns)}): only one for all is read",
            where=str(folder / CONFIG),
        )
    shape = _shape_of(config, folder, targets=None)
    if config.get("use_rslora"):
        # rank-stabilised LoRA scales by alpha / sqrt(r): the same adapter with another alpha.
        shape = LoraShape(rank=shape.rank, alpha=shape.alpha * shape.rank**0.5, targets=shape.targets)
    weights = _tensors(folder / WEIGHTS)
    return Adapter(shape=shape, weights=weights, lineage=Lineage(base=base, base_hash=base_hash, source="peft"))


def _import_reference(folder: Path, *, base: str, base_hash: str) -> Adapter:
    """SpecLoRA's layout: `<module>.lora_a` (r, I), `.lora_b` (O, r), and `scale`, which means alpha."""
    config = _read(folder / CONFIG)
    try:
        parameters = config["lora_parameters"]
        rank, alpha = int(parameters["rank"]), float(parameters["scale"])
    except (KeyError, TypeError, ValueError) as error:
        raise EnvironmentFailed(f"{CONFIG} is damaged: {error!r}", where=str(folder / CONFIG)) from error
    weights: dict[str, Tensor] = {}
    for key, tensor in _tensors(folder / _REFERENCE_WEIGHTS, prefix="").items():
        name, _, part = key.rpartition(".")
        if part not in ("lora_a", "lora_b"):
            raise UsageError(f"{key!r} is neither lora_a nor lora_b", where=str(folder / _REFERENCE_WEIGHTS))
        if tensor.shape[0 if part == "lora_a" else 1] != rank:
            raise UsageError(
                f"{key} is {tuple(tensor.shape)} at rank {rank}: MLX-LM's own layout, transposed and scaled otherwise",
                where=str(folder / _REFERENCE_WEIGHTS),
                try_="transpose lora_a and lora_b, and set scale to scale x rank",
            )
        weights[f"{name}.{'lora_A' if part == 'lora_a' else 'lora_B'}.weight"] = tensor
    targets = tuple(sorted({key.removesuffix(".weight").rpartition(".")[0].rpartition(".")[2] for key in weights}))
    shape = LoraShape(rank=rank, alpha=alpha, targets=targets)
    return Adapter(shape=shape, weights=weights, lineage=Lineage(base=base, base_hash=base_hash, source="reference"))


def _shape_of(config: Mapping[str, Any], folder: Path, *, targets: Any) -> LoraShape:
    try:
        names = config["target_modules"] if targets is None else targets
        listed = (names,) if isinstance(names, str) else tuple(str(name) for name in names)
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        if rank < 1 or not listed:
            raise ValueError(f"rank {rank}, {len(listed)} target modules")
    except (KeyError, TypeError, ValueError) as error:
        raise EnvironmentFailed(f"{CONFIG} is damaged: {error!r}", where=str(folder / CONFIG)) from error
    return LoraShape(rank=rank, alpha=alpha, targets=listed)


def _read_lineage(folder: Path) -> dict[str, Any]:
    if not (folder / LINEAGE).is_file() and (folder / CONFIG).is_file():
        raise UsageError(
            f"{folder} does not say which weights it was trained on: specbench did not write it",
            where=str(folder),
            try_=f"specbench adapt import {folder} --model DRAFT --store DIR",
        )
    return _read(folder / LINEAGE)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise EnvironmentFailed(
            f"{path.parent} holds no {path.name}", where=str(path.parent), try_="specbench adapt ls lists adapters"
        ) from error
    except (OSError, ValueError) as error:
        raise EnvironmentFailed(f"{path.name} cannot be read: {error}", where=str(path)) from error
    if not isinstance(found, dict):
        raise EnvironmentFailed(f"{path.name} is not an object", where=str(path))
    return found


def _tensors(path: Path, *, prefix: str = _PREFIX) -> dict[str, Tensor]:
    from safetensors.torch import load_file  # as in `save`

    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise EnvironmentFailed(
            f"the adapter's weights cannot be read: {error}",
            where=str(path),
            try_="specbench adapt rollback, to draft with the version before it",
        ) from error
    return {key.removeprefix(prefix): tensor for key, tensor in found.items()}
