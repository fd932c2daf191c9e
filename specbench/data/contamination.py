"""Rows that ask what a suite asks are left out of training (measurement 16). No torch, no network.

Compared are whole turns, normalised: case, punctuation and white space do not count.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from specbench.data.conversations import Example
from specbench.errors import SpecbenchError
from specbench.suite import load_suite, packaged_names, resolve_spec
from specbench.suite.reading import read_suite_file

_WORD = re.compile(r"\w+|[^\w\s]")


def normalised(text: str) -> str:
    """Words and symbols (`+`, `$`), folded, one space between them; punctuation is left out."""
    tokens = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return " ".join(token for token in tokens if unicodedata.category(token[0])[0] != "P")


@dataclass(frozen=True)
class KnownQuestions:
    """Every turn of every suite that can be read here."""

    suite_of: Mapping[str, str]
    """Normalised turn -> the first suite that asks it."""
    unread: Mapping[str, str]
    """Suite -> why it could not be read."""

    def asked_by(self, example: Example) -> str | None:
        """The suite that asks what this row asks: a turn of its user, its instruction, or its whole text."""
        texts = [message["content"] for message in example.messages if message["role"] == "user"]
        texts += [example.instruction, example.text]
        return next((suite for text in texts if (suite := self.suite_of.get(normalised(text)))), None)

    @property
    def fingerprint(self) -> str:
        """Changes when a question does."""
        record = json.dumps([sorted(self.suite_of.items()), sorted(self.unread)])
        return hashlib.sha256(record.encode()).hexdigest()


def known_questions(data_dirs: Sequence[Path] = (), *, names: Iterable[str] | None = None) -> KnownQuestions:
    """Read all packaged suites (or these) from what is on this disk."""
    suite_of: dict[str, str] = {}
    unread: dict[str, str] = {}
    for name in packaged_names() if names is None else names:
        try:
            suite = load_suite(name, data_dirs=data_dirs, offline=True)
        except SpecbenchError as error:
            unread[name] = error.what
            continue
        file = read_suite_file(resolve_spec(name))
        for question in suite.questions:
            first, *later = question.turns
            bare = first.removeprefix(file.prompt_prefix).removesuffix(file.prompt_suffix)
            for text in (first, bare, *later):
                suite_of.setdefault(normalised(text), name)
    suite_of.pop("", None)
    return KnownQuestions(suite_of=suite_of, unread=unread)
