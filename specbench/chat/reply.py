"""One answer of a conversation, in counts and seconds, and what they come to. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from specbench.events import StepRow

Source = Literal["plain", "drafted", "bonus"]
"""plain: a step without a draft, or the prompt's first token; bonus: the target's own token behind a draft."""


class Heard(NamedTuple):
    """A token as it comes."""

    token: int
    source: Source
    depth: int
    """Of a drafted one, from 1; 0 for the others."""


def heard_of(row: StepRow) -> list[Heard]:
    """A step's tokens."""
    own: Source = "bonus" if row.num_nodes else "plain"
    return [
        Heard(token, "drafted", place + 1) if place < row.num_accepted else Heard(token, own, 0)
        for place, token in enumerate(row.tokens)
    ]


class Pace(NamedTuple):
    """Plain decoding of this target, as measured when it was loaded."""

    step_s: float
    num_steps: int


@dataclass(frozen=True, kw_only=True)
class Figures:
    """An answer so far, or whole. Rates are of decoding: the prefill and its token are left out."""

    num_tokens: int
    num_steps: int
    num_drafted: int
    num_accepted: int
    decode_s: float
    prefill_s: float
    draft_s: float
    verify_s: float
    lengths: tuple[int, ...]
    """Accepted tokens of the last steps."""
    accepted_at: tuple[int, ...]
    """Steps that accepted the k-th drafted token, k from 1."""
    asked_at: tuple[int, ...]
    """Steps that proposed a k-th token and had accepted all before it."""

    @property
    def acceptance_length(self) -> float | None:
        """Tokens kept per step, the target's own included."""
        return (self.num_tokens - 1) / self.num_steps if self.num_steps else None

    @property
    def tokens_per_s(self) -> float | None:
        """Of decoding."""
        return (self.num_tokens - 1) / self.decode_s if self.num_steps and self.decode_s > 0 else None

    def against(self, pace: Pace | None) -> float | None:
        """Times the pace of plain decoding."""
        rate = self.tokens_per_s
        return None if rate is None or pace is None else rate * pace.step_s

    def as_json(self, pace: Pace | None) -> dict[str, Any]:
        """Counts, seconds, and the ratios made of them."""
        return {
            "num_tokens": self.num_tokens,
            "num_steps": self.num_steps,
            "num_drafted": self.num_drafted,
            "num_accepted": self.num_accepted,
            "prefill_s": self.prefill_s,
            "decode_s": self.decode_s,
            "draft_s": self.draft_s,
            "verify_s": self.verify_s,
            "acceptance_length": self.acceptance_length,
            "tokens_per_s": self.tokens_per_s,
            "times_pace": self.against(pace),
            "lengths": self.lengths,
            "accepted_at": self.accepted_at,
            "asked_at": self.asked_at,
        }


_NUM_LENGTHS = 60


def figures_of(rows: Sequence[StepRow], *, prefill_s: float, deepest: int = 8) -> Figures:
    """Of the steps of one sequence. prefill_s: from the beginning to the first token."""
    accepted_at, asked_at = [0] * deepest, [0] * deepest
    for row in rows:
        for place in range(min(deepest, row.depth)):
            if place > row.num_accepted:
                break
            asked_at[place] += 1
            accepted_at[place] += place < row.num_accepted
    used = max((k + 1 for k in range(deepest) if asked_at[k]), default=0)
    return Figures(
        num_tokens=1 + sum(len(row.tokens) for row in rows),
        num_steps=len(rows),
        num_drafted=sum(row.num_nodes for row in rows),
        num_accepted=sum(row.num_accepted for row in rows),
        decode_s=max(0.0, rows[-1].end_s - prefill_s) if rows else 0.0,
        prefill_s=prefill_s,
        draft_s=sum(row.draft_s for row in rows),
        verify_s=sum(row.verify_s for row in rows),
        lengths=tuple(row.num_accepted for row in rows[-_NUM_LENGTHS:]),
        accepted_at=tuple(accepted_at[:used]),
        asked_at=tuple(asked_at[:used]),
    )


@dataclass(frozen=True, kw_only=True)
class Reply:
    """One answer. tokens: up to and including the stop."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    """As the engine says it, or 'stopped' by the user."""
    num_prompt_tokens: int
    figures: Figures


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The last answer given twice by autoregression and twice by the method, in the order a m m a: seconds of decoding
    and prefill, whole answers."""

    method: str
    plain_s: tuple[float, ...]
    method_s: tuple[float, ...]
    first_difference: int | None
    """Index of the first token that is not autoregression's; None where all are the same."""
    figures: Figures
    """Of the method's last answer."""

    @property
    def speedup(self) -> float:
        """Ratio of the sums: two answers of each, no interval."""
        return sum(self.plain_s) / sum(self.method_s)
