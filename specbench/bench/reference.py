"""The reference pass: one untimed autoregressive answer per question and turn, kept by content (measurement 10).

Every method's second turn continues the reference's first turn; equality and `oracle` read it; its time is never used.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specbench import paths


@dataclass(frozen=True, kw_only=True)
class ReferenceAnswer:
    """What the target alone wrote, or why it could not."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    text: str
    finish_reason: str
    error: str = ""


class ReferenceBook:
    """Answers kept under a hash of everything they depend on, in the user's cache folder.

    An unreadable or unwritable book is said, not fatal: the answers are made again.
    """

    def __init__(self, identity: dict[str, Any]) -> None:
        """identity: target weights, dtype, device by name, threads, attention, this program's sources and the versions
        of others, sampling, seed, lengths, stops."""
        text = json.dumps(identity, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:32]
        self._path: Path = paths.cache_dir() / "references" / f"{digest}.jsonl"
        self._identity = text
        self._known: dict[str, dict[str, Any]] = {}
        self.warning = ""
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return
        except OSError as error:
            self.warning = f"reference answers cannot be read: {error}"
            return
        for line in lines:
            try:
                row = json.loads(line)
                self._known[row["key"]] = row
            except (ValueError, KeyError, TypeError):
                # A torn line of a killed writer: that answer is made again.
                continue

    @staticmethod
    def _key(prompt: tuple[int, ...], question_id: str, turn: int) -> str:
        raw = json.dumps([question_id, turn, prompt]).encode()
        return hashlib.sha256(raw).hexdigest()

    def find(self, prompt: tuple[int, ...], *, question_id: str, turn: int) -> ReferenceAnswer | None:
        """The kept answer to exactly this prompt."""
        row = self._known.get(self._key(prompt, question_id, turn))
        if row is None:
            return None
        return ReferenceAnswer(
            prompt=prompt, tokens=tuple(row["tokens"]), text=row["text"], finish_reason=row["finish_reason"]
        )

    def keep(self, answer: ReferenceAnswer, *, question_id: str, turn: int) -> None:
        """Append one answer."""
        row = {
            "key": self._key(answer.prompt, question_id, turn),
            "tokens": answer.tokens,
            "text": answer.text,
            "finish_reason": answer.finish_reason,
        }
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            self.warning = f"reference answers cannot be kept for the next run: {error}"
