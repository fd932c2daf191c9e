"""The axes of an experiment: which names they may have, and their points. No torch."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from specbench.bench.request import Setting
from specbench.card import Card
from specbench.errors import UsageError, did_you_mean
from specbench.store.cells import Scalar
from specbench.training.defaults import BUDGETS
from specbench.training.experiment_file import ExperimentFile
from specbench.training.request import TrainRequest

SHARE = "share"
_NOT_AXES = {
    *("method", "target", "seed", "data_seed", "settings", "out", "resume", "dry_run", "data", "store", "methods_dirs"),
    *("command", "trust_remote_code", "report_to", "quantisation", *BUDGETS),
}
TRAIN_OPTIONS = (SHARE, *(each.name for each in dataclasses.fields(TrainRequest) if each.name not in _NOT_AXES))
EVALUATE_OPTIONS = ("dataset", "eval_prompts", "eval_new_tokens")


def check_names(experiment: ExperimentFile, cards: Mapping[str, Card]) -> None:
    """Raises UsageError naming the axis that is no option, and the nearest."""
    sections = (("train", experiment.train, TRAIN_OPTIONS), ("evaluate", experiment.evaluate, EVALUATE_OPTIONS))
    for section, axes, known in sections:
        for name in axes:
            method, dot, option = name.partition(".")
            if not dot and name not in known:
                remedy = f"{did_you_mean(name, known)}; a method's own option is METHOD.OPTION"
                elsewhere = {
                    "seed": "seeds: [0, 1]",
                    "data_seed": "leave it out: all trainings of an experiment share one draw of documents",
                    **{each: f"budget: {{{each}: …}}" for each in BUDGETS},
                }.get(name)
                raise UsageError(f"{section}.{name} is unknown", where=experiment.name, try_=elsewhere or remedy)
            if not dot:
                continue
            if method not in cards:
                raise UsageError(
                    f"{section}.{name}: the experiment does not train {method!r}",
                    where=experiment.name,
                    try_=did_you_mean(method, cards),
                )
            card = cards[method]
            options = {*card.options, *(card.training if section == "train" else ())} - {"weights"}
            if option not in options:
                what = "option" if section == "train" else "drafting option"
                raise UsageError(
                    f"{section}.{name}: {method} has no {what} {option!r}",
                    where=experiment.name,
                    try_=f"{did_you_mean(option, options)}  (specbench methods show {method})",
                )


def of_method(axes: Mapping[str, Scalar | list[Scalar]], method: str, experiment: ExperimentFile) -> dict[str, Any]:
    """The axes without those of the other methods."""
    others = {name for name in experiment.all_methods if name != method}
    return {name: value for name, value in axes.items() if name.partition(".")[0] not in others}


def points_of(axes: Mapping[str, Any]) -> Iterator[dict[str, Scalar]]:
    """Every combination, the last axis fastest."""
    values = [value if isinstance(value, list) else [value] for value in axes.values()]
    for chosen in itertools.product(*values):
        yield dict(zip(axes, chosen, strict=True))


def settings_of(point: Mapping[str, Scalar]) -> tuple[Setting, ...]:
    """METHOD.OPTION entries as `--set`."""
    found = []
    for name, value in point.items():
        method, dot, option = name.partition(".")
        if dot:
            found.append(Setting(method, option, str(value).lower() if isinstance(value, bool) else str(value)))
    return tuple(found)
