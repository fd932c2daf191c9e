"""Rows of a JSONL file or a hub dataset -> checked questions. Every refusal names file and line. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from specbench.errors import UsageError, did_you_mean
from specbench.suite.answers import extract_answer
from specbench.suite.reading import read_text
from specbench.suite.schema import Columns, InlineQuestion, SuiteFile


@dataclass(frozen=True)
class Question:
    """One prompt of a suite, in as many turns as it has."""

    question_id: str
    category: str
    turns: tuple[str, ...]
    """The user's messages; the first with the suite's prefix and suffix."""
    reference: tuple[str, ...]
    """Accepted answers; empty where the suite has none."""


class Row(NamedTuple):
    """One record and where it stood, for messages: `FILE:LINE` or `DATASET row N`."""

    where: str
    values: Mapping[str, Any]


def read_jsonl(path: Path) -> list[Row]:
    """One object a line; empty lines are skipped. Raises UsageError with file and line."""
    rows = []
    # Split at newlines only: str.splitlines would also cut at U+2028, which JSON allows inside a string.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise UsageError(f"malformed JSON: {error.msg} (column {error.colno})", where=where) from error
        except RecursionError as error:
            raise UsageError("malformed JSON: nested too deeply", where=where) from error
        if not isinstance(values, dict):
            raise UsageError(f"a line holds one JSON object, not {type(values).__name__}", where=where)
        rows.append(Row(where, values))
    return rows


def rows_to_questions(
    rows: Sequence[Row], *, suite: SuiteFile, columns: Columns | None, first_id: int
) -> tuple[Question, ...]:
    """Map and check all rows. Raises UsageError on missing columns, wrong types and repeated ids."""
    names = columns or Columns()
    id_column = names.question_id or "question_id"
    has_ids = names.question_id is not None or any(id_column in row.values for row in rows)
    if names.question_id is None:
        _refuse_some_ids(rows, id_column)
    questions = []
    for index, row in enumerate(rows):
        question_id = _question_id(_required(row, id_column), row.where) if has_ids else str(first_id + index)
        questions.append(
            _question(
                suite,
                row.where,
                question_id=question_id,
                category=_category(row, names),
                turns=_turns(row, _turns_column(row, names)),
                reference=_reference(row, names.reference or "reference"),
            )
        )
    _refuse_repeated_ids(questions, [row.where for row in rows])
    return tuple(questions)


def inline_questions(suite: SuiteFile, inline: Sequence[InlineQuestion], *, origin: str) -> tuple[Question, ...]:
    """The questions written in the suite's own YAML."""
    places = [f"{origin}: questions[{index}]" for index in range(len(inline))]
    questions = [
        _question(
            suite,
            where,
            question_id=_question_id(item.question_id, where),
            category=item.category,
            turns=item.turns,
            reference=item.reference,
        )
        for item, where in zip(inline, places, strict=True)
    ]
    _refuse_repeated_ids(questions, places)
    return tuple(questions)


def content_hash(questions: Sequence[Question], *, has_answers: bool) -> str:
    """sha256 of everything of the questions that can change a result: ids, categories, turns, and answers if scored."""
    digest = hashlib.sha256()
    for item in questions:
        reference = item.reference if has_answers else ()
        record = [item.question_id, item.category, item.turns, reference]
        digest.update(json.dumps(record, ensure_ascii=True, separators=(",", ":")).encode() + b"\n")
    return digest.hexdigest()


def _question(
    suite: SuiteFile, where: str, *, question_id: str, category: str, turns: tuple[str, ...], reference: tuple[str, ...]
) -> Question:
    if not turns or not all(turn.strip() for turn in turns):
        raise UsageError(f"question {question_id!r} has an empty turn", where=where)
    for text in (question_id, category, *turns, *reference):
        # JSON can spell half a surrogate pair; no tokenizer and no journal can.
        if any("\ud800" <= char <= "\udfff" for char in text):
            raise UsageError(f"question {question_id!r} has text that is not valid Unicode", where=where)
    if suite.answer and not (reference and all(extract_answer(suite.answer, text) for text in reference)):
        raise UsageError(f"question {question_id!r} has no {suite.answer} answer in its reference", where=where)
    category = category or suite.category or suite.name
    for group, members in suite.category_groups.items():
        if category in members:
            category = group
            break
    first = suite.prompt_prefix + turns[0] + suite.prompt_suffix
    return Question(question_id=question_id, category=category, turns=(first, *turns[1:]), reference=reference)


def _refuse_some_ids(rows: Sequence[Row], column: str) -> None:
    """Ids are optional, for all or none: one made up for a line could be another line's own."""
    without = [row for row in rows if column not in row.values]
    if without and len(without) < len(rows):
        raise UsageError(
            f"some lines have a {column} and this one has none",
            where=without[0].where,
            try_=f"give every line a {column}, or none",
        )


def _required(row: Row, column: str) -> Any:
    if column not in row.values:
        hint = did_you_mean(column, map(str, row.values))
        raise UsageError(f"no column {column!r}; {hint}", where=row.where)
    return row.values[column]


def _question_id(value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise UsageError(f"question_id is text or a whole number, not {value!r}", where=where)
    return str(value)


def _category(row: Row, names: Columns) -> str:
    value = _required(row, names.category) if names.category else row.values.get("category")
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UsageError(f"category is text, not {type(value).__name__}", where=row.where)
    return value


def _turns_column(row: Row, names: Columns) -> str:
    if names.turns:
        _required(row, names.turns)
        return names.turns
    present = [name for name in ("turns", "prompt") if name in row.values]
    if len(present) == 1:
        return present[0]
    if present:
        raise UsageError("a question has `turns` or `prompt`, not both", where=row.where)
    raise UsageError(
        f"no column 'turns' or 'prompt'; the line has: {', '.join(map(str, row.values)) or 'nothing'}",
        where=row.where,
        try_="rename the column, or write a suite YAML with `columns: {turns: NAME}`",
    )


def _turns(row: Row, column: str) -> tuple[str, ...]:
    value = row.values[column]
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise UsageError(f"{column!r} is a text or a list of texts", where=row.where)
    if not items:
        raise UsageError(f"{column!r} is empty", where=row.where)
    return tuple(items)


def _reference(row: Row, column: str) -> tuple[str, ...]:
    """A text or a list of texts; null and absence are none. Spec-Bench's RAG task nests its lists once: flattened."""
    value = row.values.get(column)
    items = [] if value is None else value if isinstance(value, list) else [value]
    flat = [text for item in items for text in (item if isinstance(item, list) else [item])]
    if not all(isinstance(text, str) for text in flat):
        raise UsageError(f"{column!r} is a text or a list of texts", where=row.where)
    return tuple(flat)


def _refuse_repeated_ids(questions: Sequence[Question], places: Sequence[str]) -> None:
    first_place: dict[str, str] = {}
    for item, where in zip(questions, places, strict=True):
        if item.question_id in first_place:
            earlier = first_place[item.question_id]
            raise UsageError(f"question_id {item.question_id!r} appears twice (first at {earlier})", where=where)
        first_place[item.question_id] = where
