"""Trained drafters between programs: export to and import from a reference's checkpoint layout, and to a Hub folder.

A layout belongs to its method (`methods/NAME/layouts.py`); here it is found, run, checked and written whole.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import save_file

from specbench import checkpoint, registry
from specbench.checkpoint import CONFIG, WEIGHTS, Checkpoint, TrainedOn
from specbench.errors import EnvironmentFailed, UsageError, did_you_mean
from specbench.layouts import Layout
from specbench.lm.load import resolve_folder
from specbench.provenance import hash_weights

NATIVE = "specbench"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export made. serving: the command of an engine that loads it; empty where none does."""

    folder: Path
    layout: str
    num_tensors: int
    serving: str


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What an import made. notes: what of the original was left out, and why."""

    folder: Path
    method: str
    layout: str
    num_parameters: int
    notes: tuple[str, ...]


def layouts(method: str, *, methods_dirs: Sequence[Path] = ()) -> dict[str, Layout]:
    """The reference layouts a method knows, by name."""
    return dict(registry.load_layouts(method, methods_dirs=methods_dirs))


def export_weights(folder: Path, *, layout: str | None, out: Path, methods_dirs: Sequence[Path] = ()) -> Exported:
    """A drafter's folder -> the same weights in another layout. layout None: the method's only one.

    Raises UsageError (unknown layout, an architecture the layout has no place for, `out` exists) and EnvironmentFailed.
    """
    config = checkpoint.read_config(folder)
    method = str(config.get("method", ""))
    loaded = checkpoint.load(folder, method=method)
    _check_new(out)
    if layout == NATIVE:
        checkpoint.save(out, loaded)
        _write_text(out / "README.md", model_card(loaded))
        return Exported(folder=out, layout=NATIVE, num_tensors=len(loaded.state), serving="")
    chosen = _pick(method, layout, methods_dirs)
    facts = {
        "name": loaded.target.name,
        "hidden_size": loaded.target.hidden_size,
        "vocab_size": loaded.target.vocab_size,
        "dtype": loaded.target.dtype,
    }
    written = chosen.write(loaded.architecture, loaded.state, target=facts)
    _write_folder(out, written.config, written.tensors, card=model_card(loaded, layout=chosen.name))
    depth = loaded.architecture.get("depth") or loaded.architecture.get("num_tokens") or 3
    serving = chosen.serving(str(out), target=loaded.target.name, num_tokens=int(depth))
    return Exported(folder=out, layout=chosen.name, num_tensors=len(written.tensors), serving=serving)


def import_weights(
    folder: Path,
    *,
    method: str,
    layout: str | None,
    target: str | None,
    out: Path,
    methods_dirs: Sequence[Path] = (),
) -> Imported:
    """Another program's checkpoint -> a specbench drafter's folder, ready for `--set METHOD.weights=OUT`.

    target: a hub id or folder it was trained for; its width and vocabulary are checked and its hash recorded. Without
    it the drafter counts as trained on an unknown target. Raises UsageError listing missing and unknown keys.
    """
    chosen = _pick(method, layout, methods_dirs)
    _check_new(out)
    read = chosen.read(checkpoint.read_config(folder), checkpoint.read_tensors(folder))
    facts = TrainedOn(name="unknown", weights_hash="unknown", hidden_size=read.hidden_size, vocab_size=read.vocab_size)
    if target is not None:
        place = resolve_folder(target)
        _check_target(place, target, read.hidden_size, read.vocab_size)
        facts = TrainedOn(
            name=target, weights_hash=hash_weights(place), hidden_size=read.hidden_size, vocab_size=read.vocab_size
        )
    made = Checkpoint(
        method=method,
        architecture=read.architecture,
        target=facts,
        state=read.state,
        training={"imported_from": folder.name, "layout": chosen.name, "notes": list(read.notes)},
    )
    checkpoint.save(out, made)
    return Imported(
        folder=out,
        method=method,
        layout=chosen.name,
        num_parameters=sum(tensor.numel() for tensor in read.state.values()),
        notes=read.notes,
    )


def push(folder: Path, repo_id: str) -> str:
    """Upload a folder to the Hub -> its address. Raises EnvironmentFailed without network, token or permission."""
    api = HfApi()
    try:
        api.create_repo(repo_id, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=str(folder), commit_message="Drafter trained by specbench")
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise EnvironmentFailed(
            f"cannot push to {repo_id}: {str(error).splitlines()[0]}",
            where="--push",
            try_="hf auth login, and check the id and the network",
        ) from error
    return f"https://huggingface.co/{repo_id}"


def model_card(drafter: Checkpoint, *, layout: str = NATIVE) -> str:
    """README.md of a Hub folder: front matter the Hub reads, what it is, how to run it, how it was trained."""
    target = drafter.target
    base = [f"base_model: {target.name}"] if "/" in target.name and not target.name.startswith((".", "/", "~")) else []
    training = {key: value for key, value in drafter.training.items() if not isinstance(value, dict | list)}
    facts = [f"- {key}: {value}" for key, value in training.items()] or ["- not recorded"]
    return "\n".join(
        [
            "---",
            "library_name: specbench",
            *base,
            "tags: [speculative-decoding, draft-head]",
            "---",
            "",
            f"# {drafter.method} drafter for {target.name}",
            "",
            f"Proposes tokens for `{target.name}` (hidden size {target.hidden_size}, vocabulary {target.vocab_size}, "
            f"weights sha256 `{target.weights_hash[:16]}`); the text stays the target's own.",
            f"Layout: {layout}.",
            "",
            "```sh",
            f"specbench run SUITE --target {target.name} --methods {drafter.method} --set {drafter.method}.weights=DIR",
            "```",
            "",
            "## Architecture",
            "",
            "```json",
            json.dumps(dict(drafter.architecture), indent=1),
            "```",
            "",
            "## Training",
            "",
            *facts,
            "",
        ]
    )


def _pick(method: str, layout: str | None, methods_dirs: Sequence[Path]) -> Layout:
    known = layouts(method, methods_dirs=methods_dirs)
    if not known:
        raise UsageError(
            f"method {method!r} has no other program's layout", where="--layout", try_=f"--layout {NATIVE}"
        )
    if layout is None:
        if len(known) > 1:
            raise UsageError(
                f"method {method!r} knows several layouts: {', '.join(known)}",
                where="--layout",
                try_=f"--layout {next(iter(known))}",
            )
        return next(iter(known.values()))
    if layout not in known:
        raise UsageError(
            f"method {method!r} has no layout {layout!r}", where="--layout", try_=did_you_mean(layout, [*known, NATIVE])
        )
    return known[layout]


def _check_new(out: Path) -> None:
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} exists and is not empty", where="--out", try_="name a new folder")


def _check_target(place: Path, name: str, hidden_size: int, vocab_size: int) -> None:
    config: Mapping[str, Any] = checkpoint.read_config(place)
    config = config.get("text_config", config)
    theirs = config.get("hidden_size", config.get("n_embd"))
    if theirs is not None and int(theirs) != hidden_size:
        raise UsageError(
            f"the checkpoint was made for hidden states of width {hidden_size}, but {name} has {theirs}",
            where="--target",
            try_="name the target it was trained for",
        )
    words = config.get("vocab_size")
    if words is not None and int(words) != vocab_size:
        raise UsageError(
            f"the checkpoint was made for a vocabulary of {vocab_size}, but {name} has {words}",
            where="--target",
            try_="name the target it was trained for",
        )


def _write_folder(out: Path, config: Mapping[str, Any], tensors: Mapping[str, Any], *, card: str) -> None:
    part = out.with_name(f".{out.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        (part / CONFIG).write_text(json.dumps(dict(config), indent=1) + "\n", encoding="utf-8")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part / WEIGHTS, {"format": "pt"})
        _write_text(part / "README.md", card)
        if out.exists():
            out.rmdir()
        part.rename(out)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise EnvironmentFailed(f"cannot write: {error}", where=str(out), try_="choose another --out") from error


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
