"""A session and a plan -> the manifest; a manifest -> the request that continues it."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import re
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specbench import paths, provenance
from specbench.bench.competitors import Competitor
from specbench.bench.execution import describe
from specbench.bench.request import GridAxis, RunRequest, Setting, Variant
from specbench.bench.session import Session
from specbench.errors import EnvironmentFailed, UsageError
from specbench.manifest import (
    DeviceRecord,
    GroupRecord,
    Manifest,
    MethodRecord,
    QuestionRecord,
    SamplingRecord,
    SuiteRecord,
    TargetRecord,
    read_manifest,
)
from specbench.method import Drafter
from specbench.quantisation import NONE
from specbench.store.files import is_training, unknown_run
from specbench.suite import Question, packaged_names


def now() -> str:
    """ISO 8601, UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def new_run_id(suite: str) -> str:
    """Sorts by time, says the suite, never collides: 20260131-235959-demo-1f3a."""
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    name = re.sub(r"[^A-Za-z0-9_]+", "_", suite)[:24]
    return f"{stamp}-{name}-{secrets.token_hex(2)}"


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
            value = [[item.method, item.option, _findable(item.value)] for item in value]
        elif field.name == "grid":
            value = [[axis.method, axis.option, [_findable(text) for text in axis.values]] for axis in value]
        elif field.name == "variants":
            value = [
                [item.method, [[option, _findable(text)] for option, text in item.options], item.name] for item in value
            ]
        elif field.name in ("suite", "target") and value is not None:
            value = _findable(value)
        body[field.name] = list(value) if isinstance(value, tuple) else value
    return body


def _findable(text: str) -> str:
    """A path that exists from here becomes absolute; names of packaged suites and embedded models stay names."""
    is_name = text in paths.DEMO_MODELS or text in packaged_names()
    return text if is_name or not Path(text).exists() else str(Path(text).resolve())


def _shareable(source: str) -> str:
    """A local file by its folder and name: where somebody keeps data is nobody's business on a published page."""
    path = Path(source)
    return "/".join(path.parts[-2:]) if path.is_absolute() else source


def manifest_to_resume(store: Path | None, run_id: str) -> Manifest:
    """The manifest of a run that `--resume` names. Raises UsageError for a run that is not there, or is a training."""
    folder = paths.run_dir(store, run_id)
    if is_training(folder):
        raise UsageError(f"{run_id} is a training", where="--resume", try_=f"specbench train --resume {run_id}")
    if not (folder / "manifest.json").exists():
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


def prompt_hash(question: Question) -> str:
    """By which a question is known again: its turns as they are asked."""
    return hashlib.sha256("\x1e".join(question.turns).encode()).hexdigest()[:16]


def changed_since(manifest: Manifest, session: Session) -> list[str]:
    """What an answer depends on and is not as it was when the run began, in words."""
    return [
        f"{what} ({was[:12]} then, {is_now[:12]} now)"
        for what, was, is_now in (
            ("the suite", manifest.suite.hash, session.suite_hash()),
            ("the target's weights", manifest.target.weights_hash, session.lm.weights_hash),
            ("the device", manifest.device.kind, session.lm.device.type),
            ("the dtype", manifest.target.dtype, str(session.lm.dtype).removeprefix("torch.")),
            ("how steps are run", manifest.device.execution, describe(session.lm, session.graphs)),
            ("the quantisation", manifest.target.quantisation, session.lm.quantisation),
        )
        if was != is_now
    ]


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


def notes_on(drafter: Drafter, *, target_hash: str, quantisation: str) -> tuple[str, ...]:
    """What a row must say about its drafter: that it learnt from another target than the one it drafts for."""
    if drafter.trained_on == "":
        return ()
    if drafter.trained_on == target_hash:
        learnt = drafter.trained_quantisation
        if learnt in ("", quantisation):
            return ()
        of = "the unquantised target" if learnt == NONE else f"this target quantised as {learnt}"
        return (f"its drafter was trained on {of}",)
    if drafter.trained_on == "unknown":
        return ("which target its drafter was trained on is not recorded",)
    return (f"its drafter was trained on another target (weights {drafter.trained_on[:12]})",)


def make_manifest(
    session: Session,
    contestants: Sequence[tuple[Competitor, Drafter]],
    groups: tuple[GroupRecord, ...],
    *,
    run_id: str,
    copy_bandwidth: float | None,
) -> Manifest:
    """The whole plan and its provenance."""
    request, lm = session.request, session.lm
    assert request.seed is not None and request.repeats is not None and request.batch_size is not None
    assert request.rule is not None and request.carry is not None and request.target is not None
    return Manifest(
        run_id=run_id,
        created=now(),
        command=request.command,
        suite=SuiteRecord(
            name=session.suite.name,
            hash=session.suite_hash(),
            source=_shareable(session.suite.source),
            template=session.template,
            num_questions=len(session.suite.questions),
            has_answers=session.suite.has_answers,
            licence=session.suite.licence,
        ),
        target=TargetRecord(
            name=Path(request.target).name if Path(_findable(request.target)).is_absolute() else request.target,
            weights_hash=lm.weights_hash,
            model_type=str(lm.config.model_type),
            num_parameters=lm.num_parameters(),
            dtype=str(lm.dtype).removeprefix("torch."),
            quantisation=lm.quantisation,
            vocab_size=lm.vocab_size,
            weight_bytes_per_token=lm.weight_bytes_per_token(),
            cache_bytes_per_token=lm.cache_bytes_per_token(),
        ),
        device=DeviceRecord(
            kind=lm.device.type,
            name=(f"{lm.num_processes} × " if lm.num_processes > 1 else "")
            + provenance.device_name(lm.device.type, lm.device.index),
            threads=session.threads,
            attention=", ".join(sorted(lm.attention_used)) or (request.attention or "auto"),
            execution=describe(lm, session.graphs),
            copy_bandwidth=copy_bandwidth,
        ),
        sampling=SamplingRecord(**dataclasses.asdict(session.sampling)),
        rule=request.rule,
        seed=request.seed,
        batch_size=request.batch_size,
        repeats=request.repeats,
        max_new_tokens=session.max_new_tokens,
        carry=request.carry,
        methods=tuple(
            MethodRecord(
                label=competitor.label,
                name=competitor.card.name,
                title=competitor.card.title,
                kind=competitor.card.kind,
                options=competitor.options,
                num_parameters=drafter.num_parameters(),
                weights_hash=drafter.weights_hash,
                is_control=competitor.is_control,
                is_ranked=competitor.card.ranked,
                notes=(
                    *lm.notes,
                    *drafter.notes,
                    *notes_on(drafter, target_hash=lm.weights_hash, quantisation=lm.quantisation),
                ),
            )
            for competitor, drafter in contestants
        ),
        questions=tuple(
            QuestionRecord(
                question_id=question.question_id,
                category=question.category,
                num_turns=len(question.turns),
                prompt_hash=prompt_hash(question),
            )
            for question in session.suite.questions
        ),
        groups=groups,
        provenance={
            **provenance.collect(),
            "request": request_as_json(request),
            "suite_notes": list(session.suite.notes),
        },
    )
