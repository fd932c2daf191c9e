"""Gathers both laws of the verified positions while a draft model works: in the step only references are kept.

A step costs a slice of the target's logits and of the draft's; top-k, tails and overlaps are computed in `settle`,
between requests. No forward is run for it.

B rows, M = n + 1 slots of a verification, n drafted tokens, V vocabulary, S the ids both models know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from specbench.adapt.observed import Observed, is_held_out_prompt
from specbench.losses import Law, top_law, whole_law
from specbench.method import Commit

JUDGED_TOP_K = 512
"""Least entries kept of the target's law where an answer is held out: what a candidate is judged by must not hide in
the tail, whose inside nothing is known of."""
_MOST_WAITING = 64
"""Answers that wait for `settle`; where nobody calls it the oldest are forgotten."""
_SETTLE = 256
"""Positions whose laws are computed at one time."""


class Reached(NamedTuple):
    """The first n positions of a row's step at which something drafted stood behind the text's own tokens."""

    slots: slice | Tensor
    """Of the verification: whose law is that of each position's token."""
    logits: list[Tensor]
    """The draft's own there, (V,) each."""
    drafted_n: Tensor
    """The token drafted there; of several the accepted one, or else the first."""


@dataclass
class _Answer:
    """A row under way. steps: (first position, target's logits (k, V), the draft's logits by depth, drafted ids)."""

    prompt: tuple[int, ...]
    domain: str
    version: int
    row: int
    tokens: list[int] = field(default_factory=list)
    steps: list[tuple[int, Tensor, list[Tensor], Tensor]] = field(default_factory=list)
    num_kept: int = 0


class Collector:
    """top_k: entries kept of the target's law. per_answer: most positions kept of an answer; which steps they come from
    is spread evenly over the longest answer there may be, not taken from its beginning."""

    def __init__(self, *, top_k: int, per_answer: int, num_shared: int) -> None:
        self._top_k = top_k
        self._per_answer = per_answer
        self._num_shared = num_shared
        self._live: list[_Answer] = []
        self._done: list[_Answer] = []
        self._every = 1.0
        self._phase = 0.0

    def begin(
        self, prompts: Sequence[tuple[int, ...]], domains: Sequence[str], *, max_new_tokens: int, version: int = 0
    ) -> None:
        """A new group of rows. version: of the adapter that drafts them."""
        self._done = (self._done + self._live)[-_MOST_WAITING:]
        self._live = [
            _Answer(prompt, domain, version, row)
            for row, (prompt, domain) in enumerate(zip(prompts, domains, strict=True))
        ]
        self._every = max(1.0, max_new_tokens / self._per_answer)
        self._phase = 0.0

    def start(self, roots: Sequence[int]) -> None:
        """Each row's first token."""
        for answer, root in zip(self._live, roots, strict=True):
            answer.tokens.append(root)

    def step(self, commit: Commit, num_B: Sequence[int], reached: Callable[[int, int], Reached]) -> None:
        """One step's verdict. num_B: positions of each row at which something drafted stood to be verified, up to and
        including the first rejection. reached: (row, n) -> the first n of them; asked for steps that are kept."""
        self._phase += 1.0
        is_kept = self._phase >= self._every and commit.target is not None
        if is_kept:
            self._phase -= self._every
        for row, answer in enumerate(self._live):
            tokens = commit.tokens[row]
            num = min(len(tokens), num_B[row], self._per_answer - answer.num_kept) if is_kept else 0
            if num > 0:
                assert commit.target is not None
                first = len(answer.prompt) + len(answer.tokens)
                found = reached(row, num)
                # A copy: the engine writes its logits anew in every step.
                target_nV = commit.target.logits_BMV[row, found.slots].clone()
                answer.steps.append((first, target_nV, found.logits, found.drafted_n))
                answer.num_kept += num
            answer.tokens += tokens

    def keep(self, rows: Sequence[int]) -> None:
        """Rows leave the batch: theirs are finished."""
        kept = [self._live[row] for row in rows]
        self._done += [answer for row, answer in enumerate(self._live) if row not in rows]
        self._live = kept

    def settle(self) -> list[Observed]:
        """Everything gathered since the last call, as laws; the rows under way end with it."""
        answers, self._done, self._live = self._done + self._live, [], []
        with torch.no_grad():
            found = [self._observed(answer) for answer in answers if answer.steps]
        return [observed for each in found if (observed := with_laws(each)).num_positions]

    def forget(self) -> None:
        """Nothing was gathered."""
        self._done, self._live = [], []

    def _observed(self, answer: _Answer) -> Observed:
        positions: list[int] = []
        depths: list[int] = []
        drafted, parts, target, draft = [], [], [], []
        for first, target_nV, logits, drafted_n in answer.steps:
            num = target_nV.shape[0]
            positions += range(first, first + num)
            depths += range(1, num + 1)
            drafted.append(drafted_n)
            target.append(target_nV)
            draft.append(torch.stack(logits))
        target_NV, draft_NV = torch.cat(target), torch.cat(draft)
        kept = max(self._top_k, JUDGED_TOP_K) if is_held_out_prompt(answer.prompt) else self._top_k
        for start in range(0, len(positions), _SETTLE):
            where = slice(start, start + _SETTLE)
            p, q = whole_law(target_NV[where]), whole_law(draft_NV[where, : self._num_shared])
            both = torch.minimum(p.logp_RK[:, : self._num_shared].exp(), q.logp_RK.exp()).sum(-1)
            parts.append((kept_law(p, kept), both))
        return Observed(
            tokens_T=torch.tensor([*answer.prompt, *answer.tokens], dtype=torch.int32),
            num_prompt=len(answer.prompt),
            position_N=torch.tensor(positions, dtype=torch.int32),
            depth_N=torch.tensor(depths, dtype=torch.uint8),
            drafted_N=torch.cat(drafted).to("cpu", torch.int32),
            overlap_N=torch.cat([part[1] for part in parts]).to("cpu", torch.float32),
            target=_joined([part[0] for part in parts]),
            domain=answer.domain,
            version=answer.version,
            row=answer.row,
        )


def with_laws(observed: Observed) -> Observed:
    """Without the positions at which one of the models had no law: one in half precision may overflow, and a weight
    that is not a number would spoil every round that the answer is drawn into."""
    target = observed.target
    assert target.log_tail_R is not None
    has_law_N = observed.overlap_N.isfinite() & ~(target.logp_RK.isnan().any(-1) | target.log_tail_R.isnan())
    return observed if bool(has_law_N.all()) else observed.only(has_law_N.nonzero()[:, 0])


def kept_law(law: Law, top_k: int) -> Law:
    """Its top-k and tail; with fewer ids than k all of them and a tail of nothing."""
    if top_k < law.logp_RK.shape[-1]:
        return top_law(law, top_k)
    num_rows, num_ids = law.logp_RK.shape
    ids = torch.arange(num_ids, device=law.logp_RK.device).expand(num_rows, num_ids)
    return Law(law.logp_RK, ids, law.logp_RK.new_full((num_rows,), -69.0))


def _joined(laws: Sequence[Law]) -> Law:
    def stacked(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> Tensor:
        return torch.cat([tensor for tensor in tensors if tensor is not None]).to("cpu", dtype)

    return Law(
        stacked([law.logp_RK for law in laws], torch.float32),
        stacked([law.ids_RK for law in laws], torch.int32),
        stacked([law.log_tail_R for law in laws], torch.float32),
    )
