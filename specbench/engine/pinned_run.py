"""What both kinds of captured runs share: rows on pins, times as stamps, and a target step that reads and writes pins
alone.

B rows in use, N nodes, M = N + 1 slots, S cache slots that are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from specbench.engine import accept
from specbench.engine.answer import StepSink
from specbench.engine.choose import bounded_children, choose, see
from specbench.engine.graphs import Capturing, Graphs
from specbench.engine.pins import FIRST_STAMP, TABLE, DrafterPins, EnginePins
from specbench.engine.readback import committed_states, step_table
from specbench.engine.recorder import Recorder
from specbench.engine.run import Row, Run, Setting
from specbench.engine.stamps import StampClock
from specbench.method import Drafter, Request, TargetStats
from specbench.sampling import PinnedNoise
from specbench.tree import DraftTree

SMALLEST_SPAN = 256


class Capture(NamedTuple):
    """What an engine lends to a run of captured steps. Where nothing may be captured, a shape that never was runs as it
    is."""

    graphs: Graphs
    pins: EnginePins
    drafter_pins: DrafterPins
    capturing: Capturing


class Judged(NamedTuple):
    """A verified tree. hidden_BCKD: the tapped states of what is committed. target: for drafters that want it."""

    verdict: accept.Verdict
    hidden_BCKD: Tensor | None
    target: TargetStats | None = None


def span_of(num_needed: int, num_slots: int) -> int:
    """S for `num_needed` slots: the next power of two, at least SMALLEST_SPAN, at most the cache."""
    span = SMALLEST_SPAN
    while span < num_needed:
        span *= 2
    return min(span, num_slots)


def spans(num_slots: int) -> list[int]:
    """Every S of a cache."""
    found = [min(SMALLEST_SPAN, num_slots)]
    while found[-1] < num_slots:
        found.append(min(2 * found[-1], num_slots))
    return found


def smaller_batch(num_rows: int) -> int:
    """The largest power of two below num_rows: the next size graphs are captured for."""
    return 1 << ((num_rows - 1).bit_length() - 1) if num_rows > 1 else 0


def batches(most: int) -> list[int]:
    """Every size a group of `most` rows is decoded in, the largest first: 64, 32, ... 1."""
    found = [most]
    while smaller_batch(found[-1]):
        found.append(smaller_batch(found[-1]))
    return found


def batch_of(num_rows: int, *, most: int) -> int:
    """The smallest of `batches(most)` that holds num_rows."""
    return min(size for size in batches(most) if size >= num_rows)


class PinnedRun(Run):
    """A run whose target step may be captured."""

    def __init__(
        self,
        setting: Setting,
        drafter: Drafter,
        requests: Sequence[Request],
        sink: StepSink | None,
        capture: Capture,
    ) -> None:
        super().__init__(setting, drafter, requests, sink)
        self._capture = capture
        self._pins = capture.pins
        self._recorder = Recorder(StampClock(), sink, num_rows=len(requests))

    def _begin(self, *, now_s: float) -> None:
        super()._begin(now_s=now_s)
        self._stamp(0)

    def _stamp(self, index: int) -> None:
        if self._setting.has_stamps:
            self._capture.graphs.backend.mark(self._pins.out, index)

    def _put_rows(self, root_B: Tensor, rows: Sequence[Row]) -> None:
        """Rows that are about to be decoded take their places."""
        self._pins.fill(
            root_B,
            lengths=[row.length for row in rows],
            limits=[len(row.request.prompt) + row.request.max_new_tokens for row in rows],
            keys=[row.request.key for row in rows],
            is_rejection=self._setting.rule == "rejection",
            seen_BV=self._seen_BV,
        )

    def _acceptance_noise(self, num_rows: int) -> PinnedNoise | None:
        if self._sampling.is_greedy:
            return None
        pins = self._pins
        return PinnedNoise(pins.accept_keys_R[:num_rows], pins.length_R[:num_rows], vocab_size=self._lm.vocab_size)

    def _judge(self, tree: DraftTree, length_B: Tensor, *, span: int, noise: PinnedNoise | None) -> Judged:
        """Verify and accept behind the pinned roots, leave the step's numbers in `out`, move the accepted path into
        place. Stamps the ends of verification and acceptance."""
        pins, num_rows = self._pins, length_B.shape[0]
        verified = self._lm.verify_behind(pins.root_R[:num_rows], tree, length_B, span=span)
        self._stamp(FIRST_STAMP + 2)
        seen_BV = None if pins.seen_RV is None else pins.seen_RV[:num_rows]
        chosen_BM = choose(
            verified.logits_BMV,
            tree,
            sampling=self._sampling,
            rule=self._setting.rule,
            noise=noise,
            tests=_PinnedTests(pins, num_rows),
            seen_BV=seen_BV,
            most_children=bounded_children,
        )
        verdict = accept.walk(chosen_BM, tree)
        table = step_table(verdict, tree, verified.logits_BMV)
        pins.out[TABLE : TABLE + table.numel()].copy_(table.flatten())
        self._stamp(FIRST_STAMP + 3)
        self._lm.commit_behind(tree, verdict.path_BP, length_B)
        if seen_BV is not None:
            # Rows are closed while spans are captured in mid-text: those steps are none of it.
            see(seen_BV, verdict.tokens_BC, verdict.num_accepted_B + 1, pins.is_open_R[:num_rows])
        target = TargetStats(verified.logits_BMV) if self._drafter.wants_target else None
        return Judged(verdict, committed_states(verified.hidden_BMKD, verdict.slots_BC), target)


class _PinnedTests:
    """`choose.Tests` of pinned rows."""

    def __init__(self, pins: EnginePins, num_rows: int) -> None:
        self._pins = pins
        self._num_rows = num_rows

    def keys_B(self) -> Tensor:
        return self._pins.test_keys_R[: self._num_rows]

    def roots_B(self) -> Tensor:
        return self._pins.length_R[: self._num_rows] + 1
