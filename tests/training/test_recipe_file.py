"""A recipe's stages: in order, once, and on from where they were cut off."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from training.small import METHODS

from specbench.errors import UsageError
from specbench.training import command
from specbench.training.recipe_file import FLAGS, NEGATABLE, REPEATED, Kitchen, RecipeFile, read_recipe, words_of
from tests.conftest import Ran

_TEXT = """
name: small
method: shallow
data: {dataset: demo, max_new_tokens: 8}
train: {max_steps: 3, assistant_only: false, set: {depth: 2}}
export: {layout: specbench}
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
    assert export[:3] == ("weights", "export", drafter) and export[export.index("--layout") + 1] == "specbench"
    assert bench[1] == "demo" and bench[bench.index("--set") + 1] == f"shallow.weights={drafter}"
    assert bench[bench.index("--methods") + 1] == "autoregressive,shallow"


@pytest.mark.parametrize("said_by", ["data", "train"])
def test_the_template_of_one_stage_is_that_of_those_it_is_handed_to(
    recipe: RecipeFile, tmp_path: Path, said_by: str
) -> None:
    """What was answered in one is learnt and measured in it, unless a stage says another."""
    said = recipe.model_copy(update={said_by: {**(getattr(recipe, said_by) or {}), "template": "vicuna"}})
    plan = {each.stage: each.argv for each in Kitchen(said, store=tmp_path).plan()}
    for stage in ("data", "train", "bench"):
        assert plan[stage][plan[stage].index("--template") + 1] == "vicuna", stage
    assert "--template" not in plan["export"]
    own = said.model_copy(update={"bench": {**(said.bench or {}), "template": "plain"}})
    bench = {each.stage: each.argv for each in Kitchen(own, store=tmp_path).plan()}["bench"]
    assert bench[bench.index("--template") + 1] == "plain" and bench.count("--template") == 1


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
    begun = {each.stage: each for each in kitchen.plan()}["train"].argv
    record = {"request": {"out": str(kitchen.drafter)}, "command": ["specbench", *begun]}
    (folder / "train.json").write_text(json.dumps(record))
    planned = {each.stage: each for each in kitchen.plan(skip=["data"])}
    assert planned["train"].resume == ("train", "--resume", folder.name, "--store", str(tmp_path))
    assert "data" not in planned and planned["bench"].resume is None


@pytest.mark.parametrize("stage", ["train", "bench"])
def test_a_stage_whose_options_were_edited_begins_anew_and_names_the_one_that_was_cut_off(
    recipe: RecipeFile, tmp_path: Path, stage: str
) -> None:
    kitchen = Kitchen(recipe, store=tmp_path)
    folder = tmp_path / "runs" / "20260101-000000-shallow-0000"
    folder.mkdir(parents=True)
    command = ["specbench", *{each.stage: each for each in kitchen.plan()}[stage].argv]
    weights = ["shallow", "weights", str(kitchen.drafter)]
    record: dict[str, object] = {"command": command, "provenance": {"request": {"settings": [weights]}}}
    if stage == "train":
        record = {"command": command, "request": {"out": str(kitchen.drafter)}}
    (folder / ("train.json" if stage == "train" else "manifest.json")).write_text(json.dumps(record))
    edited = recipe.model_copy(update={"train": {"max_steps": 9}, "bench": {"suite": "demo", "limit": 3}})
    kitchen, run = Kitchen(edited, store=tmp_path), Recorder()
    planned = kitchen.plan()
    assert kitchen.carry_out(planned, run) == 0
    assert not any("--resume" in argv for argv in run.ran)
    assert run.ran[1][run.ran[1].index("--max-steps") + 1] == "9"
    [note] = [each.note for each in planned if each.note]
    assert note.startswith(f"{stage} begins anew: {folder.name} was cut off") and f"--resume {folder.name}" in note


def test_options_beside_a_recipe_are_refused_by_name(specbench: Callable[..., Ran], tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(f"{_TEXT}methods_dir: [{METHODS}]\n")
    line = ("train", "--recipe", str(tmp_path / "recipe.yaml"), "--dry-run", "--store", str(tmp_path))
    assert specbench(*line, "--skip", "bench").code == 0
    ran = specbench(*line, "--max-steps", "3", "--no-assistant-only", "--set", "shallow.depth=2")
    assert ran.code == 2 and ran.out == ""
    assert "--set, --no-assistant-only, --max-steps beside --recipe" in ran.err
    assert "--skip names stages" in specbench("train", "--method", "shallow", "--skip", "bench").err


def test_ctrl_c_in_a_stage_that_finishes_all_the_same_keeps_it_and_begins_no_other(
    specbench: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipe.yaml").write_text(f"{_TEXT}methods_dir: [{METHODS}]\n")
    asked: list[Sequence[str]] = []

    def run(words: Sequence[str]) -> command.Ran:
        asked.append(words)
        return command.Ran(0, "", was_interrupted=len(asked) == 2)

    monkeypatch.setattr("specbench.cli.train.run_specbench", run)
    line = ("train", "--recipe", str(tmp_path / "recipe.yaml"), "--store", str(tmp_path))
    assert specbench(*line).code == 130 and [words[0] for words in asked] == ["data", "train"]
    assert specbench(*line).code == 0 and [words[0] for words in asked[2:]] == ["weights", "run"]


def test_a_recipe_that_changed_under_a_finished_stage_is_refused(recipe: RecipeFile, tmp_path: Path) -> None:
    kitchen = Kitchen(recipe, store=tmp_path)
    kitchen.carry_out(kitchen.plan(), Recorder())
    changed = recipe.model_copy(update={"train": {"max_steps": 9}})
    with pytest.raises(UsageError, match=r"stage .train. .* other options"):
        Kitchen(changed, store=tmp_path).plan()


def test_options_are_spelt_as_their_command_takes_them() -> None:
    """Keys with a dot are another method's; what is repeatable is repeated; a flag that is off is left out."""
    words = words_of(
        {
            "set": {"draft_model.num_tokens": 2, "depth": 3},
            "data": ["a", "b"],
            "stop": ["x,y", "z"],
            "methods": ["autoregressive", "draft_model"],
            "assistant_only": False,
            "cache_states": False,
            "trust_remote_code": True,
            "adapt": True,
        },
        "shallow",
    )
    assert words == [
        *("--set", "draft_model.num_tokens=2", "--set", "shallow.depth=3", "--data", "a", "--data", "b"),
        *("--stop", "x,y", "--stop", "z", "--methods", "autoregressive,draft_model", "--no-assistant-only"),
        *("--trust-remote-code", "--adapt", "on"),
    ]


def test_flags_and_repeatable_options_are_those_of_the_commands() -> None:
    flags, negatable, repeated = set[str](), set[str](), set[str]()
    for module, name in (("data", "generate"), ("train", ""), ("weights", "export"), ("run", "")):
        command: Any = typer.main.get_command(importlib.import_module(f"specbench.cli.{module}").app)
        for param in (command.commands[name] if name else command).params:
            word = param.opts[0].lstrip("-").replace("-", "_")
            flags |= {word} if getattr(param, "is_flag", False) else set()
            negatable |= {word} if param.secondary_opts else set()
            repeated |= {word} if getattr(param, "multiple", False) else set()
    assert (flags, negatable) == (FLAGS, NEGATABLE)
    assert repeated - {"methods"} == REPEATED, "--methods takes commas as well, as it is usually typed"


@pytest.mark.parametrize(
    ("stage", "key", "what"),
    [
        ("bench", "limt: 2", "--limt"),
        ("bench", "limit: many", "--limit"),
        ("bench", "methods: [redrafter, draft_model], set: {draft_model.num_tokns: 2}", "unknown option 'num_tokns'"),
        ("bench", "methods: [redrafter, drafd_model]", "unknown method"),
        ("bench", "rule: copled", "did you mean 'coupled'"),
        ("bench", "suite: gsm8", "gsm8"),
        ("bench", "temperature: -1", "temperature"),
        ("bench", "methods: [redrafter, suffix], grid: ['suffix.nope=1,2']", "unknown option 'nope'"),
        ("export", "layuot: apple", "--layuot"),
        ("export", "layout: appel", "did you mean 'apple'"),
        ("train", "cache_staets: true", "--cache-staets"),
        ("train", "set: {nope: 1}", "unknown option 'nope'"),
        ("train", "learn: gtt", "did you mean 'gt'"),
        ("train", "set: {rnn: perhaps}", "redrafter.rnn"),
    ],
)
def test_a_wrong_option_of_a_later_stage_is_refused_before_the_first_one_begins(
    specbench: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, key: str, what: str
) -> None:
    monkeypatch.setattr("specbench.cli.train.run_specbench", lambda words: pytest.fail("a stage began"))
    file = tmp_path / "recipe.yaml"
    good = {"train": "max_steps: 3", "export": "layout: apple", "bench": "suite: demo", stage: key}
    file.write_text("name: r\nmethod: redrafter\n" + "".join(f"{each}: {{{text}}}\n" for each, text in good.items()))
    ran = specbench("train", "--recipe", str(file), "--store", str(tmp_path))
    assert ran.code == 2 and what in ran.err, ran.err
    (tmp_path / "mine.yaml").write_text(f"name: e\nmethod: redrafter\nbench: {{{key}}}\n")
    if stage == "bench":
        ran = specbench("experiment", str(tmp_path / "mine.yaml"), "--dry-run", "--store", str(tmp_path))
        assert ran.code == 2 and what in ran.err, ran.err


def test_unknown_keys_and_stages_name_the_nearest(recipe: RecipeFile, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("name: a\nmethod: b\nbenhc: {}\n")
    with pytest.raises(UsageError, match="benhc") as caught:
        read_recipe(file)
    assert "'bench'" in caught.value.try_
    with pytest.raises(UsageError, match="not a stage"):
        Kitchen(recipe, store=tmp_path).plan(skip=["exprot"])
