"""What is learnt from and what is held out, as packed rows, and which rows each step reads.

A row's place in the order, not the number of devices or the size of a micro-batch, decides what a step reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from specbench.data.documents import Documents, Ints
from specbench.data.packing import PackedDataset
from specbench.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Two parts of a data set without a common prompt, and where they came from."""

    name: str
    train: Documents
    held_out: Documents
    """Never trained on: the metrics' own."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """Source, licence, counts of dropped, masked, truncated and contaminated rows: for train.json."""
    notes: tuple[str, ...] = ()
    """Sentences to be printed before training."""
    is_unwritten: bool = False
    """Of a dry run: the target has yet to write the answers, and stand-ins of the greatest length take their place."""

    def digest(self) -> str:
        """sha256 over every token and label: a resumed training must find the same."""
        found = hashlib.sha256()
        for part in (self.train, self.held_out):
            for array in (part.tokens_N, part.learn_N, part.start_of):
                found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()


def check_learnable(documents: Documents, *, what: str) -> None:
    """Raises UsageError where nothing is left to learn from: no document, or no label behind the masks."""
    if len(documents) == 0:
        raise UsageError(
            f"no {what} document is left of data set {documents.name!r}",
            where="--dataset",
            try_="a larger data set; specbench data show DATASET says which rows are dropped and why",
        )
    if not documents.learn_N.any():
        raise UsageError(
            f"none of the {len(documents)} {what} documents of data set {documents.name!r} has a token to learn: "
            "every one is masked",
            where="--dataset",
            try_="--no-assistant-only learns every token; or map the columns that hold the answers (--columns)",
        )


def check_ids(documents: Documents, *, vocab_size: int, target: str) -> None:
    """Raises UsageError for documents of another vocabulary than the target's."""
    if len(documents.tokens_N) and int(documents.tokens_N.max()) >= vocab_size:
        raise UsageError(
            f"data set {documents.name!r} holds token {int(documents.tokens_N.max())}, "
            f"but {target} has a vocabulary of {vocab_size}",
            where="--dataset",
            try_="make the data set again with this target's tokenizer",
        )


class Batch(NamedTuple):
    """As recipe.Features wants it."""

    tokens_BT: Tensor
    document_BT: Tensor
    learn_BT: Tensor


@dataclass(frozen=True)
class Rows:
    """Packed rows with what the runner asks of them."""

    packed: PackedDataset

    def __len__(self) -> int:
        return len(self.packed)

    @property
    def length(self) -> int:
        """Places of a row."""
        return self.packed.num_tokens

    @cached_property
    def num_tokens_of(self) -> Ints:
        """Text tokens of each row, padding left out."""
        pieces = self.packed.piece_of
        upto = np.concatenate([[0], np.cumsum(pieces[:, 1] - pieces[:, 0])])
        return np.diff(upto[self.packed.row_of]).astype(np.int64)

    @cached_property
    def num_tokens(self) -> int:
        """Text tokens of all rows."""
        return int(self.num_tokens_of.sum())

    @property
    def num_learnt(self) -> int:
        """Tokens that may be labels."""
        learn = self.packed.documents.learn_N
        return sum(int(learn[start:stop].sum()) for start, stop in self.packed.piece_of)

    def documents_of(self, row: int) -> list[int]:
        """Numbers of the documents in a row."""
        first, last = self.packed.row_of[row], self.packed.row_of[row + 1]
        starts = self.packed.piece_of[first:last, 0]
        found = np.searchsorted(self.packed.documents.start_of, starts, side="right") - 1
        return [int(each) for each in found]

    def batch(self, rows: Sequence[int | None], device: torch.device, *, trim: bool) -> Batch:
        """These rows on the device; None is a row of padding. trim: without columns that are padding in every row."""
        real = self.packed.batch([row for row in rows if row is not None])
        missing = len(rows) - len(real.tokens_BT)
        width = self.length
        if trim:
            width = max([int(self.num_tokens_of[row]) for row in rows if row is not None], default=1)
        parts = []
        for tensor, filler in ((real.tokens_BT, 0), (real.document_BT, -1), (real.learn_BT, False)):
            # Rows of padding stand at the end of a process's share, see share_of.
            padding = tensor.new_full((missing, self.length), filler)
            parts.append(torch.cat([tensor, padding])[:, :width].to(device))
        return Batch(*parts)


class Place(NamedTuple):
    """Where in the data a training stands: the next batch to be read."""

    epoch: int
    batch: int


@dataclass(frozen=True, kw_only=True)
class Order:
    """Which rows each optimiser step reads: every row once an epoch, a new seeded order every epoch."""

    rows: Rows
    batch_size: int

    @property
    def num_batches(self) -> int:
        """Batches of an epoch; the last one may be smaller."""
        return -(-len(self.rows) // self.batch_size)

    def batch(self, place: Place) -> list[int]:
        """Rows of one step."""
        start = place.batch * self.batch_size
        return [int(row) for row in self.rows.packed.order(place.epoch)[start : start + self.batch_size]]

    def after(self, place: Place) -> Place:
        """The place behind this batch."""
        return Place(place.epoch, place.batch + 1) if place.batch + 1 < self.num_batches else Place(place.epoch + 1, 0)

    def epochs(self, place: Place) -> float:
        """Epochs read before this place, with fraction."""
        return place.epoch + place.batch / self.num_batches


def share_of(batch: Sequence[int], *, process: int, num_processes: int, micro_batch: int) -> Iterator[list[int | None]]:
    """A process's micro-batches of a step's rows. Every process gets as many of the same size; None is an empty row."""
    each = -(-len(batch) // num_processes)
    own: list[int | None] = list(batch[process::num_processes])
    own += [None] * (each - len(own))
    for start in range(0, each, micro_batch):
        yield own[start : start + micro_batch]
