"""An untimed, deterministic replay of one stored answer, by the engine that gave it (measurement 20).

The group is decoded as it was: the same rows together, the same prompts (the journal's reference answers are
continued), the drafter's state restored or regrown. Steps run operator by operator so that each can be looked at.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from specbench import paths, suite
from specbench.bench import record, resume
from specbench.bench.competitors import competitors
from specbench.bench.contestants import Contestant, make_contestant
from specbench.bench.equality import first_difference
from specbench.bench.reference import ReferenceAnswer
from specbench.bench.request import Dtype, RunRequest
from specbench.bench.session import Cell, Session
from specbench.engine.answer import Generation
from specbench.engine.watched import RowSeen, StepSeen, read_row
from specbench.errors import EnvironmentFailed, UsageError
from specbench.events import GenerationFinished, ReferenceFinished, StepRow
from specbench.manifest import GroupRecord, Manifest
from specbench.store.attempts import Attempt, attempt_of, finished_groups
from specbench.store.files import holder
from specbench.store.journal import replay
from specbench.store.traces import (
    Cost,
    Law,
    Node,
    Trace,
    TracedStep,
    TraceHead,
    Verdict,
    Which,
    find_group,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overrides:
    """What the command may say of the machine it runs on."""

    device: str | None = None
    """Another device than the run's."""
    data: tuple[Path, ...] = ()
    methods_dirs: tuple[Path, ...] = ()
    trust_remote_code: bool = False


def trace(
    store: Path | None,
    manifest: Manifest,
    which: Which,
    *,
    overrides: Overrides,
    say: Callable[[str], None],
) -> Trace:
    """Replay one answer. say: told what takes time.

    Raises UsageError (no such answer, it failed, the run is being measured) and what loading a target raises.
    """
    folder = paths.run_dir(store, manifest.run_id)
    group, row = find_group(manifest, which)
    live = holder(folder)
    if live is not None:
        raise UsageError(
            f"run {manifest.run_id} is still being measured by process {live.pid}; a replay beside it would slow it",
            try_="the same command when it has finished",
        )
    attempt = attempt_of(folder, group.group)
    if attempt is None:
        raise UsageError(
            f"{which.method} has not answered {which.question_id!r}, turn {which.turn + 1}, repeat {which.repeat + 1}",
            try_=f"specbench run --resume {manifest.run_id}",
        )
    if row in attempt.failed:
        raise UsageError(f"that answer failed, there is nothing to replay: {attempt.failed[row].error}")
    session = _session(store, manifest, overrides)
    _check_prompt(manifest, session, which)
    _read_references(folder, session)
    contestant = _contestant(session, manifest, which.method)
    say(f"replaying {which.method} on {which.question_id}, untimed")
    contestant.drafter.shows_q = True
    _restore(session, contestant, manifest, group, folder, say)
    generation, seen = _decode(session, contestant, group, row)
    return _assemble(manifest, group, row, attempt, generation, seen, changed=_changed(manifest, session))


def _session(store: Path | None, manifest: Manifest, overrides: Overrides) -> Session:
    resuming = RunRequest(
        resume=manifest.run_id,
        store=store,
        data=overrides.data,
        methods_dirs=overrides.methods_dirs,
        trust_remote_code=overrides.trust_remote_code,
    )
    request = dataclasses.replace(
        resume.request_from(manifest, resuming),
        graphs="off",
        compile="off",
        # As it was, not as `auto` would have it on this device.
        dtype=cast("Dtype", manifest.target.dtype),
    )
    if overrides.device is not None:
        request = dataclasses.replace(request, device=overrides.device)
    assert request.suite is not None and request.seed is not None
    loaded = suite.load_suite(request.suite, data_dirs=request.data)
    if request.limit is not None:
        loaded = loaded.limited(request.limit, seed=request.seed)
    return Session(request, loaded)


def _check_prompt(manifest: Manifest, session: Session, which: Which) -> None:
    """A replay of another question would be a trace of nothing."""
    was = next(each for each in manifest.questions if each.question_id == which.question_id)
    now = next((each for each in session.suite.questions if each.question_id == which.question_id), None)
    if now is None or record.prompt_hash(now) != was.prompt_hash:
        raise EnvironmentFailed(
            f"question {which.question_id!r} is not in suite {manifest.suite.name} any more as it was asked",
            where=session.suite.source,
            try_="restore the suite's file, or measure again",
        )


def _read_references(folder: Path, session: Session) -> None:
    """What later turns continue and `oracle` reads, from the journal: nothing is answered again."""
    for event in replay(folder, with_steps=False):
        if isinstance(event, ReferenceFinished):
            session.references[event.question_id, event.turn] = ReferenceAnswer(
                prompt=(), tokens=event.tokens, text=event.text, finish_reason=event.finish_reason
            )


def _contestant(session: Session, manifest: Manifest, label: str) -> Contestant:
    chosen = resume.as_named(competitors(session.request), manifest)
    competitor = next(each for each in chosen if each.label == label)
    return make_contestant(session, competitor)


def _restore(
    session: Session,
    contestant: Contestant,
    manifest: Manifest,
    group: GroupRecord,
    folder: Path,
    say: Callable[[str], None],
) -> None:
    """State as it was before the group: the snapshot, or under `carry: stream` regrown along the repeat's answers."""
    if contestant.drafter.carries == "nothing":
        return
    contestant.drafter.restore(contestant.snapshot)
    if manifest.carry == "none":
        return
    if contestant.drafter.adaptation is not None:
        raise UsageError(
            f"{group.method} learnt between its answers, and that is not replayed",
            try_="trace an answer of a run with --carry none",
        )
    done = finished_groups(folder)
    earlier = manifest.groups[: [each.group for each in manifest.groups].index(group.group)]
    for before in earlier:
        was_asked = all((question, before.turn) in session.references for question in before.question_ids)
        if was_asked and (before.method, before.repeat) == (group.method, group.repeat) and before.group in done:
            say(f"regrowing what {group.method} carried: {before.question_ids[0]}")
            cells = _cells(session, before)
            session.generate(contestant.drafter, cells, with_reference=contestant.wants_reference)


def _cells(session: Session, group: GroupRecord) -> list[Cell]:
    by_id = {question.question_id: question for question in session.suite.questions}
    return [session.cell(by_id[question_id], group.turn) for question_id in group.question_ids]


def _decode(session: Session, contestant: Contestant, group: GroupRecord, row: int) -> tuple[Generation, list[RowSeen]]:
    seen: list[RowSeen] = []

    def watch(step: StepSeen) -> None:
        if row in step.live:
            seen.append(read_row(step, step.live.index(row), sampling=session.sampling))

    result = session.generate(
        contestant.drafter, _cells(session, group), with_reference=contestant.wants_reference, watch=watch
    )
    return result.generations[row], seen


def _changed(manifest: Manifest, session: Session) -> tuple[str, ...]:
    """What could make the replay another answer."""
    return tuple(str(each) for each in (*record.changed_since(manifest, session), *record.software_changed(manifest)))


def _assemble(
    manifest: Manifest,
    group: GroupRecord,
    row: int,
    attempt: Attempt,
    generation: Generation,
    seen: Sequence[RowSeen],
    *,
    changed: tuple[str, ...],
) -> Trace:
    answer: GenerationFinished = attempt.finished[row]
    timed = [StepRow(*each) for each in attempt.rows]
    costs = {each.end_s: Cost(*each[-4:]) for each in timed if any(each[-4:])}
    own = [each for each in timed if each.row == row]
    drafts_match = [_shape(each) for each in own] == [_shape(each) for each in generation.steps]
    difference = first_difference(generation.tokens, answer.tokens)
    steps = []
    for place, (found, replayed) in enumerate(zip(seen, generation.steps, strict=True)):
        cost = costs.get(own[place].end_s) if drafts_match else None
        steps.append(_step(found, replayed, cost))
    return Trace(
        head=TraceHead(
            run_id=manifest.run_id,
            group=group.group,
            row=row,
            method=group.method,
            question_id=answer.question_id,
            category=answer.category,
            turn=group.turn,
            repeat=group.repeat,
            rule=manifest.rule,
            temperature=manifest.sampling.temperature,
            made=record.now(),
            tokens=generation.tokens,
            matches=difference is None,
            first_difference=difference,
            drafts_match=drafts_match,
            changed=changed,
        ),
        steps=tuple(steps),
    )


def _shape(step: StepRow) -> tuple[int, ...]:
    return step.num_nodes, step.depth, step.num_accepted, step.num_truncated


def _step(found: RowSeen, replayed: StepRow, cost: Cost | None) -> TracedStep:
    on_path = set(found.path)
    kept = set(found.path[: len(replayed.tokens)])

    def verdict(node: int) -> Verdict:
        if node in on_path:
            return "accepted" if node in kept else "cut"
        parent = found.parents[node]
        return "rejected" if parent < 0 or parent in on_path else "unreached"

    return TracedStep(
        step=found.step,
        nodes=tuple(
            Node(token, parent, q, p, verdict(node))
            for node, (token, parent, q, p) in enumerate(
                zip(found.tokens, found.parents, found.q, found.p, strict=True)
            )
        ),
        laws=tuple(Law(chosen, tuple(top)) for chosen, top in zip(found.chosen, found.top, strict=True)),
        bonus=found.chosen[found.path[-1] + 1 if found.path else 0],
        num_accepted=replayed.num_accepted,
        num_truncated=replayed.num_truncated,
        cost=cost,
    )
