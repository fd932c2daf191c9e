"""What has been observed, split for learning: new answers, a reservoir of earlier ones, and answers held out for good.

Which side an answer stands on is decided by its prompt alone, so that a prompt that comes again never crosses over.
Positions whose context was seen before are dropped: they have the same law.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from specbench.adapt.observed import NUM_SIDES, Observed, is_held_out_prompt

__all__ = ["NUM_SIDES", "Memory", "is_held_out"]


@dataclass
class Memory:
    """Answers of one domain. `copy` is cheap: answers are never changed."""

    capacity: int
    """Answers in the reservoir, and, separately, answers held out; beyond it a random one makes room."""
    seed: int = 0
    new: list[Observed] = field(default_factory=list)
    """Not learnt from yet."""
    old: list[Observed] = field(default_factory=list)
    """A uniform sample of those learnt from (Vitter's reservoir)."""
    held_out: list[Observed] = field(default_factory=list)
    num_old_seen: int = 0
    num_held_out_seen: int = 0
    num_positions: int = 0
    """Observed in all, duplicates not counted."""
    num_new_positions: int = 0
    """Since the last round."""
    contexts: set[bytes] = field(default_factory=set)
    rng: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        self.rng = random.Random(f"specbench memory {self.seed}")

    def add(self, observed: Observed) -> Observed | None:
        """Take in what is new of an answer -> that part; None where nothing is."""
        contexts = observed.contexts()
        fresh = [place for place, context in enumerate(contexts) if context not in self.contexts]
        if not fresh:
            return None
        self.contexts.update(contexts[place] for place in fresh)
        if len(fresh) < len(contexts):
            observed = observed.only(torch.tensor(fresh))
        self.num_positions += observed.num_positions
        if is_held_out(observed):
            self.num_held_out_seen += 1
            self._into(self.held_out, observed, self.num_held_out_seen)
        else:
            self.new.append(observed)
            self.num_new_positions += observed.num_positions
        return observed

    def learnt(self) -> None:
        """The new answers have been learnt from: they enter the reservoir."""
        for observed in self.new:
            self.num_old_seen += 1
            self._into(self.old, observed, self.num_old_seen)
        self.new = []
        self.num_new_positions = 0

    def renew(self) -> None:
        """What was learnt from is to be learnt from once more."""
        self.num_old_seen -= len(self.old)
        self.new, self.old = [*self.old, *self.new], []
        self.num_new_positions = sum(each.num_positions for each in self.new)

    def learnt_but(self, num_new: int) -> None:
        """All but the last so many of the new answers have been learnt from."""
        kept = self.new[max(0, len(self.new) - num_new) :] if num_new else []
        self.new = self.new[: len(self.new) - len(kept)]
        self.learnt()
        self.new, self.num_new_positions = kept, sum(each.num_positions for each in kept)

    def _into(self, kept: list[Observed], observed: Observed, num_seen: int) -> None:
        if len(kept) < self.capacity:
            kept.append(observed)
            return
        place = self.rng.randrange(num_seen)
        if place < self.capacity:
            kept[place] = observed

    def batch(self, num: int, *, replay: float) -> list[Observed]:
        """Answers to learn from in one step: about the share `replay` from the reservoir, the rest new ones."""
        num_old = min(round(num * replay), num) if self.old else 0
        if not self.new:
            num_old = num if self.old else 0
        return [*self._drawn(self.old, num_old), *self._drawn(self.new, num - num_old)]

    def _drawn(self, answers: Sequence[Observed], num: int) -> list[Observed]:
        if num >= len(answers):
            return list(answers)
        return self.rng.sample(list(answers), num)

    def copy(self) -> Memory:
        """The same state, on its own."""
        twin = Memory(capacity=self.capacity, seed=self.seed)
        twin.new, twin.old, twin.held_out = list(self.new), list(self.old), list(self.held_out)
        twin.num_old_seen, twin.num_held_out_seen = self.num_old_seen, self.num_held_out_seen
        twin.num_positions, twin.num_new_positions = self.num_positions, self.num_new_positions
        twin.contexts = set(self.contexts)
        twin.rng.setstate(self.rng.getstate())
        return twin


def is_held_out(observed: Observed) -> bool:
    """Whether its prompt's answers are never learnt from."""
    return is_held_out_prompt(observed.tokens_T[: observed.num_prompt].tolist())
