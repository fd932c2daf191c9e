"""One training: compose it, train, keep the best drafter, say how to use it. Resumes one that was stopped or killed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from specbench import checkpoint, paths
from specbench.errors import SpecbenchError, UsageError
from specbench.events import SCHEMA, CheckpointSaved, RunFinished, RunStarted
from specbench.store.absent import is_absent, where_to_ingest
from specbench.store.journal import Journal
from specbench.swapping import put_right
from specbench.training import record
from specbench.training.budget import Done
from specbench.training.cache import StateCache
from specbench.training.command import use_command
from specbench.training.corpus import Corpus, Place
from specbench.training.defaults import Settled, settle
from specbench.training.documents import load_corpus
from specbench.training.features import FeatureSource
from specbench.training.loop import Ended, Loop, StopFlag
from specbench.training.plan import make_plan
from specbench.training.request import State, TrainOutcome, TrainPlan, TrainProgress, TrainRequest
from specbench.training.setup import (
    Setup,
    load_target,
    make_accelerator,
    make_setup,
    method_options,
    threads_of,
    with_precision,
)
from specbench.training.state import Progressed, SavedState, find_state, load_state
from specbench.training.step import Learner, Stepper

ANSWERS = "held_out.json"
"""The target's answers to the held-out prompts, in the run's folder."""


def train(asked: TrainRequest, progress: TrainProgress, *, corpus: Corpus | None = None) -> TrainOutcome:
    """Carry out a training, or continue one; every process of `accelerate launch` calls it.

    Raises SpecbenchError where nothing could be trained; what was saved before stays.
    """
    earlier: dict[str, Any] | None = None
    if asked.resume is not None:
        earlier = record.read_record(paths.run_dir(asked.store, asked.resume))
        asked = record.request_from(earlier, asked)
    request = with_precision(settle(asked, is_resumed=earlier is not None))
    options = method_options(request)
    threads_of(request)
    accelerator = make_accelerator(request)
    if not accelerator.is_main_process:
        progress = _Silent()
    run_id = earlier["run_id"] if earlier else _agreed(accelerator, record.new_run_id(request.method))
    folder = paths.run_dir(request.store, run_id)
    out = _out_folder(request, run_id)
    lm = load_target(request, accelerator)
    if corpus is None:
        corpus = load_corpus(request, lm, progress, accelerator)
    has_state = earlier is not None and find_state(folder / "state") is not None
    setup = make_setup(request, options, accelerator, lm, corpus, has_state=has_state)
    cache = _cache_of(setup)
    plan = make_plan(setup, cache, time_it=accelerator.is_main_process and earlier is None)
    if request.dry_run:
        return TrainOutcome(run_id="", state="planned", plan=plan, is_main=accelerator.is_main_process)
    return _Training(setup, cache, plan, folder, out, earlier, progress).run()


class _Training:
    """A training under way."""

    def __init__(
        self, setup: Setup, cache: StateCache | None, plan: TrainPlan, folder: Path, out: Path,
        earlier: Mapping[str, Any] | None, progress: TrainProgress,
    ) -> None:  # fmt: skip
        self._setup = setup
        self._cache = cache
        self._plan = plan
        self._folder = folder
        self._out = out
        self._earlier = earlier
        self._progress = progress
        self._record = record.make_record(
            setup.request, folder.name, setup.lm, setup.corpus, plan,
            architecture=setup.recipe.architecture, training_options=setup.training_options,
            drafting_options=setup.drafting_options, threads=setup.threads,
        )  # fmt: skip

    def run(self) -> TrainOutcome:
        is_main = self._setup.accelerator.is_main_process
        saved = self._saved_state()
        with ExitStack() as stack:
            journal = stack.enter_context(Journal(self._folder)) if is_main else None
            self._begin(journal, saved)
            state: State = "failed"
            message = ""
            ended: Ended | None = None
            try:
                ended = self._train(journal, saved)
                state = "interrupted" if ended.why == "interrupted" else "finished"
                if state == "finished":
                    self._export(journal, ended)
            except KeyboardInterrupt:
                state = "interrupted"
            except SpecbenchError as error:
                message = error.what
                raise
            finally:
                if journal is not None:
                    journal.write(RunFinished(state=state, time=record.now(), message=message))
        if is_main:
            self._ingest()
        return self._outcome(state, ended)

    # --- before the first step -------------------------------------------------------------------------------------

    def _saved_state(self) -> SavedState | None:
        """Where an earlier attempt stood. Raises where it is another training's."""
        if self._earlier is None:
            return None
        record.refuse_if_changed(self._earlier, self._record, folder=self._folder)
        if self._setup.accelerator.is_main_process:
            put_right(self._folder / "best")
        self._setup.accelerator.wait_for_everyone()
        saved = find_state(self._folder / "state")
        if saved is not None and saved.progressed.method != self._setup.request.method:
            raise UsageError(
                f"the state in {saved.folder} is of method {saved.progressed.method!r}, "
                f"not {self._setup.request.method!r}",
                where="--resume",
                try_=f"specbench train --method {saved.progressed.method} starts that one anew",
            )
        return saved

    def _begin(self, journal: Journal | None, saved: SavedState | None) -> None:
        if journal is None:
            return
        put_right(self._out)
        if self._earlier is None:
            record.write_record(self._folder, self._record)
            for line in self._plan.lines():
                self._progress.say(line)
        journal.write(
            RunStarted(
                schema=SCHEMA,
                run_id=self._folder.name,
                time=record.now(),
                pid=os.getpid(),
                resumed=self._earlier is not None,
                behind=None if self._earlier is None else 0 if saved is None else saved.progressed.done.steps,
            )
        )

    def _train(self, journal: Journal | None, saved: SavedState | None) -> Ended:
        setup, accelerator = self._setup, self._setup.accelerator
        request = setup.request
        source: FeatureSource = setup.online(setup.rows)
        if self._cache is not None:
            self._progress.say("writing the target's states")
            self._cache.fill(process=accelerator.process_index, num_processes=accelerator.num_processes)
            accelerator.wait_for_everyone()
            source = self._cache
        if accelerator.is_main_process:
            self._progress.say("held-out answers")
            setup.simulator.write_answers(self._folder / ANSWERS)
        learner = Learner(setup.recipe, setup.objective)
        learner.touches_all = accelerator.num_processes > 1
        optimiser = torch.optim.AdamW(
            [parameter for parameter in learner.parameters() if parameter.requires_grad],
            lr=request.lr,
            betas=(request.beta1, request.beta2),
            weight_decay=request.weight_decay,
        )
        wrapped, prepared = accelerator.prepare(learner, optimiser)
        inner = prepared.optimizer
        if request.report_to:
            accelerator.project_configuration.logging_dir = str(self._folder)
            accelerator.init_trackers("specbench", config=_flat(self._record["request"]))
        setup.recipe.module.train()
        start = _fresh(request.method, accelerator.num_processes)
        if saved is not None:
            start = saved.progressed
            load_state(saved, accelerator, wrapped, inner)
            self._progress.say(f"goes on behind step {start.done.steps}")
        stepper = Stepper(accelerator, wrapped, inner, source, request.clip)
        loop = Loop(
            setup, stepper, setup.online(setup.held_out_rows), self._folder, journal, self._progress, self._provenance()
        )
        try:
            # Before the first step Ctrl-C breaks off as usual: nothing would be lost.
            with StopFlag().listening() as stop:
                return loop.run(start, stop)
        finally:
            if request.report_to:
                accelerator.end_training()

    def _provenance(self) -> dict[str, Any]:
        """What a drafter's config.json says of its making."""
        facts = {name: self._record[name] for name in ("run_id", "created", "options", "dataset", "device")}
        request = self._record["request"]
        left_out = {"store", "out", "data", "methods_dirs", "command", "resume", "dry_run"}
        provenance: dict[str, Any] = {
            **facts,
            "request": {name: value for name, value in request.items() if name not in left_out and value is not None},
            "git": self._record["provenance"]["git"],
            "versions": self._record["provenance"]["versions"],
        }
        found: dict[str, Any] = record.shareable(provenance)
        return found

    # --- after the last --------------------------------------------------------------------------------------------

    def _export(self, journal: Journal | None, ended: Ended) -> None:
        """The best drafter to its place, whole or not at all."""
        if journal is None:
            return
        best = checkpoint.load(self._folder / "best", method=self._setup.request.method)
        done = ended.progressed.done
        total = {"steps": done.steps, "tokens": done.tokens, "seconds": round(done.seconds, 1), "ended_by": ended.why}
        checkpoint.save(self._out, replace(best, training={**best.training, "whole_training": total}))
        journal.write(CheckpointSaved(step=done.steps, what="drafter"))

    def _ingest(self) -> None:
        if is_absent():
            self._progress.say(f"DuckDB is not installed, so it is in no store; {where_to_ingest(self._folder)}")
            return
        # 0.1 s of DuckDB, not needed while anything trains.
        from specbench.store.training import ingest_training

        try:
            ingest_training(paths.store_file(self._setup.request.store), self._folder)
        except SpecbenchError as error:
            self._progress.say(f"{error.what}; the journal is whole: specbench results ingest {self._folder.name}")

    def _outcome(self, state: State, ended: Ended | None) -> TrainOutcome:
        request = self._setup.request
        done = ended.progressed.done if ended else Done()
        return TrainOutcome(
            run_id=self._folder.name,
            state=state,
            folder=self._out if state == "finished" else None,
            steps=done.steps,
            tokens=done.tokens,
            seconds=done.seconds,
            best=dict(ended.progressed.best) if ended else {},
            why=ended.why if ended else "interrupted",
            command=use_command(request, self._out),
            plan=self._plan,
            is_main=self._setup.accelerator.is_main_process,
        )


def _cache_of(setup: Setup) -> StateCache | None:
    request = setup.request
    if not request.cache_states:
        return None
    identity = f"{setup.corpus.digest()}:{request.max_length}:{request.data_seed}"
    return StateCache(setup.online(setup.rows), top_k=request.teacher_top_k, identity=identity)


def _fresh(method: str, num_processes: int) -> Progressed:
    return Progressed(
        method=method,
        done=Done(),
        place=Place(0, 0),
        best={},
        evaluations_since_best=0,
        evaluated=-1,
        num_processes=num_processes,
    )


def _out_folder(request: Settled, run_id: str) -> Path:
    """Raises UsageError where something other than a drafter of this method stands there already."""
    if request.out is None:
        name = f"{request.method}-{record.target_label(request.target or '')}-{run_id}"
        return paths.drafters_dir(request.store) / name
    config = request.out / checkpoint.CONFIG
    if request.out.exists() and not config.exists() and any(request.out.iterdir()):
        raise UsageError(
            f"{request.out} holds something that is no drafter; it would be replaced",
            where="--out",
            try_="--out with another folder",
        )
    return request.out


def _agreed(accelerator: Accelerator, text: str) -> str:
    """The main process's text, on every process."""
    if accelerator.num_processes == 1:
        return text
    box = [text]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def _flat(request: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in request.items() if isinstance(value, str | int | float | bool)}


class _Silent:
    def plan(self, *, title: str, share_done: float) -> None: ...

    def step(self, *, step: int, share: float, loss: float, tokens_per_s: float, eta_s: float | None) -> None: ...

    def say(self, text: str) -> None: ...


__all__ = ["train"]
