"""`specbench tune`: which options make a method fastest on this target, device and prompts.

Three measurements, each once: what the target takes to verify n nodes; what each candidate takes to draft, accept and
commit; and how many tokens each would commit, exactly, by replaying it on the target's own answers (under `coupled`
these do not depend on what is drafted). A candidate's prediction is

    tau / (T_verify(n) + T_draft + T_accept + T_commit + T_other), n averaged over its steps,

over the same of autoregression. The best are then measured in an ordinary paired run, and both numbers are shown.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from specbench import registry, suite
from specbench.bench.candidates import (
    Candidate,
    Confirmed,
    Options,
    Tuned,
    choose,
    combinations,
    confirmed_by,
    in_order,
    interpolate,
)
from specbench.bench.competitors import BASELINE, Competitor, competitors
from specbench.bench.contestants import Contestant, make_contestant
from specbench.bench.defaults import full_command, without_fallbacks
from specbench.bench.folders import check_place
from specbench.bench.request import Progress, RunOutcome, RunRequest, Setting, Variant
from specbench.bench.runner import run
from specbench.bench.session import Cell, Session
from specbench.card import Card
from specbench.engine.replay import States, Text, replay
from specbench.errors import UsageError
from specbench.lm.parallel import num_processes
from specbench.probe import verification_costs

_NODES: Final = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_TIMED_TOKENS: Final = 48
"""Tokens of the short generations that time a candidate's own phases."""
_TIMED_CELLS: Final = 2
_BUDGET: Final = "max_nodes"
"""The option that cuts a tree to its best nodes, where a method has one; 0 = not. A budget that cuts nothing is the
same candidate again."""


def predict(request: RunRequest, method: str, progress: Progress, *, will_confirm: bool) -> Tuned:
    """Measure and predict; the choice is the best prediction. will_confirm: `confirm` follows.

    request: filled (`with_defaults`); its grid axes of the method replace the card's `tune`. Raises UsageError for a
    method with nothing to tune, a rule other than `coupled`, and more than one question at a time; EnvironmentFailed
    where the confirming run could not be written, before anything is loaded.
    """
    _check(request)
    card = registry.card(method, methods_dirs=request.methods_dirs, named_by="--method")
    wanted = combinations(request, card)
    if will_confirm:
        check_place(request.store)
    return _chosen(_measure(request, card, wanted, progress), request)


def confirm(found: Tuned, request: RunRequest, method: str, progress: Progress, *, top: int) -> Tuned:
    """Measure the best `top` of what was predicted in one paired run, and choose by it. Raises what that run raises."""
    # The target was let go with the session that predicted: this run loads it again.
    best = found.candidates[:top]
    outcome = _confirm(request, method, best, progress)
    measured = dataclasses.replace(
        found,
        confirmed=_confirmed(outcome, request, method, best),
        run_id=outcome.run_id,
        state=outcome.state,
        failed_checks=outcome.failed_checks,
    )
    return _chosen(measured, request)


def _contestant(session: Session, request: RunRequest, method: str, options: Options) -> Contestant:
    """Run as a run would run it."""
    made = make_contestant(session, _competitor(request, method, options))
    session.compile_models(made.drafter)
    return made


def _chosen(found: Tuned, request: RunRequest) -> Tuned:
    choice = choose(found.candidates, found.confirmed, baseline=BASELINE)
    return dataclasses.replace(found, choice=choice.why, command=_command(request, found.method, choice.options))


def _measure(request: RunRequest, card: Card, wanted: Sequence[Options], progress: Progress) -> Tuned:
    """All but the confirming run."""
    assert request.suite is not None, "a tuning reads a suite's prompts"
    method = card.name
    loaded = suite.load_suite(request.suite, data_dirs=request.data)
    if request.limit is not None:
        assert request.seed is not None
        loaded = loaded.limited(request.limit, seed=request.seed)
    session = Session(request, loaded)
    built = _buildable(session, request, method, wanted)
    session.compile_target(progress.say)
    settings = tuple(each for each in request.settings if each.method == BASELINE)
    plain = dataclasses.replace(request, grid=(), variants=(), settings=settings, methods=(BASELINE,))
    baseline = make_contestant(session, competitors(plain)[0])
    progress.say("the target's answers")
    session.make_references(baseline.drafter, progress)
    cells, texts = _texts(session)
    found, skipped = built.sizes, built.skipped
    progress.say(f"{len(found)} candidates on {len(texts)} answers")
    progress.plan(num_groups=len(found), num_done=0, title="tune")
    most = max(found.values())
    counts = [*(n for n in _NODES if n < most), most]
    session.engine.reserve(most)
    cost = verification_costs(session.engine, _context(texts), counts, as_tree=card.kind == "tree")
    contestants = (_contestant(session, request, method, options) for options in found)
    candidates = _candidates(
        session,
        baseline,
        zip(found, contestants, strict=True),
        cells,
        texts,
        dict(zip(counts, cost, strict=True)),
        progress,
    )
    return Tuned(
        method=method,
        target=request.target or "",
        device=str(session.lm.device),
        dtype=str(session.lm.dtype).removeprefix("torch."),
        quantisation=session.lm.quantisation,
        threads=session.threads,
        suite=session.suite.name,
        temperature=session.sampling.temperature,
        num_texts=len(texts),
        num_tokens=sum(len(text.answer) for text in texts),
        step_s=_phases(session, baseline, cells).step_s,
        verify_cost=tuple(zip(counts, cost, strict=True)),
        candidates=tuple(sorted(candidates, key=lambda each: (-each.predicted, each.max_nodes))),
        skipped=tuple(skipped),
    )


def _check(request: RunRequest) -> None:
    if request.rule not in (None, "coupled"):
        raise UsageError(
            f"under rule {request.rule!r} the text depends on what was drafted, so no recorded answer tells a "
            "candidate's acceptance",
            where="--rule",
            try_="--rule coupled",
        )
    if num_processes() > 1:
        raise UsageError(
            "a target that is split over processes is not tuned", where="torchrun", try_="specbench tune without it"
        )
    if request.batch_size not in (None, 1):
        raise UsageError("one question at a time is tuned", where="--batch-size", try_="--batch-size 1")


def _texts(session: Session) -> tuple[list[Cell], list[Text]]:
    """First turns that have an answer of at least two tokens."""
    cells, texts = [], []
    for question in session.suite.questions:
        answer = session.references[question.question_id, 0]
        if answer.error or len(answer.tokens) < 2:
            continue
        cell = session.cell(question, 0)
        cells.append(cell)
        limit = session.max_new_tokens
        texts.append(Text(prompt=cell.prompt, answer=answer.tokens, key=cell.key, max_new_tokens=limit))
    if not texts:
        raise UsageError(
            f"no answer of {session.lm.name} to {session.suite.name} has two tokens", try_="another suite, or --limit"
        )
    return cells, texts


def _context(texts: Sequence[Text]) -> tuple[int, ...]:
    """The text of middling length, cut in the middle of its answer: where a step stands on average."""
    text = sorted(texts, key=lambda each: len(each.prompt) + len(each.answer))[len(texts) // 2]
    return text.prompt + text.answer[: len(text.answer) // 2]


class _Buildable(NamedTuple):
    """sizes: each combination's largest tree. skipped: why others cannot be."""

    sizes: dict[Options, int]
    skipped: list[str]


def _buildable(session: Session, request: RunRequest, method: str, wanted: Sequence[Options]) -> _Buildable:
    """One drafter at a time is held: weights may be large."""
    sizes: dict[Options, int] = {}
    found: dict[Options, int] = {}
    skipped = []

    def size_of(options: Options) -> int:
        if options not in sizes:
            sizes[options] = session.build(_competitor(request, method, options)).max_nodes
        return sizes[options]

    for options in wanted:
        try:
            size = size_of(options)
            without = tuple((name, "0" if name == _BUDGET else value) for name, value in options)
            if without != options and without in wanted and size_of(without) == size:
                continue
        except UsageError as error:
            skipped.append(f"{Variant(method, options)}: {error.what}")
            continue
        found[options] = size
    if not found:
        raise UsageError(f"no combination of {method!r} can be built", where="--grid", try_="; ".join(skipped[:3]))
    return _Buildable(found, skipped)


def _competitor(request: RunRequest, method: str, options: Options) -> Competitor:
    one = dataclasses.replace(request, grid=(), variants=(Variant(method, options),), methods=(BASELINE, method))
    return competitors(one)[-1]


# --- measuring -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Phases:
    """Means over the steps of short generations."""

    verify_s: float
    draft_s: float
    rest_s: float

    @property
    def step_s(self) -> float:
        return self.verify_s + self.draft_s + self.rest_s


def _phases(session: Session, contestant: Contestant, cells: Sequence[Cell]) -> _Phases:
    was, session.max_new_tokens = session.max_new_tokens, min(session.max_new_tokens, _TIMED_TOKENS)
    verify_s = draft_s = decode_s = 0.0
    num_steps = 0
    try:
        for cell in cells[:_TIMED_CELLS]:
            contestant.drafter.restore(contestant.snapshot)
            result = session.generate(contestant.drafter, [cell], with_reference=contestant.wants_reference)
            num_steps += len(result.generations[0].steps)
            verify_s, draft_s = verify_s + result.verify_s, draft_s + result.draft_s
            decode_s += result.decode_s
    finally:
        session.max_new_tokens = was
    num_steps = max(num_steps, 1)
    return _Phases(
        verify_s=verify_s / num_steps,
        draft_s=draft_s / num_steps,
        rest_s=max(decode_s - verify_s - draft_s, 0.0) / num_steps,
    )


def _candidates(
    session: Session,
    baseline: Contestant,
    found: Iterable[tuple[Options, Contestant]],
    cells: Sequence[Cell],
    texts: Sequence[Text],
    cost: Mapping[int, float],
    progress: Progress,
) -> list[Candidate]:
    states: States = {}
    candidates = []
    session.warm_up(baseline.drafter, cells[:1], with_reference=False)
    for options, contestant in found:
        contestant.drafter.restore(contestant.snapshot)
        session.warm_up(contestant.drafter, cells[:1], with_reference=contestant.wants_reference)
        # Side by side, so that a machine that slows down slows both.
        own, plain = _phases(session, contestant, cells), _phases(session, baseline, cells)
        num_steps = num_tokens = num_nodes = 0
        at: dict[int, int] = defaultdict(int)
        for text in texts:
            contestant.drafter.restore(contestant.snapshot)
            replayed = replay(
                session.lm, contestant.drafter, [text], sampling=session.sampling, max_batch=1, states=states
            )
            num_steps, num_tokens = num_steps + replayed.num_steps, num_tokens + replayed.num_tokens
            num_nodes += replayed.num_nodes
            for nodes, steps in replayed.steps_at:
                at[nodes] += steps
        verify_s = plain.verify_s * sum(steps * interpolate(cost, nodes) for nodes, steps in at.items()) / num_steps
        tau = num_tokens / num_steps
        candidates.append(
            Candidate(
                options=options,
                max_nodes=contestant.drafter.max_nodes,
                acceptance_length=tau,
                num_nodes=num_nodes / num_steps,
                verify_s=verify_s,
                draft_s=own.draft_s,
                rest_s=own.rest_s,
                predicted=tau * plain.step_s / (verify_s + own.draft_s + own.rest_s),
            )
        )
        progress.group_done(
            method=str(Variant(contestant.competitor.card.name, options)),
            question=f"{len(texts)} answers",
            seconds=0.0,
            num_tokens=num_tokens,
            failed=False,
        )
    return candidates


# --- confirming ----------------------------------------------------------------------------------------------------


def _confirm(request: RunRequest, method: str, best: Sequence[Candidate], progress: Progress) -> RunOutcome:
    variants = tuple(Variant(method, each.options) for each in best)
    progress.say(f"the best {len(best)} measured" if len(best) > 1 else "the best measured")
    return run(dataclasses.replace(request, grid=(), variants=variants, methods=(BASELINE, method)), progress)


def _confirmed(
    outcome: RunOutcome, request: RunRequest, method: str, best: Sequence[Candidate]
) -> tuple[Confirmed, ...]:
    rows = {row.method: row for row in outcome.summary.rows} if outcome.summary else {}
    return in_order(confirmed_by(rows.get(_competitor(request, method, each.options).label), each) for each in best)


def _command(request: RunRequest, method: str, options: Options) -> str:
    varied = {name for name, _ in options}
    kept = tuple(item for item in request.settings if item.method != method or item.option not in varied)
    return full_command(
        dataclasses.replace(
            without_fallbacks(request),
            methods=(BASELINE, method),
            settings=(*kept, *(Setting(method, name, value) for name, value in options)),
            grid=(),
            variants=(),
            # Few and short, so that many candidates can be tried.
            limit=None,
            max_new_tokens=None,
            repeats=None,
        )
    )
