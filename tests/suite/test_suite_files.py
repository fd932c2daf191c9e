"""What a suite's YAML may say, and that everything else is refused with the line it stands on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from specbench.errors import EnvironmentFailed, UsageError
from specbench.suite import load_suite, packaged_names, resolve_spec
from specbench.suite.reading import parse_suite, read_suite_file

HEAD = "name: tiny\ntitle: Tiny\nlicence: MIT\n"
ONE_QUESTION = "questions:\n  - {question_id: a, turns: [hi]}\n"


def test_packaged_suites_are_the_seven_and_their_names_are_their_files() -> None:
    names = packaged_names()
    assert set(names) == {"mtbench", "gsm8k", "alpaca", "alpaca_eagle", "humaneval", "spec_bench", "demo"}
    for name in names:
        suite = read_suite_file(resolve_spec(name))
        assert suite.name == name
        assert suite.licence and suite.title
        assert (suite.defaults.target, suite.defaults.methods) == ("demo", "ready")


def test_suites_path_is_the_packaged_suite_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Breaks the promise that `specbench run suites/demo.yaml` works verbatim anywhere."""
    monkeypatch.chdir(tmp_path)
    for spec in ("demo", "suites/demo.yaml", "./suites/demo.yaml"):
        assert len(load_suite(spec).questions) == 36


def test_a_file_of_that_path_wins_over_the_packaged_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "demo.yaml").write_text(HEAD + ONE_QUESTION)
    monkeypatch.chdir(tmp_path)
    assert load_suite("suites/demo.yaml").name == "tiny"
    assert load_suite("demo").name == "demo"


@pytest.mark.parametrize("spec", ["mtbnch", "suites/mtbnch.yaml", "mtbench.yaml"])
def test_unknown_suite_names_the_nearest(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="did you mean 'mtbench'") as caught:
        load_suite(spec)
    assert caught.value.exit_code == 2


def test_folder_and_foreign_file_are_no_suites(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        load_suite(str(tmp_path))
    (tmp_path / "x.txt").write_text("hi")
    with pytest.raises(UsageError, match="neither a YAML nor a JSONL"):
        load_suite(str(tmp_path / "x.txt"))
    with pytest.raises(UsageError, match="300 characters"):
        load_suite("x" * 300)


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        (HEAD + "tittle: x\n" + ONE_QUESTION, "unknown key 'tittle'; did you mean 'title'", 4),
        (HEAD + ONE_QUESTION + "defaults:\n  max_new_token: 5\n", "did you mean 'max_new_tokens'", 7),
        (HEAD + "sources:\n  - local: a.jsonl\n  - hub:\n      datset: x\n", "did you mean 'dataset'", 7),
        (
            HEAD + ONE_QUESTION + "defaults: {max_new_tokens: '5'}\n",
            "max_new_tokens: Input should be a valid integer",
            6,
        ),
        (HEAD + ONE_QUESTION + "defaults:\n  target: demo\n  methods: all\n", "defaults.methods", 8),
        (HEAD + "sources:\n  - {local: a, hub: {dataset: b}}\n", "either `local: FILE` or `hub:", 5),
        (HEAD + "sources:\n  - hub: {dataset: b, revision: main}\n", "revision", 5),
        (HEAD, "either `sources:` or `questions:`", 1),
        (HEAD + ONE_QUESTION + "sources:\n  - local: a.jsonl\n", "not both", 1),
        (HEAD + ONE_QUESTION + "answer: eval\n", "answer", 6),
        (HEAD + ONE_QUESTION + "title: Again\n", "'title' appears twice", 6),
        (HEAD + "questions: [a\n", "not valid YAML", 5),
        (HEAD + ONE_QUESTION + "category_groups: {a: [x], b: [x]}\n", "two groups", 1),
    ],
)
def test_a_wrong_yaml_is_refused_with_its_line(text: str, message: str, line: int) -> None:
    with pytest.raises(UsageError) as caught:
        parse_suite(text, origin="s.yaml")
    assert message in caught.value.what
    assert caught.value.where == f"s.yaml:{line}"


@pytest.mark.parametrize("text", ["", "- a\n", "just text\n"])
def test_a_yaml_that_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="mapping"):
        parse_suite(text, origin="s.yaml")


def test_yaml_cannot_build_python_objects(write_yaml: Callable[[str], Path]) -> None:
    path = write_yaml(HEAD + ONE_QUESTION + "category: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(UsageError, match="not valid YAML"):
        load_suite(str(path))


def test_unreadable_text_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"prompt": "caf\xe9"}\n')
    with pytest.raises(UsageError, match="not UTF-8"):
        load_suite(str(path))


def test_a_local_file_that_vanished_is_missing_not_substituted(write_yaml: Callable[[str], Path]) -> None:
    path = write_yaml(HEAD + "sources:\n  - {local: gone.jsonl, url: https://example.org/gone.jsonl}\n")
    with pytest.raises(EnvironmentFailed, match=r"gone\.jsonl is wanted") as caught:
        load_suite(str(path))
    assert "https://example.org/gone.jsonl" in caught.value.try_
    assert caught.value.exit_code == 3


def test_an_empty_name_is_called_empty() -> None:
    """As a path it is the working folder."""
    with pytest.raises(UsageError, match="name is empty"):
        resolve_spec("")


@pytest.mark.parametrize("spec", ["mine.jsonl", "mine.yaml", "folder/mine.jsonl"])
def test_a_file_that_is_not_there_is_called_a_file(spec: str) -> None:
    with pytest.raises(UsageError, match=f"there is no file '{spec}'"):
        resolve_spec(spec)
