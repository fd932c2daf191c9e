"""Trained drafters between programs: export to and import from a reference's checkpoint layout, and to a Hub folder.

A layout belongs to its method (`methods/NAME/layouts.py`); here it is found, run, checked and written whole.
"""

from __future__ import annotations

import filecmp
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from safetensors.torch import save_file

from specbench import checkpoint, registry
from specbench.checkpoint import CONFIG, WEIGHTS, Checkpoint, TrainedOn
from specbench.errors import EnvironmentFailed, UsageError, did_you_mean
from specbench.layouts import Layout
from specbench.lm.load import resolve_folder
from specbench.provenance import hash_weights

NATIVE = "specbench"
_CARD = "README.md"


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


def export_weights(
    folder: Path, *, layout: str | None, out: Path, methods_dirs: Sequence[Path] = (), again: bool = False
) -> Exported:
    """A drafter's folder -> the same weights in another layout. layout None: another program's, where there is one
    alone. again: `out` may hold this very export already, as a push that failed leaves it.

    Raises UsageError (unknown layout, an architecture the layout has no place for, `out` exists) and EnvironmentFailed.
    """
    config = checkpoint.read_config(folder)
    method = str(config.get("method", ""))
    loaded = checkpoint.load(folder, method=method)
    if not again:
        _check_new(out)
    if layout == NATIVE:
        with _whole(out) as part:
            checkpoint.save(part, loaded)
            (part / _CARD).write_text(model_card(loaded), encoding="utf-8")
        return Exported(folder=out, layout=NATIVE, num_tensors=len(loaded.state), serving="")
    chosen = _pick(method, layout, methods_dirs, is_import=False)
    facts = {
        "name": loaded.target.name,
        "hidden_size": loaded.target.hidden_size,
        "vocab_size": loaded.target.vocab_size,
        "dtype": loaded.target.dtype,
    }
    written = chosen.write(loaded.architecture, loaded.state, target=facts)
    with _whole(out) as part:
        part.mkdir(parents=True)
        (part / CONFIG).write_text(json.dumps(written.config, indent=1) + "\n", encoding="utf-8")
        tensors = {name: tensor.contiguous() for name, tensor in written.tensors.items()}
        save_file(tensors, part / WEIGHTS, {"format": "pt"})
        (part / _CARD).write_text(model_card(loaded, layout=chosen.name), encoding="utf-8")
    num_tokens = chosen.num_tokens(loaded.architecture, loaded.training.get("options", {}))
    serving = chosen.serving(str(out), target=loaded.target.name, num_tokens=num_tokens)
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
    chosen = _pick(method, layout, methods_dirs, is_import=True)
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
            try_="hf auth login, and check the id and the network; then the same command again",
        ) from error
    return f"https://huggingface.co/{repo_id}"


def model_card(drafter: Checkpoint, *, layout: str = NATIVE) -> str:
    """README.md of a Hub folder: front matter the Hub reads, what it is, how to run it, how it was trained."""
    target = drafter.target
    base = [f"base_model: {target.name}"] if "/" in target.name and not target.name.startswith((".", "/", "~")) else []
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
            *_training_sections(drafter.training),
        ]
    )


def _training_sections(training: Mapping[str, Any]) -> list[str]:
    """What config.json says of a drafter's making, for people. An import knows little of it."""
    facts = [f"- {key}: {_line(value)}" for key, value in training.items() if not isinstance(value, dict | list)]
    facts += [f"- {_line(note)}" for note in training.get("notes", ())]
    whole = training.get("whole_training")
    if whole:
        facts.append(
            f"- ended by {whole['ended_by']} behind step {whole['steps']}, {whole['tokens']:,} tokens and "
            f"{whole['seconds']:.0f} s; the weights are those of the best evaluation"
        )
    found = ["## Training", "", *(facts or ["- not recorded"]), ""]
    for title, name in (("The method's options", "options"), ("The training's options", "request")):
        if training.get(name):
            found += [f"{title}:", "", "```json", json.dumps(training[name], indent=1), "```", ""]
    data = training.get("dataset")
    if data:
        found += [
            "## Data",
            "",
            f"- {_line(data['name'])}: {data['documents']:,} documents learnt from, {data['held_out']:,} held out",
            f"- source: {_line(data.get('source') or 'not recorded')}",
            f"- licence: {_line(data.get('licence') or 'not recorded')}",
            f"- sha256 of its tokens: `{data['hash']}`",
            "",
        ]
    figures = training.get("figures")
    if figures:
        tau = figures.get("tau")
        found += [
            f"## On the held-out documents, at step {figures['step']}",
            "",
            "- τ (tokens a step, bonus included, simulated on the target's own greedy answers): "
            + ("not simulated" if tau is None else f"{tau:.3f}"),
            f"- loss {figures['loss']:.4f}",
            *(
                f"- depth {depth + 1}: the label is the first choice {ranks[0]:.1%} of the time"
                for depth, ranks in enumerate(figures.get("depth_accuracy", ()))
            ),
            "",
        ]
    return found


def _line(value: Any) -> str:
    """One line whatever a data set calls itself: nothing of it opens a section, a tag or a fence."""
    return " ".join(str(value).split()).replace("<", "&lt;").replace("`", "'")


def _pick(method: str, layout: str | None, methods_dirs: Sequence[Path], *, is_import: bool) -> Layout:
    """Of other programs' layouts; what an export in our own needs none for."""
    known = layouts(method, methods_dirs=methods_dirs)
    names = list(known) if is_import else [NATIVE, *known]
    as_it_is = f"specbench run SUITE --methods {method} --set {method}.weights=DIR"
    if is_import and layout == NATIVE:
        raise UsageError("a folder in specbench's own layout is a drafter as it is", where="--layout", try_=as_it_is)
    if not known:
        raise UsageError(
            f"method {method!r} has no other program's layout",
            where="--layout",
            try_=as_it_is if is_import else f"--layout {NATIVE}",
        )
    if layout is None:
        if len(known) > 1:
            raise UsageError(
                f"method {method!r} knows several layouts: {', '.join(names)}",
                where="--layout",
                try_=f"--layout {names[0]}",
            )
        return next(iter(known.values()))
    if layout not in known:
        raise UsageError(
            f"method {method!r} has no layout {layout!r}", where="--layout", try_=did_you_mean(layout, names)
        )
    return known[layout]


def _check_new(out: Path) -> None:
    if _is_taken(out):
        raise UsageError(f"{out} exists and is not empty", where="--out", try_="name a new folder")


def _is_taken(out: Path) -> bool:
    return out.exists() and (not out.is_dir() or any(out.iterdir()))


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


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """A folder beside `out` to be filled, which then takes its place: `out` is whole or not there. Where `out` holds
    the same configuration and weights already it stays. Raises UsageError where it holds something else,
    EnvironmentFailed where the disk refuses."""
    part = out.with_name(f".{out.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        yield part
        if _is_taken(out):
            if not all(_same(part / name, out / name) for name in (CONFIG, WEIGHTS)):
                raise UsageError(
                    f"{out} exists and is not what this export makes", where="--out", try_="name a new folder"
                )
            return
        if out.exists():
            out.rmdir()
        part.rename(out)
    except (OSError, SafetensorError) as error:
        raise EnvironmentFailed(
            f"cannot write: {error}", where=str(out), try_="free some space or choose another --out"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and filecmp.cmp(one, other, shallow=False)
