"""A drafter under observation: every tree it returns is inspected before the engine sees it, and kept.

A drafter that says it is capturable is kept from reading anything on the host while its steps are captured.

Also the drafter that proposes nothing, for the text that everything is held against.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from specbench.conformance.broken import BrokenPromise
from specbench.conformance.capture import NoHostReads, Unreadable
from specbench.method import Commit, Drafter, DraftNoise, DraftTree, Request, TargetView
from specbench.tree import empty, from_lists


@dataclass(frozen=True)
class HostTree:
    """One row's valid nodes: what comparing two drafts needs."""

    tokens: tuple[int, ...]
    parents: tuple[int, ...]


def inspect_tree(tree: DraftTree, *, num_rows: int, max_nodes: int, vocab_size: int) -> list[HostTree]:
    """The rows of a well-formed draft. Raises BrokenPromise naming the first fault."""
    shape = tuple(tree.tokens_BN.shape)
    _demand(len(shape) == 2 and shape[0] == num_rows, f"a draft of shape {shape} for {num_rows} live rows")
    _demand(tree.parents_BN.shape == shape, f"parents of shape {tuple(tree.parents_BN.shape)} for tokens of {shape}")
    num_nodes = shape[1]
    _demand(num_nodes <= max_nodes, f"{num_nodes} nodes where max_nodes says {max_nodes}")
    for name, tensor in (("tokens", tree.tokens_BN), ("parents", tree.parents_BN)):
        _demand(tensor.dtype == torch.int64, f"{name} of dtype {tensor.dtype}, not int64")
    if tree.valid_BN is not None:
        _demand(tree.valid_BN.dtype == torch.bool and tree.valid_BN.shape == shape, "valid_BN is not bool (B, N)")
    _demand(tree.max_depth <= num_nodes, f"max_depth {tree.max_depth} with {num_nodes} nodes")
    if tree.logq_BMV is not None:
        wanted = (num_rows, num_nodes + 1, vocab_size)
        _demand(tuple(tree.logq_BMV.shape) == wanted, f"logq of shape {tuple(tree.logq_BMV.shape)}, not {wanted}")
    rows = []
    for row in range(num_rows):
        valid = [True] * num_nodes if tree.valid_BN is None else tree.valid_BN[row].tolist()
        tokens, parents = tree.tokens_BN[row].tolist(), tree.parents_BN[row].tolist()
        _inspect_row(tokens, parents, valid, vocab_size=vocab_size, max_depth=tree.max_depth, is_chain=tree.is_chain)
        if tree.logq_BMV is not None:
            _inspect_laws(tree.logq_BMV[row], parents, valid)
        kept = [node for node in range(num_nodes) if valid[node]]
        # Valid nodes renumbered, so that padding does not matter in a comparison.
        place = {node: index for index, node in enumerate(kept)} | {-1: -1}
        rows.append(
            HostTree(tokens=tuple(tokens[node] for node in kept), parents=tuple(place[parents[node]] for node in kept))
        )
    return rows


def _inspect_row(
    tokens: list[int], parents: list[int], valid: list[bool], *, vocab_size: int, max_depth: int, is_chain: bool
) -> None:
    depths: list[int] = []
    siblings: set[tuple[int, int]] = set()
    for node, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
        _demand(-1 <= parent < node, f"node {node} has parent {parent}: parents must come first")
        depths.append(1 if parent < 0 else depths[parent] + 1)
        _demand(0 <= token < vocab_size, f"node {node} proposes id {token}, the vocabulary has {vocab_size}")
        _demand(not is_chain or parent == node - 1, f"a claimed chain whose node {node} has parent {parent}")
        if valid[node]:
            _demand(parent < 0 or valid[parent], f"node {node} is valid below the invalid node {parent}")
            _demand((parent, token) not in siblings, f"token {token} stands twice below node {parent}")
            siblings.add((parent, token))
            _demand(depths[node] <= max_depth, f"node {node} at depth {depths[node]} where max_depth says {max_depth}")


def _inspect_laws(logq_MV: Tensor, parents: list[int], valid: list[bool]) -> None:
    for slot in sorted({parent + 1 for parent, is_valid in zip(parents, valid, strict=True) if is_valid}):
        mass = float(logq_MV[slot].double().exp().sum())
        _demand(abs(mass - 1) < 1e-3, f"the recorded law of slot {slot} sums to {mass:.4g}")


def _demand(holds: bool, fault: str) -> None:
    if not holds:
        raise BrokenPromise(fault)


class PlainDrafter(Drafter):
    """Autoregression without a method: the text everything is held against."""

    def __init__(self, view: TargetView) -> None:
        self.device = view.device

    def start(self, len_B: list[int], root_B: torch.Tensor) -> None:
        self.num_rows = len(len_B)

    def draft(self, noise: DraftNoise | None) -> DraftTree:
        return empty(self.num_rows, self.device)

    def keep(self, rows: list[int]) -> None:
        self.num_rows = len(rows)


class Watched(Drafter):
    """Passes every call on and keeps what came back: `drafts[step][place]` of the last generation."""

    def __init__(self, inner: Drafter, *, vocab_size: int) -> None:
        self._inner = inner
        self._vocab_size = vocab_size
        self.taps = inner.taps
        self.models = inner.models
        self.carries = inner.carries
        self.capturable = inner.capturable
        self.wants_target = inner.wants_target
        self.max_nodes = inner.max_nodes
        self.drafts: list[list[HostTree]] = []
        self.num_drafts = 0

    def begin(self, requests: Sequence[Request]) -> None:
        self._num_rows = len(requests)
        self.drafts = []
        self._inner.begin(requests)

    def prefill(self, row: int, tokens_T: Tensor, hidden_TKD: Tensor | None, offset: int) -> None:
        self._inner.prefill(row, tokens_T, hidden_TKD, offset)

    def start(self, len_B: list[int], root_B: Tensor) -> None:
        self._inner.start(len_B, root_B)

    def draft(self, noise: DraftNoise | None) -> DraftTree:
        tree = self._inner.draft(noise)
        _demand(tree.is_chain or self._inner.branches, "a tree, and its `branches` says that it drafts chains alone")
        self.drafts.append(
            inspect_tree(tree, num_rows=self._num_rows, max_nodes=self.max_nodes, vocab_size=self._vocab_size)
        )
        self.num_drafts += 1
        return tree

    def commit(self, commit: Commit) -> None:
        self._inner.commit(commit)

    def keep(self, rows: list[int]) -> None:
        self._num_rows = len(rows)
        self._inner.keep(rows)

    def snapshot(self) -> object:
        return self._inner.snapshot()

    def restore(self, snapshot: object) -> None:
        self._inner.restore(snapshot)

    def num_parameters(self) -> int:
        return self._inner.num_parameters()

    def follow(self, commit: Commit, is_own: list[bool]) -> None:
        self._inner.follow(commit, is_own)

    def is_finite(self) -> bool:
        return self._inner.is_finite()

    def erase(self) -> None:
        self._inner.erase()


class Guarded(Drafter):
    """Passes every call on; while steps are captured, a value read on the host in draft() or commit() is a broken
    promise, also where a CPU would let it pass."""

    capturable = True

    def __init__(self, inner: Drafter) -> None:
        self._inner = inner
        self.taps = inner.taps
        self.models = inner.models
        self.max_nodes = inner.max_nodes
        self.wants_target = inner.wants_target

    def begin(self, requests: Sequence[Request]) -> None:
        self._inner.begin(requests)

    def prefill(self, row: int, tokens_T: Tensor, hidden_TKD: Tensor | None, offset: int) -> None:
        self._inner.prefill(row, tokens_T, hidden_TKD, offset)

    def start(self, len_B: list[int], root_B: Tensor) -> None:
        self._inner.start(len_B, root_B)

    def hold(self, span: int | None) -> None:
        self._inner.hold(span)
        # What a drafter carries may be made by its own `hold`.
        self.carried = tuple(f"_inner.{name}" for name in self._inner.carried)

    def draft(self, noise: DraftNoise | None) -> DraftTree:
        with NoHostReads("draft()"):
            return self._inner.draft(noise)

    def commit(self, commit: Commit) -> None:
        with NoHostReads("commit()"):
            self._inner.commit(replace(commit, tokens=Unreadable(), finished=Unreadable()))

    def keep(self, rows: list[int]) -> None:
        self._inner.keep(rows)

    def is_finite(self) -> bool:
        return self._inner.is_finite()

    def erase(self) -> None:
        self._inner.erase()


class SetAside(Drafter):
    """Wraps a drafter as a hybrid does: takes its draft in one step of three, proposes the known answer without asking
    it in the next, and in the third sets the drafts of every other row aside.

    seen[row, committed tokens]: what it drafted there.
    """

    NUM_KNOWN = 3

    def __init__(
        self, watched: Watched, answers: Sequence[Sequence[int]], *, device: torch.device, is_disturbed: bool = True
    ) -> None:
        """is_disturbed: False takes every draft, to compare with."""
        self._watched = watched
        self._answers = answers
        self._device = device
        self._is_disturbed = is_disturbed
        self.taps = watched.taps
        self.carries = watched.carries
        self.max_nodes = max(watched.max_nodes, self.NUM_KNOWN)
        self.seen: dict[tuple[int, int], HostTree] = {}

    def begin(self, requests: Sequence[Request]) -> None:
        self._watched.begin(requests)
        self._rows = list(range(len(requests)))
        self._num_done = [1] * len(requests)
        self._step = -1 if self._is_disturbed else 0
        self._is_own: list[bool] = []

    def prefill(self, row: int, tokens_T: Tensor, hidden_TKD: Tensor | None, offset: int) -> None:
        self._watched.prefill(row, tokens_T, hidden_TKD, offset)

    def start(self, len_B: list[int], root_B: Tensor) -> None:
        self._watched.start(len_B, root_B)

    def draft(self, noise: DraftNoise | None) -> DraftTree:
        self._step += self._is_disturbed
        places = range(len(self._rows))
        if self._step % 3 == 1:
            self._is_own = [False for _ in places]
            ahead = [
                list(self._answers[self._rows[place]][done : done + self.NUM_KNOWN])
                for place, done in enumerate(self._num_done)
            ]
            return from_lists(ahead, [list(range(-1, len(row) - 1)) for row in ahead], device=self._device)
        tree = self._watched.draft(noise)
        for place in places:
            self.seen[self._rows[place], self._num_done[place]] = self._watched.drafts[-1][place]
        self._is_own = [self._step % 3 == 0 or (self._rows[place] + self._step) % 2 == 0 for place in places]
        own_BN = torch.tensor(self._is_own, device=self._device)[:, None].expand(tree.tokens_BN.shape)
        return replace(tree, valid_BN=own_BN if tree.valid_BN is None else tree.valid_BN & own_BN)

    def commit(self, commit: Commit) -> None:
        self._num_done = [done + len(new) for done, new in zip(self._num_done, commit.tokens, strict=True)]
        if all(self._is_own):
            self._watched.commit(commit)
            return
        own_B1 = torch.tensor(self._is_own, device=self._device)[:, None]
        path_BP = torch.where(own_B1, commit.path_BP, -1)
        self._watched.follow(replace(commit, path_BP=path_BP), self._is_own)

    def keep(self, rows: list[int]) -> None:
        self._rows = [self._rows[row] for row in rows]
        self._num_done = [self._num_done[row] for row in rows]
        self._watched.keep(rows)

    def is_finite(self) -> bool:
        return self._watched.is_finite()

    def erase(self) -> None:
        self._watched.erase()
