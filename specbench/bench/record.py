"""A session and a plan -> the manifest."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from specbench import provenance
from specbench.bench.competitors import Competitor
from specbench.bench.execution import describe
from specbench.bench.resume import findable, request_as_json
from specbench.bench.session import Session
from specbench.manifest import (
    DeviceRecord,
    GroupRecord,
    Manifest,
    MethodRecord,
    QuestionRecord,
    SamplingRecord,
    SuiteRecord,
    TargetRecord,
)
from specbench.method import Drafter
from specbench.quantisation import NONE
from specbench.suite import Question


def now() -> str:
    """ISO 8601, UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def new_run_id(suite: str) -> str:
    """Sorts by time, says the suite, never collides: 20260131-235959-demo-1f3a."""
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    name = re.sub(r"[^A-Za-z0-9_]+", "_", suite)[:24]
    return f"{stamp}-{name}-{secrets.token_hex(2)}"


def _shareable(source: str) -> str:
    """A local file by its folder and name: where somebody keeps data is nobody's business on a published page."""
    path = Path(source)
    return "/".join(path.parts[-2:]) if path.is_absolute() else source


def prompt_hash(question: Question) -> str:
    """By which a question is known again: its turns as they are asked."""
    return hashlib.sha256("\x1e".join(question.turns).encode()).hexdigest()[:16]


class Change(NamedTuple):
    """Something an answer or its seconds depend on, that is not as it was."""

    what: str
    was: str
    """Empty where the run does not say."""
    is_now: str
    """Empty where it cannot be told now."""

    def __str__(self) -> str:
        return f"{self.what} ({self.was or 'unknown'} then, {self.is_now or 'unknown'} now)"


def changed_since(manifest: Manifest, session: Session) -> list[Change]:
    """Questions, target, device and how steps are run. The attention in use is known after the first forward."""
    target, device, lm = manifest.target, manifest.device, session.lm
    now = _device_record(session, copy_bandwidth=None)
    return _unlike(
        ("the suite", manifest.suite.hash[:12], session.suite_hash()[:12]),
        ("the target's weights", target.weights_hash[:12], lm.weights_hash[:12]),
        ("the device", device.kind, now.kind),
        # A device of another kind has another name anyway.
        ("the device's name", device.name, now.name if now.kind == device.kind else device.name),
        ("the number of CPU threads", str(device.threads), str(now.threads)),
        ("the attention", device.attention, now.attention if lm.attention_used else device.attention),
        ("the dtype", target.dtype, str(lm.dtype).removeprefix("torch.")),
        ("how steps are run", device.execution, now.execution),
        ("the quantisation", target.quantisation, lm.quantisation),
    )


def software_changed(manifest: Manifest) -> list[Change]:
    """specbench's commit, what multiplies and rounds, and the processor where that is not the device itself. A side
    that is not recorded, or cannot be told now, is empty; whether the checkout was dirty is not asked."""
    then, now = manifest.provenance, provenance.collect()
    packages = ("torch", "transformers", *(provenance.QUANTISERS if manifest.target.quantisation != NONE else ()))
    versions = then.get("versions") or {}
    found = [("specbench's commit", _commit(then), _commit(now))]
    found += [(name, versions.get(name) or "", now["versions"][name] or "") for name in packages]
    if manifest.device.kind != "cpu":
        found.append(("the processor", (then.get("machine") or {}).get("cpu") or "", now["machine"]["cpu"] or ""))
    return _unlike(*found)


def _unlike(*facts: tuple[str, str, str]) -> list[Change]:
    return [Change(*fact) for fact in facts if fact[1] != fact[2]]


def _commit(record: Mapping[str, Any]) -> str:
    return str((record.get("git") or {}).get("sha") or "")[:12]


def drafters_changed(manifest: Manifest, drafters: Mapping[str, Drafter]) -> list[str]:
    """The same of the drafters, by label: trained anew in their place, or an adapter store that has learnt on, from
    this run's own questions even; draft models that are compiled now and were not, or the other way round."""
    found = []
    for each in manifest.methods:
        now = drafters[each.label]
        if each.weights_hash and each.weights_hash != now.weights_hash:
            found.append(f"the weights of {each.label} ({each.weights_hash[:12]} then, {now.weights_hash[:12]} now)")
        if each.num_compiled != num_compiled(now):
            found.append(
                f"the compiled draft models of {each.label} ({each.num_compiled} then, {num_compiled(now)} now)"
            )
    return found


def num_compiled(drafter: Drafter) -> int:
    """Models of its own that are compiled."""
    return sum(model.is_compiled for model in drafter.models)


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
            name=Path(request.target).name if Path(findable(request.target)).is_absolute() else request.target,
            weights_hash=lm.weights_hash,
            model_type=str(lm.config.model_type),
            num_parameters=lm.num_parameters(),
            dtype=str(lm.dtype).removeprefix("torch."),
            quantisation=lm.quantisation,
            vocab_size=lm.vocab_size,
            weight_bytes_per_token=lm.weight_bytes_per_token(),
            cache_bytes_per_token=lm.cache_bytes_per_token(),
        ),
        device=_device_record(session, copy_bandwidth=copy_bandwidth),
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
                num_compiled=num_compiled(drafter),
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


def _device_record(session: Session, *, copy_bandwidth: float | None) -> DeviceRecord:
    lm = session.lm
    return DeviceRecord(
        kind=lm.device.type,
        name=(f"{lm.num_processes} × " if lm.num_processes > 1 else "")
        + provenance.device_name(lm.device.type, lm.device.index),
        threads=session.threads,
        attention=", ".join(sorted(lm.attention_used)) or (session.request.attention or "auto"),
        execution=describe(lm, session.graphs),
        copy_bandwidth=copy_bandwidth,
    )
