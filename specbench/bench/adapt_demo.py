"""`specbench demo --adapt`: a short adaptation of the embedded draft model, judged on prompts it never learns from.

The draft model learnt word problems, role play and programs alike; the stream is of one kind alone, as a deployment's
may be. Held-out prompts are decoded before and after, with the same noise, so that every prompt is its own control.
Nothing here is a benchmark: seconds are told, speed is not.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from specbench import paths, registry, suite
from specbench.engine.decode import Engine
from specbench.engine.stop import Stop
from specbench.events import StepRow
from specbench.lm.cached_lm import CachedLM
from specbench.lm.load import load_lm, pick_device, pick_dtype
from specbench.lm.stops import stop_ids_of
from specbench.method import Drafter, Request
from specbench.metrics import Bootstrap, Interval, percentile_interval
from specbench.sampling import Sampling, sequence_key
from specbench.training.rounds import Round, learn

METHOD = "adaptive_lora"
_BATCH = 16
_RESAMPLES = 10_000
_LEAST = 48
"""Answers that are learnt from however long they take."""


@dataclass(frozen=True, kw_only=True)
class DemoPlan:
    """How much of it there is. The defaults take about a minute on one quiet core."""

    kind: str = "gsm8k"
    """Of the prompts learnt from: gsm8k, roleplay or codegen."""
    num_stream: int = 176
    """Prompts answered while it learns, from those the target was trained on."""
    num_rounds: int = 3
    num_held_out: int = 48
    """Prompts of the kind that neither target nor draft ever saw."""
    num_elsewhere: int = 16
    """Such prompts of the other kinds: what is forgotten."""
    max_new_tokens: int = 64
    temperature: float = 0.0
    num_tokens: int = 4
    seed: int = 0
    most_s: float = 60.0
    """The stream ends early where the rest would not fit, but not before `_LEAST` answers: on a machine that has other
    things to do it takes longer."""
    options: tuple[tuple[str, Any], ...] = ()
    """Of the method, over the demo's own."""


class Say(Protocol):
    """Hears a sentence as it becomes true."""

    def __call__(self, text: str, /) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """Counts over one set of prompts."""

    num_prompts: int
    num_tried: int
    """Accepted drafted positions, and each step's first rejection."""
    num_accepted: int
    num_tokens: int
    num_steps: int

    @property
    def rate(self) -> float:
        """Accepted of tried."""
        return self.num_accepted / self.num_tried

    @property
    def tau(self) -> float:
        """Tokens per step, bonus included."""
        return self.num_tokens / self.num_steps


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One set of prompts, before and after."""

    set: str
    before: Acceptance
    after: Acceptance
    change: float
    """Of the rate."""
    change_ci: Interval
    """95 % bootstrap over prompts, each beside itself."""
    num_equal: int
    """Answers that are the same, token by token."""


@dataclass(frozen=True, kw_only=True)
class DemoOutcome:
    """What came of it."""

    plan: DemoPlan
    num_learnt_prompts: int
    num_positions: int
    """Observed."""
    rounds: tuple[Round, ...]
    version: int
    """Drafted with at the end; 0 = the draft model itself."""
    compared: tuple[Compared, ...]
    """The kind that was learnt first, the others after it."""
    learn_s: float
    seconds: float


def adapt_demo(plan: DemoPlan, say: Say) -> DemoOutcome:
    """Carry it out, on one CPU thread's worth of work and in memory alone."""
    began = time.perf_counter()
    place = pick_device("cpu")
    lm = load_lm("demo", device=place, dtype=pick_dtype("auto", place))
    prompts = _Prompts(lm, plan)
    engine = Engine(
        lm,
        sampling=Sampling(temperature=plan.temperature),
        max_batch=_BATCH,
        max_len=prompts.longest + plan.max_new_tokens,
        stop=Stop(ids=stop_ids_of(lm)),
    )
    drafter = _learner(engine, plan)
    adaptation = drafter.adaptation
    assert adaptation is not None
    sets = {plan.kind: prompts.held_out, "other kinds": prompts.elsewhere}
    say(f"{len(prompts.held_out)} held-out prompts of {plan.kind}, {len(prompts.elsewhere)} of other kinds, before")
    start = time.perf_counter()
    before = {name: _decoded(engine, drafter, requests) for name, requests in sets.items()}
    judge_s = time.perf_counter() - start
    rounds: list[Round] = []
    num_learnt = 0
    per_round = -(-len(prompts.stream) // plan.num_rounds)
    for first in range(0, len(prompts.stream), per_round):
        for group in _groups(prompts.stream[first : first + per_round]):
            ends_s = time.perf_counter() - began + judge_s + sum(each.seconds for each in rounds[-1:])
            if ends_s > plan.most_s and num_learnt >= _LEAST:
                break
            engine.generate(drafter, group)
            adaptation.gather()
            num_learnt += len(group)
        if not adaptation.domain("").memory.new:
            break
        rounds.append(learn(adaptation))
        say(_round_words(rounds[-1], len(rounds), num_learnt))
    say("the same held-out prompts, after")
    after = {name: _decoded(engine, drafter, requests) for name, requests in sets.items()}
    return DemoOutcome(
        plan=plan,
        num_learnt_prompts=num_learnt,
        num_positions=adaptation.domain("").memory.num_positions,
        rounds=tuple(rounds),
        version=adaptation.domain("").in_use.number,
        compared=tuple(_compare(name, before[name], after[name], seed=plan.seed) for name in sets),
        learn_s=sum(each.seconds for each in rounds),
        seconds=time.perf_counter() - began,
    )


def to_json(outcome: DemoOutcome) -> dict[str, Any]:
    """The outcome with its ratios, for `--json`."""
    body: dict[str, Any] = dataclasses.asdict(outcome)
    for made, told in zip(outcome.compared, body["compared"], strict=True):
        told["change_ci"] = list(made.change_ci)
        for name, side in (("before", made.before), ("after", made.after)):
            told[name] |= {"acceptance": side.rate, "acceptance_length": side.tau}
    for made_round, told in zip(outcome.rounds, body["rounds"], strict=True):
        told["gain"] = None if made_round.gain is None else list(made_round.gain)
    return {"schema": 1, **body}


def words_of(outcome: DemoOutcome) -> list[str]:
    """The outcome for a terminal; what did not rise is said not to have risen."""
    found = []
    for each in outcome.compared:
        interval = f"[{each.change_ci.low:+.3f}, {each.change_ci.high:+.3f}]"
        found.append(
            f"{each.set}, {each.before.num_prompts} held-out prompts: accepted of tried drafted positions "
            f"{each.before.rate:.3f} → {each.after.rate:.3f}, change {each.change:+.3f} {interval}; "
            f"τ {each.before.tau:.2f} → {each.after.tau:.2f}; {_verdict(each.change_ci)}"
        )
    equal = sum(each.num_equal for each in outcome.compared)
    total = sum(each.before.num_prompts for each in outcome.compared)
    found.append(f"{equal} of {total} answers are the same before and after, token by token")
    if not outcome.version:
        judged = any(each.gain is not None for each in outcome.rounds)
        why = "no candidate was surely better on answers it had not learnt from"
        found.append(f"{why if judged else 'too few answers were held out to judge'}: the draft model drafts as before")
    found.append(
        f"{outcome.num_positions} positions of {outcome.num_learnt_prompts} answers observed, learnt from for "
        f"{outcome.learn_s:.1f} s; {outcome.seconds:.0f} s in all"
    )
    return found


def _verdict(interval: Interval) -> str:
    if interval.low > 0:
        return "it rose"
    return "it fell" if interval.high < 0 else "no change can be told"


def _round_words(found: Round, number: int, num_learnt: int) -> str:
    return f"round {number}, after {num_learnt} answers: {found.outcome}: {found.why} ({found.seconds:.1f} s)"


# --- prompts ---------------------------------------------------------------------------------------------------------


class _Prompts:
    """Requests of the shipped prompts, drawn once: they stand there sorted by kind and text."""

    def __init__(self, lm: CachedLM, plan: DemoPlan) -> None:
        with gzip.open(paths.DEMO / "prompts.jsonl.gz", "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        order = np.random.default_rng(plan.seed).permutation(len(rows))
        shuffled = [rows[place] for place in order]

        def some(number: int, *, part: str, is_of_kind: bool) -> list[Request]:
            chosen = [row for row in shuffled if row["part"] == part and (row["kind"] == plan.kind) is is_of_kind]
            return [_request(lm, row["prompt"], plan) for row in chosen[:number]]

        self.stream = some(plan.num_stream, part="train", is_of_kind=True)
        self.held_out = some(plan.num_held_out, part="held_out", is_of_kind=True)
        self.elsewhere = some(plan.num_elsewhere, part="held_out", is_of_kind=False)
        every = (*self.stream, *self.held_out, *self.elsewhere)
        self.longest = max(len(request.prompt) for request in every)


def _request(lm: CachedLM, text: str, plan: DemoPlan) -> Request:
    assert lm.tokenizer is not None, "the embedded target has its tokenizer beside it"
    prompt = tuple(suite.render(lm.tokenizer, [{"role": "user", "content": text}], "chat"))
    # The noise is the prompt's own, so that before and after are asked for the same text.
    key = sequence_key(seed=plan.seed, question_id=text, turn=0)
    return Request(key=key, prompt=prompt, max_new_tokens=plan.max_new_tokens)


def _groups(requests: Sequence[Request]) -> Iterator[list[Request]]:
    """Of like length: a group is padded to its longest."""
    ordered = sorted(requests, key=lambda request: len(request.prompt))
    for start in range(0, len(ordered), _BATCH):
        yield ordered[start : start + _BATCH]


def _learner(engine: Engine, plan: DemoPlan) -> Drafter:
    given: dict[str, Any] = {"model": "demo-draft", "adapt": True, "num_tokens": plan.num_tokens, "seed": plan.seed}
    # Rounds come when the demo says so, and nothing is judged live.
    given |= {"after_positions": 0, "rollback": False, **dict(plan.options)}
    choice = registry.choose(METHOD, {METHOD: given}, target_is_demo=True)
    drafter = registry.build(choice, engine.view())
    engine.reserve(drafter.max_nodes)
    return drafter


# --- judging ---------------------------------------------------------------------------------------------------------


class _Decoded(tuple[tuple[int, int, int, int, tuple[int, ...]], ...]):
    """Per prompt: tried, accepted, kept in steps, steps, tokens."""


def _decoded(engine: Engine, drafter: Drafter, requests: Sequence[Request]) -> _Decoded:
    """Held-out prompts leave no trace in what is learnt."""
    state = drafter.snapshot()
    found: dict[int, tuple[int, int, int, int, tuple[int, ...]]] = {}
    for group in _groups(requests):
        for request, generation in zip(group, engine.generate(drafter, group).generations, strict=True):
            sums = [sum(each) for each in zip(*map(_counts, generation.steps), strict=True)] or [0, 0, 0]
            found[request.key] = (sums[0], sums[1], sums[2], len(generation.steps), generation.tokens)
    drafter.restore(state)
    return _Decoded(found[request.key] for request in requests)


def _counts(step: StepRow) -> tuple[int, int, int]:
    """Tried, accepted, kept: as the view `stream_acceptance` counts them."""
    kept = step.num_committed - step.num_truncated
    if step.num_truncated:
        return kept, kept, kept
    return min(step.num_accepted + 1, step.depth), step.num_accepted, kept


def _compare(name: str, before: _Decoded, after: _Decoded, *, seed: int) -> Compared:
    sides = [np.array([row[:4] for row in side], dtype=np.float64) for side in (before, after)]
    bootstrap = Bootstrap(len(before), seed=seed, resamples=_RESAMPLES)
    rates = [bootstrap.sums(side[:, :2]) for side in sides]
    interval = percentile_interval(rates[1][:, 1] / rates[1][:, 0] - rates[0][:, 1] / rates[0][:, 0], len(before))
    assert interval is not None, "positions were tried"
    summed = [_summed(side) for side in sides]
    return Compared(
        set=name,
        before=summed[0],
        after=summed[1],
        change=summed[1].rate - summed[0].rate,
        change_ci=interval,
        num_equal=sum(one[4] == other[4] for one, other in zip(before, after, strict=True)),
    )


def _summed(side: np.typing.NDArray[np.float64]) -> Acceptance:
    tried, accepted, kept, steps = (int(total) for total in side.sum(axis=0))
    return Acceptance(num_prompts=len(side), num_tried=tried, num_accepted=accepted, num_tokens=kept, num_steps=steps)
