"""Who sees whom in one forward: the masks of draft trees behind committed tokens, for every attention alike.

B rows, M query slots, S cache slots, G = query heads / key heads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Cache

from specbench.tree import Topology


class KernelShape(NamedTuple):
    """What the Triton kernel reads of a forward, int32, on the device. bits_BMW: `tree_kernel.ancestor_bits`."""

    length_B: Tensor
    depth_BM: Tensor
    bits_BMW: Tensor


class Forward(ABC):
    """Who sees whom in one forward: M slots behind the committed tokens of B rows."""

    def __init__(self, topology: Topology, *, is_chain: bool, max_depth: int, dtype: torch.dtype) -> None:
        self.topology = topology
        self.is_chain = is_chain
        self.max_depth = max_depth
        self.dtype = dtype
        self.implementations: set[str] = set()
        self.cache: Cache | None = None
        """Where a compiled forward's keys and values go; an eager one is handed its cache by the model."""
        self._bias: dict[tuple[int | None, int], Tensor | None] = {}

    @property
    @abstractmethod
    def longest(self) -> int:
        """No row holds more committed tokens."""

    @property
    @abstractmethod
    def length_B(self) -> Tensor:
        """Committed tokens of each row, on the device."""

    @abstractmethod
    def _make_bias(self, window: int | None) -> Tensor | None:
        """(B or 1, 1, M, S), or None where everything is seen."""

    def bias(self, window: int | None, group: int) -> Tensor | None:
        """Additive mask (B, 1, G * M, S), 0 or -inf, queries group-major; None where everything is seen.

        window: a layer's sliding window in tokens; ignored while the whole context fits in it.
        """
        if window is not None and self.longest + self.max_depth < window:
            window = None
        key = (window, group)
        if key not in self._bias:
            bias = self._make_bias(window)
            needs_copies = bias is not None and group > 1 and bias.shape[2] > 1
            self._bias[key] = bias.repeat(1, 1, group, 1) if bias is not None and needs_copies else bias
        return self._bias[key]

    @cached_property
    def kernel_shape(self) -> KernelShape:
        """Made once for all layers."""
        from specbench.lm.tree_kernel import ancestor_bits  # Triton is there where it was picked

        return KernelShape(
            self.length_B.to(torch.int32),
            self.topology.depth_BM.to(torch.int32).contiguous(),
            ancestor_bits(self.topology.sees_BMM),
        )


class HostForward(Forward):
    """Lengths the host knows: a single row's mask is its draft's alone, and a single slot needs none."""

    def __init__(
        self, topology: Topology, lengths: list[int], *, is_chain: bool, max_depth: int, dtype: torch.dtype
    ) -> None:
        super().__init__(topology, is_chain=is_chain, max_depth=max_depth, dtype=dtype)
        self._lengths = lengths

    @property
    def longest(self) -> int:
        return max(self._lengths)

    @cached_property
    def length_B(self) -> Tensor:
        return torch.tensor(self._lengths, device=self.topology.depth_BM.device)

    def _make_bias(self, window: int | None) -> Tensor | None:
        num_rows, num_slots = self.topology.depth_BM.shape
        if num_rows > 1 or window is not None:
            span = self.longest + num_slots
            return as_bias(visible(self.topology, self.length_B, span=span, window=window), self.dtype)[:, None]
        if num_slots == 1:
            return None
        if self.is_chain:
            block = _chain_bias(num_slots, self.dtype, self.topology.depth_BM.device)
        else:
            block = as_bias(self.topology.sees_BMM[0], self.dtype)
        return F.pad(block, (self._lengths[0], 0))[None, None]


class DeviceForward(Forward):
    """Lengths that only the device knows, for steps that are captured: shapes depend on `span` alone.

    span: S, the slots of the cache that are read; every row's committed tokens and its M slots lie inside.
    """

    def __init__(
        self, topology: Topology, length_B: Tensor, *, span: int, is_chain: bool, max_depth: int, dtype: torch.dtype
    ) -> None:
        super().__init__(topology, is_chain=is_chain, max_depth=max_depth, dtype=dtype)
        self._length_B = length_B
        self._span = span

    @property
    def longest(self) -> int:
        return self._span - self.topology.depth_BM.shape[1]

    @property
    def length_B(self) -> Tensor:
        return self._length_B

    def _make_bias(self, window: int | None) -> Tensor | None:
        seen_BMS = visible(self.topology, self._length_B, span=self._span, window=window)
        return as_bias(seen_BMS, self.dtype)[:, None]


def visible(topology: Topology, length_B: Tensor, *, span: int, window: int | None = None) -> Tensor:
    """The definition: bool (B, M, S) over the first `span` slots. Slot i of row b sees every committed token and its
    own ancestors; with a sliding window only those fewer than `window` positions back. Of a tree read level by level
    the last level's slots alone: (B, W, S)."""
    num_rows, num_slots = topology.depth_BM.shape
    num_queries = topology.sees_BMM.shape[1]
    length_B1 = length_B[:, None]
    slot_BS = torch.arange(span, device=length_B.device)[None] - length_B1
    inside_BS = (slot_BS >= 0) & (slot_BS < num_slots)
    index_BS = slot_BS.clamp(0, num_slots - 1)
    sees = topology.sees_BMM.gather(2, index_BS[:, None].expand(num_rows, num_queries, span))
    seen_BMS = (slot_BS < 0)[:, None] | (sees & inside_BS[:, None])
    if window is not None:
        position_BS = torch.where(slot_BS < 0, slot_BS + length_B1, length_B1 + topology.depth_BM.gather(1, index_BS))
        query_BM = length_B1 + topology.depth_BM[:, num_slots - num_queries :]
        seen_BMS = seen_BMS & (query_BM[:, :, None] - position_BS[:, None] < window)
    return seen_BMS


def as_bias(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where seen, -inf elsewhere."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))


@lru_cache(maxsize=64)
def _chain_bias(num_slots: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return as_bias(torch.ones(num_slots, num_slots, dtype=torch.bool, device=device).tril(), dtype)
