"""How many tokens a chain drafts next, from what was accepted lately."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specbench.metrics import leviathan


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Exponentially weighted counts of tried and accepted draft positions."""

    num_accepted: float = 0.0
    num_tried: float = 0.0


class AdaptiveLength:
    """The K that maximises the expected improvement (Leviathan 2023, Theorem 3.8) at the acceptance seen lately.

    cost_ratio: seconds of one draft forward over seconds of one target step; given, because a drafter sees no clock.
    """

    DECAY = 0.95
    """Weight of a step after the next one: a memory of about 20 steps."""
    MIN_TRIED = 8.0
    """Positions tried before the evidence is believed; until then K is `first`."""

    def __init__(self, *, first: int, maximum: int, cost_ratio: float) -> None:
        self._first = min(first, maximum)
        self.maximum = maximum
        self._cost_ratio = cost_ratio
        self.evidence = Evidence()

    def num_tokens(self) -> int:
        """K of the next step, 1 .. maximum: never 0, or nothing would ever be learnt again."""
        seen = self.evidence
        if seen.num_tried < self.MIN_TRIED:
            return self._first
        alpha = seen.num_accepted / seen.num_tried
        return max(range(1, self.maximum + 1), key=lambda num: leviathan(alpha=alpha, gamma=num, c=self._cost_ratio))

    def learn(self, num_accepted: Sequence[int], num_drafted: Sequence[int]) -> None:
        """One step's rows. A row that accepts a < K tried a + 1 positions; one that accepts all of them tried K, and
        one that had no room to draft tried none. A step in which nothing was tried is not one."""
        seen = self.evidence
        tried = sum(min(num + 1, drafted) for num, drafted in zip(num_accepted, num_drafted, strict=True))
        if not tried:
            return
        self.evidence = Evidence(
            num_accepted=seen.num_accepted * self.DECAY + sum(num_accepted),
            num_tried=seen.num_tried * self.DECAY + tried,
        )
