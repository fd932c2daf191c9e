"""What `--quantisation` may say. No torch: front ends check it before anything is loaded."""

from __future__ import annotations

from typing import Final, Literal, get_args

from specbench.errors import UsageError, did_you_mean

Quantisation = Literal["none", "int8", "int4", "fp8", "bnb-int8", "bnb-int4"]
CHOICES: Final[tuple[str, ...]] = get_args(Quantisation)
NONE: Final = "none"


def check_quantisation(name: str | None, *, where: str = "--quantisation") -> None:
    """Raises UsageError naming the nearest; None was not said."""
    if name is not None and name not in CHOICES:
        raise UsageError(f"{name!r} is not a choice of {where}", where=where, try_=did_you_mean(name, CHOICES))


def precision(dtype: str, quantisation: str) -> str:
    """A target's numbers in words: `bfloat16`, or `bfloat16, int8`."""
    return dtype if quantisation == NONE else f"{dtype}, {quantisation}"
