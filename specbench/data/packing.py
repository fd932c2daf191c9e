"""Documents -> rows of T tokens without a document in two rows, and batches of them in a reproducible order.

T tokens a row, B rows of a batch. A document longer than T is cut into pieces, each its own document (nothing of one
piece is seen by the next); pieces without anything to learn are left out. Both are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from specbench.data.documents import Documents, Ints
from specbench.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

_OPEN_ROWS = 64
"""Rows a document is tried on: first fit over all rows would be quadratic, and fills them hardly better."""


class Batch(NamedTuple):
    """As `recipe.Features` wants it, on the CPU."""

    tokens_BT: Tensor
    """int64; 0 where there is no document."""
    document_BT: Tensor
    """int64: ascending from 0 in each row, -1 behind the last document."""
    learn_BT: Tensor
    """bool."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedDataset:
    """Which piece of which document stands where."""

    documents: Documents
    num_tokens: int
    """T."""
    seed: int
    piece_of: Ints
    """(num_pieces, 2): start and stop of each piece in the documents' tokens, row after row."""
    row_of: Ints
    """(num_rows + 1,): the first piece of each row; the last entry is num_pieces."""
    num_cut: int
    """Documents longer than T."""
    num_left_out: int
    """Pieces of those without anything to learn."""

    def __len__(self) -> int:
        return len(self.row_of) - 1

    @property
    def fill(self) -> float:
        """Share of the rows' places that hold a token."""
        used = int((self.piece_of[:, 1] - self.piece_of[:, 0]).sum())
        return used / (len(self) * self.num_tokens)

    def order(self, epoch: int, *, rank: int = 0, world_size: int = 1) -> Ints:
        """This process's rows of an epoch, in a random order that is a function of (seed, epoch).

        Every process gets equally many, so that none waits for another: of an epoch up to world_size - 1 rows are left
        out, other ones each time. Raises UsageError when there are fewer rows than processes.
        """
        if len(self) < world_size:
            raise UsageError(
                f"{len(self)} rows of {self.num_tokens} tokens are too few for {world_size} processes",
                try_="more data, shorter rows, or fewer processes",
            )
        rows = _shuffled(len(self), self.seed, epoch)
        return rows[: len(rows) // world_size * world_size][rank::world_size]

    def batch(self, rows: Sequence[int] | Ints) -> Batch:
        """These rows as tensors."""
        # 2 s of torch: planning and counting do without.
        import torch

        shape = (len(rows), self.num_tokens)
        tokens_BT = np.zeros(shape, dtype=np.int64)
        document_BT = np.full(shape, -1, dtype=np.int64)
        learn_BT = np.zeros(shape, dtype=np.bool_)
        for place, row in enumerate(rows):
            at = 0
            for number, (start, stop) in enumerate(self.piece_of[self.row_of[row] : self.row_of[row + 1]]):
                end = at + int(stop - start)
                tokens_BT[place, at:end] = self.documents.tokens_N[start:stop]
                learn_BT[place, at:end] = self.documents.learn_N[start:stop]
                document_BT[place, at:end] = number
                at = end
        return Batch(torch.from_numpy(tokens_BT), torch.from_numpy(document_BT), torch.from_numpy(learn_BT))

    def label_counts(self, vocab_size: int) -> Tensor:
        """int64 (vocab_size,): how often each id may be a label."""
        import torch  # as above

        documents = self.documents
        counts = np.zeros(vocab_size, dtype=np.int64)
        for start, stop in self.piece_of:
            learnt = documents.tokens_N[start:stop][documents.learn_N[start:stop]]
            counts += np.bincount(learnt, minlength=vocab_size)
        return torch.from_numpy(counts)


def pack(documents: Documents, num_tokens: int, *, seed: int) -> PackedDataset:
    """First fit over a seeded order of the documents. Raises UsageError when there is nothing to pack."""
    if num_tokens < 2:
        raise UsageError(f"a row of {num_tokens} tokens holds nothing to learn", where="--row-tokens")
    rows: list[list[tuple[int, int]]] = []
    open_rows: list[tuple[int, int]] = []
    """(row, places left), oldest first."""
    num_cut = num_left_out = 0
    for index in _shuffled(len(documents), seed):
        start, stop = int(documents.start_of[index]), int(documents.start_of[index + 1])
        pieces = [(begin, min(begin + num_tokens, stop)) for begin in range(start, stop, num_tokens)]
        num_cut += len(pieces) > 1
        for piece in pieces:
            if not documents.learn_N[piece[0] : piece[1]].any():
                num_left_out += 1
                continue
            length = piece[1] - piece[0]
            place = next((at for at, (_, room) in enumerate(open_rows) if room >= length), None)
            if place is None:
                rows.append([piece])
                open_rows.append((len(rows) - 1, num_tokens - length))
            else:
                row, room = open_rows[place]
                rows[row].append(piece)
                open_rows[place] = (row, room - length)
            # A row that is as good as full is closed, and the oldest one where too many are open.
            open_rows = [each for each in open_rows if each[1] > 1][-_OPEN_ROWS:]
    if not rows:
        raise UsageError(f"{documents.name} holds nothing to learn", where=documents.source)
    return PackedDataset(
        documents=documents,
        num_tokens=num_tokens,
        seed=seed,
        piece_of=np.array([piece for row in rows for piece in row], dtype=np.int64).reshape(-1, 2),
        row_of=np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64),
        num_cut=num_cut,
        num_left_out=num_left_out,
    )


def _shuffled(number: int, *key: int) -> Ints:
    """0..number-1 in an order that is a function of the key. RandomState: numpy promises its stream for ever."""
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(list(key))))
    return random.permutation(number).astype(np.int64)
