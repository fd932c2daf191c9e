"""The loop: steps until the budget, the patience or the user ends it; evaluations, states and the journal between."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from specbench import checkpoint
from specbench.events import CheckpointSaved, TrainEval, TrainStep
from specbench.sampling import sequence_key
from specbench.store.journal import Journal
from specbench.training.budget import Done, rate
from specbench.training.corpus import share_of
from specbench.training.evaluate import Figures, count_documents, figures
from specbench.training.features import FeatureSource
from specbench.training.plan import budget_of
from specbench.training.request import TrainProgress
from specbench.training.setup import Setup
from specbench.training.state import Progressed, full_weights, save_state
from specbench.training.step import StepFailed, Stepper, not_finite

_RATE_STEPS = 20
"""Steps over which tokens/s and what is left are averaged."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How the loop ended."""

    why: str
    """The limit reached, `patience` or `interrupted`."""
    progressed: Progressed


class StopFlag:
    """Ctrl-C and SIGTERM ask for a stop behind the step under way; a second Ctrl-C breaks off at once."""

    def __init__(self) -> None:
        self.is_set = False

    @contextmanager
    def listening(self) -> Iterator[StopFlag]:
        """Signals reach the main thread only; elsewhere nothing is installed."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        was = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in was.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.is_set:
            raise KeyboardInterrupt
        self.is_set = True


class Loop:
    """One attempt at a training, from a place in the data to its end."""

    def __init__(
        self, setup: Setup, stepper: Stepper, held_out: FeatureSource, folder: Path, journal: Journal | None,
        progress: TrainProgress, provenance: dict[str, Any],
    ) -> None:  # fmt: skip
        """journal: of the main process; None on the others."""
        self._setup = setup
        self._stepper = stepper
        self._held_out = held_out
        self._folder = folder
        self._journal = journal
        self._progress = progress
        self._provenance = provenance
        self._budget = budget_of(setup)
        self._recent: list[tuple[float, int, float]] = []

    @property
    def _accelerator(self) -> Accelerator:
        return self._setup.accelerator

    def run(self, start: Progressed, stop: StopFlag) -> Ended:
        """Train from `start` on. Raises NotFinite naming the documents; SpecbenchError where the disk refuses."""
        request = self._setup.request
        at = start
        earlier_s = start.done.seconds
        began = time.monotonic()
        why = self._budget.reached(at.done) or self._lost_patience(at)
        self._progress.plan(title=f"{request.method} on {request.target}", share_done=self._budget.share(at.done))
        while why is None:
            at, wants_stop = self._one_step(at, stop, seconds=earlier_s + time.monotonic() - began)
            why = "interrupted" if wants_stop else self._budget.reached(at.done)
            is_last = why is not None
            if at.done.steps % request.eval_every == 0 or (is_last and not wants_stop):
                at = self._evaluate(at)
                why = why or self._lost_patience(at)
                is_last = why is not None
            if at.done.steps % request.save_every == 0 or is_last:
                self._save(at)
        if why != "interrupted" and at.evaluated != at.done.steps:
            # The attempt before this one was stopped in its last step, which is judged as it would have been.
            at = self._evaluate(at)
            self._save(at)
        return Ended(why=why, progressed=at)

    def _lost_patience(self, at: Progressed) -> str | None:
        """Also of a training that ended so and is asked to go on."""
        return "patience" if 0 < self._setup.request.patience <= at.evaluations_since_best else None

    # --- a step ----------------------------------------------------------------------------------------------------

    def _one_step(self, at: Progressed, stop: StopFlag, *, seconds: float) -> tuple[Progressed, bool]:
        setup, request, accelerator = self._setup, self._setup.request, self._accelerator
        batch = setup.order.batch(at.place)
        num_tokens = int(setup.rows.num_tokens_of[batch].sum())
        after = setup.order.after(at.place)
        done = Done(
            steps=at.done.steps + 1,
            epochs=setup.order.epochs(after),
            tokens=at.done.tokens + num_tokens,
            seconds=at.done.seconds,
        )
        share = (self._budget.share(at.done) + self._budget.share(done)) / 2
        lr = request.lr * rate(request.schedule, share, warmup=request.warmup)
        micro_batches = list(
            share_of(
                batch,
                process=accelerator.process_index,
                num_processes=accelerator.num_processes,
                micro_batch=request.micro_batch,
            )
        )
        try:
            draw = sequence_key(seed=request.seed, question_id="step", turn=done.steps)
            sums = self._stepper.step(micro_batches, lr=lr, wants_stop=stop.is_set, seconds=seconds, draw=draw)
        except StepFailed as error:
            keys = [
                [str(number) for row in rows if row is not None for number in setup.rows.documents_of(row)]
                for rows in micro_batches
            ]
            kept = f"the last saved state and drafter are kept in {self._folder.name}"
            raise not_finite(error, step=done.steps, keys_of=keys, kept=kept) from error
        done = replace(done, seconds=sums.seconds)
        if self._journal is not None:
            self._journal.write(
                TrainStep(
                    step=done.steps,
                    epoch=round(done.epochs, 6),
                    num_tokens=done.tokens,
                    seconds=round(done.seconds, 3),
                    num_anchors=sums.num_anchors,
                    loss=sums.loss,
                    lr=lr,
                    grad_norm=sums.grad_norm,
                    parts=sums.parts,
                )
            )
        self._tell(done, sums.loss)
        if request.report_to:
            values = {"loss": sums.loss, "lr": lr, "grad_norm": sums.grad_norm}
            values |= {f"loss_{name}": value for name, value in sums.parts.items()}
            accelerator.log(values, step=done.steps)
        # One process need not wait for the next step's sum to know of its own Ctrl-C.
        is_told = sums.wants_stop or (accelerator.num_processes == 1 and stop.is_set)
        return replace(at, done=done, place=after), is_told

    def _tell(self, done: Done, loss: float) -> None:
        share = self._budget.share(done)
        self._recent = [*self._recent[-_RATE_STEPS:], (done.seconds, done.tokens, share)]
        (then_s, then_tokens, then_share), now = self._recent[0], self._recent[-1]
        spent = now[0] - then_s
        moved = now[2] - then_share
        self._progress.step(
            step=done.steps,
            share=share,
            loss=loss,
            tokens_per_s=(now[1] - then_tokens) / spent if spent > 0 else 0.0,
            eta_s=(1 - share) * spent / moved if moved > 0 else None,
        )

    # --- between steps ---------------------------------------------------------------------------------------------

    def _evaluate(self, at: Progressed) -> Progressed:
        """Held-out figures on the main process; every process learns whether they were the best."""
        setup, accelerator = self._setup, self._accelerator
        weights = full_weights(self._stepper.learner)
        verdict: list[Any] = [None]
        if accelerator.is_main_process:
            began = time.monotonic()
            devices = [accelerator.device] if accelerator.device.type == "cuda" else []
            # Whatever an evaluation draws, training's stream goes on as if there had been none.
            with torch.random.fork_rng(devices=devices):
                recipe = setup.recipe_for_evaluation(weights)
                counted = count_documents(
                    recipe,
                    self._held_out,
                    num_rows=len(setup.held_out_rows),
                    micro_batch=setup.request.micro_batch,
                    objective=setup.objective,
                    autocast=accelerator.autocast,
                )
                drafter = recipe.drafter(setup.view, setup.drafting_options)
                found = figures(counted.counts, setup.simulator.replay(drafter))
            is_best = found.is_better_than(dict(at.best))
            self._record(at.done.steps, counted.parts, found, is_best=is_best, seconds=time.monotonic() - began)
            if is_best:
                self._keep_best(at, weights, found)
            verdict = [{"step": at.done.steps, **found.summary()} if is_best else None]
        if accelerator.num_processes > 1:
            from torch.distributed import broadcast_object_list  # only where there are several processes

            broadcast_object_list(verdict, src=0)
        at = replace(at, evaluated=at.done.steps)
        if verdict[0] is None:
            return replace(at, evaluations_since_best=at.evaluations_since_best + 1)
        return replace(at, best=verdict[0], evaluations_since_best=0)

    def _record(self, step: int, parts: Mapping[str, float], found: Figures, *, is_best: bool, seconds: float) -> None:
        replayed = found.replayed
        assert self._journal is not None
        self._journal.write(
            TrainEval(
                step=step,
                num=found.num,
                loss=found.summed_loss,
                correct=found.correct,
                whole=found.whole,
                right=found.right,
                num_steps=0 if replayed is None else replayed.num_steps,
                num_new_tokens=0 if replayed is None else replayed.num_tokens,
                accepted_at=() if replayed is None else replayed.accepted_at,
                proposed_at=() if replayed is None else replayed.proposed_at,
                seconds=round(seconds, 3),
                is_best=is_best,
                parts=parts,
            )
        )
        tau = "" if found.tau is None else f"τ {found.tau:.3f}, "
        top1 = " ".join(f"{each[0]:.3f}" for each in found.accuracy)
        told = f"step {step}: held-out loss {found.loss:.4f}, {tau}chain {found.chain:.3f}, top-1 {top1}"
        self._progress.say(f"{told} ({found.unsaid})" if found.unsaid else told)
        if self._setup.request.report_to:
            values = {"eval/loss": found.loss, "eval/chain": found.chain}
            values |= {} if found.tau is None else {"eval/tau": found.tau}
            values |= {f"eval/top1_{depth}": each[0] for depth, each in enumerate(found.accuracy)}
            values |= {f"eval/loss_{name}": value for name, value in parts.items()}
            self._accelerator.log(values, step=step)

    def _keep_best(self, at: Progressed, weights: dict[str, Tensor], found: Figures) -> None:
        figures_now = {"step": at.done.steps, **found.summary(), "depth_accuracy": [list(a) for a in found.accuracy]}
        checkpoint.save(
            self._folder / "best",
            replace(
                self._setup.checkpoint_of(weights),
                training={
                    **self._provenance,
                    "steps": at.done.steps,
                    "tokens": at.done.tokens,
                    "seconds": at.done.seconds,
                    "figures": figures_now,
                },
            ),
        )
        self._say_saved(at.done.steps, "best")

    def _save(self, at: Progressed) -> None:
        save_state(self._folder / "state", self._accelerator, self._stepper.learner, self._stepper.optimiser, at)
        self._say_saved(at.done.steps, "state")

    def _say_saved(self, step: int, what: str) -> None:
        if self._journal is not None:
            self._journal.write(CheckpointSaved(step=step, what=what))
