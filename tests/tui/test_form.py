"""The launch form's rules: the command's own, before a process is started."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import pytest
import yaml

from specbench.bench.request import RunRequest
from specbench.cli.app import root_command
from specbench.suite.schema import Defaults
from specbench.tui import form


def test_every_option_of_a_run_is_a_field_of_the_form() -> None:
    """A new option must not be missing here by being forgotten."""
    named = {field.name for field in form.fields()}
    left_out = {field.name for field in dataclasses.fields(RunRequest)} - named
    assert left_out == {"resume", "dry_run", "store", "command", "fail_under"}


def test_the_command_that_is_started_is_one_that_the_command_line_takes(tmp_path: Path) -> None:
    """Checked by the parser itself, `--help` appended so that nothing runs."""
    values = {
        "suite": "demo", "methods": "autoregressive,draft_model", "limit": "3", "temperature": "0.5", "top_p": "0.9",
        "settings": "draft_model.num_tokens=3", "stop": "Question:", "trust_remote_code": "yes", "seed": "7",
    }  # fmt: skip
    checked = form.check(values, store=tmp_path)
    assert checked.problem == ""
    name, command, rest = root_command().resolve_command(root_command().make_context("specbench", []), [*checked.words])
    assert name == "run" and command is not None
    context = command.make_context("run", list(rest))
    assert context.params["limit"] == 3 and context.params["trust_remote_code"] is True
    assert context.params["store"] == tmp_path


@pytest.mark.parametrize(
    ("values", "field", "words"),
    [
        ({"suite": ""}, "suite", "no suite was named"),
        ({"suite": "mtbenhc"}, "suite", "did you mean 'mtbench'"),
        ({"limit": "many"}, "limit", "not a whole number"),
        ({"top_p": "3"}, "top_p", "out of range"),
        ({"rule": "couple"}, "rule", "coupled"),
        ({"methods": "autoregressive,draftmodel"}, "methods", "did you mean 'draft_model'"),
        ({"settings": "draft_model.tokens=3"}, "draft_model.tokens", "unknown option"),
        ({"settings": "nonsense"}, "settings", "METHOD.OPTION=VALUE"),
        ({"trust_remote_code": "perhaps"}, "trust_remote_code", "yes nor no"),
        ({"settings": "a 'b"}, "settings", "close the quotation"),
    ],
)
def test_what_is_wrong_is_said_with_its_field_and_a_remedy(values: dict[str, str], field: str, words: str) -> None:
    checked = form.check({"suite": "demo"} | values, store=None)
    assert checked.words == ()
    assert words in checked.problem
    assert checked.wrong_field.startswith(field.split(".")[0]) or field == "suite"


def test_the_yaml_is_a_suites_own_defaults() -> None:
    checked = form.check({"suite": "demo", "repeats": "5"}, store=None)
    said = yaml.safe_load(checked.yaml)["defaults"]
    assert Defaults.model_validate(said | {"methods": tuple(said["methods"])}).repeats == 5


def test_defaults_are_said_in_the_full_command() -> None:
    words = shlex.split(form.check({"suite": "demo"}, store=None).command)
    assert words[:3] == ["specbench", "run", "demo"] and "--max-new-tokens" in words


def test_what_no_suite_can_say_is_listed_beside_its_yaml() -> None:
    """Dropped in silence, the YAML would be another run than the command."""
    values = {
        "suite": "demo", "limit": "3", "seed": "7", "top_p": "0.9", "rule": "rejection", "stop": "Question:",
        "settings": "draft_model.num_tokens=3", "batch_size": "2", "dtype": "float64",
    }  # fmt: skip
    checked = form.check(values, store=Path("/somewhere"))
    words = shlex.split(checked.beside)
    assert words[:3] == ["specbench", "run", "demo"]
    said = {"--seed", "7", "--top-p", "0.9", "--rule", "rejection", "--stop", "Question:", "--set", "--batch-size"}
    assert said <= set(words) and "float64" in words and "draft_model.num_tokens=3" in words
    assert "--limit" not in words and "--store" not in words, "the YAML says the one, the other is the viewer's"
    assert form.check({"suite": "demo", "limit": "3", "temperature": "0.5"}, store=None).beside == ""
