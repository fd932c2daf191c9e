"""Which columns of a row are prompt, answer, conversation or plain text: as typed, as a card says, or as found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from specbench.errors import UsageError, did_you_mean
from specbench.suite.schema import Strict

Kind = Literal["messages", "conversations", "pairs", "prompts", "text"]
Names = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
SPELLING = "--columns prompt=instruction+input,response=output | messages=NAME | conversations=NAME | text=NAME"


class Columns(Strict):
    """One of: `messages` (a list of {role, content}), `conversations` (of {from, value}), `text`, or `prompt` with or
    without `response`, each of those joined from several columns."""

    messages: str | None = None
    conversations: str | None = None
    text: str | None = None
    prompt: Names | None = None
    response: Names | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Columns:
        kinds = [name for name in (self.messages, self.conversations, self.text, self.prompt) if name is not None]
        if len(kinds) != 1 or (self.response is not None and self.prompt is None):
            raise PydanticCustomError("columns", "columns are messages, conversations, text, or prompt and response")
        return self

    @property
    def kind(self) -> Kind:
        """What a row holds."""
        if self.messages is not None:
            return "messages"
        if self.conversations is not None:
            return "conversations"
        if self.text is not None:
            return "text"
        return "prompts" if self.response is None else "pairs"

    @property
    def names(self) -> tuple[str, ...]:
        """Every column that is read."""
        alone = tuple(name for name in (self.messages, self.conversations, self.text) if name is not None)
        return (*alone, *(self.prompt or ()), *(self.response or ()))

    def __str__(self) -> str:
        """As `--columns` spells it."""
        parts = [("messages", self.messages), ("conversations", self.conversations), ("text", self.text)]
        parts += [("prompt", "+".join(self.prompt or ())), ("response", "+".join(self.response or ()))]
        return ",".join(f"{key}={value}" for key, value in parts if value)


def parse_columns(text: str) -> Columns:
    """`--columns` as typed. Raises UsageError with the spelling."""
    found: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or not value or key in found:
            raise UsageError(f"--columns {text!r} cannot be read at {part!r}", where="--columns", try_=SPELLING)
        if key not in Columns.model_fields:
            hint = did_you_mean(key, Columns.model_fields)
            raise UsageError(f"--columns knows no {key!r}; {hint}", where="--columns", try_=SPELLING)
        found[key] = value

    def joined(key: str) -> tuple[str, ...] | None:
        return tuple(name.strip() for name in found[key].split("+")) if key in found else None

    given = {key: found[key] for key in ("messages", "conversations", "text") if key in found}
    if len(given) + ("prompt" in found) != 1 or ("response" in found and "prompt" not in found):
        raise UsageError(f"--columns {text!r} names no kind of row, or two", where="--columns", try_=SPELLING)
    return Columns(
        messages=given.get("messages"),
        conversations=given.get("conversations"),
        text=given.get("text"),
        prompt=joined("prompt"),
        response=joined("response"),
    )


_KNOWN: Sequence[tuple[tuple[str, ...], Columns]] = (
    (("messages",), Columns(messages="messages")),
    (("conversations",), Columns(conversations="conversations")),
    (("prompt", "response"), Columns(prompt=("prompt",), response=("response",))),
    (("instruction", "input", "output"), Columns(prompt=("instruction", "input"), response=("output",))),
    (("instruction", "context", "response"), Columns(prompt=("instruction", "context"), response=("response",))),
    (("instruction", "output"), Columns(prompt=("instruction",), response=("output",))),
    (("question", "answer"), Columns(prompt=("question",), response=("answer",))),
    (("text",), Columns(text="text")),
    (("prompt",), Columns(prompt=("prompt",))),
)


def find_columns(names: Iterable[str], *, where: str) -> Columns:
    """The mapping that a file's own column names suggest. Raises UsageError listing them where none is known."""
    present = list(names)
    for wanted, columns in _KNOWN:
        if set(wanted) <= set(present):
            return columns
    raise UsageError(
        f"no known columns; the first row has: {', '.join(map(repr, present)) or 'none'}", where=where, try_=SPELLING
    )


def check_columns(columns: Columns, names: Iterable[str], *, where: str) -> None:
    """Raises UsageError listing the existing columns where a wanted one is not among them."""
    present = list(names)
    for name in columns.names:
        if name not in present:
            raise UsageError(f"no column {name!r}; {did_you_mean(name, present)}", where=where, try_=SPELLING)
