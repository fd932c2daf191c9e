"""One row -> messages a chat template takes, or the reason why it is of no use. Nothing is repaired in silence.

Real sets hold conversations that begin with the model, repeat a speaker or lack an answer. What can be cut off at the
ends is cut (as Vicuna's training did); everything else is left out and counted under its reason.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from specbench.data.columns import Columns
from specbench.errors import UsageError
from specbench.suite.rows import Row
from specbench.suite.templates import Message

_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
}
_NOT_UNICODE = "text that is not valid Unicode"


@dataclass(frozen=True, kw_only=True)
class Example:
    """What one row says."""

    where: str
    messages: tuple[Message, ...] = ()
    """Empty for plain text."""
    text: str = ""
    instruction: str = ""
    """The first of several prompt columns alone: some suites ask Alpaca's instructions without their input."""


@dataclass(frozen=True)
class Unusable:
    """Why a row is left out, in words that are the same for every such row."""

    reason: str


def to_example(row: Row, columns: Columns, *, remove_from_response: str = "") -> Example | Unusable:
    """Map one row. Raises UsageError with its place where a column holds something of another type."""
    if columns.kind == "text":
        text = _text(row, str(columns.text))
        if not text.strip():
            return Unusable("empty text")
        return Example(where=row.where, text=text) if _is_unicode(text) else Unusable(_NOT_UNICODE)
    instruction = ""
    if columns.kind in ("pairs", "prompts"):
        assert columns.prompt is not None
        instruction = _text(row, columns.prompt[0])
        messages = [{"role": "user", "content": _joined(row, columns.prompt)}]
        if columns.response is not None:
            messages.append({"role": "assistant", "content": _joined(row, columns.response)})
    else:
        named = columns.messages or columns.conversations
        assert named is not None
        read = _messages(row, named, speaker="role" if columns.messages else "from")
        if isinstance(read, Unusable):
            return read
        messages = read
    if remove_from_response:
        messages = [
            {**message, "content": re.sub(remove_from_response, "", message["content"])}
            if message["role"] == "assistant"
            else message
            for message in messages
        ]
    checked = _checked(messages, wants_answer=columns.kind != "prompts")
    if isinstance(checked, Unusable):
        return checked
    return Example(where=row.where, messages=checked, instruction=instruction)


def _checked(messages: Sequence[Message], *, wants_answer: bool) -> tuple[Message, ...] | Unusable:
    """System, then user and assistant in turn, ending with an answer."""
    kept = list(messages)
    start = 1 if kept and kept[0]["role"] == "system" else 0
    system, turns = kept[:start], kept[start:]
    while turns and turns[0]["role"] == "assistant":
        turns.pop(0)
    while wants_answer and turns and turns[-1]["role"] != "assistant":
        turns.pop()
    if not turns:
        return Unusable("no question with an answer" if wants_answer else "no question")
    for place, message in enumerate(turns):
        if message["role"] != ("user", "assistant")[place % 2]:
            return Unusable("the same speaker twice in a row")
        if not message["content"].strip():
            return Unusable("an empty turn")
    if not all(_is_unicode(message["content"]) for message in kept):
        return Unusable(_NOT_UNICODE)
    return tuple(system + turns)


def _messages(row: Row, column: str, *, speaker: str) -> list[dict[str, str]] | Unusable:
    value = row.values.get(column)
    content = "content" if speaker == "role" else "value"
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise UsageError(f"{column!r} is a list of {{{speaker}, {content}}}", where=row.where)
    messages = []
    for item in value:
        if speaker not in item or content not in item:
            present = ", ".join(map(repr, item)) or "nothing"
            raise UsageError(f"a turn of {column!r} has {speaker!r} and {content!r}, not {present}", where=row.where)
        role = _ROLES.get(str(item[speaker]).lower())
        if role is None:
            return Unusable(f"a turn by {str(item[speaker])[:40]!r}")
        if not isinstance(item[content], str):
            return Unusable("a turn that is not text")
        messages.append({"role": role, "content": item[content]})
    return messages


def _joined(row: Row, names: Sequence[str]) -> str:
    return "\n".join(text for name in names if (text := _text(row, name)).strip())


def _text(row: Row, name: str) -> str:
    value = row.values.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UsageError(f"{name!r} is text, not {type(value).__name__}", where=row.where)
    return value


def _is_unicode(text: str) -> bool:
    """JSON can spell half a surrogate pair; no tokenizer takes it."""
    return not any("\ud800" <= char <= "\udfff" for char in text)
