"""Rows -> Features: the frozen target's forward over packed documents, online.

B rows, T tokens a row, K taps, D hidden size, F = depth + 1 continuation tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from specbench.lm.cached_lm import CachedLM
from specbench.lm.packed import continue_all, packed_states
from specbench.losses import Objective
from specbench.method import Tap
from specbench.recipe import Features
from specbench.training.corpus import Rows
from specbench.training.request import Learn
from specbench.training.teachers import WholeTeacher


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a recipe and an objective ask of the target's forward."""

    taps: tuple[Tap, ...]
    learn: Learn
    depth: int
    objective: Objective

    @property
    def recorded(self) -> tuple[Tap, ...]:
        """The taps of a forward: the recipe's, and the final state where laws are read from it."""
        needs_final = self.objective.needs_teacher and "final" not in self.taps
        return (*self.taps, "final") if needs_final else self.taps


class FeatureSource(Protocol):
    """Where features come from: the target's forward, or a cache of it."""

    def make(self, rows: Sequence[int | None]) -> Features:
        """Features of these rows, in this order; None is a row of padding."""
        ...


@dataclass(frozen=True, kw_only=True)
class Online:
    """The target reads every row again every time."""

    lm: CachedLM
    rows: Rows
    needs: Needs

    @torch.no_grad()
    def make(self, rows: Sequence[int | None]) -> Features:
        """One forward; under `seq` depth + 2 of them."""
        needs = self.needs
        # Columns that are padding in every row would be computed for nothing.
        packed = self.rows.batch(rows, self.lm.device, trim=True)
        states = packed_states(self.lm, packed.tokens_BT, packed.document_BT, needs.recorded)
        final_SD = states[:, :, needs.recorded.index("final")].flatten(0, 1) if "final" in needs.recorded else None
        continuations = None
        if needs.learn == "seq":
            continuations, after = continue_all(self.lm, packed.tokens_BT, packed.document_BT, length=needs.depth + 1)
            if final_SD is not None:
                final_SD = torch.cat([final_SD, after.flatten(0, 2)])
        teacher = None
        if needs.objective.needs_teacher:
            assert final_SD is not None, "`recorded` asks for the final state"
            teacher = WholeTeacher(self.lm, final_SD)
        return Features(
            tokens_BT=packed.tokens_BT,
            document_BT=packed.document_BT,
            learn_BT=packed.learn_BT,
            states_BTKD=states[:, :, : len(needs.taps)],
            teacher=teacher,
            continuations=continuations,
        )
