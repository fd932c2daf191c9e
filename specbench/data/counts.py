"""What became of a dataset's rows: printed before every training, because what is dropped changes what is learnt."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Counts:
    """num_read = num_kept + everything that was left out."""

    num_read: int = 0
    num_kept: int = 0
    num_contaminated: Mapping[str, int] = field(default_factory=dict)
    """Rows left out because a suite asks the same, by suite."""
    unread_suites: Mapping[str, str] = field(default_factory=dict)
    """Suites that could not be compared with, and why."""
    unusable: Mapping[str, int] = field(default_factory=dict)
    """Rows left out for what they are, by reason."""
    num_repeated: int = 0
    """Rows left out because an earlier one was the same, token for token."""
    num_too_short: int = 0
    """Fewer tokens than one training position needs."""
    num_nothing_to_learn: int = 0
    """No answer token left inside the length limit."""
    num_truncated: int = 0
    """Kept, but cut at the length limit."""
    num_tokens: int = 0
    num_learnt: int = 0
    """Tokens that may be labels; the others are masked."""

    @property
    def num_masked(self) -> int:
        """Tokens that are read and never learnt."""
        return self.num_tokens - self.num_learnt

    def lines(self) -> list[str]:
        """For people; the first line always, the others where there is something to say."""
        share = self.num_learnt / self.num_tokens if self.num_tokens else 0.0
        lines = [
            f"{self.num_kept:,} of {self.num_read:,} rows kept: {self.num_tokens:,} tokens, "
            f"{self.num_learnt:,} learnt ({share:.0%}), {self.num_masked:,} masked"
        ]
        if self.num_truncated:
            lines.append(f"{self.num_truncated:,} rows cut at the length limit")
        for suite, number in self.num_contaminated.items():
            lines.append(f"{number:,} rows left out: suite {suite} asks the same")
        for reason, number in sorted(self.unusable.items(), key=lambda item: -item[1]):
            lines.append(f"{number:,} rows left out: {reason}")
        for number, reason in (
            (self.num_repeated, "repeated"),
            (self.num_too_short, "too short"),
            (self.num_nothing_to_learn, "no answer inside the length limit"),
        ):
            if number:
                lines.append(f"{number:,} rows left out: {reason}")
        if self.unread_suites:
            lines.append(f"not compared with {', '.join(self.unread_suites)}: not on this disk")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)
