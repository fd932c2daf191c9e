"""What a target is asked to answer: the first question of every row of a dataset, with its system message."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from specbench.data.columns import Columns
from specbench.data.counts import Counts
from specbench.data.examples import Part, Tally, open_examples
from specbench.errors import UsageError
from specbench.suite.templates import Message


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One question. Its id is a hash of its text: the same in any order, under any limit."""

    prompt_id: str
    messages: tuple[Message, ...]


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The questions of a dataset, no two of them the same."""

    name: str
    prompts: tuple[Prompt, ...]
    counts: Counts
    source: str
    licence: str
    notes: tuple[str, ...]

    @property
    def content_hash(self) -> str:
        """sha256 over the questions in any order."""
        return hashlib.sha256("".join(sorted(each.prompt_id for each in self.prompts)).encode()).hexdigest()


def load_prompts(
    spec: str,
    *,
    seed: int,
    columns: Columns | str | None = None,
    limit: int | None = None,
    part: Part = "train",
    data_dirs: Sequence[Path] = (),
    offline: bool = False,
) -> Prompts:
    """The questions of a dataset, clean of the suites'. Raises as `load_documents` does, and for plain text.

    part: see `Part`; other sets than `demo` are all `train`.
    """
    chosen = open_examples(
        spec, columns=columns, part=part, limit=limit, seed=seed, data_dirs=data_dirs, offline=offline
    )
    if chosen.columns.kind == "text":
        raise UsageError(
            f"{spec} is plain text: there is no question to answer",
            where=chosen.located.where,
            try_="a dataset of prompts or conversations (specbench data ls)",
        )
    tally = Tally()
    found: dict[str, Prompt] = {}
    num_repeated = 0
    for item in chosen.examples(tally):
        messages = _first_question(item.example.messages)
        prompt = Prompt(prompt_id=_id(messages), messages=messages)
        num_repeated += prompt.prompt_id in found
        found.setdefault(prompt.prompt_id, prompt)
    if not found:
        raise UsageError(
            f"{spec} has no question left to answer: {tally.why_nothing or f'no {part} part'}",
            where=chosen.located.where,
            try_="a larger --limit, or another dataset",
        )
    counts = Counts(
        num_read=tally.num_read,
        num_kept=len(found),
        num_contaminated=dict(tally.contaminated),
        unread_suites=dict(chosen.known.unread),
        unusable=dict(tally.unusable),
        num_repeated=num_repeated,
    )
    return Prompts(
        name=chosen.located.name,
        prompts=tuple(found.values()),
        counts=counts,
        source=chosen.located.where,
        licence=chosen.located.licence,
        notes=chosen.notes,
    )


def _first_question(messages: Sequence[Message]) -> tuple[Message, ...]:
    end = next(place for place, message in enumerate(messages) if message["role"] == "user") + 1
    return tuple(messages[:end])


def _id(messages: Sequence[Message]) -> str:
    return hashlib.sha256(json.dumps([dict(message) for message in messages], sort_keys=True).encode()).hexdigest()[:16]
