"""Rows become questions by the mapping, and every bad line is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specbench.errors import UsageError
from specbench.suite import load_suite

HEAD = "name: tiny\ntitle: Tiny\nlicence: MIT\nsources:\n  - local: q.jsonl\n"


def test_a_users_jsonl_works_by_path(write_jsonl: Any) -> None:
    path = write_jsonl(
        "mine.jsonl",
        [
            {"prompt": "one"},
            {"turns": ["two", "three"], "category": "chat", "reference": "r"},
            {"prompt": "four", "category": None, "reference": ["a", "b"], "extra": 1},
        ],
    )
    suite = load_suite(str(path))
    assert (suite.name, suite.has_answers, suite.source) == ("mine", False, str(path))
    assert [q.question_id for q in suite.questions] == ["0", "1", "2"]
    assert [q.category for q in suite.questions] == ["mine", "chat", "mine"]
    assert [q.turns for q in suite.questions] == [("one",), ("two", "three"), ("four",)]
    assert [q.reference for q in suite.questions] == [(), ("r",), ("a", "b")]


def test_the_yaml_maps_columns_groups_and_surrounds_the_first_turn(
    write_jsonl: Any, write_yaml: Callable[[str], Path]
) -> None:
    write_jsonl(
        "q.jsonl",
        [
            {"key": 7, "ask": ["a", "b"], "kind": "writing", "gold": [["x", "y"]]},
            {"key": 8, "ask": "c", "kind": ""},
        ],
    )
    path = write_yaml(
        HEAD + "columns: {question_id: key, turns: ask, category: kind, reference: gold}\n"
        "category: rest\ncategory_groups: {prose: [writing]}\nprompt_prefix: '<'\nprompt_suffix: '>'\n"
    )
    first, second = load_suite(str(path)).questions
    assert (first.question_id, first.turns, first.category, first.reference) == ("7", ("<a>", "b"), "prose", ("x", "y"))
    assert (second.question_id, second.turns, second.category, second.reference) == ("8", ("<c>",), "rest", ())


@pytest.mark.parametrize("with_id", [0, 1])
def test_ids_are_for_all_lines_or_none_and_the_first_line_without_is_named(write_jsonl: Any, with_id: int) -> None:
    """Every line by itself is as the documents allow: what is wrong is that they differ."""
    rows: list[dict[str, Any]] = [{"prompt": "a", "category": "c"}, {"prompt": "b", "category": "c"}]
    rows[with_id]["question_id"] = "x"
    path = write_jsonl("mine.jsonl", rows)
    with pytest.raises(UsageError) as caught:
        load_suite(str(path))
    assert caught.value.what == "some lines have a question_id and this one has none"
    assert (
        caught.value.where == f"{path}:{2 - with_id}" and caught.value.try_ == "give every line a question_id, or none"
    )


def test_rows_without_ids_count_from_first_id(write_jsonl: Any, write_yaml: Callable[[str], Path]) -> None:
    write_jsonl("q.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    suite = load_suite(str(write_yaml(HEAD + "    first_id: 81\n")))
    assert [q.question_id for q in suite.questions] == ["81", "82"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "b"', "malformed JSON"),
        ("[1, 2]", "one JSON object, not list"),
        ('{"question": "b"}', "no column 'turns' or 'prompt'"),
        ('{"prompt": "b", "turns": ["c"]}', "not both"),
        ('{"turns": []}', "'turns' is empty"),
        ('{"turns": ["c", 3]}', "text or a list of texts"),
        ('{"prompt": null}', "text or a list of texts"),
        ('{"prompt": "  "}', "empty turn"),
        ('{"prompt": "\\ud800"}', "not valid Unicode"),
        ('{"prompt": "b", "category": 3}', "category is text"),
        ('{"prompt": "b", "reference": {"a": 1}}', "'reference' is a text"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "a"}\n\n' + line + "\n", encoding="utf-8")
    with pytest.raises(UsageError, match=message) as caught:
        load_suite(str(path))
    assert caught.value.where == f"{path}:3"


def test_repeated_and_missing_ids_are_refused(write_jsonl: Any) -> None:
    path = write_jsonl("mine.jsonl", [{"question_id": 1, "prompt": "a"}, {"question_id": "1", "prompt": "b"}])
    with pytest.raises(UsageError, match="'1' appears twice") as caught:
        load_suite(str(path))
    assert caught.value.where.endswith("mine.jsonl:2")
    assert "mine.jsonl:1" in caught.value.what
    path = write_jsonl("mine.jsonl", [{"question_id": 1, "prompt": "a"}, {"prompt": "b"}])
    with pytest.raises(UsageError, match="some lines have a question_id"):
        load_suite(str(path))


def test_a_mapped_column_that_is_missing_names_the_nearest(write_jsonl: Any, write_yaml: Callable[[str], Path]) -> None:
    write_jsonl("q.jsonl", [{"question": "a"}])
    path = write_yaml(HEAD + "columns: {turns: questions}\n")
    with pytest.raises(UsageError, match="no column 'questions'; did you mean 'question'"):
        load_suite(str(path))


def test_an_empty_suite_is_refused(tmp_path: Path, write_yaml: Callable[[str], Path]) -> None:
    for content in ("", "\n  \n"):
        (tmp_path / "q.jsonl").write_text(content)
        with pytest.raises(UsageError, match="'q' has no questions"):
            load_suite(str(tmp_path / "q.jsonl"))
        with pytest.raises(UsageError, match="'tiny' has no questions"):
            load_suite(str(write_yaml(HEAD)))
    with pytest.raises(UsageError, match="'tiny' has no questions"):
        load_suite(str(write_yaml("name: tiny\ntitle: Tiny\nlicence: MIT\nquestions: []\n")))


def test_a_scored_suite_needs_an_answer_in_every_reference(write_jsonl: Any, write_yaml: Callable[[str], Path]) -> None:
    path = write_yaml(HEAD + "answer: gsm8k\n")
    write_jsonl("q.jsonl", [{"prompt": "a", "reference": "#### 4"}, {"prompt": "b", "reference": "none"}])
    with pytest.raises(UsageError, match="no gsm8k answer") as caught:
        load_suite(str(path))
    assert caught.value.where.endswith("q.jsonl:2")
    write_jsonl("q.jsonl", [{"prompt": "a", "reference": "#### 4"}])
    assert load_suite(str(path)).has_answers


def test_line_separators_inside_a_text_do_not_cut_the_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps({"prompt": "a\u2028b"}, ensure_ascii=False) + "\r\n", encoding="utf-8-sig")
    assert load_suite(str(path)).questions[0].turns == ("a\u2028b",)


def test_the_content_hash_follows_what_can_change_a_result(write_jsonl: Any) -> None:
    def hash_of(*rows: dict[str, object]) -> str:
        return load_suite(str(write_jsonl("mine.jsonl", rows))).content_hash

    base = hash_of({"prompt": "a"}, {"prompt": "b"})
    assert hash_of({"prompt": "a", "reference": "unused"}, {"turns": ["b"]}) == base
    assert hash_of({"prompt": "b"}, {"prompt": "a"}) != base
    assert hash_of({"prompt": "a"}, {"prompt": "b "}) != base
    assert hash_of({"prompt": "a", "category": "x"}, {"prompt": "b"}) != base
