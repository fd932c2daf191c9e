"""train.json: the whole plan of a training and where every part of it came from; and the way back for `--resume`."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specbench import paths, provenance
from specbench.bench.request import Setting
from specbench.errors import EnvironmentFailed, UsageError
from specbench.events import SCHEMA
from specbench.lm.cached_lm import CachedLM
from specbench.store.files import write_whole
from specbench.training.corpus import Corpus
from specbench.training.defaults import Settled
from specbench.training.request import TrainPlan, TrainRequest, findable

TRAIN_JSON = "train.json"


def now() -> str:
    """ISO 8601, UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def new_run_id(method: str) -> str:
    """Sorts by time, says the method, never collides: 20260131-235959-train_lstm-1f3a."""
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    return f"{stamp}-train_{method}-{secrets.token_hex(2)}"


def target_label(name: str) -> str:
    """A target as a folder's name can hold it: the last part of a path or hub id."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", Path(name).name or name)


def target_name(name: str) -> str:
    """A target as others know it: a hub id whole; of a local folder its name alone, where it lies is nobody's
    business."""
    path = Path(name).expanduser()
    is_local = name not in paths.DEMO_MODELS and (path.is_absolute() or path.is_dir())
    return target_label(str(path.resolve())) if is_local else name


def request_as_json(request: TrainRequest) -> dict[str, Any]:
    """Every field, paths absolute, so that `--resume` works from any folder."""
    body: dict[str, Any] = {}
    for each in dataclasses.fields(request):
        value = getattr(request, each.name)
        if each.name in ("data", "methods_dirs"):
            value = [str(Path(item).resolve()) for item in value]
        elif each.name in ("store", "out"):
            value = None if value is None else str(Path(value).resolve())
        elif each.name == "settings":
            value = [[item.method, item.option, findable(item.value)] for item in value]
        elif each.name in ("target", "dataset") and value is not None:
            value = findable(value)
        body[each.name] = list(value) if isinstance(value, tuple) else value
    return body


def request_from(body: Mapping[str, Any], resuming: TrainRequest) -> TrainRequest:
    """The request a train.json was made from, with what `--resume` may change taken from the new command line."""
    values = dict(body["request"])
    values["settings"] = tuple(Setting(*item) for item in values["settings"])
    for name in ("command", "report_to"):
        values[name] = tuple(values[name])
    values["data"] = tuple(Path(item) for item in values["data"]) + resuming.data
    values["methods_dirs"] = tuple(Path(item) for item in values["methods_dirs"]) + resuming.methods_dirs
    values["out"] = None if values["out"] is None else Path(values["out"])
    values["store"] = resuming.store
    values["resume"] = None
    values["dry_run"] = resuming.dry_run
    values["trust_remote_code"] = resuming.trust_remote_code
    return TrainRequest(**values)


def make_record(
    request: Settled, run_id: str, lm: CachedLM, corpus: Corpus, plan: TrainPlan, *, architecture: dict[str, Any],
    training_options: Mapping[str, Any], drafting_options: Mapping[str, Any], threads: int,
) -> dict[str, Any]:  # fmt: skip
    """The content of train.json."""
    return {
        "schema_version": SCHEMA,
        "kind": "train",
        "run_id": run_id,
        "created": now(),
        "command": list(request.request.command),
        "method": request.method,
        "options": dict(training_options),
        "drafting_options": dict(drafting_options),
        "architecture": architecture,
        "target": {
            "name": target_name(request.target),
            "weights_hash": lm.weights_hash,
            "model_type": str(lm.config.model_type),
            "hidden_size": int(lm.lm_head.weight.shape[1]),  # type: ignore[index]
            "vocab_size": lm.vocab_size,
            "dtype": str(lm.dtype).removeprefix("torch."),
            "quantisation": lm.quantisation,
        },
        "device": {
            "kind": lm.device.type,
            "name": provenance.device_name(lm.device.type, lm.device.index),
            "threads": threads,
            "processes": plan.processes,
        },
        "dataset": {
            "name": corpus.name,
            "hash": corpus.digest(),
            "documents": len(corpus.train),
            "held_out": len(corpus.held_out),
            **corpus.facts,
        },
        "plan": dataclasses.asdict(plan),
        "request": request_as_json(request.request),
        "provenance": provenance.collect(),
    }


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """As a whole: a reader never sees a part. Raises EnvironmentFailed where the disk refuses."""
    write_whole(folder / TRAIN_JSON, json.dumps(record, indent=1, default=str))


def read_record(folder: Path) -> dict[str, Any]:
    """Raises EnvironmentFailed: missing, damaged, newer or another folder's; UsageError for a run that is a
    measurement."""
    path = folder / TRAIN_JSON
    if not path.exists() and (folder / "manifest.json").exists():
        raise UsageError(
            f"{folder.name} is a measurement, not a training",
            where="--resume",
            try_=f"specbench run --resume {folder.name}",
        )
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise EnvironmentFailed(f"no training here: {path} is missing", try_="specbench results ls") from error
    except (OSError, ValueError) as error:
        raise EnvironmentFailed(f"{TRAIN_JSON} is damaged: {error}", where=str(path)) from error
    if not isinstance(body, dict) or "request" not in body:
        raise EnvironmentFailed(f"{TRAIN_JSON} is damaged: it holds no request", where=str(path))
    if body.get("schema_version", 0) > SCHEMA:
        raise EnvironmentFailed(
            f"the training was written by a newer specbench (schema {body['schema_version']}, this one reads {SCHEMA})",
            where=str(path),
            try_="pip install --upgrade specbench",
        )
    paths.check_run_id(body.get("run_id"), path)
    return body


def refuse_if_changed(record: Mapping[str, Any], found: Mapping[str, Any], *, folder: Path) -> None:
    """Raises EnvironmentFailed naming what is not as it was when the training began. found: a fresh record."""
    pairs = (
        ("the method", ("method",)),
        ("the method's options", ("options",)),
        ("the drafter's architecture", ("architecture",)),
        ("the target's weights", ("target", "weights_hash")),
        ("the target's hidden size", ("target", "hidden_size")),
        ("the target's dtype", ("target", "dtype")),
        ("the documents", ("dataset", "hash")),
        ("the device", ("device", "kind")),
        ("the number of processes", ("device", "processes")),
    )
    changed = []
    for what, route in pairs:
        was, is_now = _at(record, route), _at(found, route)
        if _plain(was) != _plain(is_now):
            changed.append(f"{what} ({_short(was)} then, {_short(is_now)} now)")
    if changed:
        raise EnvironmentFailed(
            f"training {record['run_id']} cannot go on: {', '.join(changed)} changed since it began",
            where=str(folder),
            try_="start a new training; the old one stays as it is",
        )


def shareable(value: Any) -> Any:
    """A local path by its folder and name, in whatever holds it: a drafter is published, where somebody keeps data is
    nobody's business."""
    if isinstance(value, str):
        return "/".join(Path(value).parts[-2:]) if value.startswith(("/", "self:/")) else value
    if isinstance(value, Mapping):
        return {name: shareable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [shareable(item) for item in value]
    return value


def _at(record: Mapping[str, Any], route: tuple[str, ...]) -> Any:
    value: Any = record
    for name in route:
        value = value[name]
    return value


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:20]}…"
