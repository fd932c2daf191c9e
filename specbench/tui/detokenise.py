"""Ids to text, in the viewer and with the `tokenizers` library alone: no torch, no transformers. No Textual.

A token has no text of its own: its bytes may be part of a character, its leading space may depend on what stands
before. So each one's piece is what the decoded text grew by when it came.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from specbench import paths

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from specbench.manifest import Manifest

_LONGEST_CHARACTER = 4
"""Bytes of UTF-8, each at worst a token of its own: what is still broken after so many stays broken."""
_BROKEN = "\ufffd"


class Pieces:
    """Tokens in order -> the text each added. Without a tokenizer every token is shown as its number."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0
        """Ids from here are decoded again with the new one, so that its piece has its context."""
        self._read = 0
        """Ids whose text was handed out."""

    @classmethod
    def of(cls, tokenizer: object) -> Pieces:
        """By a model's tokenizer: its fast core, where it has one."""
        return cls(getattr(tokenizer, "backend_tokenizer", None))

    def add(self, token: int) -> str:
        """The text this token added; empty while it is part of a character that is not whole yet."""
        if token < 0:
            return "…"
        if self._tokenizer is None:
            return f"⟨{token}⟩"
        self._ids.append(token)
        before = self._decode(self._ids[self._start : self._read])
        text = self._decode(self._ids[self._start :])
        held = len(self._ids) - self._read
        if text.endswith(_BROKEN) and held < _LONGEST_CHARACTER:
            return ""
        self._start, self._read = self._read, len(self._ids)
        return text[len(before) :]

    def rest(self) -> str:
        """What is still held back at the end of an answer: bytes that were cut in the middle of a character."""
        if self._tokenizer is None or self._read == len(self._ids):
            return ""
        before = self._decode(self._ids[self._start : self._read])
        text = self._decode(self._ids[self._start :])
        self._start, self._read = self._read, len(self._ids)
        return text[len(before) :]

    def all(self, tokens: Iterable[int]) -> list[str]:
        """The pieces of many."""
        return [self.add(token) for token in tokens]

    def _decode(self, ids: list[int]) -> str:
        assert self._tokenizer is not None, "callers ask"
        # Special tokens are part of what a method had to predict: a stop id is a token of the answer.
        return str(self._tokenizer.decode(ids, skip_special_tokens=False)) if ids else ""


_CONTEXT = 8
"""Tokens that stand before one whose text is asked for: its first bytes or its space may depend on them."""


def text_behind(tokenizer: Tokenizer | None, before: Sequence[int], token: int) -> str:
    """What one token would add behind `before`; its number where it is a part of a character, or there is no
    tokenizer."""
    if tokenizer is None:
        return f"⟨{token}⟩"
    head = [each for each in before[-_CONTEXT:] if each >= 0]
    start = str(tokenizer.decode(head, skip_special_tokens=False)) if head else ""
    whole = str(tokenizer.decode([*head, token], skip_special_tokens=False))
    added = whole[len(start) :] if whole.startswith(start) else ""
    return f"⟨{token}⟩" if not added or _BROKEN in added else added


class Found(NamedTuple):
    """A tokenizer, or why there is none."""

    tokenizer: Tokenizer | None
    why_not: str


def tokenizer_of(manifest: Manifest) -> Found:
    """Of a run's target; half a second where the vocabulary is large."""
    request = manifest.provenance.get("request")
    return find_tokenizer(manifest.target.name, request if isinstance(request, dict) else {})


def find_tokenizer(name: str, request: dict[str, Any]) -> Found:
    """name: the target's in the manifest. request: the recorded one, whose target may be a folder's whole path."""
    path = _tokenizer_file(str(request.get("target") or name)) or _tokenizer_file(name)
    if path is None:
        return Found(None, f"tokens are shown as numbers: no tokenizer.json of {name} on this machine")
    # 30 ms, and up to half a second for a vocabulary of 128 k: only where tokens are shown
    from tokenizers import Tokenizer

    try:
        return Found(Tokenizer.from_file(str(path)), "")
    # tokenizers raises plain Exception for whatever the file holds.
    except Exception as error:  # noqa: BLE001
        return Found(None, f"tokens are shown as numbers: {path} cannot be read ({error})")


def hub_cache() -> Path:
    """The hub's cache, by its published layout: nothing is asked of the network."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub")


def _tokenizer_file(target: str) -> Path | None:
    folder = paths.DEMO_MODELS.get(target, Path(target))
    if (folder / "tokenizer.json").is_file():
        return folder / "tokenizer.json"
    found = sorted((hub_cache() / f"models--{target.replace('/', '--')}").glob("snapshots/*/tokenizer.json"))
    return found[-1] if found else None
