"""An experiment's axes -> its cells, each with everything it depends on and the hash of that. No torch.

Documents. Every data set is read once, with one draw (seed 0) whatever the training's own seed: a part to learn from,
a part by which each training chooses its best weights, and a part that only evaluations see. `share` and `documents`
take nested subsets of the first part; `assistant_only: false` learns every token of the same documents.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from specbench import registry
from specbench.bench.request import Setting
from specbench.card import Card
from specbench.errors import UsageError
from specbench.store.cells import Cell, Scalar
from specbench.suite import CHAT
from specbench.training.defaults import Settled, settle
from specbench.training.experiment_axes import SHARE, check_names, of_method, points_of, settings_of
from specbench.training.experiment_file import ExperimentFile
from specbench.training.recipe_file import Options
from specbench.training.request import TrainRequest, check_range, findable

DATA_SEED = 0
_RESULT_BLIND = {
    *("request", "settings", "out", "dry_run", "data", "store", "methods_dirs", "trust_remote_code", "report_to"),
    *("threads", "save_every", "device"),
    "quantisation",
}
"""Fields on which no result depends, and one that is the same in every experiment (none): cells are older than it."""

_HINTS = get_type_hints(TrainRequest)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where an experiment's work is done and kept: nothing of it is part of a cell."""

    store: Path | None = None
    data: tuple[Path, ...] = ()
    methods_dirs: tuple[Path, ...] = ()
    device: str | None = None
    threads: int | None = None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a data set is read, once for all cells that name it."""

    dataset: str
    columns: str | None
    max_length: int
    limit: int | None
    """Most rows."""
    held_out: int
    """Documents by which trainings choose, and as many that evaluations see."""
    learns: bool
    """False: nothing is trained on it, every document is for evaluations."""
    response_tokens: int
    response_temperature: float
    template: str = CHAT

    def facts(self) -> dict[str, Any]:
        """Of a cell."""
        return _without_chat(dataclasses.asdict(self))


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training to be made."""

    cell: Cell
    request: TrainRequest
    """Without `out`."""
    reading: Reading
    share: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A measurement of a training, by replay."""

    cell: Cell
    request: TrainRequest
    """Without `METHOD.weights`."""
    reading: Reading


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A timed run of a training's drafter."""

    cell: Cell
    settings: tuple[Setting, ...]
    """Drafting options."""
    options: Options


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cells of an experiment, in the order they are made: each training, then what is measured of it."""

    experiment: ExperimentFile
    machine: Machine
    trainings: tuple[Training, ...]
    measures: tuple[Evaluation | Bench, ...]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All of them, still open."""
        return (*(each.cell for each in self.trainings), *(each.cell for each in self.measures))

    def measures_of(self, training: Training) -> list[Evaluation | Bench]:
        """What is measured of a training."""
        return [each for each in self.measures if each.cell.training_id == training.cell.cell_id]

    def first(self, num: int) -> Plan:
        """The first `num` measurements and the trainings they need."""
        measures = self.measures[:num]
        wanted = {each.cell.training_id for each in measures}
        trainings = tuple(each for each in self.trainings if each.cell.cell_id in wanted)
        return dataclasses.replace(self, trainings=trainings, measures=measures)


def make_plan(experiment: ExperimentFile, machine: Machine) -> Plan:
    """experiment: as `ExperimentFile.on` returns it. Raises UsageError naming the axis or value that is wrong."""
    cards = {name: registry.card(name, methods_dirs=machine.methods_dirs) for name in experiment.all_methods}
    check_names(experiment, cards)
    varied = [name for name, value in experiment.train.items() if isinstance(value, list) and len(value) > 1]
    drafts: list[tuple[Settled, float, dict[str, Scalar]]] = []
    for method in experiment.all_methods:
        for point in points_of(of_method(experiment.train, method, experiment)):
            axes = {name: value for name, value in point.items() if name in varied}
            for seed in experiment.seeds:
                drafts.append((*_settled(experiment, machine, method, point, seed), axes))
    readings = _readings([settled for settled, _, _ in drafts])
    trainings = [_training(settled, share, axes, readings, cards[settled.method]) for settled, share, axes in drafts]
    measures: list[Evaluation | Bench] = []
    for training in trainings:
        measures += _evaluations(experiment, training, readings, cards[training.cell.method])
        measures += _benches(experiment, training, cards[training.cell.method])
    return Plan(experiment=experiment, machine=machine, trainings=tuple(trainings), measures=tuple(measures))


def estimated_tokens(training: Training) -> int | None:
    """Most text tokens the target reads for it; None where only its data or the clock knows."""
    request = training.request
    assert request.batch_size is not None and request.max_length is not None
    found = [] if request.max_tokens is None else [request.max_tokens]
    if request.max_steps is not None:
        found.append(request.max_steps * request.batch_size * request.max_length)
    if request.epochs is not None and request.documents is not None:
        found.append(round(request.epochs * request.documents * training.share * request.max_length))
    return min(found) if found else None


def _settled(
    experiment: ExperimentFile, machine: Machine, method: str, point: Mapping[str, Scalar], seed: int
) -> tuple[Settled, float]:
    plain = {name: value for name, value in point.items() if "." not in name}
    share = plain.pop(SHARE, 1.0)
    kinds = {"dataset": str, "columns": str}
    plain = {name: kinds[name](value) if name in kinds else value for name, value in plain.items()}
    plain = {name: _number(name, value, experiment) for name, value in plain.items()}
    try:
        check_range(SHARE, float(share), above=0, most=1)
        budget: dict[str, Any] = dict(experiment.budget)
        request = TrainRequest(
            method=method,
            target=findable(experiment.target),
            settings=settings_of(point),
            seed=seed,
            data_seed=DATA_SEED,
            data=machine.data,
            store=machine.store,
            methods_dirs=machine.methods_dirs,
            **{"device": machine.device, "threads": machine.threads, **plain, **budget},
        )
        return settle(dataclasses.replace(request, dataset=request.dataset and findable(request.dataset))), float(share)
    except (TypeError, ValueError) as error:
        shown = ", ".join(f"{name}: {value!r}" for name, value in {**point, **experiment.budget}.items())
        raise UsageError(f"a value is of the wrong kind: {error}", where=f"{experiment.name}: {shown}") from error


def _number(name: str, value: Scalar, experiment: ExperimentFile) -> Scalar:
    """YAML 1.1 reads 5e-3 as text, for want of a dot: where an option is a number, its text is read as one."""
    kind = next((each for each in get_args(_HINTS[name]) if each in (int, float)), None)
    if kind is None or not isinstance(value, str):
        return value
    try:
        found: Scalar = TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise UsageError(
            f"train.{name}: {value!r} is no {'whole number' if kind is int else 'number'}", where=experiment.name
        ) from error
    return found


def _card_values(card: Card, settings: tuple[Setting, ...]) -> dict[str, dict[str, Any]]:
    """Training and drafting options with their defaults. Raises UsageError for a value the card refuses."""
    found = registry.check_training_options(card, {item.option: item.value for item in settings})
    return {"training": found.training, "drafting": found.drafting}


# --- data ----------------------------------------------------------------------------------------------------------

_Source = tuple[str, str | None, int, float, str]


def _source(settled: Settled) -> _Source:
    return (
        settled.dataset,
        settled.columns,
        settled.response_tokens,
        settled.response_temperature,
        settled.template,
    )


def _readings(all_settled: list[Settled]) -> dict[_Source, Reading]:
    """One for every source of documents: long, many and held-out enough for each training on it."""
    found: dict[_Source, Reading] = {}
    for source in dict.fromkeys(map(_source, all_settled)):
        users = [each for each in all_settled if _source(each) == source]
        limits = [each.documents for each in users]
        found[source] = Reading(
            dataset=source[0],
            columns=source[1],
            max_length=max(each.max_length for each in users),
            limit=None if None in limits else max(each for each in limits if each is not None),
            held_out=max(each.eval_documents for each in users),
            learns=True,
            response_tokens=source[2],
            response_temperature=source[3],
            template=source[4],
        )
    return found


def _reading_for(dataset: str, settled: Settled, readings: Mapping[_Source, Reading]) -> Reading:
    """Of an evaluation: the one that trainings on the data set use, for its held-out part; else one of its own."""
    own = readings.get((dataset, *_source(settled)[1:]))
    alike = (each for each in readings.values() if (each.dataset, each.template) == (dataset, settled.template))
    shared = own or next(alike, None)
    if shared is not None:
        return shared
    return Reading(
        dataset=dataset,
        columns=None,
        max_length=settled.max_length,
        limit=settled.eval_documents,
        held_out=settled.eval_documents,
        learns=False,
        response_tokens=settled.response_tokens,
        response_temperature=settled.response_temperature,
        template=settled.template,
    )


# --- cells ---------------------------------------------------------------------------------------------------------


def _without_chat(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Cells are older than the choice of a template: those under the target's own keep their names."""
    return {name: value for name, value in facts.items() if (name, value) != ("template", CHAT)}


def _identity(kind: str, options: Mapping[str, Any]) -> str:
    text = json.dumps({"kind": kind, **options}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _training(
    settled: Settled, share: float, axes: dict[str, Scalar], readings: Mapping[_Source, Reading], card: Card
) -> Training:
    reading = readings[_source(settled)]
    plain = {
        each.name: getattr(settled, each.name) for each in dataclasses.fields(settled) if each.name not in _RESULT_BLIND
    }
    options = {
        **_without_chat(plain),
        SHARE: share,
        "options": _card_values(card, settled.settings),
        "reading": reading.facts(),
    }
    # What is not said was written as bf16 before the device decided, as which cells are known.
    cell_id = _identity("training", {**options, "precision": settled.precision or "bf16"})
    cell = Cell(
        kind="training",
        cell_id=cell_id,
        training_id=cell_id,
        method=settled.method,
        seed=settled.seed,
        axes=axes,
        measure={},
        options=options,
    )
    return Training(cell=cell, request=settled.request, reading=reading, share=share)


def _evaluations(
    experiment: ExperimentFile, training: Training, readings: Mapping[_Source, Reading], card: Card
) -> Iterator[Evaluation]:
    settled = settle(training.request)
    axes = {"dataset": settled.dataset, **of_method(experiment.evaluate, settled.method, experiment)}
    for point in points_of(axes):
        dataset = findable(str(point["dataset"]))
        reading = _reading_for(dataset, settled, readings)
        settings = _drafting(card, settled.settings, point)
        request = TrainRequest(
            method=settled.method,
            target=settled.target,
            dataset=dataset,
            template=settled.template,
            documents=reading.held_out,
            max_length=settled.max_length,
            micro_batch=settled.micro_batch,
            batch_size=settled.batch_size,
            eval_prompts=point.get("eval_prompts", settled.eval_prompts),  # type: ignore[arg-type]
            eval_new_tokens=point.get("eval_new_tokens", settled.eval_new_tokens),  # type: ignore[arg-type]
            seed=DATA_SEED,
            dtype=settled.dtype,
            device=settled.device,
            attention=settled.attention,
            threads=settled.threads,
            data=settled.data,
            store=settled.store,
            methods_dirs=settled.methods_dirs,
            settings=settings,
        )
        options = {
            "training": training.cell.cell_id,
            "reading": reading.facts(),
            "options": _card_values(card, settings)["drafting"],
            "eval_prompts": request.eval_prompts,
            "eval_new_tokens": request.eval_new_tokens,
        }
        varied = {
            name: value
            for name, value in point.items()
            if name == "dataset" or isinstance(experiment.evaluate.get(name), list)
        }
        yield Evaluation(cell=_measure("evaluation", training, varied, options), request=request, reading=reading)


def _benches(experiment: ExperimentFile, training: Training, card: Card) -> Iterator[Bench]:
    if experiment.bench is None:
        return
    method = training.cell.method
    # Timed under the template that was learnt in, where the file does not say another.
    asked = {**_without_chat({"template": training.reading.template}), **experiment.bench}
    drafting = {
        name: value for name, value in of_method(experiment.evaluate, method, experiment).items() if "." in name
    }
    for point in points_of(drafting):
        settings = _drafting(card, training.request.settings, point)
        options = {
            "training": training.cell.cell_id,
            "bench": asked,
            "options": _card_values(card, settings)["drafting"],
        }
        varied = {name: value for name, value in point.items() if isinstance(drafting[name], list)}
        varied = {"suite": str(experiment.bench.get("suite", "demo")), **varied}
        yield Bench(cell=_measure("bench", training, varied, options), settings=settings, options=asked)


def _drafting(card: Card, of_training: tuple[Setting, ...], point: Mapping[str, Scalar]) -> tuple[Setting, ...]:
    """The training's drafting options with the evaluation's over them."""
    found = {item.option: item for item in (*of_training, *settings_of(point))}
    return tuple(item for item in found.values() if item.option in card.options and item.option != "weights")


def _measure(kind: Any, training: Training, varied: dict[str, Scalar], options: dict[str, Any]) -> Cell:
    return Cell(
        kind=kind,
        cell_id=_identity(kind, options),
        training_id=training.cell.cell_id,
        method=training.cell.method,
        seed=training.cell.seed,
        axes=training.cell.axes,
        measure=varied,
        options=options,
    )
