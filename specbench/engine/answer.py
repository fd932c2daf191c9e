"""What a group of sequences came to: tokens, steps and seconds, and the failure that ends a question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from specbench.errors import SpecbenchError
from specbench.events import StepRow

StepSink = Callable[[Sequence[StepRow]], None]
"""Receives finished steps at most every `FLUSH_S`, for every method alike."""

OnPrefill = Callable[[list[int]], None]
"""Receives each row's first token, which belongs to no step; inside the timed region, so for those who talk only."""


class NotFinite(SpecbenchError):
    """The target's logits hold NaN or infinity: the question fails, the run goes on."""

    exit_code = 3

    @classmethod
    def at(cls, name: str, place: str) -> NotFinite:
        return cls(f"{name} gave NaN or infinite logits {place}", try_="--dtype float32, or check the weights")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """One row's answer. tokens: ids up to and including the stop; the first belongs to the prefill."""

    tokens: tuple[int, ...]
    finish_reason: str
    steps: tuple[StepRow, ...]


@dataclass(frozen=True, kw_only=True)
class GroupResult:
    """Rows decoded together. Seconds are the group's; total_s is wall clock from first prompt token to the last row's
    end."""

    generations: tuple[Generation, ...]
    prefill_s: float
    decode_s: float
    total_s: float
    draft_s: float
    verify_s: float
    accept_s: float
    commit_s: float
    journal_s: float
    is_draft_finite: bool = True
    """False: some law of the drafter's own held NaN or infinity. The text is the target's all the same."""
