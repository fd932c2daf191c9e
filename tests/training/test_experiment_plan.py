"""An experiment's file and matrix: which cells there are, when two are the same, what is said of a wrong key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from specbench.errors import EnvironmentFailed, UsageError
from specbench.store.cells import Cell, CellLog, read_cells
from specbench.training.experiment import bench_words
from specbench.training.experiment_file import ExperimentFile, packaged_experiments, read_experiment
from specbench.training.experiment_plan import Bench, Machine, Plan, estimated_tokens, make_plan

_BODY: dict[str, Any] = {
    "name": "two-methods",
    "methods": ["redrafter", "ctc"],
    "train": {"learn": ["gt", "kd"], "redrafter.depth": [3, 5, 7], "ctc.labels": 4, "batch_size": 8},
    "evaluate": {"dataset": ["demo", "gsm8k"], "ctc.transform": ["off", "collapse"]},
    "seeds": [0, 1],
    "budget": {"max_steps": 10},
}


def _plan(**changed: Any) -> Plan:
    machine = changed.pop("machine", Machine())
    return make_plan(ExperimentFile.model_validate({**_BODY, **changed}).on(None), machine)


def _ids(plan: Plan) -> list[str]:
    return [cell.cell_id for cell in plan.cells]


def test_axes_multiply_and_a_methods_own_concern_it_alone() -> None:
    plan = _plan()
    by_method = {name: [each for each in plan.trainings if each.cell.method == name] for name in ("redrafter", "ctc")}
    assert len(by_method["redrafter"]) == 2 * 3 * 2 and len(by_method["ctc"]) == 2 * 2
    assert len(plan.measures) == 12 * 2 + 4 * 2 * 2, "a drafting option multiplies evaluations, not trainings"
    assert by_method["redrafter"][0].cell.axes == {"learn": "gt", "redrafter.depth": 3}
    assert by_method["ctc"][0].cell.axes == {"learn": "gt"}, "what does not vary is no part of a name"
    assert {(item.option, item.value) for item in by_method["ctc"][0].request.settings} == {("labels", "4")}
    assert [each.request.seed for each in by_method["ctc"]] == [0, 1, 0, 1]
    assert len(set(_ids(plan))) == len(plan.cells)
    assert estimated_tokens(plan.trainings[0]) == 10 * 8 * 256


def test_the_first_cells_bring_their_trainings_along() -> None:
    plan = _plan().first(3)
    assert len(plan.measures) == 3 and len(plan.trainings) == 2


def test_a_cell_is_known_by_what_it_depends_on_and_by_nothing_else() -> None:
    first = _plan()
    assert _ids(first) == _ids(_plan(title="Another", name="other"))
    assert _ids(first) == _ids(_plan(machine=Machine(store=Path("x"), threads=3, device="cpu")))
    explicit = {**_BODY["train"], "redrafter.num_layers": 2, "weight_decay": 0.0}
    assert _ids(first) == _ids(_plan(train=explicit)), "a default that is said is the same cell"
    wider = _plan(train={**_BODY["train"], "learn": ["gt", "kd", "seq"]}, seeds=[0, 1, 2])
    assert set(_ids(first)) < set(_ids(wider)), "what was done stays done when an axis grows"
    for changed in ({"budget": {"max_steps": 11}}, {"train": {**_BODY["train"], "lr": 0.002}}, {"target": "./else"}):
        train = changed.get("train", _BODY["train"])
        other = _plan(**{**changed, "train": {**train, "dataset": "demo"}})
        assert not set(_ids(first)) & set(_ids(other)), changed


def test_an_evaluation_depends_on_its_drafting_options_and_its_training() -> None:
    first = _plan(methods=["ctc"], train={"ctc.labels": 4}, evaluate={"ctc.transform": ["off"]}, seeds=[0])
    other = _plan(methods=["ctc"], train={"ctc.labels": 4}, evaluate={"ctc.transform": ["collapse"]}, seeds=[0])
    assert first.trainings[0].cell.cell_id == other.trainings[0].cell.cell_id
    assert first.measures[0].cell.cell_id != other.measures[0].cell.cell_id
    assert first.measures[0].cell.measure == {"dataset": "demo", "ctc.transform": "off"}


def test_the_embedded_targets_section_replaces_and_takes_away() -> None:
    found = packaged_experiments()["redrafter-paper"]
    on_demo, elsewhere = found.on(None), found.on("./model", train_on=("alpaca",))
    assert on_demo.train["dataset"] == "demo" and on_demo.budget == {"max_steps": 300}
    assert elsewhere.train["dataset"] == ["alpaca"] and elsewhere.budget == {"epochs": 2}
    assert len(make_plan(elsewhere, Machine()).trainings) == 3 * 2


@pytest.mark.parametrize(
    ("name", "trainings", "measures"), [("redrafter-paper", 6, 6), ("ctc-ablation", 4, 8), ("more-data", 8, 8)]
)
def test_packaged_experiments_are_whole(name: str, trainings: int, measures: int) -> None:
    plan = make_plan(read_experiment(name).on(None), Machine())
    assert (len(plan.trainings), len(plan.measures)) == (trainings, measures)


@pytest.mark.parametrize(
    ("changed", "named", "remedy"),
    [
        ({"evalaute": {}}, "evalaute", "'evaluate'"),
        ({"train": {"leran": "gt"}}, "train.leran", "'learn'"),
        ({"train": {"max_steps": 3}}, "train.max_steps", "budget"),
        ({"train": {"seed": [0, 1]}}, "train.seed", "seeds"),
        ({"train": {"redrafter.dpeth": 3}}, "dpeth", "'depth'"),
        ({"train": {"lstm.num_heads": 3}}, "lstm", ""),
        ({"train": {"learn": ["gt", "gt"]}}, "train.learn", ""),
        ({"train": {"learn": "kt"}}, "kt", "'kd'"),
        ({"train": {"lr": "fast"}}, "train.lr: 'fast' is no number", ""),
        ({"train": {"batch_size": "2.5"}}, "train.batch_size: '2.5' is no whole number", ""),
        ({"train": {"data_seed": 3}}, "train.data_seed is unknown", "share one draw"),
        ({"train": {"share": 2}}, "share", ""),
        ({"evaluate": {"redrafter.num_layers": 2}}, "num_layers", ""),
        ({"evaluate": {"redrafter.weights": "x"}}, "weights", ""),
        ({"evaluate": {"ctc.transform": ["of"]}}, "transform", ""),
        ({"budget": {"max_step": 3}}, "max_step", ""),
        ({"method": "lstm"}, "methods", ""),
        ({"name": "../up"}, "name", ""),
    ],
)
def test_a_wrong_key_is_named_with_the_nearest(
    tmp_path: Path, changed: dict[str, Any], named: str, remedy: str
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**_BODY, **changed}))
    with pytest.raises(UsageError) as caught:
        make_plan(read_experiment(str(file)).on(None), Machine())
    assert named in f"{caught.value.what} {caught.value.where}" and remedy in caught.value.try_


def test_a_number_that_yaml_reads_as_text_is_a_number(tmp_path: Path) -> None:
    """`lr: 5e-3`, as anyone writes it, and its cell is that of `lr: 0.005`."""
    plans = []
    for written in ("5e-3", "0.005"):
        file = tmp_path / "mine.yaml"
        file.write_text(yaml.safe_dump(_BODY).replace("learn:", f"lr: {written}\n  learn:"))
        assert f"lr: {written}" in file.read_text()
        plans.append(make_plan(read_experiment(str(file)).on(None), Machine()))
    assert plans[0].trainings[0].request.lr == 0.005
    assert _ids(plans[0]) == _ids(plans[1])


def test_an_unknown_name_and_a_missing_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no experiment") as caught:
        read_experiment("redrafter-papre")
    assert "'redrafter-paper'" in caught.value.try_
    with pytest.raises(EnvironmentFailed):
        read_experiment(str(tmp_path / "none.yaml"))


def test_the_later_of_two_lines_counts_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    cell = Cell(
        kind="training", cell_id="a", training_id="a", method="m", seed=0, axes={"lr": 0.1}, measure={}, options={},
        state="failed", error="é",
    )  # fmt: skip
    done = Cell(**{**vars(cell), "state": "finished", "figures": {"tau": 1.5}})
    with CellLog(tmp_path) as log:
        log.write(cell)
        log.write(done)
        with pytest.raises(UsageError, match="is being written"):
            CellLog(tmp_path)
    assert read_cells(tmp_path) == {"a": done}
    file = tmp_path / "cells.jsonl"
    file.write_text("nonsense\n" + file.read_text())
    with pytest.raises(EnvironmentFailed, match="line 1"):
        read_cells(tmp_path)


def test_a_template_is_an_axis_and_cells_from_before_there_was_one_keep_their_names() -> None:
    """A finished cell is never made again: the names are those under which experiments of then are kept."""
    first = _plan()
    assert (_ids(first)[0], first.measures[0].cell.cell_id) == ("aa32317c5bd790e6", "9909b689d489b7d3")
    assert _ids(first) == _ids(_plan(train={**_BODY["train"], "template": "chat"}))
    both = _plan(train={**_BODY["train"], "template": ["chat", "vicuna"]}, bench={"suite": "demo"})
    assert len(both.trainings) == 2 * len(first.trainings) and len(set(_ids(both))) == len(both.cells)
    plain = [each for each in both.trainings if each.request.template == "vicuna"]
    assert len(plain) == len(first.trainings)
    for training in plain:
        assert training.reading.template == "vicuna"
        for measure in both.measures_of(training):
            if isinstance(measure, Bench):
                words = bench_words(both, measure)
                assert words[words.index("--template") + 1] == "vicuna"
            else:
                assert measure.request.template == measure.reading.template == "vicuna"
