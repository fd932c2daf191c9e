"""A recipe's stages: in order, once, and on from where they were cut off."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from specbench.errors import UsageError
from specbench.training.recipe_file import Kitchen, RecipeFile, read_recipe

_TEXT = """
name: small
method: shallow
data: {dataset: demo, max_new_tokens: 8}
train: {max_steps: 3, assistant_only: false, set: {depth: 2}}
export: {layout: apple}
bench: {suite: demo, limit: 2}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> RecipeFile:
    file = tmp_path / "recipe.yaml"
    file.write_text(_TEXT)
    return read_recipe(file)


class Recorder:
    """Runs nothing; fails where it is told to."""

    def __init__(self, fails_at: str = "") -> None:
        self.ran: list[tuple[str, ...]] = []
        self._fails_at = fails_at

    def __call__(self, argv: Sequence[str]) -> int:
        self.ran.append(tuple(argv))
        return 3 if argv[0] == self._fails_at else 0


def test_stages_become_commands_that_hand_their_work_on(recipe: RecipeFile, tmp_path: Path) -> None:
    kitchen, run = Kitchen(recipe, store=tmp_path), Recorder()
    assert kitchen.carry_out(kitchen.plan(), run) == 0
    data, train, export, bench = run.ran
    responses, drafter = str(kitchen.folder / "responses"), str(kitchen.drafter)
    assert data[:2] == ("data", "generate") and data[data.index("--out") + 1] == responses
    assert train[train.index("--dataset") + 1] == responses and train[train.index("--out") + 1] == drafter
    assert "--no-assistant-only" in train and train[train.index("--set") + 1] == "shallow.depth=2"
    assert export[:3] == ("weights", "export", drafter) and export[export.index("--layout") + 1] == "apple"
    assert bench[1] == "demo" and bench[bench.index("--set") + 1] == f"shallow.weights={drafter}"
    assert bench[bench.index("--methods") + 1] == "autoregressive,shallow"


def test_what_is_done_is_not_done_again_and_a_failed_stage_is(recipe: RecipeFile, tmp_path: Path) -> None:
    kitchen, run = Kitchen(recipe, store=tmp_path), Recorder(fails_at="weights")
    assert kitchen.carry_out(kitchen.plan(), run) == 3
    again, second = Kitchen(recipe, store=tmp_path), Recorder()
    assert again.carry_out(again.plan(), second) == 0
    assert [argv[0] for argv in second.ran] == ["weights", "run"]


def test_a_training_that_was_cut_off_is_resumed(recipe: RecipeFile, tmp_path: Path) -> None:
    kitchen = Kitchen(recipe, store=tmp_path)
    folder = tmp_path / "runs" / "20260101-000000-train_shallow-0000"
    folder.mkdir(parents=True)
    (folder / "train.json").write_text(json.dumps({"request": {"out": str(kitchen.drafter)}}))
    planned = {each.stage: each for each in kitchen.plan(skip=["data"])}
    assert planned["train"].resume == ("train", "--resume", folder.name, "--store", str(tmp_path))
    assert "data" not in planned and planned["bench"].resume is None


def test_a_recipe_that_changed_under_a_finished_stage_is_refused(recipe: RecipeFile, tmp_path: Path) -> None:
    kitchen = Kitchen(recipe, store=tmp_path)
    kitchen.carry_out(kitchen.plan(), Recorder())
    changed = recipe.model_copy(update={"train": {"max_steps": 9}})
    with pytest.raises(UsageError, match=r"stage .train. .* other options"):
        Kitchen(changed, store=tmp_path).plan()


def test_unknown_keys_and_stages_name_the_nearest(recipe: RecipeFile, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("name: a\nmethod: b\nbenhc: {}\n")
    with pytest.raises(UsageError, match="benhc") as caught:
        read_recipe(file)
    assert "'bench'" in caught.value.try_
    with pytest.raises(UsageError, match="not a stage"):
        Kitchen(recipe, store=tmp_path).plan(skip=["exprot"])
