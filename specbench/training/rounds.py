"""A round of learning of a draft model's adapter: train a candidate, judge it on answers it never learnt from, promote.

Between requests, on the runner's own step (`training.step`): token-weighted gradients, clipping, and a loss that is not
finite stops before any weight is touched. Whatever goes wrong in a round (out of memory included), the adapter that was
drafted with before is drafted with after.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from specbench.adapt.adaptation import Adaptation, Domain, InUse, Live
from specbench.adapt.adapter import Adapter, Lineage
from specbench.adapt.candidate import Candidate, moments_of, put_moments
from specbench.adapt.observed import Observed
from specbench.adapt.plan import LearningPlan
from specbench.errors import SpecbenchError, UsageError, is_out_of_memory
from specbench.metrics import Interval, widening
from specbench.training.budget import rate
from specbench.training.evidence import Evidence, evidence
from specbench.training.step import StepFailed, Stepper
from specbench.training.verdict_loss import Answers, VerdictLearner

Outcome = Literal["promoted", "kept", "dropped", "rolled back"]
MOST_JUDGED = 256
"""Held-out answers a candidate is judged on; where there are more, those whose prompts' hashes come first: a sample
that hardly changes from round to round."""
_ROUNDING = 1e-5
"""Of an expected acceptance: one text in batches of other widths."""


class _NoStep(Exception):
    """The budget was too small for anything to be learnt."""


class OneProcessAlone(UsageError):
    """A round was asked for by one of several processes."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """What came of one."""

    domain: str
    outcome: Outcome
    why: str
    """One sentence."""
    version: int
    """Drafted with from here on: a number of the store, or of the rounds where there is none; 0 = the base."""
    seconds: float = 0.0
    """All of it: learning, judging, writing."""
    num_steps: int = 0
    num_positions: int = 0
    """New ones since the round before."""
    first_loss: float | None = None
    """Per unit of weight, of the first step; None where the round changes its loss on the way."""
    last_loss: float | None = None
    num_held_out: int = 0
    before: float | None = None
    """Expected acceptance on the held-out positions under the adapter in use."""
    after: float | None = None
    """Under the candidate."""
    gain: Interval | None = None
    """95 % bootstrap over answers of after - before."""
    width_before: float | None = None
    """`before` is an upper bound, and lies at most so far above (see `Evidence`); 0 where it is exact."""
    width_after: float | None = None


def between_requests(adaptation: Adaptation) -> list[Round]:
    """Take in what the last requests showed; roll back and learn where it is due."""
    adaptation.gather()
    found = []
    for name in adaptation.domains():
        back = rolled_back(adaptation, name)
        if back is not None:
            found.append(back)
        if due(adaptation, name):
            found.append(learn(adaptation, name))
    return found


def due(adaptation: Adaptation, name: str) -> str:
    """Why a round should begin now; '' where none should."""
    plan, domain = adaptation.plan, adaptation.domain(name)
    num_new = domain.memory.num_new_positions
    if num_new == 0 or not domain.memory.new:
        return ""
    if plan.after_positions and num_new >= plan.after_positions:
        return f"{num_new} new positions"
    rate_now = domain.live.acceptance
    if plan.after_drop and rate_now is not None and domain.live.best - rate_now >= plan.after_drop:
        return f"acceptance fell from {domain.live.best:.3f} to {rate_now:.3f}"
    return "idle" if plan.idle else ""


# --- back ------------------------------------------------------------------------------------------------------------


def rolled_back(adaptation: Adaptation, name: str) -> Round | None:
    """Back to the adapter before, where the live acceptance fell below what it was under that by more than two standard
    errors; None where nothing speaks against the one in use."""
    plan, domain = adaptation.plan, adaptation.domain(name)
    live, in_use = domain.live, domain.in_use
    if not plan.rollback or live.before is None or in_use.parent is None or live.since_swap < plan.watch_positions:
        return None
    now = live.acceptance
    assert now is not None, "positions were tried since the swap"
    error = _error_of_fall(live)
    if now >= live.before - 2 * error:
        domain.live = replace(live, before=None)  # judged, and kept
        return None
    before = live.before
    adaptation.swap(name, in_use.parent)
    domain.candidate = None  # what was learnt on the way to it is gone back from as well
    domain.live = replace(domain.live, before=None)
    why = f"live acceptance {now:.3f} under version {in_use.number}, {before:.3f} before it"
    if adaptation.store is not None:
        try:
            if adaptation.store.history().get(name, [])[-2:] == [in_use.parent.number, in_use.number]:
                adaptation.store.rollback(name)  # out of the history: a later rollback must not come back to it
            else:
                adaptation.store.activate(in_use.parent.number, name)
        except SpecbenchError as error:
            why += f"; the store still says otherwise: {error.what}"
    return Round(
        domain=name,
        outcome="rolled back",
        why=why,
        version=in_use.parent.number,
    )


def _error_of_fall(live: Live) -> float:
    """Standard error of the difference of both moving acceptances, as wide as so few answers demand: what answers
    differ by, or what single positions would, whichever is more."""
    assert live.before is not None
    tried_before = max(1.0, live.before_tried)
    pooled = (live.num_accepted + live.before * tried_before) / (live.num_tried + tried_before)
    of_positions = pooled * (1 - pooled) * (1 / live.num_tried + 1 / tried_before)
    of_answers = (live.variance + live.before_variance) * widening(max(2, live.answers_since)) ** 2
    return float(max(of_positions, of_answers) ** 0.5)


# --- learn -----------------------------------------------------------------------------------------------------------


def learn(adaptation: Adaptation, name: str = "", *, clock: Callable[[], float] = time.perf_counter) -> Round:
    """One round. clock: seconds that the plan's budget counts; those of a process that others stop are not the wall's.
    Raises UsageError for a process of several; whatever else fails drops the round and says why."""
    start = time.perf_counter()
    domain = adaptation.domain(name)
    domain.num_rounds += 1
    domain.live = domain.live.answered()
    num_new = domain.memory.num_new_positions
    layers = adaptation.layers
    own = domain.in_use.weights
    trained: _Trained | None = None
    earlier: Candidate | None = None
    """What is left of a round that is dropped."""
    found: Round
    try:
        layers.set(own if domain.candidate is None else domain.candidate.weights)
        trained = _train(adaptation, domain, clock)
        found = _judge(adaptation, domain, name, trained)
    except StepFailed:
        found = dropped(name, domain, "the loss or its gradient was not a number")
    except _NoStep:
        earlier = domain.candidate  # nothing was done to it
        found = dropped(name, domain, f"round_s ({adaptation.plan.round_s:g} s) was over before its first step")
    except OneProcessAlone:
        raise
    except SpecbenchError as error:
        found = dropped(name, domain, error.what)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        found = dropped(name, domain, "out of memory")
    finally:
        # What is drafted with is what was decided, however this ended.
        in_use = adaptation.loaded
        layers.set(in_use.weights)
    if found.outcome == "dropped":
        domain.candidate = earlier
    domain.memory.learnt()
    is_one_loss = adaptation.plan.loss != "kl-tv"
    return replace(
        found,
        seconds=time.perf_counter() - start,
        num_positions=num_new,
        num_steps=0 if trained is None else trained.num_steps,
        first_loss=trained.first_loss if trained is not None and is_one_loss else None,
        last_loss=trained.last_loss if trained is not None and is_one_loss else None,
    )


@dataclass(frozen=True, kw_only=True)
class _Trained:
    candidate: Candidate
    num_steps: int
    first_loss: float
    last_loss: float

    @property
    def weights(self) -> Mapping[str, Tensor]:
        return self.candidate.weights


def _train(adaptation: Adaptation, domain: Domain, clock: Callable[[], float]) -> _Trained:
    """Steps from the matrices that are set and the moments of the rounds before, within the plan's budget."""
    plan, lm = adaptation.plan, adaptation.lm
    # A training of another precision in this process must not decide about this one.
    AcceleratorState._reset_state()
    accelerator = Accelerator(cpu=lm.device.type == "cpu", mixed_precision="no")
    if accelerator.num_processes > 1:
        raise OneProcessAlone(
            "an adapter learns in one process, not in one of several", where="torchrun", try_="--adapt off"
        )
    losses: list[float] = []
    # Requests are decoded in inference mode, whose tensors cannot learn.
    with torch.inference_mode(False), torch.enable_grad(), adaptation.layers.learning() as module:
        learner = VerdictLearner(lm, adaptation.layers, module, plan)
        optimiser = torch.optim.AdamW(module.parameters(), lr=plan.lr, weight_decay=plan.weight_decay)
        earlier = domain.candidate
        if earlier is not None:
            put_moments(optimiser, module, earlier)
        source = Answers(lm, plan, num_shared=adaptation.num_shared, seed=adaptation.seed + domain.num_rounds)
        stepper = Stepper(accelerator, learner, optimiser, source, plan.clip)
        start = clock()
        num_steps = plan.steps_for(len(domain.memory.new), has_old=bool(domain.memory.old))
        for step in range(num_steps):
            if plan.round_s and clock() - start >= plan.round_s:
                break
            share = (step + 0.5) / num_steps
            learner.at(share)
            source.answers = domain.memory.batch(plan.batch, replay=plan.replay)
            if not source.answers:
                break
            updates = step + 1 + (0 if earlier is None else earlier.num_updates)
            rise = min(1.0, updates / plan.lr_rise) if plan.lr_rise else 1.0
            lr = plan.lr * rise * rate("cosine", share, warmup=plan.lr_warmup)
            sums = stepper.step([list(range(len(source.answers)))], lr=lr, wants_stop=False, seconds=0.0)
            losses.append(sums.loss)
        if not losses:
            raise _NoStep
        candidate = Candidate(
            weights=adaptation.layers.weights(),
            moments=moments_of(optimiser, module),
            alpha=adaptation.layers.shape.alpha,
            num_updates=len(losses) + (0 if earlier is None else earlier.num_updates),
            began=domain.in_use.number,
            num_worse=0 if earlier is None else earlier.num_worse,
        )
    return _Trained(candidate=candidate, num_steps=len(losses), first_loss=losses[0], last_loss=losses[-1])


# --- judge -----------------------------------------------------------------------------------------------------------


def _judge(adaptation: Adaptation, domain: Domain, name: str, trained: _Trained) -> Round:
    plan, memory = adaptation.plan, domain.memory
    held_out = memory.held_out
    if len(held_out) > MOST_JUDGED:
        held_out = sorted(held_out, key=Observed.prompt_digest)[:MOST_JUDGED]
    if len(held_out) < plan.min_held_out:
        domain.candidate = trained.candidate
        return Round(
            domain=name,
            outcome="kept",
            why=f"{len(held_out)} held-out answers, {plan.min_held_out} are needed to judge: it learns on",
            version=domain.in_use.number,
            num_held_out=len(held_out),
        )
    found = evidence(adaptation, held_out, domain.in_use.weights, trained.weights, domain.judged)
    shown = f"{found.before:.4f} to {found.after:.4f} [{found.gain.low:+.4f}, {found.gain.high:+.4f}]"
    judged = Round(
        domain=name,
        outcome="kept",
        why=f"expected acceptance {shown} is not surely more than {plan.margin:g} better",
        version=domain.in_use.number,
        num_held_out=found.num_answers,
        before=found.before,
        after=found.after,
        gain=found.gain,
        width_before=found.width_before,
        width_after=found.width_after,
    )
    if found.gain.low <= max(plan.margin, _ROUNDING):
        # The first steps often make a draft model worse before it is better: it is given some rounds to learn on.
        num_worse = 0 if found.after > found.before else trained.candidate.num_worse + 1
        domain.candidate = replace(trained.candidate, num_worse=num_worse) if num_worse <= plan.patience else None
        return judged
    if is_watched(plan, domain):
        domain.candidate = replace(trained.candidate, num_worse=0)
        return replace(judged, why=f"expected acceptance {shown}, but {_watched(plan, domain)}: it learns on")
    number = _keep(adaptation, domain, name, trained, found)
    adaptation.swap(name, InUse(number=number, weights=trained.weights, parent=replace(domain.in_use, parent=None)))
    domain.candidate = replace(trained.candidate, began=number, num_worse=0)
    return replace(judged, outcome="promoted", why=f"expected acceptance {shown}", version=number)


def is_watched(plan: LearningPlan, domain: Domain) -> bool:
    """Whether the adapter in use has yet to be judged live against the one before it: another promotion would put that
    one out of reach."""
    live = domain.live
    return (
        plan.rollback
        and domain.in_use.parent is not None
        and live.before is not None
        and live.since_swap < plan.watch_positions
    )


def _watched(plan: LearningPlan, domain: Domain) -> str:
    return f"version {domain.in_use.number} has drafted {domain.live.since_swap} of {plan.watch_positions} positions"


def _keep(adaptation: Adaptation, domain: Domain, name: str, trained: _Trained, found: Evidence) -> int:
    """The candidate as a version -> its number. Raises EnvironmentFailed where the disk refuses."""
    if adaptation.store is None:
        return domain.in_use.number + 1
    learnt = hashlib.sha256()
    for observed in [*domain.memory.new, *domain.memory.old]:
        learnt.update(observed.tokens_T.numpy().tobytes())
    lineage = Lineage(
        base=adaptation.lm.name,
        base_hash=adaptation.lm.weights_hash,
        parent=domain.in_use.number or None,
        domain=name,
        data_hash=learnt.hexdigest(),
        num_positions=domain.memory.num_new_positions,
        figures={
            "held_out_answers": found.num_answers,
            "before": found.before,
            "after": found.after,
            "gain_low": found.gain.low,
            "gain_high": found.gain.high,
            "width_before": found.width_before,
            "width_after": found.width_after,
            # What it was judged for; other answers accept other shares of the same drafts.
            "temperature": adaptation.temperature,
            "rule": adaptation.rule,
            "draft": adaptation.picks,
            "steps": trained.num_steps,
        },
    )
    number = adaptation.store.add(Adapter(shape=adaptation.layers.shape, weights=trained.weights, lineage=lineage))
    adaptation.store.activate(number, name)
    return number


def dropped(name: str, domain: Domain, why: str) -> Round:
    """A round that came to nothing."""
    return Round(domain=name, outcome="dropped", why=f"round dropped: {why}", version=domain.in_use.number)
