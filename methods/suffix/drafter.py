"""Suffix decoding (Oliaro 2024): what followed the last tokens wherever they stood, here or in earlier answers.

The counting and choosing is `specbench.suffix`; here rows are kept in step with the engine and drafts become tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from torch import Tensor

from specbench.method import Commit, Drafter, DraftNoise, DraftTree, Options, Request, TargetView
from specbench.suffix import Proposal, Settings, Snapshot, SuffixMemory, load_answers, perturb_by, save_answers
from specbench.tree import from_lists


class SuffixDrafter(Drafter):
    """A trie per row, and one of finished answers that outlives a generation."""

    carries = "stream"

    def __init__(
        self, target: TargetView, settings: Settings, *, has_noise: bool, answers: Sequence[Sequence[int]] = ()
    ) -> None:
        """has_noise: at branches follow the noise the engine hands out. answers: remembered from the start."""
        self._device = target.device
        self._has_noise = has_noise
        self.max_nodes = settings.max_tokens
        self.branches = settings.shape == "tree"
        self._memory = SuffixMemory(settings, stop_ids=target.stop_ids)
        self._memory.learn(answers)
        self._end_B: list[int] = []
        self._len_B: list[int] = []

    def begin(self, requests: Sequence[Request]) -> None:
        self._end_B = [len(request.prompt) + request.max_new_tokens for request in requests]
        self._memory.begin([request.prompt for request in requests])

    def start(self, len_B: list[int], root_B: Tensor) -> None:
        self._len_B = list(len_B)
        for row, root in enumerate(root_B.tolist()):
            self._memory.extend(row, [root])

    def draft(self, noise: DraftNoise | None) -> DraftTree:
        found = [self._propose(row, noise if self._has_noise else None) for row in range(len(self._len_B))]
        return from_lists(
            [[] if each is None else each.tokens for each in found],
            [[] if each is None else each.parents for each in found],
            device=self._device,
        )

    def _propose(self, row: int, noise: DraftNoise | None) -> Proposal | None:
        # A step commits one token more than it drafts, so the last one of an answer is never worth drafting.
        room = self._end_B[row] - self._len_B[row] - 1
        return self._memory.propose(row, room=room, perturb=None if noise is None else perturb_by(noise, row))

    def commit(self, commit: Commit) -> None:
        for row, tokens in enumerate(commit.tokens):
            self._len_B[row] += len(tokens)
            self._memory.extend(row, tokens)
            if commit.finished[row]:
                self._memory.finish(row)

    def keep(self, rows: list[int]) -> None:
        self._memory.keep(rows)
        self._end_B = [self._end_B[row] for row in rows]
        self._len_B = [self._len_B[row] for row in rows]

    def snapshot(self) -> Snapshot:
        return self._memory.snapshot()

    def restore(self, snapshot: object) -> None:
        assert isinstance(snapshot, Snapshot), "a snapshot of this drafter holds its answers"
        self._memory.restore(snapshot)

    def save(self, path: Path) -> None:
        """The answers remembered so far, for the option `cache`."""
        save_answers(path, self._memory.answers)


def build(options: Options, target: TargetView, inner: Drafter | None = None) -> Drafter:
    """Raises UsageError for a cache that is no list of this target's token ids."""
    cache = cast("str", options["cache"])
    return SuffixDrafter(
        target,
        Settings.read(options),
        # Under `rejection` the engine's noise has nothing to do with the token it will draw.
        has_noise=options["draft"] == "shared-noise" and target.rule != "rejection",
        answers=load_answers(Path(cache).expanduser(), vocab_size=target.vocab_size) if cache else (),
    )
