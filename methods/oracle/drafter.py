"""Forced acceptance: replays the reference answer and corrupts it at a chosen rate, at next to no cost.

Whether a position is corrupted depends on (request, position) alone. In a chain each position is tried once at most:
accepted, or corrected by the bonus token. The conditional acceptance rate is therefore `rate` at every depth, trials
independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from specbench.errors import UsageError
from specbench.method import Commit, Drafter, DraftNoise, DraftTree, Options, Request, TargetView
from specbench.sampling import uniforms
from specbench.tree import chain, empty, from_lists

_STREAM = 1 << 58
"""Sets this method's draws apart from the engine's, which use the same keys."""


def corrupted(reference: Sequence[int], *, key: int, rate: float, vocab_size: int) -> list[int]:
    """The reference with each token replaced, with probability 1 - rate, by another one. vocab_size >= 2."""
    if not reference:
        return []
    positions_1Q = torch.arange(len(reference))[None]
    draws_Q2 = uniforms(torch.tensor([key ^ _STREAM]), positions_1Q, 2)[0].tolist()
    return [
        token if is_right < rate else (token + 1 + int(which * (vocab_size - 1))) % vocab_size
        for token, (is_right, which) in zip(reference, draws_Q2, strict=True)
    ]


class OracleDrafter(Drafter):
    """Holds each row's corrupted reference and how much of it is committed: on the host, and while steps are captured
    in buffers that never move."""

    capturable = True
    carried = ("_done_B",)

    def __init__(self, target: TargetView, *, rate: float, depth: int) -> None:
        self._device = target.device
        self._vocab_size = target.vocab_size
        self._rate = rate
        self.max_nodes = depth
        self._proposals: list[list[int]] = []
        self._on_device: list[Tensor] = []
        self._num_done: list[int] = []
        self._span: int | None = None
        self._held_RL = torch.zeros(target.max_batch, target.max_len, dtype=torch.long, device=target.device)
        self._end_R = torch.zeros(target.max_batch, dtype=torch.long, device=target.device)
        """The reference's last token is left to the bonus: a step commits one token more than it drafts."""
        self._done_B = self._end_R[:0]
        self._depth_D = torch.arange(depth, device=target.device)

    def begin(self, requests: Sequence[Request]) -> None:
        """Raises UsageError for a request without a reference."""
        self._proposals = []
        for request in requests:
            if request.reference is None:
                raise UsageError(
                    "oracle replays the autoregressive answer and was given none",
                    where="oracle",
                    try_="specbench run SUITE --methods oracle, which makes the reference first",
                )
            self._proposals.append(
                corrupted(request.reference, key=request.key, rate=self._rate, vocab_size=self._vocab_size)
            )
        self._on_device = [
            torch.tensor([proposal], dtype=torch.long, device=self._device) for proposal in self._proposals
        ]

        self._span = None

    def start(self, len_B: list[int], root_B: Tensor) -> None:
        self._num_done = [1] * len(len_B)

    def hold(self, span: int | None) -> None:
        if self._span is None and span is not None:
            for row, (proposal_1L, end) in enumerate(zip(self._on_device, self._ends(), strict=True)):
                self._held_RL[row, : proposal_1L.shape[1]] = proposal_1L[0]
                self._end_R[row] = end
            self._done_B = torch.tensor(self._num_done, device=self._device)
        self._span = span

    def _ends(self) -> list[int]:
        return [len(proposal) - 1 for proposal in self._proposals]

    def draft(self, noise: DraftNoise | None) -> DraftTree:
        if self._span is not None:
            return self._held_draft()
        spans = [
            (done, max(min(done + self.max_nodes, end), done))
            for done, end in zip(self._num_done, self._ends(), strict=True)
        ]
        if len(spans) == 1:
            start, end = spans[0]
            return chain(self._on_device[0][:, start:end]) if end > start else empty(1, self._device)
        tokens = [proposal[start:end] for proposal, (start, end) in zip(self._proposals, spans, strict=True)]
        return from_lists(tokens, [list(range(-1, len(row) - 1)) for row in tokens], device=self._device)

    def _held_draft(self) -> DraftTree:
        num_rows = self._done_B.shape[0]
        place_BD = self._done_B[:, None] + self._depth_D
        tokens_BD = self._held_RL[:num_rows].gather(1, place_BD.clamp(max=self._held_RL.shape[1] - 1))
        return chain(tokens_BD, valid_BN=place_BD < self._end_R[:num_rows, None])

    def commit(self, commit: Commit) -> None:
        if self._span is not None:
            self._done_B = self._done_B + commit.num_accepted_B + 1
            return
        self._num_done = [done + len(tokens) for done, tokens in zip(self._num_done, commit.tokens, strict=True)]

    def keep(self, rows: list[int]) -> None:
        self._proposals = [self._proposals[row] for row in rows]
        self._on_device = [self._on_device[row] for row in rows]
        self._num_done = [self._num_done[row] for row in rows]
        if self._span is not None:
            self._held_RL[: len(rows)] = self._held_RL[rows]
            self._end_R[: len(rows)] = self._end_R[rows]
            self._done_B = self._done_B[rows]


def build(options: Options, target: TargetView, inner: Drafter | None = None) -> Drafter:
    """rate in [0, 1], depth >= 1."""
    return OracleDrafter(target, rate=cast("float", options["rate"]), depth=cast("int", options["depth"]))
