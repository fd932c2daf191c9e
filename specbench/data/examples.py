"""The rows of a dataset one by one: mapped, compared with the suites, and every one that is left out counted."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from pathlib import Path
from typing import Any, Literal, NamedTuple

from specbench.data.columns import Columns, parse_columns
from specbench.data.contamination import KnownQuestions, known_questions
from specbench.data.conversations import Example, Unusable, to_example
from specbench.data.places import Located, columns_of, content_hash, fetched, locate, rows_of
from specbench.errors import UsageError
from specbench.suite.rows import Row

Part = Literal["train", "held_out"]
"""Of `demo`, whose held-out questions the embedded target was not trained on."""


class Found(NamedTuple):
    """A row that may be used."""

    example: Example
    values: Mapping[str, Any]
    """The row's own columns."""


@dataclass
class Tally:
    """Counts while they grow."""

    num_read: int = 0
    contaminated: Counter[str] = field(default_factory=Counter)
    unusable: Counter[str] = field(default_factory=Counter)

    @property
    def why_nothing(self) -> str:
        """The commonest reasons, for the error when nothing is left."""
        reasons = [f"{number} {reason}" for reason, number in self.unusable.most_common(3)]
        reasons += [f"{number} asked by suite {suite}" for suite, number in self.contaminated.most_common(2)]
        return "; ".join(reasons)


@dataclass(frozen=True, kw_only=True)
class ExampleSet:
    """A dataset found, on this disk, its columns known."""

    located: Located
    columns: Columns
    known: KnownQuestions
    part: Part
    limit: int | None
    seed: int
    notes: tuple[str, ...]

    @property
    def identity(self) -> dict[str, Any]:
        """Everything the examples depend on."""
        return {
            "content": content_hash(self.located),
            "columns": str(self.columns),
            "remove": self.located.remove_from_response,
            "part": self.part,
            "limit": self.limit,
            "seed": self.seed if self.limit is not None else 0,
            "suites": self.known.fingerprint,
        }

    def examples(self, tally: Tally) -> Iterator[Found]:
        """The usable rows in file order; what is left out goes into the tally."""
        chosen = self._chosen()
        for number, row in enumerate(self._rows()):
            if chosen is not None and number not in chosen:
                continue
            tally.num_read += 1
            example = self._example(row)
            if isinstance(example, Unusable):
                tally.unusable[example.reason] += 1
                continue
            suite = self.known.asked_by(example)
            if suite is not None:
                tally.contaminated[suite] += 1
                continue
            yield Found(example, row.values)

    def _example(self, row: Row) -> Example | Unusable:
        return to_example(row, self.columns, remove_from_response=self.located.remove_from_response)

    def _rows(self) -> Iterator[Row]:
        """The rows of the asked part; those that name none are all `train`."""
        return (row for row in rows_of(self.located) if row.values.get("part", "train") == self.part)

    def _chosen(self) -> frozenset[int] | None:
        """The limited subset, drawn by hash: a smaller one of the same seed is contained in a larger one."""
        if self.limit is None:
            return None
        total = sum(1 for _ in self._rows())

        def draw(number: int) -> bytes:
            return hashlib.sha256(f"{self.seed}\0{number}".encode()).digest()

        return frozenset(nsmallest(self.limit, range(total), key=draw))


def open_examples(
    spec: str,
    *,
    columns: Columns | str | None = None,
    part: Part = "train",
    limit: int | None = None,
    seed: int = 0,
    data_dirs: Sequence[Path] = (),
    offline: bool = False,
) -> ExampleSet:
    """Find a dataset and bring it here. Raises UsageError or EnvironmentFailed, see `places`."""
    if limit is not None and limit < 1:
        raise UsageError(f"--limit is at least 1, not {limit}", where="--limit")
    asked = parse_columns(columns) if isinstance(columns, str) else columns
    located = fetched(locate(spec, data_dirs), offline=offline)
    return ExampleSet(
        located=located,
        columns=columns_of(located, asked),
        known=known_questions(data_dirs),
        part=part,
        limit=limit,
        seed=seed,
        notes=(f"{located.name}: {located.note}",) if located.note else (),
    )
