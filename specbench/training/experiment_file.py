"""What an experiment is: a YAML of axes for trainings and for evaluations, packaged by name or the user's own by path.

    name: loss-and-depth
    title: Which loss, and how deep
    method: redrafter                       # or methods: [redrafter, lstm]
    train:                                  # options of `specbench train`, `share`, METHOD.OPTION; a list is an axis
      learn: [gt, kd]
      redrafter.depth: [3, 5]
      batch_size: 8
    evaluate:                               # dataset, eval_prompts, eval_new_tokens, drafting options
      dataset: [demo, gsm8k]
      redrafter.beam_width: [1, 4]
    seeds: [0, 1, 2]
    budget: {max_steps: 300}                # max_steps, epochs, max_tokens, max_minutes
    bench: {suite: demo, limit: 8}          # options of `specbench run`; left out: nothing is timed
    demo: {train: {dataset: demo}}          # what differs on the embedded target; null takes an entry away

No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from specbench.bench.defaults import DEMO_TARGETS
from specbench.errors import EnvironmentFailed, UsageError, did_you_mean
from specbench.store.cells import Scalar
from specbench.training.defaults import BUDGETS
from specbench.training.recipe_file import Options

PACKAGED = Path(__file__).resolve().parent / "experiments"
Axes = dict[str, Scalar | list[Scalar]]


class Overrides(BaseModel):
    """Entries that replace those of the file; null takes one away."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: dict[str, Scalar | list[Scalar] | None] = {}
    evaluate: dict[str, Scalar | list[Scalar] | None] = {}
    budget: dict[str, int | float | None] = {}
    bench: Options | None = None


class ExperimentFile(BaseModel):
    """The file, checked but for the names and values of its options, which `experiment_plan` resolves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Of the folder its cells are kept in."""
    title: str = ""
    method: str | None = None
    methods: list[str] = []
    methods_dir: list[str] = []
    target: str = "demo"
    train: Axes = {}
    evaluate: Axes = {}
    seeds: list[int] = Field(default=[0], min_length=1)
    budget: dict[str, int | float] = {}
    bench: Options | None = None
    demo: Overrides = Overrides()

    @model_validator(mode="after")
    def _has_methods(self) -> ExperimentFile:
        if (self.method is None) == (not self.methods):
            raise ValueError("one of `method` and `methods` names what is trained")
        for name in (*self.budget, *self.demo.budget):
            if name not in BUDGETS:
                raise ValueError(f"budget.{name} is unknown; {did_you_mean(name, BUDGETS)}")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds: one of them is given twice")
        for where, axes in (("train", self.train), ("evaluate", self.evaluate)):
            for name, value in axes.items():
                if isinstance(value, list) and (not value or len({repr(each) for each in value}) != len(value)):
                    raise ValueError(f"{where}.{name} is empty or says a value twice")
        return self

    @property
    def all_methods(self) -> list[str]:
        """What is trained."""
        return [self.method] if self.method is not None else self.methods

    def on(
        self, target: str | None, *, train_on: tuple[str, ...] = (), evaluate_on: tuple[str, ...] = ()
    ) -> ExperimentFile:
        """The experiment on a target, None = its own, with the `demo:` section applied where it is the embedded one.

        train_on, evaluate_on: data sets in place of the file's.
        """
        target = target or self.target
        train: Mapping[str, Any] = self.train
        evaluate: Mapping[str, Any] = self.evaluate
        budget: Mapping[str, Any] = self.budget
        bench = self.bench
        if target in DEMO_TARGETS:
            train, evaluate = _merged(train, self.demo.train), _merged(evaluate, self.demo.evaluate)
            budget = _merged(budget, self.demo.budget)
            bench = self.demo.bench if self.demo.bench is not None else bench
        if train_on:
            train = {**train, "dataset": list(train_on)}
        if evaluate_on:
            evaluate = {**evaluate, "dataset": list(evaluate_on)}
        changed = {"target": target, "train": train, "evaluate": evaluate, "budget": budget, "bench": bench}
        return self.model_copy(update={**changed, "demo": Overrides()})


def _merged(entries: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**entries, **over}.items() if value is not None}


def packaged_experiments() -> dict[str, ExperimentFile]:
    """Those that come with specbench, by name."""
    return {path.stem: read_experiment(str(path)) for path in sorted(PACKAGED.glob("*.yaml"))}


def read_experiment(spec: str) -> ExperimentFile:
    """spec: the name of a packaged experiment, or a file.

    Raises UsageError for an unknown name, naming the key that is wrong; EnvironmentFailed for a file that cannot be
    read.
    """
    names = [path.stem for path in sorted(PACKAGED.glob("*.yaml"))]
    file = PACKAGED / f"{spec}.yaml" if spec in names else Path(spec)
    if spec not in names and not file.exists() and file.suffix not in (".yaml", ".yml"):
        raise UsageError(
            f"{spec!r} is no experiment", where="specbench experiment", try_=f"{did_you_mean(spec, names)}, or a YAML"
        )
    try:
        return ExperimentFile.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise EnvironmentFailed(f"the experiment cannot be read: {error}", where=str(file)) from error
    except yaml.YAMLError as error:
        raise UsageError(f"the experiment is not YAML: {' '.join(str(error).split())}", where=str(file)) from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        known = did_you_mean(str(first["loc"][-1]), ExperimentFile.model_fields) if key else ""
        raise UsageError(f"{key}: {message}" if key else message, where=str(file), try_=known) from error
