"""What a LoRA adapter looks like, for its file as well as for its layers. No torch: a list of versions reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specbench.errors import UsageError

ALL_LINEAR = "all-linear"
"""Every linear layer but the head."""


@dataclass(frozen=True, kw_only=True)
class LoraShape:
    """Which layers carry an adapter, and how wide. targets: last parts of module names (q_proj), or ALL_LINEAR."""

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = (ALL_LINEAR,)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> LoraShape:
        """Of options rank, alpha and target_modules. Raises UsageError where alpha would switch the adapter off."""
        alpha = float(options["alpha"])
        if alpha <= 0:
            raise UsageError(
                f"alpha {alpha:g} switches the adapter off", where="adaptive_lora.alpha", try_="alpha of 2 x rank"
            )
        return cls(rank=int(options["rank"]), alpha=alpha, targets=_parse_targets(str(options["target_modules"])))

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / self.rank


def _parse_targets(text: str) -> tuple[str, ...]:
    """`q_proj,v_proj` or `all-linear` -> names. Raises UsageError for an empty list."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise UsageError("no layer was named", where="target_modules", try_=f"q_proj,v_proj or {ALL_LINEAR}")
    return tuple(dict.fromkeys(found))
