"""`specbench experiment`: the cells of a matrix, one after the other, each once.

A finished cell is never made again, a training that was cut off goes on where it stood, a cell that fails is recorded
with its error and the rest goes on. State: `experiments/NAME/cells.jsonl` beside the store; drafters lie beside it, the
trainings are runs like any other.
"""

from __future__ import annotations

import datetime
import gc
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specbench import paths
from specbench.bench.request import Setting
from specbench.errors import CheckFailed, SpecbenchError, UsageError
from specbench.store.cells import Cell, CellLog, read_cells
from specbench.store.files import TRAIN_JSON
from specbench.store.journal import run_state
from specbench.training.command import Ran, RunCommand
from specbench.training.experiment_plan import Bench, Evaluation, Plan, Training
from specbench.training.recipe_file import is_resumable, newest_run, words_of
from specbench.training.request import TrainProgress, TrainRequest

if TYPE_CHECKING:
    from specbench.store.training import Training as Trained
    from specbench.training.experiment_data import Library

_INTERRUPTED = (130, -2)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Where the experiment stands."""

    cells: tuple[Cell, ...]
    """Of the plan, in its order, those not yet made as `open`."""
    interrupted: bool

    @property
    def failed(self) -> tuple[Cell, ...]:
        """Cells with an error."""
        return tuple(cell for cell in self.cells if cell.state == "failed")


def folder_of(store: Path | None, name: str) -> Path:
    """Where an experiment's cells and drafters are kept."""
    return (paths.results_dir(store) / "experiments" / name).resolve()


def known_cells(plan: Plan) -> tuple[Cell, ...]:
    """The plan's cells as they stand. Raises EnvironmentFailed as `read_cells` does."""
    known = read_cells(folder_of(plan.machine.store, plan.experiment.name))
    return tuple(_as_planned(cell, known) for cell in plan.cells)


def carry_out(plan: Plan, progress: TrainProgress, run_command: RunCommand) -> Outcome:
    """Make what is not made yet. Ctrl-C ends it behind the step under way; what was finished stays.

    Raises UsageError where another process works on the same experiment, EnvironmentFailed where the disk refuses.
    """
    if int(os.environ.get("WORLD_SIZE") or "1") > 1:
        raise UsageError(
            "an experiment runs in one process",
            where="accelerate launch, torchrun",
            try_=f"specbench experiment {plan.experiment.name}",
        )
    folder = folder_of(plan.machine.store, plan.experiment.name)
    interrupted = False
    with CellLog(folder) as log:
        try:
            _Work(plan, folder, log, progress, run_command).run()
        except KeyboardInterrupt:
            interrupted = True
    return Outcome(cells=known_cells(plan), interrupted=interrupted)


class _Work:
    """One attempt at the matrix."""

    def __init__(
        self, plan: Plan, folder: Path, log: CellLog, progress: TrainProgress, run_command: RunCommand
    ) -> None:
        self._plan = plan
        self._folder = folder
        self._log = log
        self._progress = progress
        self._run_command = run_command
        self._known = read_cells(folder)
        self._library: Library | None = None
        self._wants_stop = False
        """Ctrl-C came while a timed run was ending: its cell is kept, the next is not begun."""

    def run(self) -> None:
        num = len(self._plan.trainings)
        for place, training in enumerate(self._plan.trainings, 1):
            measures = [each for each in self._plan.measures_of(training) if not self._is_finished(each.cell)]
            is_trained = self._is_finished(training.cell) and (measures == [] or self._drafter(training.cell).is_dir())
            if not is_trained:
                self._progress.say(f"training {place} of {num}: {describe(training.cell)}")
                is_trained = self._attempt(training.cell, lambda training=training: self._train(training))  # type: ignore[misc]
            for each in measures if is_trained else []:
                self._progress.say(f"{each.cell.kind}: {describe(each.cell)}")
                self._attempt(each.cell, lambda each=each: self._measure(each))  # type: ignore[misc]
            # A training's cycles hold its tensors until somebody looks.
            gc.collect()

    def _is_finished(self, cell: Cell) -> bool:
        known = self._known.get(cell.cell_id)
        return known is not None and known.state == "finished"

    def _attempt(self, cell: Cell, work: Callable[[], Mapping[str, Any]]) -> bool:
        try:
            done = replace(cell, state="finished", figures=_finite(work()), time=_now())
        except SpecbenchError as error:
            done = replace(cell, state="failed", error=_one_line(error), time=_now())
        # A matrix runs for days and through other people's methods: what breaks one cell must not end the others.
        except Exception as error:  # noqa: BLE001
            done = replace(cell, state="failed", error=f"{type(error).__name__}: {error}", time=_now())
        if done.state == "failed":
            self._progress.say(f"✗ {cell.kind} of {describe(cell)}: {done.error}")
        self._log.write(done)
        self._known[cell.cell_id] = done
        if self._wants_stop:
            raise KeyboardInterrupt
        return done.state == "finished"

    # --- kinds of cells --------------------------------------------------------------------------------------------

    def _drafter(self, cell: Cell) -> Path:
        return self._folder / "drafters" / cell.training_id

    def _documents(self) -> Library:
        if self._library is None:
            # 3 s of torch, not needed where nothing is left to do.
            from specbench.training.experiment_data import Library

            self._library = Library(self._progress)
        return self._library

    def _train(self, training: Training) -> dict[str, Any]:
        # 3 s of torch, as above.
        from specbench.training import train

        store, out = self._plan.machine.store, self._drafter(training.cell)
        run = newest_run(store, TRAIN_JSON, lambda body: body["request"]["out"] == str(out))
        # Killed between a training's last line and the cell's: nothing is left to train.
        if run is None or run_state(run) != "finished" or not out.is_dir():
            request = replace(training.request, out=out)
            if run is not None and is_resumable(run):
                machine = self._plan.machine
                request = TrainRequest(
                    resume=run.name, data=machine.data, store=store, methods_dirs=machine.methods_dirs
                )
            outcome = train(request, self._progress, corpus=self._documents().corpus(training))
            if outcome.state == "interrupted":
                raise KeyboardInterrupt
            run = paths.run_dir(store, outcome.run_id)
        return _training_figures(run, out)

    def _measure(self, measure: Evaluation | Bench) -> dict[str, Any]:
        weights = Setting(measure.cell.method, "weights", str(self._drafter(measure.cell)))
        return self._time(measure, weights) if isinstance(measure, Bench) else self._evaluate(measure, weights)

    def _evaluate(self, evaluation: Evaluation, weights: Setting) -> dict[str, Any]:
        # 3 s of torch, as above.
        from specbench.training.measure import evaluate

        request = replace(evaluation.request, settings=(*evaluation.request.settings, weights))
        documents = self._documents().evaluated(evaluation)
        found = evaluate(request, self._progress, documents=documents).as_dict()
        training = next(each for each in self._plan.trainings if each.cell.cell_id == evaluation.cell.training_id)
        found["num_learnt"] = self._documents().num_learnt(evaluation, training)
        if found["num_learnt"]:
            self._progress.say(f"{found['num_learnt']} of {len(documents)} prompts evaluated were also learnt")
        found["tau"] = found.pop("acceptance_length")
        left_out = ("schema", "method", "weights", "target")
        return {name: value for name, value in found.items() if name not in left_out}

    def _time(self, bench: Bench, weights: Setting) -> dict[str, Any]:
        ran = self._run_command(bench_words(self._plan, bench, weights))
        self._wants_stop = ran.was_interrupted
        if ran.code in _INTERRUPTED:
            raise KeyboardInterrupt
        return _bench_figures(ran, bench.cell.method)


def bench_words(plan: Plan, bench: Bench, *settings: Setting) -> list[str]:
    """The command that times a drafter. settings: beside the cell's own."""
    machine, method = plan.machine, bench.cell.method
    options = dict(bench.options)
    suite = str(options.pop("suite", "demo"))
    options.setdefault("methods", ["autoregressive", method])
    words = ["run", suite, "--target", str(plan.experiment.target), "--json"]
    for item in (*bench.settings, *settings):
        words += ["--set", f"{item.method}.{item.option}={item.value}"]
    words += words_of(options, method)
    words += [] if machine.store is None else ["--store", str(machine.store)]
    for option, folders in (("--data", machine.data), ("--methods-dir", machine.methods_dirs)):
        words += [word for each in folders for word in (option, str(each))]
    for option, value in (("--device", machine.device), ("--threads", machine.threads)):
        words += [] if value is None or option[2:] in options else [option, str(value)]
    return words


def describe(cell: Cell) -> str:
    """`redrafter, learn=kd, seed 0; demo`, for narration."""
    axes = [f"{name}={value}" for name, value in cell.axes.items()]
    measured = [
        str(value) if name in ("dataset", "suite") else f"{name}={value}" for name, value in cell.measure.items()
    ]
    head = ", ".join([cell.method, *axes, f"seed {cell.seed}"])
    return f"{head}; {', '.join(measured)}" if measured else head


def _training_figures(run: Path, out: Path) -> dict[str, Any]:
    # 0.1 s of DuckDB, only where something was trained.
    from specbench.store.training import read_training

    training = read_training(run)
    last, best = training.steps[-1], training.best
    return {
        "run_id": run.name,
        "weights": str(out),
        "parameters": training.record["plan"]["parameters"]["total"],
        "documents": training.record["dataset"]["documents"],
        "documents_hash": training.record["dataset"]["hash"],
        "target_hash": training.record["target"]["weights_hash"],
        "steps": last.step,
        "tokens": last.num_tokens,
        "seconds": last.seconds,
        "best_step": None if best is None else best.step,
        "curve": _curve(training),
    }


def _curve(training: Trained) -> list[dict[str, Any]]:
    """Simulated acceptance and loss at every evaluation of a training, against what it had read."""
    tokens_at = {step.step: step.num_tokens for step in training.steps}
    return [
        {
            "step": each.step,
            "tokens": tokens_at.get(each.step, 0),
            "tau": each.num_new_tokens / each.num_steps if each.num_steps else None,
            "loss": sum(each.loss) / max(sum(each.num), 1),
        }
        for each in training.evals
    ]


def _bench_figures(ran: Ran, method: str) -> dict[str, Any]:
    """Raises CheckFailed with what the run said where it has no result."""
    try:
        body = json.loads(ran.out)
        row = next(row for row in body["rows"] if row["name"] == method)
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        said = " ".join(ran.out.split())[:300]
        raise CheckFailed(f"specbench run ended with exit code {ran.code} and no row of {method}: {said}") from error
    names = ("speedup", "speedup_ci", "acceptance_length", "lossless", "ranked", "num_parameters")
    return {"run_id": body["run_id"], **{name: row.get(name) for name in names}}


def _one_line(error: SpecbenchError) -> str:
    return " - ".join(" ".join(part.split()) for part in (error.what, error.where, error.try_) if part)


def _as_planned(cell: Cell, known: Mapping[str, Cell]) -> Cell:
    """The kept cell under the plan's words: an axis may have joined since it was made."""
    found = known.get(cell.cell_id)
    return cell if found is None else replace(found, axes=cell.axes, measure=cell.measure)


def _finite(value: Any) -> Any:
    """JSON has no infinity and no NaN: None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list | tuple) else value


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


__all__ = ["Outcome", "bench_words", "carry_out", "describe", "folder_of", "known_cells"]
