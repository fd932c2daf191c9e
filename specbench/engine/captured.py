"""Steps that run without the host: drafted, verified, accepted and committed by one captured graph, read one step late.

While the device is busy with a step, the host reads the numbers of the one before. A stop it finds there comes one step
late: that step is thrown away, never counted, and its time is on the clock. Rows that end stay at their place, frozen
by the device, until the batch can shrink to the next smaller size that graphs are captured for.

B places, N nodes, M = N + 1 slots, C = P + 1, S cache slots that are read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from specbench.engine.answer import NotFinite, StepSink
from specbench.engine.pinned_run import Capture, PinnedRun, batch_of, batches, smaller_batch, span_of, spans
from specbench.engine.pins import FIRST_STAMP, TABLE
from specbench.engine.readback import Shape, read_table
from specbench.engine.run import Row, Setting
from specbench.engine.stamps import NUM_STAMPS
from specbench.method import Commit, Drafter, Request
from specbench.sampling import PinnedNoise


class _Flight(NamedTuple):
    """A step whose numbers are on their way."""

    step: int
    rows: list[Row]
    shape: Shape
    wait: Callable[[], list[int]]


class CapturedRun(PinnedRun):
    """For drafters that are capturable."""

    def __init__(
        self,
        setting: Setting,
        drafter: Drafter,
        requests: Sequence[Request],
        sink: StepSink | None,
        capture: Capture,
    ) -> None:
        super().__init__(setting, drafter, requests, sink, capture)
        self._placed: list[Row] = []
        """Who stands at which place, rows that have ended included."""
        self._span = self._first_span = 0

    # --- the loop ----------------------------------------------------------------------------------------------------

    def _decode(self, root_B: Tensor) -> None:
        self._settle(root_B)
        step, flying = 0, None
        while self._live:
            upcoming = None
            if flying is None or self._may_go_on():
                upcoming = self._launch(step, in_flight=flying)
                step += 1
            if flying is not None:
                self._land(flying)
            flying = upcoming
            if self._live and len(self._live) <= smaller_batch(len(self._placed)):
                if flying is not None:
                    self._land(flying)
                    flying = None
                if self._live:  # the step that was under way may have ended them all
                    self._shrink()
        if flying is not None:
            flying.wait()  # thrown away
        self._lm.cache.lengths = [row.length - 1 for row in self._placed]
        if self._capture.capturing == "all":
            for size in batches(len(self._placed))[1:]:
                self._move_up(list(range(size)))

    def _capture_spans(self) -> None:
        """Every span of this batch. Rows are closed meanwhile: their steps leave nothing behind.

        A step in a span that a row has outgrown would write into its text. Those are captured once no row goes on: the
        rows of a warm-up end together, those of other texts may end in front of it.
        """
        least = self._span if self._live else self._first_span
        num_rows = len(self._placed)
        self._pins.is_open_R[:num_rows] = False
        for span in spans(self._lm.cache.num_slots):
            if span >= least:
                self._replay(span)
        self._pins.is_open_R[:num_rows] = torch.tensor(
            [row.finish_reason is None for row in self._placed], device=self._lm.device
        )

    def _may_go_on(self) -> bool:
        """Whether any row can still be live after the step under way: it commits at least one token of each."""
        return any(len(row.tokens) + 1 < row.request.max_new_tokens for row in self._live)

    def _settle(self, root_B: Tensor) -> None:
        self._placed = list(self._rows)
        self._put_rows(root_B, self._placed)
        for place, row in enumerate(self._placed):
            if row.finish_reason is not None:
                self._pins.close(place)
        self._span = self._first_span = self._span_for(in_flight=0)
        self._drafter_settles()

    def _drop_finished(self, root_B: Tensor) -> Tensor:
        """Rows that end with their first token stand frozen from the start: a batch without them has no graphs."""
        self._live = [row for row in self._live if row.finish_reason is None]
        return root_B

    def _shrink(self) -> None:
        """Rows that have ended leave, down to the smallest captured batch that holds the others; those move up. Where
        several end at a time some stay, frozen: there are graphs for no size in between."""
        live = [place for place, row in enumerate(self._placed) if row.finish_reason is None]
        ended = [place for place, row in enumerate(self._placed) if row.finish_reason is not None]
        num_ended = batch_of(len(live), most=len(self._placed)) - len(live)
        self._move_up(sorted([*live, *ended[:num_ended]]))

    def _move_up(self, places: list[int]) -> None:
        # Replayed steps call no Python: the drafter still holds the span it was last captured or settled at.
        self._drafter.hold(self._span)
        self._lm.keep(places, used=self._span)
        self._drafter.keep(places)
        self._pins.keep(places)
        self._placed = [self._placed[place] for place in places]
        self._drafter_settles()

    def _drafter_settles(self) -> None:
        self._drafter.hold(self._span)
        self._capture.drafter_pins.settle(self._drafter)
        if self._capture.capturing == "all":
            self._capture_spans()

    # --- a step leaves -----------------------------------------------------------------------------------------------

    def _span_for(self, *, in_flight: int) -> int:
        most = self._drafter.max_nodes + 1
        longest = max(row.length for row in self._live) - 1
        return span_of(longest + (in_flight + 1) * most, self._lm.cache.num_slots)

    def _launch(self, step: int, *, in_flight: _Flight | None) -> _Flight:
        self._span = self._span_for(in_flight=0 if in_flight is None else 1)
        shape = self._replay(self._span)
        width = TABLE + len(self._placed) * shape.width
        return _Flight(step, list(self._placed), shape, self._capture.graphs.backend.send(self._pins.out[:width]))

    def _replay(self, span: int) -> Shape:
        num_rows = len(self._placed)
        shape: Shape = self._capture.graphs.run(
            self._drafter,
            (num_rows, span),
            lambda: self._whole_step(num_rows, span),
            may_capture=self._capture.capturing != "none",
            before=lambda: self._drafter.hold(span),
        )
        return shape

    def _whole_step(self, num_rows: int, span: int) -> Shape:
        """What is captured. Reads and writes pins alone."""
        pins, drafter_pins = self._pins, self._capture.drafter_pins
        self._stamp(FIRST_STAMP)
        root_B, length_B = pins.root_R[:num_rows], pins.length_R[:num_rows]
        noise = self._acceptance_noise(num_rows)
        before = drafter_pins.before()
        tree = self._drafter.draft(self._noise_of_drafts(noise, num_rows))
        self._stamp(FIRST_STAMP + 1)
        # Only rows that have ended can stand so far back that their nodes would not fit.
        base_B = length_B.clamp(max=span - tree.num_nodes - 1)
        verdict, hidden_BCKD, target = self._judge(tree, base_B, span=span, noise=noise)
        is_alive_B = pins.is_open_R[:num_rows] & (length_B + 1 < pins.limit_R[:num_rows])
        self._drafter.commit(
            Commit(
                num_accepted_B=verdict.num_accepted_B,
                path_BP=verdict.path_BP,
                tokens_BC=verdict.tokens_BC,
                hidden_BCKD=hidden_BCKD,
                tokens=[],
                finished=[],
                target=target,
            )
        )
        drafter_pins.after(self._drafter, before, is_alive_B)
        last_B = verdict.tokens_BC.gather(1, verdict.num_accepted_B[:, None])[:, 0]
        root_B.copy_(torch.where(is_alive_B, last_B, root_B))
        length_B.add_(torch.where(is_alive_B, verdict.num_accepted_B + 1, 0))
        self._stamp(FIRST_STAMP + 4)
        return Shape.of(tree)

    def _noise_of_drafts(self, noise: PinnedNoise | None, num_rows: int) -> PinnedNoise | None:
        """The acceptance noise itself; under `rejection` an independent stream."""
        if noise is None or self._setting.rule != "rejection":
            return noise
        keys_B, roots_B = self._pins.draft_keys_R[:num_rows], self._pins.length_R[:num_rows]
        return PinnedNoise(keys_B, roots_B, vocab_size=self._lm.vocab_size)

    # --- a step arrives ----------------------------------------------------------------------------------------------

    def _land(self, flight: _Flight) -> None:
        numbers = flight.wait()
        if flight.step == 0:
            self._recorder.begin(numbers[0], now_s=time.perf_counter())
        width = flight.shape.width
        places = [place for place, row in enumerate(flight.rows) if row.finish_reason is None]
        table = [numbers[TABLE + place * width : TABLE + (place + 1) * width] for place in places]
        read = read_table(table, flight.shape)
        num_cut = []
        for index, place in enumerate(places):
            row = flight.rows[place]
            if not read.is_finite[index]:
                raise NotFinite.at(self._lm.name, f"at step {flight.step}")
            num_cut.append(self._extend(row, read.tokens[index]))
            if row.finish_reason is not None:
                self._pins.close(place)
        live = [flight.rows[place].index for place in places]
        marks = numbers[FIRST_STAMP : FIRST_STAMP + NUM_STAMPS]
        self._recorder.step(flight.step, live, read, num_cut, marks)
        self._live = [row for row in self._live if row.finish_reason is None]
