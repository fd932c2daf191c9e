"""Tree attention over the cache, handed to unmodified transformers models through their attention interface.

transformers builds no mask for an implementation it has no mask function for; ours come from the forward that is
under way (`Forward`), so one definition of who sees whom serves every architecture. Three implementations: `plain`, the
slow reference; `sdpa`, torch's fused kernel, which lacks logit soft-capping and attention sinks; `triton`, a kernel of
our own for drafts on GPUs. What an attention function is handed and does not understand is an error, never ignored.

B rows, M query slots, S cache slots, H query heads, G = H / kv_heads queries per key head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from specbench.tree import Topology

PLAIN = "specbench_plain"
# Not named after sdpa: transformers refuses any name holding that word for families whose soft-capping or sinks
# torch's kernel lacks (gemma2, gpt_oss); here those layers take the plain path.
SDPA = "specbench_fused"
TRITON = "specbench_triton"

# Facts the models pass along for other implementations; they change nothing here because positions, cache and mask
# are ours.
_HARMLESS = frozenset(
    {
        "position_ids", "cache_position", "use_cache", "position_embeddings", "past_key_values", "is_causal",
        "output_attentions", "output_hidden_states", "output_router_logits",
    }
)  # fmt: skip


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
            num_slots = self.topology.depth_BM.shape[1]
            needs_copies = bias is not None and group > 1 and num_slots > 1
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
            return _as_bias(visible(self.topology, self.length_B, span=span, window=window), self.dtype)[:, None]
        if num_slots == 1:
            return None
        if self.is_chain:
            block = _chain_bias(num_slots, self.dtype, self.topology.depth_BM.device)
        else:
            block = _as_bias(self.topology.sees_BMM[0], self.dtype)
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
        return _as_bias(seen_BMS, self.dtype)[:, None]


def visible(topology: Topology, length_B: Tensor, *, span: int, window: int | None = None) -> Tensor:
    """The definition: bool (B, M, S) over the first `span` slots. Slot i of row b sees every committed token and its
    own ancestors; with a sliding window only those fewer than `window` positions back."""
    num_rows, num_slots = topology.depth_BM.shape
    length_B1 = length_B[:, None]
    slot_BS = torch.arange(span, device=length_B.device)[None] - length_B1
    inside_BS = (slot_BS >= 0) & (slot_BS < num_slots)
    index_BS = slot_BS.clamp(0, num_slots - 1)
    sees = topology.sees_BMM.gather(2, index_BS[:, None].expand(num_rows, num_slots, span))
    seen_BMS = (slot_BS < 0)[:, None] | (sees & inside_BS[:, None])
    if window is not None:
        position_BS = torch.where(slot_BS < 0, slot_BS + length_B1, length_B1 + topology.depth_BM.gather(1, index_BS))
        query_BM = length_B1 + topology.depth_BM
        seen_BMS = seen_BMS & (query_BM[:, :, None] - position_BS[:, None] < window)
    return seen_BMS


def _as_bias(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))


@lru_cache(maxsize=64)
def _chain_bias(num_slots: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return _as_bias(torch.ones(num_slots, num_slots, dtype=torch.bool, device=device).tril(), dtype)


_current: Forward | None = None


class use:
    """`with use(forward): model(...)`: the forward whose masks the attention functions read. One at a time, not
    re-entrant."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward

    def __enter__(self) -> None:
        global _current  # noqa: PLW0603 - transformers hands attention functions no place for a caller's state
        assert _current is None, "a cached forward inside a cached forward"
        _current = self._forward

    def __exit__(self, *_: object) -> None:
        global _current  # noqa: PLW0603
        _current = None


def _checked(name: str, dropout: float, mask: Tensor | None, extra: dict[str, Any]) -> Forward:
    assert _current is not None, "a model loaded by specbench.lm must be run through CachedLM"
    assert mask is None, "transformers built a mask of its own; tree attention would ignore it"
    unknown = {key for key, value in extra.items() if value is not None} - _HARMLESS
    if unknown or dropout:
        raise NotImplementedError(
            f"attention was handed {sorted(unknown) or 'dropout'}, which {name} attention does not implement"
        )
    _current.implementations.add(name)
    return _current


def plain_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """The definition, in the open: softmax(q k^T * scaling + mask) v in at least fp32.

    query (B, H, M, d), key (B, kv, S, d), value (B, kv, S, d_v) -> (B, M, H, d_v). softcap: logits become cap *
    tanh(logits / cap) (Gemma 2). s_aux (H,): one learned logit per head that takes part in the softmax and carries no
    value (gpt-oss).
    """
    forward = _checked("plain", dropout, attention_mask, extra)
    num_rows, num_heads, num_slots, head_dim = query.shape
    group = num_heads // key.shape[1]
    compute = torch.promote_types(query.dtype, torch.float32)
    scale = head_dim**-0.5 if scaling is None else scaling
    folded = query.reshape(num_rows, key.shape[1], group * num_slots, head_dim).to(compute)
    scores = (folded @ key.to(compute).transpose(-1, -2)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    bias = forward.bias(sliding_window, group)
    if bias is not None:
        scores = scores + bias.to(compute)
    if s_aux is None:
        weights = scores.softmax(-1)
    else:
        sink = s_aux.to(compute).view(key.shape[1], group, 1).expand(-1, -1, num_slots).reshape(1, key.shape[1], -1, 1)
        weights = torch.cat([scores, sink.expand(num_rows, -1, -1, -1)], dim=-1).softmax(-1)[..., :-1]
    mixed = (weights @ value.to(compute)).to(query.dtype)
    return mixed.reshape(num_rows, num_heads, num_slots, -1).transpose(1, 2).contiguous(), None


def sdpa_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """`plain_attention` through torch's fused kernel. Layers with soft-capping or sinks, which the kernel lacks, take
    the plain path and say so in `Forward.implementations`."""
    if softcap is not None or s_aux is not None:
        return plain_attention(module, query, key, value, attention_mask, softcap=softcap, s_aux=s_aux, **options)
    return _fused(query, key, value, attention_mask, **options)


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """Grouped heads are folded into the query rows, so that keys and values are read once and never repeated."""
    forward = _checked("sdpa", dropout, attention_mask, extra)
    num_rows, num_heads, num_slots, head_dim = query.shape
    num_kv = key.shape[1]
    group = num_heads // num_kv
    folded = query if group == 1 else query.reshape(num_rows, num_kv, group * num_slots, head_dim)
    mixed = F.scaled_dot_product_attention(
        folded, key, value, attn_mask=forward.bias(sliding_window, group), scale=scaling
    )
    return mixed.reshape(num_rows, num_heads, num_slots, -1).transpose(1, 2).contiguous(), None


def triton_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """`plain_attention` in Triton (`tree_kernel`), every layer alike. A prompt's chunk, which has more slots than a
    draft may have, goes through `sdpa_attention`."""
    from specbench.lm.tree_kernel import MOST_SLOTS

    if query.shape[2] > MOST_SLOTS:
        return sdpa_attention(module, query, key, value, attention_mask, **options)
    return _in_triton(query, key, value, attention_mask, **options)


def _in_triton(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    from specbench.lm.tree_kernel import tree_attention

    forward = _checked("triton", dropout, attention_mask, extra)
    shape = forward.kernel_shape
    mixed = tree_attention(
        query,
        key,
        value,
        length_B=shape.length_B,
        depth_BM=shape.depth_BM,
        bits_BMW=shape.bits_BMW,
        scale=query.shape[3] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        cap=softcap,
        sink_H=s_aux,
    )
    return mixed, None


_Function = Callable[..., tuple[Tensor, None]]
_FUNCTIONS: dict[str, _Function] = {PLAIN: plain_attention, SDPA: sdpa_attention, TRITON: triton_attention}


def register() -> None:
    """Make all implementations known to transformers; idempotent."""
    for name, function in _FUNCTIONS.items():
        AttentionInterface.register(name, function)
