"""Reads the answer files of Spec-Bench, EAGLE, Medusa and the CTC drafter: JSON lines, plain or gzipped. No torch.

    {"question_id", "model_id", "tstamp", "choices": [{"index", "turns", "idxs" | "decoding_steps", "new_tokens",
     "wall_time"}]}        (+ "category" and "accept_lengths" in Spec-Bench's)

`decoding_steps` counts steps; `idxs` is the last step's 0-based index, so steps = idxs + 1. `wall_time` is seconds per
turn, prefill and Python included; `new_tokens` may count ids behind the stop. Files of this kind arrive with lines
twice, lines missing and counters never incremented: what can be survived is survived and said in a note.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specbench.errors import EnvironmentFailed, UsageError
from specbench.store.words import count

FAILED = "ERROR"
"""What Spec-Bench writes as the text of a turn that raised; its numbers are the previous question's. specbench's own
files have zeros there."""


@dataclass(frozen=True, kw_only=True)
class AnswerTurn:
    """One turn of one answer."""

    question_id: str
    category: str
    """'' where the file has none."""
    choice: int
    turn: int
    num_steps: int
    num_new_tokens: int
    """As recorded; 0 where the tool forgot to count."""
    wall_s: float
    text: str


@dataclass(frozen=True, kw_only=True)
class AnswerFile:
    """One file, in the order of its lines; a question that stands twice counts by its last line."""

    name: str
    sha256: str
    model_id: str
    turns: tuple[AnswerTurn, ...]
    notes: tuple[str, ...]

    def question_ids(self) -> list[str]:
        """Each once, in order."""
        return list(dict.fromkeys(turn.question_id for turn in self.turns))


def read_answers(path: Path) -> AnswerFile:
    """Raises EnvironmentFailed for a missing or damaged file, UsageError naming file and line for a wrong row."""
    data = _read(path)
    by_question: dict[str, list[AnswerTurn]] = {}
    repeated: dict[str, None] = {}
    model_ids: dict[str, None] = {}
    notes = []
    # By newline bytes: str.splitlines would also cut at U+2028, which answers may hold.
    lines = data.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if number == len(lines) and not _is_json(line):
            notes.append(f"{path.name}: the last line is torn and left out")
            continue
        where = f"{path}:{number}"
        try:
            row = _object(_parsed(line), "it")
            question_id = str(_needed(row, "question_id"))
            model_ids[str(row.get("model_id", ""))] = None
            choices = [_object(choice, "a choice") for choice in _list(row, "choices")]
            turns = [turn for choice in choices for turn in _turns(question_id, row, choice)]
        except _Foreign as error:
            raise UsageError(
                f"not a row of an answer file: {error}",
                where=where,
                try_="needed: question_id and choices with turns, idxs or decoding_steps, new_tokens, wall_time",
            ) from error
        if question_id in by_question:
            repeated[question_id] = None
            del by_question[question_id]
        by_question[question_id] = turns
    if not by_question:
        raise UsageError(f"{path.name} holds no answers", where=str(path), try_="give an answer file in JSON lines")
    if repeated:
        stand = "question stands" if len(repeated) == 1 else "questions stand"
        notes.append(f"{path.name}: {len(repeated)} {stand} twice ({_some(repeated)}); the last line counts")
    if len(model_ids) > 1:
        notes.append(f"{path.name}: several model ids ({_some(model_ids)})")
    turns = [turn for of_question in by_question.values() for turn in of_question]
    good = [turn for turn in turns if turn.text != FAILED]
    if len(good) < len(turns):
        failed, are = len(turns) - len(good), "is" if len(turns) - len(good) == 1 else "are"
        notes.append(f"{path.name}: {count(failed, 'turn')} failed in that tool ({FAILED}) and {are} left out")
    return AnswerFile(
        name=path.name,
        sha256=hashlib.sha256(data).hexdigest(),
        model_id=next(iter(model_ids)),
        turns=tuple(good),
        notes=tuple(notes),
    )


def _read(path: Path) -> bytes:
    """The text's bytes: the hash is of the content, gzipped or not."""
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except FileNotFoundError as error:
        raise EnvironmentFailed(f"no such file: {path}", try_="specbench results import FILE.jsonl") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise EnvironmentFailed(f"{path} is not a whole gzip file: {error}", where=str(path)) from error
    except OSError as error:
        raise EnvironmentFailed(f"cannot read {path}: {error.strerror}", where=str(path)) from error


class _Foreign(Exception):
    """Why a line is no row of an answer file, in plain words."""


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise _Foreign("it is not JSON") from error


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Foreign(f"{what} is not an object")
    return value


def _needed(row: dict[str, Any], key: str) -> Any:
    if key not in row:
        raise _Foreign(f"{key} is missing")
    return row[key]


def _list(row: dict[str, Any], key: str) -> list[Any]:
    values = _needed(row, key)
    if not isinstance(values, list):
        raise _Foreign(f"{key} is not a list")
    return values


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Foreign(f"{key} holds {value!r}, which is no number")
    if not math.isfinite(value):
        raise _Foreign(f"{key} holds {value!r}")
    return value


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _turns(question_id: str, row: dict[str, Any], choice: dict[str, Any]) -> list[AnswerTurn]:
    if "decoding_steps" in choice:
        steps = [int(_number(value, "decoding_steps")) for value in _list(choice, "decoding_steps")]
    elif "idxs" in choice:
        steps = [int(_number(value, "idxs")) + 1 for value in _list(choice, "idxs")]
    else:
        raise _Foreign("idxs (or decoding_steps) is missing")
    texts = _list(choice, "turns")
    tokens_of = [int(_number(value, "new_tokens")) for value in _list(choice, "new_tokens")]
    seconds_of = [float(_number(value, "wall_time")) for value in _list(choice, "wall_time")]
    lengths = {len(steps), len(texts), len(tokens_of), len(seconds_of)}
    if len(lengths) > 1:
        raise _Foreign(f"question {question_id}: its lists are of different lengths ({sorted(lengths)})")
    index = int(_number(choice.get("index", 0), "index"))
    found = []
    for turn, (text, tokens, wall_s) in enumerate(zip(texts, tokens_of, seconds_of, strict=True)):
        if text != FAILED and (tokens < 0 or steps[turn] < 0 or wall_s <= 0):
            raise _Foreign(f"question {question_id} turn {turn}: tokens {tokens}, steps {steps[turn]}, {wall_s} s")
        found.append(
            AnswerTurn(
                question_id=question_id,
                category=str(row.get("category", "")),
                choice=index,
                turn=turn,
                num_steps=steps[turn],
                num_new_tokens=tokens,
                wall_s=wall_s,
                text=str(text),
            )
        )
    return found


def _some(names: dict[str, None]) -> str:
    shown = list(names)[:5]
    return ", ".join(shown) + (", ..." if len(names) > len(shown) else "")
