"""Tokenised texts with what may be learnt of them, flat in memory and on disk, and their split into two parts.

N tokens of all documents one behind the other. No torch: numpy arrays until a batch is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from specbench.data.counts import Counts
from specbench.errors import UsageError

if TYPE_CHECKING:
    from specbench.data.packing import PackedDataset

Ints = npt.NDArray[np.int64]
Tokens = npt.NDArray[np.int32]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text."""

    ids: tuple[int, ...]
    learn: tuple[bool, ...]
    """May this token be a label?"""
    prompt_length: int
    """Tokens before the first answer; 0 for plain text."""
    answer_length: int
    """Tokens of the first answer, its stop token included; everything for plain text."""
    is_asked: bool = True
    """The target is asked with these very ids of the prompt, see `Rendered`."""

    @property
    def prompt(self) -> tuple[int, ...]:
        """Ids up to the first answer."""
        return self.ids[: self.prompt_length]

    @property
    def answer(self) -> tuple[int, ...]:
        """The first answer."""
        return self.ids[self.prompt_length : self.prompt_length + self.answer_length]


class Split(NamedTuple):
    """Two parts without a common prompt."""

    train: Documents
    held_out: Documents


@dataclass(frozen=True, kw_only=True, eq=False)
class Documents:
    """All texts of a dataset."""

    name: str
    tokens_N: Tokens
    learn_N: Flags
    start_of: Ints
    """(num_documents + 1,): where each begins; the last entry is N."""
    prompt_length_of: Ints
    answer_length_of: Ints
    counts: Counts
    asked_of: Flags | None = None
    """`Document.is_asked` of each; None: all of them."""
    fingerprint: str
    """sha256 of everything the tokens depend on; a checkpoint's provenance."""
    source: str
    """Files or dataset that were read."""
    licence: str = ""
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.start_of) - 1

    def __getitem__(self, index: int) -> Document:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        part = slice(int(self.start_of[index]), int(self.start_of[index + 1]))
        return Document(
            ids=tuple(self.tokens_N[part].tolist()),
            learn=tuple(self.learn_N[part].tolist()),
            prompt_length=int(self.prompt_length_of[index]),
            answer_length=int(self.answer_length_of[index]),
            is_asked=self.asked_of is None or bool(self.asked_of[index]),
        )

    def __iter__(self) -> Iterator[Document]:
        return (self[index] for index in range(len(self)))

    @property
    def lengths(self) -> Ints:
        """Tokens of each document."""
        return np.diff(self.start_of)

    def take(self, indices: Sequence[int]) -> Documents:
        """These documents, in this order; the counts are of what is left."""
        parts = [slice(int(self.start_of[index]), int(self.start_of[index + 1])) for index in indices]
        chosen = np.asarray(indices, dtype=np.int64)
        tokens_N = np.concatenate([self.tokens_N[part] for part in parts] or [self.tokens_N[:0]])
        learn_N = np.concatenate([self.learn_N[part] for part in parts] or [self.learn_N[:0]])
        return replace(
            self,
            tokens_N=tokens_N,
            learn_N=learn_N,
            start_of=np.concatenate([[0], np.cumsum(self.lengths[chosen])]).astype(np.int64),
            prompt_length_of=self.prompt_length_of[chosen],
            answer_length_of=self.answer_length_of[chosen],
            asked_of=None if self.asked_of is None else self.asked_of[chosen],
            counts=replace(self.counts, num_kept=len(chosen), num_tokens=len(tokens_N), num_learnt=int(learn_N.sum())),
        )

    def split(self, held_out: int | float, *, seed: int) -> Split:
        """Hold out so many documents (int) or this share of them (float), drawn by the hash of their prompt.

        Documents with one prompt stay together, so that a few more than asked for may be held out. The draw depends on
        seed and prompts only. Raises UsageError when nothing would be left to train on.
        """
        wanted = held_out if isinstance(held_out, int) else round(held_out * len(self))
        if wanted < 0 or (isinstance(held_out, float) and not held_out < 1.0):
            raise UsageError(f"{held_out} documents cannot be held out", where="--held-out")
        groups: dict[bytes, list[int]] = {}
        for index, document in enumerate(self):
            asked = document.prompt or document.ids
            digest = hashlib.sha256(f"{seed}\0{','.join(map(str, asked))}".encode()).digest()
            groups.setdefault(digest, []).append(index)
        held: list[int] = []
        for digest in sorted(groups):
            if len(held) >= wanted:
                break
            held += groups[digest]
        if held and len(groups) == 1:
            raise UsageError(
                f"all {len(self)} documents of {self.name} answer one prompt: holding it out leaves none to train on",
                where=self.source,
                try_="a data set with at least 2 prompts",
            )
        if len(held) >= len(self):
            raise UsageError(
                f"{self.name} has {len(self)} documents: holding out {wanted} leaves none to train on",
                where="--held-out",
                try_="hold out fewer, or take more data",
            )
        out = set(held)
        rest = [index for index in range(len(self)) if index not in out]
        return Split(train=self.take(rest), held_out=self.take(sorted(held)))

    def pack(self, num_tokens: int, *, seed: int) -> PackedDataset:
        """Rows of num_tokens tokens, see `packing.pack`."""
        from specbench.data.packing import pack

        return pack(self, num_tokens, seed=seed)
