"""Whether what a drafter computed were numbers, found out on the device and asked for once a generation."""

from __future__ import annotations

import torch
from torch import Tensor


class FiniteWatch:
    """One element that never moves, 0 until a NaN or +inf passes by and NaN from then on: nothing is read on the host,
    so steps that are seen may be captured. -inf is the logarithm of 0 and passes."""

    def __init__(self, device: torch.device) -> None:
        self._sum = torch.zeros((), device=device)

    def see(self, values: Tensor) -> None:
        """values: any shape. 0 * x is 0 for numbers, and NaN for NaN and infinity; a clamp lets NaN through."""
        self._sum.add_((values.clamp(min=0) * 0).sum())

    def is_finite(self) -> bool:
        """Of all that was seen since `forget`. Reads the device."""
        return not bool(self._sum.isnan())

    def forget(self) -> None:
        """What was seen is over."""
        self._sum.zero_()
