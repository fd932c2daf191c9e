"""Acceptance along a stream and what became of its adapters, as plain dataclasses: for pages and viewers. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from specbench.metrics import Interval


@dataclass(frozen=True, kw_only=True)
class StreamPoint:
    """Consecutive answers along a stream, those of all repeats together."""

    since: int
    """Drafted positions tried before this stretch, in one repeat."""
    until: int
    num_tried: int
    """Accepted positions and each step's first rejection, all repeats."""
    num_accepted: int
    acceptance: float
    acceptance_ci: Interval | None
    """95 % bootstrap over questions; None for fewer than two."""


@dataclass(frozen=True, kw_only=True)
class AdapterChange:
    """A round of learning, or a way back, where it happened in a stream."""

    repeat: int
    at: int
    """Drafted positions tried before it, in its repeat."""
    domain: str
    outcome: str
    """'promoted', 'kept', 'dropped' or 'rolled back': as in AdapterRound."""
    why: str
    version: int
    previous: int
    seconds: float
    num_steps: int
    num_positions: int
    num_held_out: int
    before: float | None
    """Expected acceptance on held-out positions."""
    after: float | None
    gain_ci: Interval | None
    is_concurrent: bool
    is_regrown: bool

    @property
    def is_swap(self) -> bool:
        """Another adapter is drafted with from here on."""
        return self.version != self.previous


@dataclass(frozen=True, kw_only=True)
class VersionRow:
    """What drafts of one adapter version came to, over observed positions."""

    domain: str
    version: int
    """0 = the draft model itself."""
    num_positions: int
    acceptance: float
    overlap: float
    """Mean of sum min(p, q) at temperature 1."""


@dataclass(frozen=True, kw_only=True)
class StreamCurve:
    """Acceptance of a method along its stream. Questions differ along it: what learning changed is the difference from
    a row of the same run that does not learn."""

    method: str
    learns: bool
    num_repeats: int
    points: tuple[StreamPoint, ...]
    changes: tuple[AdapterChange, ...]
    """In the journal's order."""
    versions: tuple[VersionRow, ...]
    """Empty where nothing was observed, or it was purged."""
