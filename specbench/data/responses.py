"""Answers a target wrote, as lines of a file that survives a kill: one whole row a line, a torn last line is no row.

Besides the conversation a row carries the ids of prompt and answer. Training on exactly those is training on what the
target does: a sampled id sequence need not be what its tokenizer makes of the text, and the stop is not in the text.
No torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from specbench import paths
from specbench.data.conversations import Example
from specbench.data.prompts import Prompt
from specbench.data.rendering import Rendered
from specbench.errors import EnvironmentFailed, UsageError, cannot_write
from specbench.suite.templates import Message

DISTINCT = (1, 2, 4)
"""Orders of the n-grams whose variety is reported."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One prompt as ids."""

    prompt: Prompt
    ids: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Response:
    """One answer."""

    prompt_id: str
    messages: tuple[Message, ...]
    """The prompt's, and the answer's text."""
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    """Up to and including the stop id."""
    finish_reason: str
    """`stop_id` or `length`."""
    rendering: str
    """`Renderer.key` of the tokenizer and template that made the ids."""

    @property
    def rendered(self) -> Rendered:
        """As a document."""
        num_prompt, num_answer = len(self.prompt_ids), len(self.answer_ids)
        return Rendered([*self.prompt_ids, *self.answer_ids], [False] * num_prompt + [True] * num_answer)

    @property
    def example(self) -> Example:
        """As a row of a dataset."""
        return Example(where=self.prompt_id, messages=self.messages)

    def line(self) -> str:
        """One line of the file."""
        return json.dumps({**vars(self), "messages": [dict(message) for message in self.messages]}) + "\n"


class Writer(Protocol):
    """What writes answers: our engine or vLLM."""

    def write(self, asks: Sequence[Ask]) -> list[Response]:
        """Answers to one group, in order."""
        ...

    def groups(self, asks: Sequence[Ask]) -> list[list[Ask]]:
        """How many to answer together."""
        ...


def read_responses(path: Path) -> list[Response]:
    """The whole rows of a file; none where it does not exist. Raises UsageError for a damaged line before the last."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    found = []
    # What stands behind the last newline was cut off by a kill.
    for number, line in enumerate(lines[:-1], start=1):
        try:
            found.append(_response(json.loads(line)))
        except (ValueError, TypeError, KeyError) as error:
            raise UsageError(
                f"not a row of `data generate`: {error}", where=f"{path}:{number}", try_=f"delete line {number}"
            ) from error
    return found


def make_room(path: Path) -> None:
    """The folder of `path`, and of a file that is there what stands behind its last newline cut off, so that the next
    row begins a line. Raises EnvironmentFailed where the disk refuses."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            with path.open("rb+") as file:
                content = file.read()
                file.truncate(content.rfind(b"\n") + 1)
    except OSError as error:
        raise _refused(path, error) from error


def append(path: Path, responses: Iterable[Response]) -> None:
    """Add whole rows; on return they are on the disk. Raises EnvironmentFailed where it refuses; what was finished
    before stays, and half a row is cut off by `make_room`."""
    try:
        with path.open("a", encoding="ascii") as file:
            file.write("".join(response.line() for response in responses))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _refused(path, error) from error


def _refused(path: Path, error: OSError) -> EnvironmentFailed:
    is_cache = path.is_relative_to(paths.cache_dir())
    place = "SPECBENCH_CACHE=DIR" if is_cache else "--out DIR"
    return cannot_write(
        path,
        error,
        try_=f"{place}, one that can be written to; where this one can be again, the same command goes on",
        if_full="free some space; the same command goes on, its finished answers are kept",
    )


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What a set of answers is like."""

    num_rows: int
    num_repeated: int
    """Answers left out: prompt and answer were those of an earlier row."""
    num_prompt_tokens: int
    num_answer_tokens: int
    mean_length: float
    """Answer tokens a row."""
    share_stopped: float
    """Rows that ended by a stop id, not by the length."""
    distinct: dict[str, float]
    """Per n: different n-grams of an answer / its n-grams, mean over rows. A model that loops is far below 1."""

    def lines(self) -> list[str]:
        """For people."""
        variety = ", ".join(f"distinct-{order} {value:.2f}" for order, value in self.distinct.items())
        repeated = f", {self.num_repeated:,} repeated ones left out" if self.num_repeated else ""
        return [
            f"{self.num_rows:,} rows{repeated}: {self.num_answer_tokens:,} answer tokens, "
            f"{self.num_prompt_tokens:,} prompt tokens",
            f"{self.mean_length:.1f} tokens an answer, {self.share_stopped:.0%} stopped by themselves, {variety}",
        ]


def merged(responses: Iterable[Response]) -> tuple[list[Response], Statistics]:
    """Each prompt once and each (prompt, answer) once, ordered by prompt id, and what they are like."""
    kept: dict[str, Response] = {}
    contents: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
    num_repeated = 0
    for response in sorted(responses, key=lambda each: each.prompt_id):
        content = (response.prompt_ids, response.answer_ids)
        if response.prompt_id in kept or content in contents:
            num_repeated += 1
            continue
        contents.add(content)
        kept[response.prompt_id] = response
    rows = list(kept.values())
    return rows, _statistics(rows, num_repeated)


def _statistics(rows: Sequence[Response], num_repeated: int) -> Statistics:
    num_rows = len(rows)
    num_answer_tokens = sum(len(row.answer_ids) for row in rows)
    distinct = {}
    for order in DISTINCT:
        shares = [share for row in rows if (share := _variety(row.answer_ids, order)) is not None]
        distinct[str(order)] = sum(shares) / len(shares) if shares else 0.0
    return Statistics(
        num_rows=num_rows,
        num_repeated=num_repeated,
        num_prompt_tokens=sum(len(row.prompt_ids) for row in rows),
        num_answer_tokens=num_answer_tokens,
        mean_length=num_answer_tokens / num_rows if num_rows else 0.0,
        share_stopped=sum(row.finish_reason == "stop_id" for row in rows) / num_rows if num_rows else 0.0,
        distinct=distinct,
    )


def _variety(ids: Sequence[int], order: int) -> float | None:
    grams = [tuple(ids[at : at + order]) for at in range(len(ids) - order + 1)]
    return len(set(grams)) / len(grams) if grams else None


def _response(values: Any) -> Response:
    return Response(
        prompt_id=values["prompt_id"],
        messages=tuple(values["messages"]),
        prompt_ids=tuple(values["prompt_ids"]),
        answer_ids=tuple(values["answer_ids"]),
        finish_reason=values["finish_reason"],
        rendering=values["rendering"],
    )
