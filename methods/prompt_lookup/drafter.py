"""Prompt lookup (Saxena 2023): the last n tokens stood here before, so what followed them then is proposed again.

An index from n-grams to the places where they end is extended as tokens are committed; a step looks up a handful of
keys and never scans the context.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from specbench.errors import UsageError
from specbench.method import Commit, Drafter, DraftNoise, DraftTree, Options, Request, TargetView
from specbench.tree import chain, empty, from_lists, merge

MAX_EXAMINED = 8
"""Earlier places looked at per wanted continuation and n-gram length: bounds a step's work in any context."""


class History:
    """One sequence's tokens and the index of its n-grams."""

    def __init__(self, *, min_ngram: int, max_ngram: int) -> None:
        self.tokens: list[int] = []
        self._lengths = range(max_ngram, min_ngram - 1, -1)
        # n-gram -> indices of its last token, ascending. One dict: tuples of different lengths never clash.
        self._ends: dict[tuple[int, ...], list[int]] = {}
        self._num_indexed = 0

    def extend(self, new: Sequence[int]) -> None:
        """Append tokens; index every n-gram that something now follows."""
        tokens, ends = self.tokens, self._ends
        tokens.extend(new)
        for end in range(self._num_indexed, len(tokens) - 1):
            for length in self._lengths:
                if length <= end + 1:
                    key = tuple(tokens[end + 1 - length : end + 1])
                    found = ends.get(key)
                    if found is None:
                        ends[key] = [end]
                    else:
                        found.append(end)
        self._num_indexed = max(len(tokens) - 1, 0)

    def find(self, *, num_tokens: int, continuations: int, stop_ids: frozenset[int]) -> list[list[int]]:
        """Up to `continuations` different continuations of at most num_tokens tokens, best first; none after a stop id.

        Longer matches come first; among equal ones the latest that is followed by num_tokens tokens, then earlier ones,
        then those near the end of the text that are followed by fewer (the longest of them first).
        """
        tokens = self.tokens
        found: list[list[int]] = []
        for length in self._lengths:
            if length > len(tokens):
                continue
            ends = self._ends.get(tuple(tokens[-length:]))
            if ends is None:
                continue
            for end in self._in_order(ends, num_tokens, MAX_EXAMINED * continuations):
                following = tokens[end + 1 : end + 1 + num_tokens]
                if not stop_ids.isdisjoint(following):
                    first = next(place for place, token in enumerate(following) if token in stop_ids)
                    following = following[: first + 1]
                if continuations == 1:
                    return [following]
                if not any(other[: len(following)] == following for other in found):
                    found.append(following)
                    if len(found) == continuations:
                        return found
        return found

    def _in_order(self, ends: list[int], num_tokens: int, limit: int) -> Iterator[int]:
        last_full = len(self.tokens) - 1 - num_tokens
        place = len(ends) - 1
        while place >= 0 and ends[place] > last_full:  # at most num_tokens turns: ends are distinct
            place -= 1
        short = ends[place + 1 :]
        for full in range(place, max(place - limit, -1), -1):
            yield ends[full]
        yield from short[:limit]


class PromptLookupDrafter(Drafter):
    """One `History` per row; nothing outlives a generation."""

    def __init__(
        self, target: TargetView, *, max_ngram: int, min_ngram: int, num_tokens: int, continuations: int
    ) -> None:
        self._device = target.device
        self._stop_ids = frozenset(target.stop_ids)
        self._max_ngram = max_ngram
        self._min_ngram = min_ngram
        self._num_tokens = num_tokens
        self._continuations = continuations
        self.max_nodes = num_tokens * continuations
        self.branches = continuations > 1
        self._histories: list[History] = []
        self._end_B: list[int] = []

    def begin(self, requests: Sequence[Request]) -> None:
        self._end_B = [len(request.prompt) + request.max_new_tokens for request in requests]
        self._histories = []
        for request in requests:
            history = History(min_ngram=self._min_ngram, max_ngram=self._max_ngram)
            history.extend(request.prompt)
            self._histories.append(history)

    def start(self, len_B: list[int], root_B: Tensor) -> None:
        for history, root in zip(self._histories, root_B.tolist(), strict=True):
            history.extend([root])

    def draft(self, noise: DraftNoise | None) -> DraftTree:
        found = [self._find(row) for row in range(len(self._histories))]
        if len(found) == 1 and len(found[0]) <= 1:
            if not found[0]:
                return empty(1, self._device)
            return chain(torch.tensor(found[0], device=self._device))
        tokens, parents = [], []
        for continuations in found:
            row_tokens, row_parents = merge(continuations, max_nodes=self.max_nodes)
            tokens.append(row_tokens)
            parents.append(row_parents)
        return from_lists(tokens, parents, device=self._device)

    def _find(self, row: int) -> list[list[int]]:
        history = self._histories[row]
        # A step commits one token more than it drafts, so the last one of an answer is never worth drafting.
        room = self._end_B[row] - len(history.tokens) - 1
        if room <= 0:
            return []
        return history.find(
            num_tokens=min(self._num_tokens, room), continuations=self._continuations, stop_ids=self._stop_ids
        )

    def commit(self, commit: Commit) -> None:
        for history, tokens in zip(self._histories, commit.tokens, strict=True):
            history.extend(tokens)

    def keep(self, rows: list[int]) -> None:
        self._histories = [self._histories[row] for row in rows]
        self._end_B = [self._end_B[row] for row in rows]


def build(options: Options, target: TargetView, inner: Drafter | None = None) -> Drafter:
    """Raises UsageError when min_ngram exceeds max_ngram."""
    max_ngram, min_ngram = cast("int", options["max_ngram"]), cast("int", options["min_ngram"])
    if min_ngram > max_ngram:
        raise UsageError(
            f"min_ngram {min_ngram} is above max_ngram {max_ngram}",
            where="prompt_lookup.min_ngram",
            try_=f"--set prompt_lookup.min_ngram={max_ngram}",
        )
    return PromptLookupDrafter(
        target,
        max_ngram=max_ngram,
        min_ngram=min_ngram,
        num_tokens=cast("int", options["num_tokens"]),
        continuations=cast("int", options["continuations"]),
    )
