"""A request written into a manifest, and read out of one again by `--resume`. No torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specbench import paths
from specbench.bench.competitors import Competitor
from specbench.bench.request import GridAxis, RunRequest, Setting, Variant
from specbench.errors import EnvironmentFailed, UsageError
from specbench.manifest import Manifest, read_manifest
from specbench.store.files import is_training, unknown_run
from specbench.suite import packaged_names


def request_as_json(request: RunRequest) -> dict[str, Any]:
    """Every field, paths absolute, so that `--resume` works from any folder."""
    body: dict[str, Any] = {}
    for field in dataclasses.fields(request):
        value = getattr(request, field.name)
        if field.name in ("data", "methods_dirs"):
            value = [str(Path(item).resolve()) for item in value]
        elif field.name == "store":
            value = None if value is None else str(Path(value).resolve())
        elif field.name == "settings":
            value = [[item.method, item.option, findable(item.value)] for item in value]
        elif field.name == "grid":
            value = [[axis.method, axis.option, [findable(text) for text in axis.values]] for axis in value]
        elif field.name == "variants":
            value = [
                [item.method, [[option, findable(text)] for option, text in item.options], item.name] for item in value
            ]
        elif field.name in ("suite", "target") and value is not None:
            value = findable(value)
        body[field.name] = list(value) if isinstance(value, tuple) else value
    return body


def findable(text: str) -> str:
    """A path that exists from here becomes absolute; names of packaged suites and embedded models stay names."""
    is_name = text in paths.DEMO_MODELS or text in packaged_names()
    return text if is_name or not Path(text).exists() else str(Path(text).resolve())


def manifest_to_resume(store: Path | None, run_id: str) -> Manifest:
    """The manifest of a run that `--resume` names. Raises UsageError for a run that is not there, or is a training."""
    folder = paths.run_dir(store, run_id)
    if is_training(folder):
        raise UsageError(f"{run_id} is a training", where="--resume", try_=f"specbench train --resume {run_id}")
    # A path leads to folders that are no run of this store, and what goes on is written into this store.
    if not (folder / "manifest.json").exists() or folder.resolve().parent != paths.run_dir(store, "").resolve():
        known = paths.run_dir(store, "").glob("*/manifest.json")
        raise unknown_run(run_id, [path.parent.name for path in known])
    return read_manifest(folder)


def request_from(manifest: Manifest, resuming: RunRequest) -> RunRequest:
    """The request a manifest was made from, with what `--resume` may change taken from the new command line."""
    body = manifest.provenance.get("request")
    if not isinstance(body, dict):
        raise EnvironmentFailed(f"run {manifest.run_id} does not say how it was started, so it cannot be resumed")
    values = dict(body)
    values["settings"] = tuple(Setting(*item) for item in values["settings"])
    values["grid"] = tuple(GridAxis(method, option, tuple(axis)) for method, option, axis in values["grid"])
    # Runs from before there were variants do not name them.
    values["variants"] = tuple(
        Variant(method, tuple((option, text) for option, text in options), *name)
        for method, options, *name in values.get("variants", ())
    )
    for name in ("methods", "command", "stop"):
        values[name] = None if values[name] is None else tuple(values[name])
    values["data"] = tuple(Path(item) for item in values["data"]) + resuming.data
    values["methods_dirs"] = tuple(Path(item) for item in values["methods_dirs"]) + resuming.methods_dirs
    values["store"] = resuming.store
    values["fail_under"] = resuming.fail_under
    values["dry_run"] = resuming.dry_run
    values["trust_remote_code"] = resuming.trust_remote_code
    return RunRequest(**values)


def as_named(chosen: Sequence[Competitor], manifest: Manifest) -> tuple[Competitor, ...]:
    """The competitors of a recorded request under the labels they had: paths in options are absolute by now, and were
    part of a label as they were typed.

    Raises EnvironmentFailed where they are not the run's (another version of a method).
    """
    if [each.card.name for each in chosen] != [each.name for each in manifest.methods]:
        raise EnvironmentFailed(
            f"run {manifest.run_id} cannot go on: its methods are not those of this specbench",
            try_="start a new run; the old one stays as it is",
        )
    return tuple(dataclasses.replace(each, label=was.label) for each, was in zip(chosen, manifest.methods, strict=True))
