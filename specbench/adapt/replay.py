"""What decoding would have observed, from texts that are known: at temperature 0 a draft is accepted exactly where its
first choice is the text's token, so that one forward over the text gives every step.

N positions, K drafted tokens of a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class ReplayedStep(NamedTuple):
    """One step of a greedy chain. Positions are places in the text, prompt included."""

    first: int
    """Of the first drafted token."""
    num_drafted: int
    num_accepted: int
    """Before the text's end cuts it."""
    num_kept: int
    """Tokens of the text that the step committed, the bonus token included."""

    @property
    def num_verified(self) -> int:
        """Positions of the text at which the draft was tried: the accepted ones and the first that was not."""
        return min(self.num_accepted + 1, self.num_drafted, self.num_kept)


def greedy_steps(
    agrees: Sequence[bool], *, num_prompt: int, max_new_tokens: int, num_tokens: int
) -> list[ReplayedStep]:
    """agrees[t]: the draft's first choice given text[:t] is text[t]. The text: prompt and the target's answer, ended by
    a stop or the limit. num_tokens: K.

    The same rules as `ChainDrafter` and the engine: the prefill gives the first token; a draft is no longer than the
    answer may grow by, less one.
    """
    end = num_prompt + max_new_tokens
    place, found = num_prompt + 1, []
    while place < len(agrees):
        num_drafted = max(min(num_tokens, end - place - 1), 0)
        accepted = 0
        while accepted < num_drafted and place + accepted < len(agrees) and agrees[place + accepted]:
            accepted += 1
        kept = min(accepted + 1, len(agrees) - place)
        found.append(ReplayedStep(place, num_drafted, accepted, kept))
        place += kept
    return found
