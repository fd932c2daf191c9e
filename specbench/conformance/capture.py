"""Whether a drafter that calls itself capturable is: no host read and no shape that depends on values in draft() and
commit(), found out on the CPU, where nothing would synchronise and nobody would notice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from specbench.conformance.broken import BrokenPromise

_READS = frozenset(
    {
        "item", "tolist", "numpy", "__array__", "__bool__", "__int__", "__float__", "__index__", "__contains__", "cpu",
        "equal", "allclose", "is_nonzero",
    }
)  # fmt: skip
_DYNAMIC = frozenset({"nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount"})
_UPLOADS = frozenset({"tensor", "as_tensor", "from_numpy"})


class NoHostReads(TorchFunctionMode):
    """Inside, any of these raises BrokenPromise: a value read by the host, a shape that depends on values, a tensor
    made of host numbers (a copy to the device). `where` names the call in the message."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self._where = where

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _READS:
            self._refuse(f"{name}() reads a value on the host")
        if name in _DYNAMIC or (name == "where" and len(args) == 1):
            self._refuse(f"{name}() makes a shape that depends on values")
        if name in _UPLOADS:
            self._refuse(f"torch.{name}() copies host numbers to the device")
        if name in ("__getitem__", "__setitem__", "index_put_") and _has_mask(args[1]):
            self._refuse(f"{name} with a boolean mask makes a shape that depends on values")
        return func(*args, **(kwargs or {}))

    def _refuse(self, fault: str) -> NoReturn:
        raise BrokenPromise(f"the method says capturable, but in its {self._where} {fault}")


def _has_mask(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8) for part in parts)


class Unreadable(list[Any]):
    """In place of a commit's host lists: a captured graph would never see them change."""

    def _refuse(self) -> NoReturn:
        raise BrokenPromise("the method says capturable, but its commit() reads the commit's lists on the host")

    def __iter__(self) -> Iterator[Any]:
        self._refuse()

    def __getitem__(self, index: Any) -> Any:
        self._refuse()

    def __len__(self) -> int:
        return self._refuse()
