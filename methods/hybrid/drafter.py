"""Suffix decoding where it expects enough, another drafter where it does not: decided per row and step.

The wrapped drafter is asked only in steps where some row wants it. What is committed without it reaches it by
`follow`, so that an own cache stays in step.

B rows, N nodes, M = N + 1 parents, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from specbench.errors import UsageError
from specbench.method import Commit, Drafter, DraftNoise, DraftTree, Options, Request, TargetView
from specbench.suffix import Proposal, Settings, Snapshot, SuffixMemory, load_answers, perturb_by
from specbench.tree import chain, from_lists


class Evidence:
    """What one row's drafts have come to lately: the learnt rule."""

    DECAY = 0.9
    """Weight of a step after the next one: a memory of about ten."""
    PRIOR = 2.0
    """Tokens of good faith: a suffix score is taken at its word until about as many were promised."""

    def __init__(self) -> None:
        self._inner_accepted = self._inner_drafts = 0.0
        self._promised = self._kept = 0.0

    @property
    def inner_mean(self) -> float:
        """Tokens the wrapped drafter's drafts had accepted; 1 before the first of them."""
        return self._inner_accepted / self._inner_drafts if self._inner_drafts else 1.0

    @property
    def trust(self) -> float:
        """Accepted tokens of suffix drafts over their scores: above temperature 0 counts promise too much."""
        return (self._kept + self.PRIOR) / (self._promised + self.PRIOR)

    def learn(self, num_accepted: int, *, score: float | None) -> None:
        """One step. score: of the suffix draft that was used, None where the wrapped drafter's was."""
        # Trust fades towards good faith in every step, so that a bad spell does not shut suffix drafts out for good.
        self._promised *= self.DECAY
        self._kept *= self.DECAY
        if score is not None:
            self._promised += score
            self._kept += num_accepted
            return
        self._inner_accepted = self._inner_accepted * self.DECAY + num_accepted
        self._inner_drafts = self._inner_drafts * self.DECAY + 1.0


@dataclass(frozen=True)
class Both:
    """A snapshot: the suffix memory's and the wrapped drafter's."""

    memory: Snapshot
    inner: object


class HybridDrafter(Drafter):
    """A suffix memory beside a wrapped drafter."""

    carries = "stream"

    def __init__(
        self,
        target: TargetView,
        inner: Drafter,
        settings: Settings,
        *,
        threshold: float | None,
        has_noise: bool,
        answers: Sequence[Sequence[int]] = (),
    ) -> None:
        """threshold: least score of a suffix draft; None: the learnt rule, see `Evidence`."""
        self._device = target.device
        self._inner = inner
        self._threshold = threshold
        self._has_noise = has_noise
        self._memory = SuffixMemory(settings, stop_ids=target.stop_ids)
        self._memory.learn(answers)
        self.taps = inner.taps
        self.models = inner.models
        self.weights_hash = inner.weights_hash
        self.trained_on = inner.trained_on
        self.trained_quantisation = inner.trained_quantisation
        self.notes = inner.notes
        self.max_nodes = max(inner.max_nodes, settings.max_tokens)
        self.branches = inner.branches or settings.shape == "tree"
        self._evidence: list[Evidence] = []
        self._end_B: list[int] = []
        self._len_B: list[int] = []
        self._scores: list[float | None] = []
        """Of the rows' last trees; None where it is the wrapped drafter's."""

    def num_parameters(self) -> int:
        return self._inner.num_parameters()

    def is_finite(self) -> bool:
        return self._inner.is_finite()

    def erase(self) -> None:
        self._inner.erase()

    # --- a group begins ----------------------------------------------------------------------------------------------

    def begin(self, requests: Sequence[Request]) -> None:
        self._end_B = [len(request.prompt) + request.max_new_tokens for request in requests]
        self._evidence = [Evidence() for _ in requests]
        self._memory.begin([request.prompt for request in requests])
        self._inner.shows_q = self.shows_q
        self._inner.begin(requests)

    def prefill(self, row: int, tokens_T: Tensor, hidden_TKD: Tensor | None, offset: int) -> None:
        self._inner.prefill(row, tokens_T, hidden_TKD, offset)

    def start(self, len_B: list[int], root_B: Tensor) -> None:
        self._len_B = list(len_B)
        for row, root in enumerate(root_B.tolist()):
            self._memory.extend(row, [root])
        self._inner.start(len_B, root_B)

    # --- a step ------------------------------------------------------------------------------------------------------

    def draft(self, noise: DraftNoise | None) -> DraftTree:
        found = [self._propose(row, noise if self._has_noise else None) for row in range(len(self._len_B))]
        self._scores = [None if each is None else each.score for each in found]
        wanted = [each for each in found if each is not None]
        if not wanted:
            return self._inner.draft(noise)
        if len(wanted) < len(found):
            return mixed(self._inner.draft(noise), found)
        return from_lists([each.tokens for each in wanted], [each.parents for each in wanted], device=self._device)

    def _propose(self, row: int, noise: DraftNoise | None) -> Proposal | None:
        """The row's suffix draft, None where the wrapped drafter is to be asked."""
        # A step commits one token more than it drafts, so the last one of an answer is never worth drafting.
        room = self._end_B[row] - self._len_B[row] - 1
        found = self._memory.propose(row, room=room, perturb=None if noise is None else perturb_by(noise, row))
        if found is None:
            return None
        if self._threshold is None:
            is_enough = found.score * self._evidence[row].trust >= self._evidence[row].inner_mean
        else:
            is_enough = found.score >= self._threshold
        return found if is_enough else None

    def commit(self, commit: Commit) -> None:
        for row, tokens in enumerate(commit.tokens):
            self._len_B[row] += len(tokens)
            self._memory.extend(row, tokens)
            if commit.finished[row]:
                self._memory.finish(row)
            else:
                self._evidence[row].learn(len(tokens) - 1, score=self._scores[row])
        is_own = [score is None for score in self._scores]
        if all(is_own):
            self._inner.commit(commit)
            return
        own_B1 = torch.tensor(is_own, device=self._device)[:, None]
        self._inner.follow(replace(commit, path_BP=torch.where(own_B1, commit.path_BP, -1)), is_own)

    def follow(self, commit: Commit, is_own: list[bool]) -> None:
        raise AssertionError("a method that wraps another is not wrapped itself")

    # --- rows leave, state stays -------------------------------------------------------------------------------------

    def keep(self, rows: list[int]) -> None:
        self._memory.keep(rows)
        self._inner.keep(rows)
        self._evidence = [self._evidence[row] for row in rows]
        self._end_B = [self._end_B[row] for row in rows]
        self._len_B = [self._len_B[row] for row in rows]

    def snapshot(self) -> Both:
        return Both(self._memory.snapshot(), self._inner.snapshot())

    def restore(self, snapshot: object) -> None:
        assert isinstance(snapshot, Both), "a snapshot of this drafter holds two"
        self._memory.restore(snapshot.memory)
        self._inner.restore(snapshot.inner)


def mixed(tree: DraftTree, found: Sequence[Proposal | None]) -> DraftTree:
    """`tree`, in which each row with a proposal has that instead of its own nodes.

    Where the tree records laws, a proposal's is the certainty of its node: accepted with the target's probability, as
    a picked node is. A branch of it has no such law; its later siblings are then never accepted.
    """
    num_nodes = tree.num_nodes
    device = tree.tokens_BN.device
    added = max([len(each.tokens) for each in found if each is not None] + [num_nodes]) - num_nodes
    valid_BN = torch.ones_like(tree.tokens_BN, dtype=torch.bool) if tree.valid_BN is None else tree.valid_BN
    # Copies: the wrapped drafter's tensors are its own, and a chain's parents are shared by all chains.
    tokens_BN = F.pad(tree.tokens_BN, (0, added)).clone()
    parents_BN = F.pad(tree.parents_BN, (0, added), value=-1).clone()
    valid_BN = F.pad(valid_BN, (0, added), value=False).clone()
    logq_BMV = tree.logq_BMV
    if logq_BMV is not None:
        logq_BMV = F.pad(logq_BMV, (0, 0, 0, added), value=float("-inf")).clone()
    score_BN = None if tree.score_BN is None else F.pad(tree.score_BN, (0, added), value=float("nan")).clone()
    deepest = tree.max_depth
    for row, each in enumerate(found):
        if each is None:
            continue
        size = len(each.tokens)
        tokens_BN[row, :size] = torch.tensor(each.tokens, device=device)
        parents_BN[row, :size] = torch.tensor(each.parents, device=device)
        valid_BN[row] = torch.arange(num_nodes + added, device=device) < size
        parents_BN[row, size:] = -1
        if score_BN is not None:
            # A count of what followed is no law of the wrapped drafter.
            score_BN[row] = float("nan")
        deepest = max(deepest, *_depths(each.parents))
        if logq_BMV is not None:
            logq_BMV[row] = float("-inf")
            firsts = dict(zip(reversed(each.parents), reversed(each.tokens), strict=True))
            slots = torch.tensor([parent + 1 for parent in firsts], device=device)
            logq_BMV[row, slots, torch.tensor(list(firsts.values()), device=device)] = 0.0
    if tree.is_chain and all(each is None or _is_chain(each.parents) for each in found):
        return chain(tokens_BN, valid_BN=valid_BN, score_BN=score_BN, logq_BMV=logq_BMV)
    return DraftTree(
        tokens_BN=tokens_BN,
        parents_BN=parents_BN,
        max_depth=deepest,
        valid_BN=valid_BN,
        score_BN=score_BN,
        logq_BMV=logq_BMV,
    )


def _depths(parents: Sequence[int]) -> list[int]:
    depths: list[int] = []
    for parent in parents:
        depths.append(1 if parent < 0 else depths[parent] + 1)
    return depths


def _is_chain(parents: Sequence[int]) -> bool:
    return all(parent == node - 1 for node, parent in enumerate(parents))


def build(options: Options, target: TargetView, inner: Drafter | None = None) -> Drafter:
    """Raises UsageError for a cache that is no list of this target's token ids, and for an inner that learns."""
    assert inner is not None, "the card says `wraps`"
    if inner.adaptation is not None:
        raise UsageError(
            "the wrapped drafter learns between answers from what the target made of its own drafts, which hybrid does "
            "not hand on: it would learn nothing",
            where="hybrid.inner",
            try_="--set adaptive_lora.adapt=false drafts with its adapter as it is; --methods adaptive_lora --adapt on "
            "lets it learn",
        )
    threshold = cast("float", options["threshold"])
    if -1 < threshold < 0:
        raise UsageError(
            f"threshold {threshold:g} is no number of tokens",
            where="hybrid.threshold",
            try_="--set hybrid.threshold=0 (learnt), -1 (the wrapped method's nodes), or a number above 0",
        )
    cache = cast("str", options["cache"])
    return HybridDrafter(
        target,
        inner,
        Settings.read(options),
        threshold=float(inner.max_nodes) if threshold == -1 else threshold or None,
        # Under `rejection` the engine's noise has nothing to do with the token it will draw.
        has_noise=options["draft"] == "shared-noise" and target.rule != "rejection",
        answers=load_answers(Path(cache).expanduser(), vocab_size=target.vocab_size) if cache else (),
    )
