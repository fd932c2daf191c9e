"""Where rows come from, in which order, and which subset a limit takes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specbench import paths
from specbench.errors import EnvironmentFailed, UsageError
from specbench.suite import load_suite, search_path, survey

HEAD = "name: tiny\ntitle: Tiny\nlicence: MIT\n"


def many(write_jsonl: Any, *, per_category: dict[str, int]) -> Path:
    rows = [{"prompt": f"{name} {i}", "category": name} for name, size in per_category.items() for i in range(size)]
    return Path(write_jsonl("many.jsonl", rows))


def test_a_limit_is_a_seeded_subset_in_suite_order(write_jsonl: Any) -> None:
    path = str(many(write_jsonl, per_category={"a": 30}))
    whole = [q.question_id for q in load_suite(path).questions]
    chosen = [q.question_id for q in load_suite(path, limit=8, seed=1).questions]
    assert len(chosen) == 8
    assert chosen == [item for item in whole if item in chosen]
    assert chosen == [q.question_id for q in load_suite(path, limit=8, seed=1).questions]
    assert chosen != [q.question_id for q in load_suite(path, limit=8, seed=2).questions]
    assert chosen != whole[:8]


def test_a_limit_is_balanced_over_categories(write_jsonl: Any) -> None:
    path = str(many(write_jsonl, per_category={"a": 50, "b": 50, "c": 2}))
    counts = Counter(q.category for q in load_suite(path, limit=12, seed=0).questions)
    assert counts == {"a": 5, "b": 5, "c": 2}


def test_the_smaller_subset_of_a_seed_is_within_the_larger(write_jsonl: Any) -> None:
    suite = load_suite(str(many(write_jsonl, per_category={"a": 9, "b": 4})))
    small = {q.question_id for q in suite.limited(4, seed=3).questions}
    assert small < {q.question_id for q in suite.limited(9, seed=3).questions}


def test_the_subset_of_a_seed_never_changes(write_jsonl: Any) -> None:
    """A subset is part of a run's identity: another Python or another version of specbench must draw the same one."""
    suite = load_suite(str(many(write_jsonl, per_category={"a": 6, "b": 6})))
    assert [q.question_id for q in suite.limited(4, seed=0).questions] == FROZEN_SUBSET


FROZEN_SUBSET = ["1", "4", "8", "9"]
"""Worked out apart: the two smallest sha256("0\\0ID") of ids 0 to 5, and of 6 to 11."""


def test_a_limit_above_the_suite_takes_all_and_says_so(write_jsonl: Any) -> None:
    path = str(many(write_jsonl, per_category={"a": 3}))
    suite = load_suite(path, limit=10)
    assert len(suite.questions) == 3
    assert "all 3 questions" in suite.notes[0]
    assert load_suite(path, limit=3).notes == ()
    with pytest.raises(UsageError, match="at least 1"):
        load_suite(path, limit=0)


def test_the_hash_and_the_count_are_the_whole_suites_under_a_limit(write_jsonl: Any) -> None:
    path = str(many(write_jsonl, per_category={"a": 5}))
    part, whole = load_suite(path, limit=2), load_suite(path)
    assert (part.content_hash, part.num_available) == (whole.content_hash, 5)


def test_folders_are_searched_option_first_then_variable_then_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abcd":
        (tmp_path / name).mkdir()
    monkeypatch.setenv("SPECBENCH_DATA", f"{tmp_path / 'b'}{os.pathsep}{tmp_path / 'c'}")
    paths.config_file().write_text(f"data: [{tmp_path / 'd'}]\n")
    assert search_path([tmp_path / "a"]) == tuple(tmp_path / name for name in "abcd")


def test_the_first_folder_that_has_the_file_wins(
    tmp_path: Path, write_jsonl: Any, write_yaml: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_yaml(HEAD + "sources:\n  - local: sub/q.jsonl\n")
    write_jsonl("one/sub/q.jsonl", [{"prompt": "from one"}])
    write_jsonl("two/sub/q.jsonl", [{"prompt": "from two"}])
    monkeypatch.setenv("SPECBENCH_DATA", str(tmp_path / "two"))
    suite = load_suite(str(path), data_dirs=[tmp_path / "one"])
    assert suite.questions[0].turns == ("from one",)
    assert suite.source == str(tmp_path / "one" / "sub" / "q.jsonl")
    assert load_suite(str(path)).questions[0].turns == ("from two",)


def test_a_broken_local_file_is_an_error_not_a_download(tmp_path: Path, write_yaml: Callable[[str], Path]) -> None:
    path = write_yaml(HEAD + "sources:\n  - local: q.jsonl\n  - hub: {dataset: some/thing}\n")
    (tmp_path / "q.jsonl").write_text("{")
    with pytest.raises(UsageError, match="malformed JSON"):
        load_suite(str(path), find_revision=lambda _: pytest.fail("asked the hub"))


@pytest.mark.parametrize("origin", ["--data", "SPECBENCH_DATA", "data:"])
def test_a_folder_that_does_not_exist_is_refused_with_its_origin(
    tmp_path: Path, origin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    if origin == "SPECBENCH_DATA":
        monkeypatch.setenv("SPECBENCH_DATA", str(gone))
    if origin == "data:":
        paths.config_file().write_text(f"data: {gone}\n")
    with pytest.raises(UsageError, match="no such data folder") as caught:
        search_path([gone] if origin == "--data" else [])
    assert origin in caught.value.where


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dat: /somewhere\n", "unknown key 'dat'; did you mean 'data'"),
        ("data: [\n", "not valid YAML"),
        ("- /somewhere\n", "a YAML mapping"),
    ],
    ids=["mistyped key", "broken", "list"],
)
def test_a_configuration_that_says_something_else_is_never_passed_over(text: str, said: str) -> None:
    paths.config_file().write_text(text)
    with pytest.raises(UsageError, match=said) as caught:
        search_path([])
    assert str(paths.config_file()) in caught.value.where and "\n" not in caught.value.what


def test_a_configuration_that_is_named_must_be_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPECBENCH_CONFIG", str(tmp_path / "none.yaml"))
    with pytest.raises(UsageError, match="there is no configuration"):
        search_path([])


def test_a_configuration_of_another_shape_is_refused(tmp_path: Path) -> None:
    paths.config_file().write_text("data: {a: 1}\n")
    with pytest.raises(UsageError, match="a folder or a list"):
        search_path([])


def test_offline_and_not_local_names_the_file_and_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(EnvironmentFailed) as caught:
        load_suite("gsm8k", offline=True)
    assert "gsm8k/test.jsonl" in caught.value.what
    assert "specbench suites fetch gsm8k" in caught.value.try_
    assert "--data DIR" in caught.value.try_
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(EnvironmentFailed, match="network is not to be used"):
        load_suite("gsm8k")


def test_a_source_of_another_size_is_used_and_said_to_differ(write_jsonl: Any, tmp_path: Path) -> None:
    write_jsonl("gsm8k/test.jsonl", [{"question": "2+2?", "answer": "#### 4"}])
    suite = load_suite("gsm8k", data_dirs=[tmp_path])
    assert len(suite.questions) == 1
    assert "1319 questions as published" in suite.notes[0]


def test_survey_says_where_each_would_come_from(write_jsonl: Any, tmp_path: Path) -> None:
    write_jsonl("gsm8k/test.jsonl", [{"question": "2+2?", "answer": "#### 4"}])
    (tmp_path / "mt_bench").mkdir()
    (tmp_path / "mt_bench" / "question.jsonl").write_text("{")
    found = {status.name: status for status in survey([tmp_path])}
    assert {name: status.state for name, status in found.items()} == {
        "alpaca": "hub",
        "alpaca_eagle": "missing",
        "demo": "inline",
        "gsm8k": "local",
        "humaneval": "hub",
        "mtbench": "unreadable",
        "spec_bench": "missing",
    }
    assert found["gsm8k"].num_questions == 1
    assert found["gsm8k"].content_hash == load_suite("gsm8k", data_dirs=[tmp_path]).content_hash
    assert found["spec_bench"].where == "spec_bench/question.jsonl"
    assert "curl" in found["spec_bench"].help
    assert found["alpaca"].where == "tatsu-lab/alpaca_eval"
    assert found["mtbench"].where.endswith("question.jsonl:1)")


def test_the_demo_is_thirty_six_short_questions_of_three_categories() -> None:
    suite = load_suite("demo")
    assert Counter(q.category for q in suite.questions) == {"maths": 12, "roleplay": 12, "code": 12}
    assert suite.defaults.max_new_tokens == 96
    assert all(len(q.turns) == 1 and len(q.turns[0]) < 200 for q in suite.questions)
