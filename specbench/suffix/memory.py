"""What a suffix drafter remembers, and what it proposes from it. No torch.

Every sequence in flight has a trie of its own (prompt, then answer); finished answers go into one they share, first
in first out. The shared trie changes between groups only: what a group finished waits until the next one begins, so
going back to a snapshot before then costs nothing.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import floor
from pathlib import Path
from typing import Any, Literal, cast

from specbench.errors import EnvironmentFailed, UsageError
from specbench.suffix.trie import Place, SuffixTrie
from specbench.suffix.walk import Perturb, Proposal, Walker


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How suffixes are remembered and drafts are cut."""

    max_depth: int = 64
    """Longest string counted: match and draft together."""
    max_requests: int = 100_000
    """Finished answers remembered; 0 none, -1 all."""
    max_tokens: int = 16
    max_spec_factor: float = 1.0
    max_spec_offset: float = 0.0
    """A match of m tokens drafts at most floor(factor * m + offset) nodes."""
    min_token_prob: float = 0.1
    shape: Literal["path", "tree"] = "path"

    @staticmethod
    def read(options: Mapping[str, Any]) -> Settings:
        """From a card's options of the same names."""
        return Settings(
            max_depth=cast("int", options["max_depth"]),
            max_requests=cast("int", options["max_requests"]),
            max_tokens=cast("int", options["max_tokens"]),
            max_spec_factor=cast("float", options["max_spec_factor"]),
            max_spec_offset=cast("float", options["max_spec_offset"]),
            min_token_prob=cast("float", options["min_token_prob"]),
            shape=cast('Literal["path", "tree"]', options["shape"]),
        )


@dataclass(frozen=True)
class Snapshot:
    """The shared trie's content; equal versions hold the same."""

    version: int
    answers: tuple[tuple[int, ...], ...]
    waiting: tuple[tuple[int, ...], ...]


@dataclass
class _Row:
    own: SuffixTrie
    shared: list[Place] = field(default_factory=list)
    """Where the last tokens stand in the shared trie, longest first."""
    answer: list[int] = field(default_factory=list)


class SuffixMemory:
    """Rows' tries, the shared one, and drafts from both."""

    def __init__(self, settings: Settings, *, stop_ids: Iterable[int] = ()) -> None:
        self._settings = settings
        self._stop_ids = frozenset(stop_ids)
        self._rows: list[_Row] = []
        self._shared = SuffixTrie(max_depth=settings.max_depth)
        self._waiting: list[tuple[int, ...]] = []
        self._versions = itertools.count(1)
        self._version = 0

    # --- what is remembered ------------------------------------------------------------------------------------------

    def begin(self, prompts: Sequence[Sequence[int]]) -> None:
        """A new group; what the last one finished becomes findable."""
        self.learn(self._waiting)
        self._waiting = []
        self._rows = []
        for prompt in prompts:
            row = _Row(SuffixTrie(max_depth=self._settings.max_depth))
            row.own.open()
            self._rows.append(row)
            self._read(row, prompt)

    def learn(self, answers: Iterable[Sequence[int]]) -> None:
        """Into the shared trie, the oldest out where there are too many. Between groups only."""
        limit = self._settings.max_requests
        for answer in answers if limit else ():
            while limit > 0 and len(self._shared.texts) >= limit:
                self._shared.remove_oldest()
            self._shared.add(answer)
            self._version = next(self._versions)

    def extend(self, row: int, tokens: Sequence[int]) -> None:
        """Tokens of row's answer."""
        self._rows[row].answer += tokens
        self._read(self._rows[row], tokens)

    def finish(self, row: int) -> None:
        """Row's answer is complete."""
        if self._settings.max_requests:
            self._waiting.append(tuple(self._rows[row].answer))

    def keep(self, rows: Sequence[int]) -> None:
        """New row i is old row rows[i]."""
        self._rows = [self._rows[row] for row in rows]

    def _read(self, row: _Row, tokens: Sequence[int]) -> None:
        is_known = bool(self._shared.texts)
        for token in tokens:
            row.own.append(token)
            if is_known:
                row.shared = self._shared.advance(row.shared, token)

    @property
    def answers(self) -> tuple[tuple[int, ...], ...]:
        """Finished answers, oldest first, those included that wait for the next group."""
        return (*(tuple(text.tokens) for text in self._shared.texts), *self._waiting)

    def snapshot(self) -> Snapshot:
        """What outlives a group."""
        found = tuple(tuple(text.tokens) for text in self._shared.texts)
        return Snapshot(self._version, found, tuple(self._waiting))

    def restore(self, snapshot: Snapshot) -> None:
        """Back to it: at once where no group began since something was finished, otherwise the trie is built again."""
        self._waiting = list(snapshot.waiting)
        self._rows = []
        if snapshot.version != self._version:
            self._shared = SuffixTrie(max_depth=self._settings.max_depth)
            for answer in snapshot.answers:
                self._shared.add(answer)
            self._version = snapshot.version

    # --- what is proposed --------------------------------------------------------------------------------------------

    def propose(self, row: int, *, room: int, perturb: Perturb | None = None) -> Proposal | None:
        """The draft with the highest score, of all match lengths; the row's own trie and longer matches win ties.

        room: longest path of use. perturb: branches take the child with the highest log p + noise instead of p.
        """
        best: Proposal | None = None
        if room <= 0:
            return None
        settings = self._settings
        own = self._rows[row].own
        for trie, places in ((own, own.live), (self._shared, self._rows[row].shared)):
            walker = Walker(
                trie,
                min_prob=settings.min_token_prob,
                stop_ids=self._stop_ids,
                max_depth=room,
                perturb=perturb,
            )
            for place in places:
                cap = self._cap(place.depth)
                # No draft scores more than its nodes, and shorter matches get no more of them.
                if cap == 0 or (best is not None and cap <= best.score):
                    break
                found = walker.path(place, cap) if settings.shape == "path" else walker.tree(place, cap)
                if found is not None and (best is None or found.score > best.score):
                    best = found
        return best

    def _cap(self, num_matched: int) -> int:
        settings = self._settings
        return max(
            0, min(settings.max_tokens, floor(settings.max_spec_factor * num_matched + settings.max_spec_offset))
        )


def save_answers(path: Path, answers: Iterable[Sequence[int]]) -> None:
    """Token ids, one answer a line, for the option `cache`. Raises EnvironmentFailed where it cannot be written."""
    try:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(list(answer)) + "\n" for answer in answers)
    except OSError as error:
        raise EnvironmentFailed(f"the answers cannot be saved: {error}", where=str(path)) from error


def load_answers(path: Path, *, vocab_size: int) -> list[list[int]]:
    """What `save_answers` wrote. Raises UsageError: no such file, not token ids, or ids of another vocabulary."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"no saved answers: {error}", where="cache", try_="a file written by save_answers") from error
    answers = []
    for number, line in enumerate(lines, start=1):
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, list) or not all(type(token) is int and 0 <= token < vocab_size for token in answer):
            raise UsageError(
                f"not a list of token ids below {vocab_size}",
                where=f"{path}:{number}",
                try_="a file written by save_answers with this target's tokenizer",
            )
        answers.append(answer)
    return answers
