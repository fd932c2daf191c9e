"""`specbench train`, `eval` and `results plot` as typed: a local data set, a tiny target, the `shallow` test method."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training.small import METHODS

from specbench.engine.decode import Engine
from tests.conftest import Ran


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "sums.jsonl"
    rows = [{"prompt": f"What is {n} + {n}?", "response": f"{n} + {n} is {2 * n}, I think."} for n in range(24)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def line(target: Path, tmp_path: Path, data: Path) -> list[str]:
    """The options every command here needs."""
    return [
        *("--method", "shallow", "--methods-dir", str(METHODS), "--target", str(target), "--device", "cpu"),
        *("--dataset", str(data), "--max-length", "64", "--eval-prompts", "2", "--eval-new-tokens", "6"),
    ]


_SHORT = ("--max-steps", "3", "--batch-size", "4", "--eval-documents", "4", "--threads", "1", "--learn", "gt")


def test_a_training_prints_the_command_that_uses_it_and_is_found_again(
    specbench: Callable[..., Ran], line: list[str], tmp_path: Path
) -> None:
    store = ["--store", str(tmp_path / "results")]
    ran = specbench("train", *line, *_SHORT, *store)
    assert ran.code == 0, ran.err
    assert "shallow: 131,072 parameters, 524,288 bytes" in ran.err and "24 of 24 rows kept" in ran.err
    command = ran.out.strip().splitlines()[-1]
    assert command.startswith("specbench run ") and "--set shallow.weights=" in command
    folder = command.split("shallow.weights=")[1].split()[0]
    config = json.loads((Path(folder) / "config.json").read_text())
    assert config["training"]["dataset"]["counts"]["num_kept"] == 24
    assert str(tmp_path) not in json.dumps(config), "a drafter is published: it says nothing of this disk"
    assert config["training"]["whole_training"]["ended_by"] == "max_steps"
    [listed] = json.loads(specbench("results", "ls", *store, "--json").out)
    assert listed["kind"] == "train" and listed["state"] == "finished"
    plotted = specbench("results", "plot", listed["run_id"], *store)
    assert plotted.code == 0 and "loss" in plotted.out
    assert Path(plotted.out.strip().splitlines()[-1]).read_text().startswith("<!doctype html>")
    assert specbench("results", "ingest", *store).code == 0
    evaluated = specbench("eval", *line, "--set", f"shallow.weights={folder}", "--json")
    assert evaluated.code == 0, evaluated.err
    found = json.loads(evaluated.out)
    assert found["schema"] == 1 and len(found["accuracy"]) == 2 and found["acceptance_length"] >= 1
    assert any("this very data set" in each for each in found["notes"])
    table = specbench("eval", *line, "--set", f"shallow.weights={folder}")
    assert "top-1" in table.out and "simulated acceptance length" in table.out


def test_a_dry_run_as_json(specbench: Callable[..., Ran], line: list[str], tmp_path: Path) -> None:
    ran = specbench("train", *line, *_SHORT, "--dry-run", "--json", "--store", str(tmp_path / "results"))
    assert ran.code == 0, ran.err
    plan: dict[str, Any] = json.loads(ran.out)["plan"]
    assert plan["parameters"]["total"] == 131072 and plan["steps"] == 3
    assert not (tmp_path / "results").exists()


def test_a_device_that_is_found_computes_as_the_same_device_named(
    specbench: Callable[..., Ran], line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    found = [word for word in line if word not in ("--device", "cpu")]
    ran = specbench("train", *found, *_SHORT, "--dry-run", "--json", "--store", str(tmp_path / "results"))
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["plan"]["precision"] == "fp32"


def test_wrong_columns_name_the_existing_ones(specbench: Callable[..., Ran], line: list[str], tmp_path: Path) -> None:
    ran = specbench(
        "train", *line, *_SHORT, "--columns", "prompt=question,response=answer", "--store", str(tmp_path / "results")
    )
    assert ran.code == 2
    assert "question" in ran.err and "prompt" in ran.err and "response" in ran.err


def _of_target(line: list[str], data: Path, tmp_path: Path) -> list[str]:
    """A training on the target's own answers."""
    own = [f"self:{data}" if word == str(data) else word for word in line]
    return ["train", *own, *_SHORT, "--response-tokens", "8", "--store", str(tmp_path / "results")]


def test_a_dry_run_decodes_no_answer_and_says_what_they_come_to_at_most(
    specbench: Callable[..., Ran], line: list[str], target: Path, tmp_path: Path, data: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Beside the plan of the training itself, which the target's answers are written for."""
    words = _of_target(line, data, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "generate", lambda *_, **__: pytest.fail("something was decoded"))
        ran = specbench(*words, "--dry-run", "--json")
        assert ran.code == 0, ran.err
        planned = json.loads(ran.out)["plan"]
        shown = specbench(*words, "--dry-run", "--cache-states").out
    assert planned["at_most"] and not (tmp_path / "results").exists()
    assert f"at most {planned['tokens_per_epoch']:,} tokens an epoch" in shown and "states on disk: at most" in shown
    assert f"{target.name} has yet to answer 24 prompts of {data.name}" in shown and "counts as 8 tokens" in shown
    assert specbench(*words).code == 0
    [record] = (tmp_path / "results" / "runs").glob("*/train.json")
    plan = json.loads(record.read_text())["plan"]
    assert not plan["at_most"] and plan["documents"] == planned["documents"] == 20
    prompts = planned["tokens_per_epoch"] - 8 * 20
    assert planned["learn_tokens_per_epoch"] == 8 * 20
    assert plan["tokens_per_epoch"] - plan["learn_tokens_per_epoch"] == prompts, "the same documents are held out"
    assert plan["tokens_per_epoch"] <= planned["tokens_per_epoch"] and plan["rows"] <= planned["rows"]
    # Now they are there, and a plan need not guess.
    again = json.loads(specbench(*words, "--dry-run", "--json").out)["plan"]
    assert not again["at_most"] and again["tokens_per_epoch"] == plan["tokens_per_epoch"]
    other = json.loads(specbench(*words, "--seed", "5", "--dry-run", "--json").out)["plan"]
    assert other["at_most"], "another seed is another answer, which nobody has written"


def test_a_plan_of_unwritten_answers_says_where_their_states_may_not_fit(
    specbench: Callable[..., Ran], line: list[str], tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*_of_target(line, data, tmp_path), "--dry-run", "--cache-states"]
    assert "is refused then" not in specbench(*words).out
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("specbench.training.cache.shutil.disk_usage", lambda _: usage)
    ran = specbench(*words)
    assert ran.code == 0 and "if they come to that, --cache-states is refused then" in ran.out


def test_answers_of_the_target_itself_are_learnt(
    specbench: Callable[..., Ran], line: list[str], target: Path, tmp_path: Path, data: Path
) -> None:
    words = _of_target(line, data, tmp_path)
    ran = specbench(*words)
    assert ran.code == 0, ran.err
    assert "answers 24 prompts" in ran.err
    [config] = (tmp_path / "results" / "drafters").glob("*/config.json")
    source = json.loads(config.read_text())["training"]["dataset"]["source"]
    assert source == f"written by {target.name} to prompts of {data.name}", "and not where either of them lies"


def test_an_unknown_option_of_the_method_is_refused(specbench: Callable[..., Ran], line: list[str]) -> None:
    ran = specbench("train", *line, "--set", "shallow.dropuot=0.1")
    assert ran.code == 2 and "dropout" in ran.err


def test_eval_without_a_drafter_says_how_to_name_one(specbench: Callable[..., Ran], line: list[str]) -> None:
    ran = specbench("eval", *line)
    assert ran.code == 2 and "--set shallow.weights=DIR" in ran.err


def test_help_loads_no_torch() -> None:
    script = (
        "import sys; from specbench.cli import main\n"
        "try: main([sys.argv[1], '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'accelerate' in sys.modules or 'duckdb' in sys.modules)"
    )
    for command in ("train", "eval"):
        done = subprocess.run([sys.executable, "-c", script, command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "--dataset" in done.stdout


def test_a_bar_and_lines_say_the_same(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from specbench.cli.train_progress import TrainLines, open_train_progress

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    with open_train_progress() as progress:
        progress.plan(title="lstm on demo", share_done=0.0)
        progress.say("held-out answers")
        progress.step(step=5, share=1.0, loss=2.5, tokens_per_s=1234.0, eta_s=0.0)
    drawn = capsys.readouterr().err
    assert "held-out answers" in drawn and "step 5  loss 2.5000  1,234 tokens/s" in drawn
    lines = TrainLines()
    lines.plan(title="lstm on demo", share_done=0.5)
    lines.step(step=5, share=0.6, loss=2.5, tokens_per_s=1234.0, eta_s=3.0)  # within ten seconds: silent
    assert capsys.readouterr().err == "lstm on demo: 50% done before\n"


@pytest.mark.parametrize(("num", "held_out"), [(2, 1), (3, 1), (5, 1), (6, 2)])
def test_two_documents_are_enough_to_train_and_one_of_them_is_held_out(
    specbench: Callable[..., Ran], line: list[str], tmp_path: Path, data: Path, num: int, held_out: int
) -> None:
    data.write_text("".join(data.read_text().splitlines(keepends=True)[:num]))
    ran = specbench("train", *line, *_SHORT, "--dry-run", "--json", "--store", str(tmp_path / "results"))
    assert ran.code == 0, ran.err
    plan = json.loads(ran.out)["plan"]
    assert (plan["documents"], plan["held_out"]) == (num - held_out, held_out)


@pytest.mark.parametrize(
    ("rows", "says"),
    [(["What is 2 + 2?"], "has 1 document, and at least 2 are needed: one is held out"), (["Why?"] * 2, "one prompt")],
)
def test_too_few_documents_are_refused_with_how_many_it_takes(
    specbench: Callable[..., Ran], line: list[str], tmp_path: Path, data: Path, rows: list[str], says: str
) -> None:
    found = [{"prompt": row, "response": f"{number} it is, I think."} for number, row in enumerate(rows)]
    data.write_text("".join(json.dumps(row) + "\n" for row in found))
    ran = specbench("train", *line, *_SHORT, "--store", str(tmp_path / "results"))
    assert ran.code == 2 and says in ran.err and "--eval-documents" not in ran.err, ran.err


def test_a_target_without_a_chat_template_learns_in_a_plain_one_and_is_measured_in_it(
    specbench: Callable[..., Ran], line: list[str], target: Path, tmp_path: Path, data: Path
) -> None:
    """What refuses names an option that is there; texts, the target's own answers and the printed run go by it."""
    base = tmp_path / "base"
    shutil.copytree(target, base, ignore=shutil.ignore_patterns("chat_template.jinja"))
    own = [str(base) if word == str(target) else word for word in line]
    store = ["--store", str(tmp_path / "results")]
    refused = specbench("train", *own, *_SHORT, *store)
    assert refused.code == 2 and "no chat template" in refused.err and "--template plain" in refused.err
    ran = specbench("train", *own, *_SHORT, *store, "--template", "vicuna")
    assert ran.code == 0, ran.err
    command = shlex.split(ran.out.strip().splitlines()[-1])
    assert command[command.index("--template") + 1] == "vicuna"
    folder = command[command.index("--set") + 1].partition("weights=")[2]
    [file] = (tmp_path / "results" / "runs").glob("*/train.json")
    record = json.loads(file.read_text())
    assert record["request"]["template"] == "vicuna"
    weights = ("--set", f"shallow.weights={folder}", "--json")
    found = [specbench("eval", *own, *weights, "--template", name) for name in ("vicuna", "alpaca")]
    assert [each.code for each in found] == [0, 0], found
    told = ["trained on conversations in template vicuna, not alpaca" in each.out for each in found]
    assert told == [False, True]
    written = [word.replace(str(data), f"self:{data}") for word in own]
    again = specbench("train", *written, *_SHORT, *store, "--template", "vicuna", "--response-tokens", "8")
    assert again.code == 0, again.err
    wrong = specbench("train", *own, *_SHORT, *store, "--template", "vicunia")
    assert wrong.code == 2 and "vicuna" in wrong.err


def test_a_training_from_before_templates_could_be_chosen_goes_on_in_the_targets_own(
    specbench: Callable[..., Ran], line: list[str], tmp_path: Path
) -> None:
    store = ["--store", str(tmp_path / "results")]
    assert specbench("train", *line, *_SHORT, *store).code == 0
    [file] = (tmp_path / "results" / "runs").glob("*/train.json")
    record = json.loads(file.read_text())
    assert record["request"].pop("template") == "chat"
    file.write_text(json.dumps(record))
    ran = specbench("train", "--resume", record["run_id"], *store)
    assert ran.code == 0, ran.err
    assert "--template" not in ran.out
