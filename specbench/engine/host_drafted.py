"""Drafters that think on the host (prompt lookup, tries, hybrids): their tree is copied into a captured verification.

The host waits for every step, because the next draft needs its tokens; but target, acceptance and compaction are one
launch. Trees are padded to a few shapes so that few graphs are needed.

B rows, N nodes of the shape, M = N + 1 slots, S cache slots that are read.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from specbench.engine.answer import NotFinite, StepSink
from specbench.engine.pinned_run import Capture, Judged, PinnedRun, span_of, spans
from specbench.engine.pins import FIRST_STAMP, LATE_STAMP, TABLE
from specbench.engine.readback import HostRead, Shape, read_table
from specbench.engine.run import Setting
from specbench.method import Commit, Drafter, Request
from specbench.tree import DraftTree, chain


class TreeShape(NamedTuple):
    """What trees are padded to: N nodes, paths of at most `depth`."""

    num_nodes: int
    depth: int
    is_chain: bool

    @classmethod
    def around(cls, tree: DraftTree, *, max_nodes: int) -> TreeShape:
        """The next powers of two."""
        return cls._of(tree.num_nodes, None if tree.is_chain else tree.max_depth, max_nodes)

    @classmethod
    def _of(cls, num_nodes: int, depth: int | None, max_nodes: int) -> TreeShape:
        """depth: of a tree; None: a chain."""
        if num_nodes == 0:
            return cls(0, 0, True)
        nodes = min(_power(num_nodes), max_nodes)
        return cls(nodes, nodes if depth is None else min(_power(depth), nodes), depth is None)

    @classmethod
    def all_of(cls, most: int, *, max_nodes: int) -> set[TreeShape]:
        """Whatever drafts of up to `most` nodes are padded to."""
        chains = {cls._of(num, None, max_nodes) for num in range(most + 1)}
        return chains | {cls._of(num, depth, max_nodes) for num in range(2, most + 1) for depth in range(1, num + 1)}


def _power(number: int) -> int:
    return 1 << (number - 1).bit_length()


class _Outcome(NamedTuple):
    shape: Shape
    judged: Judged


class _Unfinished(NamedTuple):
    """A step of which the time of its end is still on its way."""

    step: int
    live: list[int]
    read: HostRead
    num_cut: list[int]
    marks: list[int]


class HostDraftedRun(PinnedRun):
    """For drafters that are not capturable."""

    def __init__(
        self,
        setting: Setting,
        drafter: Drafter,
        requests: Sequence[Request],
        sink: StepSink | None,
        capture: Capture,
    ) -> None:
        super().__init__(setting, drafter, requests, sink, capture)
        self._unfinished: _Unfinished | None = None
        self._met: set[tuple[int, TreeShape]] = set()
        """Rows and shape of the trees of this generation."""

    def _decode(self, root_B: Tensor) -> None:
        self._put_rows(root_B, self._live)
        super()._decode(root_B)
        numbers = self._capture.graphs.backend.send(self._pins.out[:TABLE])()
        self._finish(numbers[LATE_STAMP])
        if self._capture.capturing == "all":
            # Shapes of trees are the drafter's own: those it has come to, at every length a text may have, and then
            # those it may come to in other texts. The texts are over, so every step begins at length 0: many steps
            # behind one another would outgrow the cache.
            # A batch shrinks row by row, and rows of a warm-up end together: every smaller size, the largest first.
            met = {(num, shape) for rows, shape in self._met for num in range(1, rows + 1)}
            possible = TreeShape.all_of(self._drafter.max_nodes, max_nodes=self._pins.max_nodes)
            largest = max((rows for rows, _ in self._met), default=0)
            other = {(num, shape) for shape in possible for num in range(1, largest + 1)} - met
            for num_rows, shape in [*sorted(met, reverse=True), *sorted(other, reverse=True)]:
                for span in spans(self._lm.cache.num_slots):
                    if self._capture.graphs.is_full(self._drafter):
                        return
                    self._pins.length_R.zero_()
                    self._replay(num_rows, span, shape)

    def _step(self, root_B: Tensor, step: int) -> Tensor:
        pins, num_rows = self._pins, len(self._live)
        self._stamp(FIRST_STAMP)
        if self._noise is not None:
            self._seek([row.length for row in self._live])
        tree = self._drafter.draft(self._draft_noise)
        shape = self._put(tree)
        self._stamp(FIRST_STAMP + 1)
        span = span_of(max(row.length for row in self._live) + shape.num_nodes, self._lm.cache.num_slots)
        if tree.logq_BMV is None:
            self._met.add((num_rows, shape))
            outcome = self._replay(num_rows, span, shape)
        else:
            # The laws a drafter drew from are its own tensors, new in every step: nothing a graph could find again.
            outcome = self._target_step(num_rows, span, shape, tree.logq_BMV)
        width = outcome.shape.width
        numbers = self._capture.graphs.backend.send(pins.out[: TABLE + num_rows * width])()
        if step == 0:
            self._recorder.begin(numbers[0], now_s=time.perf_counter())
        self._finish(numbers[LATE_STAMP])
        table = [numbers[TABLE + place * width : TABLE + (place + 1) * width] for place in range(num_rows)]
        read = read_table(table, outcome.shape)
        num_cut = []
        for place, row in enumerate(self._live):
            if not read.is_finite[place]:
                raise NotFinite.at(self._lm.name, f"at step {step}")
            self._lm.cache.advance(place, read.num_accepted[place] + 1)
            num_cut.append(self._extend(row, read.tokens[place]))
        self._commit(tree, outcome, read, num_cut)
        self._stamp(LATE_STAMP)
        marks = numbers[FIRST_STAMP : FIRST_STAMP + 4]
        self._unfinished = _Unfinished(step, [row.index for row in self._live], read, num_cut, marks)
        return pins.root_R[:num_rows]

    def _replay(self, num_rows: int, span: int, shape: TreeShape) -> _Outcome:
        outcome: _Outcome = self._capture.graphs.run(
            self._drafter,
            (num_rows, span, shape),
            lambda: self._target_step(num_rows, span, shape, None),
            may_capture=self._capture.capturing != "none",
            before=lambda: None,
        )
        return outcome

    def _put(self, tree: DraftTree) -> TreeShape:
        """The tree goes where the captured step reads it, padded with nodes that are not valid."""
        shape = TreeShape.around(tree, max_nodes=self._pins.max_nodes)
        if not shape.num_nodes:
            return shape
        where = (slice(0, tree.tokens_BN.shape[0]), slice(0, shape.num_nodes))
        pad = (0, shape.num_nodes - tree.num_nodes)
        valid_BN = torch.ones_like(tree.tokens_BN, dtype=torch.bool) if tree.valid_BN is None else tree.valid_BN
        padded = torch.nn.functional.pad
        self._pins.tokens_RN[where] = padded(tree.tokens_BN, pad)
        self._pins.is_valid_RN[where] = padded(valid_BN, pad)
        self._pins.parents_RN[where] = padded(tree.parents_BN, pad, value=-1)
        return shape

    def _target_step(self, num_rows: int, span: int, shape: TreeShape, logq_BMV: Tensor | None) -> _Outcome:
        """What is captured: from the pinned tree to the pinned root behind what was accepted."""
        length_B = self._pins.length_R[:num_rows]
        tree = self._pinned_tree(num_rows, shape, logq_BMV)
        judged = self._judge(tree, length_B, span=span, noise=self._acceptance_noise(num_rows))
        verdict = judged.verdict
        self._pins.root_R[:num_rows] = verdict.tokens_BC.gather(1, verdict.num_accepted_B[:, None])[:, 0]
        length_B.add_(verdict.num_accepted_B + 1)
        return _Outcome(Shape.of(tree), judged)

    def _pinned_tree(self, num_rows: int, shape: TreeShape, logq_BMV: Tensor | None) -> DraftTree:
        where = (slice(0, num_rows), slice(0, shape.num_nodes))
        tokens_BN = self._pins.tokens_RN[where]
        valid_BN = self._pins.is_valid_RN[where] if shape.num_nodes else None
        if logq_BMV is not None:
            missing = shape.num_nodes + 1 - logq_BMV.shape[1]
            logq_BMV = torch.nn.functional.pad(logq_BMV, (0, 0, 0, missing), value=float("-inf"))
        if shape.is_chain:
            return chain(tokens_BN, valid_BN=valid_BN, logq_BMV=logq_BMV)
        return DraftTree(
            tokens_BN=tokens_BN,
            parents_BN=self._pins.parents_RN[where],
            max_depth=shape.depth,
            valid_BN=valid_BN,
            logq_BMV=logq_BMV,
        )

    def _commit(self, tree: DraftTree, outcome: _Outcome, read: HostRead, num_cut: list[int]) -> None:
        """The drafter is told as ever, in the shape of the tree it gave."""
        (verdict, hidden, target), num_columns = outcome.judged, tree.max_depth + 1
        self._drafter.commit(
            Commit(
                num_accepted_B=verdict.num_accepted_B,
                path_BP=verdict.path_BP[:, : tree.max_depth],
                tokens_BC=verdict.tokens_BC[:, :num_columns],
                hidden_BCKD=None if hidden is None else hidden[:, :num_columns],
                tokens=[new[: len(new) - cut] for new, cut in zip(read.tokens, num_cut, strict=True)],
                finished=[row.finish_reason is not None for row in self._live],
                target=target,
            )
        )

    def _finish(self, end: int) -> None:
        """The step before is over: hand it on."""
        before, self._unfinished = self._unfinished, None
        if before is not None:
            self._recorder.step(before.step, before.live, before.read, before.num_cut, [*before.marks, end])

    def _drop_finished(self, root_B: Tensor) -> Tensor:
        live = len(self._live)
        places = [place for place, row in enumerate(self._live) if row.finish_reason is None]
        kept = super()._drop_finished(root_B)
        if self._live and len(self._live) < live:
            self._pins.keep(places)
        return kept
