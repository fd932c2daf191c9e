"""Drafters that think on the host (prompt lookup, tries, hybrids): their tree is copied into a captured verification.

The host waits for every step, because the next draft needs its tokens; but target, acceptance and compaction are one
launch. Trees are padded to a few shapes so that few graphs are needed (`step_shapes`). A row that ends leaves the
drafter at once; its place stays, closed, until the batch can shrink to the next smaller size that graphs are captured
for.

B live rows, R places, N nodes of the shape, M = N + 1 slots, S cache slots that are read.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from specbench.engine.answer import NotFinite, StepSink
from specbench.engine.pinned_run import Capture, Judged, PinnedRun, batch_of, batches, smaller_batch, span_of, spans
from specbench.engine.pins import FIRST_STAMP, LATE_STAMP, TABLE
from specbench.engine.readback import HostRead, Shape, read_table
from specbench.engine.run import Setting
from specbench.engine.step_shapes import StepShape, TreeShape, in_order
from specbench.method import Commit, Drafter, Request, TargetStats
from specbench.tree import DraftTree, chain


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
        self._num_met: Counter[TreeShape] = Counter()
        """Steps of this generation by the shape of their trees."""
        self._num_places = 0
        """R: what the batch's graphs are captured for."""
        self._places: list[int] = []
        """Where the live rows stand."""
        self._places_B: Tensor | None = None
        """The same on the device; None: the first B."""
        self._stand_ins: list[StepShape] | None = None
        """Shapes with graphs, the cheapest first; made when the first one is wanted."""

    # --- the loop ----------------------------------------------------------------------------------------------------

    def _decode(self, root_B: Tensor) -> None:
        self._put_rows(root_B, self._live)
        self._num_places = batch_of(len(self._live), most=len(self._requests))
        self._move_up()
        first_span = span_of(max(row.length for row in self._live), self._lm.cache.num_slots)
        step = 0
        while self._live:
            self._one_step(step)
            self._let_go()
            step += 1
        numbers = self._capture.graphs.backend.send(self._pins.out[:TABLE])()
        self._finish(numbers[LATE_STAMP])
        if self._capture.capturing == "all":
            self._capture_ahead(first_span)

    def _capture_ahead(self, first_span: int) -> None:
        """What other texts may come to: trees of other shapes, longer texts, batches of which some rows have ended."""
        # Nobody is live: whatever these steps accept, no length moves.
        self._pins.close_behind(0)
        drafter, num_slots = self._drafter, self._lm.cache.num_slots
        possible = TreeShape.all_of(drafter.max_nodes, branches=drafter.branches)
        last_span = span_of(self._setting.max_len + drafter.max_nodes, num_slots)
        found = [span for span in spans(num_slots) if first_span <= span <= last_span]
        for shape in in_order(self._num_met, possible, batches=batches(len(self._requests)), spans=found):
            if self._capture.graphs.is_full(drafter):
                return
            self._replay(shape)

    def _let_go(self) -> None:
        """Rows that have ended leave the drafter; their places stay until the batch can shrink."""
        staying = [index for index, row in enumerate(self._live) if row.finish_reason is None]
        if len(staying) == len(self._live):
            return
        for place, row in zip(self._places, self._live, strict=True):
            if row.finish_reason is not None:
                self._pins.close(place)
        self._live = [self._live[index] for index in staying]
        self._places = [self._places[index] for index in staying]
        if not self._live:
            return
        self._drafter.keep(staying)
        for stream in self._streams():
            stream.keep(staying)
        if len(self._live) <= smaller_batch(self._num_places):
            self._num_places = batch_of(len(self._live), most=self._num_places)
            self._lm.keep(self._places)
            self._pins.keep(self._places)
            self._move_up()
        else:
            self._places_B = torch.tensor(self._places, device=self._lm.device)

    def _move_up(self) -> None:
        """The live rows stand in the first places, nobody behind them."""
        self._places, self._places_B = list(range(len(self._live))), None
        self._pins.close_behind(len(self._live))

    # --- one step ----------------------------------------------------------------------------------------------------

    def _one_step(self, step: int) -> None:
        self._stamp(FIRST_STAMP)
        if self._noise is not None:
            self._seek([row.length for row in self._live])
        tree = self._drafter.draft(self._draft_noise)
        shape = self._shape_of(tree)
        self._put(tree, shape.tree)
        self._stamp(FIRST_STAMP + 1)
        if tree.logq_BMV is None:
            outcome = self._replay(shape)
        else:
            # The laws a drafter drew from are its own tensors, new in every step: nothing a graph could find again.
            logq_RMV = self._in_places(tree.logq_BMV, num_slots=shape.tree.num_nodes + 1)
            outcome = self._capture.graphs.run_single(self._drafter, lambda: self._target_step(shape, logq_RMV))
        width = outcome.shape.width
        numbers = self._capture.graphs.backend.send(self._pins.out[: TABLE + shape.num_rows * width])()
        if step == 0:
            self._recorder.begin(numbers[0], now_s=time.perf_counter())
        self._finish(numbers[LATE_STAMP])
        table = [numbers[TABLE + place * width : TABLE + (place + 1) * width] for place in self._places]
        read = read_table(table, outcome.shape)
        num_cut = []
        for index, row in enumerate(self._live):
            if not read.is_finite[index]:
                raise NotFinite.at(self._lm.name, f"at step {step}")
            self._lm.cache.advance(self._places[index], read.num_accepted[index] + 1)
            num_cut.append(self._extend(row, read.tokens[index]))
        self._commit(tree, outcome, read, num_cut)
        self._stamp(LATE_STAMP)
        marks = numbers[FIRST_STAMP : FIRST_STAMP + 4]
        self._unfinished = _Unfinished(step, [row.index for row in self._live], read, num_cut, marks)

    def _shape_of(self, tree: DraftTree) -> StepShape:
        """What the step is padded to: as little as may be, or, where no graph is made for that any more, the cheapest
        larger shape that has one."""
        drafter, graphs, num_slots = self._drafter, self._capture.graphs, self._lm.cache.num_slots
        assert tree.num_nodes <= drafter.max_nodes, (
            f"{type(drafter).__name__} drafts {tree.num_nodes} nodes, its max_nodes says {drafter.max_nodes}"
        )
        assert drafter.branches or tree.is_chain, f"{type(drafter).__name__} drafts a tree, its `branches` says none"
        wanted = TreeShape.around(tree, max_nodes=drafter.max_nodes)
        longest = max(row.length for row in self._live)
        shape = StepShape(self._num_places, span_of(longest + wanted.num_nodes, num_slots), wanted)
        if tree.logq_BMV is not None:
            return shape
        self._num_met[wanted] += 1
        may_capture = self._capture.capturing != "none" and not graphs.is_full(drafter)
        if may_capture or shape in graphs.shapes(drafter):
            return shape
        if self._stand_ins is None:
            found = [each for each in graphs.shapes(drafter) if isinstance(each, StepShape)]
            self._stand_ins = sorted(found, key=StepShape.cost)
        num_rows = self._num_places
        fitting = (each for each in self._stand_ins if each.takes(wanted, num_rows=num_rows, longest=longest))
        return next(fitting, shape)

    def _replay(self, shape: StepShape) -> _Outcome:
        outcome: _Outcome = self._capture.graphs.run(
            self._drafter,
            shape,
            lambda: self._target_step(shape, None),
            may_capture=self._capture.capturing != "none",
            before=lambda: None,
        )
        return outcome

    def _put(self, tree: DraftTree, shape: TreeShape) -> None:
        """The tree goes where the captured step reads it, padded with nodes that are not valid."""
        if not shape.num_nodes:
            return
        rows = slice(0, len(self._live)) if self._places_B is None else self._places_B
        pad = (0, shape.num_nodes - tree.num_nodes)
        valid_BN = torch.ones_like(tree.tokens_BN, dtype=torch.bool) if tree.valid_BN is None else tree.valid_BN
        padded = torch.nn.functional.pad
        self._pins.tokens_RN[rows, : shape.num_nodes] = padded(tree.tokens_BN, pad)
        self._pins.is_valid_RN[rows, : shape.num_nodes] = padded(valid_BN, pad)
        self._pins.parents_RN[rows, : shape.num_nodes] = padded(tree.parents_BN, pad, value=-1)

    def _in_places(self, logq_BMV: Tensor, *, num_slots: int) -> Tensor:
        """Laws of the live rows at their places, nothing where nobody stands: (R, num_slots, V)."""
        shape = (self._num_places, num_slots, logq_BMV.shape[2])
        logq_RMV = logq_BMV.new_full(shape, float("-inf"))
        rows = slice(0, len(self._live)) if self._places_B is None else self._places_B
        logq_RMV[rows, : logq_BMV.shape[1]] = logq_BMV
        return logq_RMV

    def _target_step(self, shape: StepShape, logq_RMV: Tensor | None) -> _Outcome:
        """What is captured: from the pinned tree to the pinned root behind what was accepted. Reads and writes pins
        alone; rows that have ended stay as they are."""
        pins, num_rows = self._pins, shape.num_rows
        root_R, length_R, is_open_R = pins.root_R[:num_rows], pins.length_R[:num_rows], pins.is_open_R[:num_rows]
        tree = self._pinned_tree(num_rows, shape.tree, logq_RMV)
        # Only rows that have ended can stand so far back that their nodes would not fit.
        base_R = length_R.clamp(max=shape.span - tree.num_nodes - 1)
        judged = self._judge(tree, base_R, span=shape.span, noise=self._acceptance_noise(num_rows))
        verdict = judged.verdict
        last_R = verdict.tokens_BC.gather(1, verdict.num_accepted_B[:, None])[:, 0]
        root_R.copy_(torch.where(is_open_R, last_R, root_R))
        length_R.add_(torch.where(is_open_R, verdict.num_accepted_B + 1, 0))
        return _Outcome(Shape.of(tree), judged)

    def _pinned_tree(self, num_rows: int, shape: TreeShape, logq_RMV: Tensor | None) -> DraftTree:
        where = (slice(0, num_rows), slice(0, shape.num_nodes))
        tokens_RN = self._pins.tokens_RN[where]
        valid_RN = self._pins.is_valid_RN[where] if shape.num_nodes else None
        if shape.is_chain:
            return chain(tokens_RN, valid_BN=valid_RN, logq_BMV=logq_RMV)
        return DraftTree(
            tokens_BN=tokens_RN,
            parents_BN=self._pins.parents_RN[where],
            max_depth=shape.depth,
            valid_BN=valid_RN,
            logq_BMV=logq_RMV,
        )

    def _commit(self, tree: DraftTree, outcome: _Outcome, read: HostRead, num_cut: list[int]) -> None:
        """The drafter is told as ever, of the rows and in the shape of the tree it gave."""
        (verdict, hidden, target), num_columns = outcome.judged, tree.max_depth + 1
        self._drafter.commit(
            Commit(
                num_accepted_B=self._of_live(verdict.num_accepted_B),
                path_BP=self._of_live(verdict.path_BP)[:, : tree.max_depth],
                tokens_BC=self._of_live(verdict.tokens_BC)[:, :num_columns],
                hidden_BCKD=None if hidden is None else self._of_live(hidden[:, :num_columns]),
                tokens=[new[: len(new) - cut] for new, cut in zip(read.tokens, num_cut, strict=True)],
                finished=[row.finish_reason is not None for row in self._live],
                target=None if target is None else TargetStats(self._of_live(target.logits_BMV)),
            )
        )

    def _of_live(self, found_R: Tensor) -> Tensor:
        return found_R[: len(self._live)] if self._places_B is None else found_R[self._places_B]

    def _finish(self, end: int) -> None:
        """The step before is over: hand it on."""
        before, self._unfinished = self._unfinished, None
        if before is not None:
            self._recorder.step(before.step, before.live, before.read, before.num_cut, [*before.marks, end])
