"""The key/value cache: written at slots, rolled back by lowering a length, compacted by copying the accepted path.

One pair of buffers a layer, (rows, kv_heads, S, head_dim), allocated once. Row b holds `lengths[b]` committed tokens;
the nodes of the draft under verification stand behind them at slots lengths[b] .. lengths[b] + M - 1 and count for
nothing until they are kept. Nothing here ever copies a context: a step writes M slots and moves at most P of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin


class _Layer(CacheLayerMixin):
    """Buffers of one layer, made at its first write, when shapes and dtype are known (they may differ between
    layers)."""

    is_compileable = False
    is_croppable = True

    def __init__(self, owner: KVCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._owner = owner

    def buffers(self) -> tuple[Tensor, Tensor] | None:
        """Keys and values, None before the first write."""
        if self.keys is None or self.values is None:
            return None
        return self.keys, self.values

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, slots = self._owner.max_rows, self._owner.num_slots
        self.keys = key_states.new_zeros(rows, key_states.shape[1], slots, key_states.shape[3])
        self.values = value_states.new_zeros(rows, value_states.shape[1], slots, value_states.shape[3])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        window = self._owner.window
        if window.slots_BM is None:
            where = (slice(window.row, window.row + window.num_rows), slice(None), slice(window.start, window.end))
            self.keys[where] = key_states
            self.values[where] = value_states
        else:
            rows_B1 = window.rows_B1
            # Advanced indices around a slice put the indexed dimensions first: (B, M, heads, dim).
            self.keys[rows_B1, :, window.slots_BM] = key_states.transpose(1, 2)
            self.values[rows_B1, :, window.slots_BM] = value_states.transpose(1, 2)
        rows = slice(window.row, window.row + window.num_rows)
        return self.keys[rows, :, : window.end], self.values[rows, :, : window.end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._owner.window.end, 0

    def get_seq_length(self) -> int:
        return self._owner.window.start

    def get_max_length(self) -> int:
        return self._owner.num_slots

    def get_max_cache_shape(self) -> int:
        """`get_max_length` as the first releases of transformers 5 name it; abstract there."""
        return self._owner.num_slots


class Window:
    """Where the next forward writes: `num_rows` rows from `row`, slots start .. end - 1 (all rows alike), or slots_BM
    when ragged."""

    def __init__(
        self,
        *,
        row: int,
        num_rows: int,
        start: int,
        end: int,
        slots_BM: Tensor | None = None,
        rows_B1: Tensor | None = None,
    ) -> None:
        self.row = row
        self.num_rows = num_rows
        self.start = start
        self.end = end
        self.slots_BM = slots_BM
        self.rows_B1 = rows_B1


class KVCache(Cache):
    """All layers' buffers. `lengths` (host) counts committed tokens per live row."""

    def __init__(self, *, num_layers: int, max_rows: int, num_slots: int) -> None:
        self.max_rows = max_rows
        self.num_slots = num_slots
        self.lengths: list[int] = []
        self.window = Window(row=0, num_rows=1, start=0, end=0)
        self._own = [_Layer(self) for _ in range(num_layers)]
        super().__init__(layers=list(self._own))

    def _buffers(self) -> list[Tensor]:
        """Every allocated buffer, keys and values alike."""
        pairs = [layer.buffers() for layer in self._own]
        return [buffer for pair in pairs if pair is not None for buffer in pair]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write this forward's keys and values; returns views (rows, kv_heads, end, head_dim), not copies."""
        return self._own[layer_idx].update(key_states, value_states)

    def begin(self, num_rows: int) -> None:
        """Forget everything: num_rows empty rows. Buffers stay; stale slots are never attended."""
        assert num_rows <= self.max_rows, f"{num_rows} rows in a cache of {self.max_rows}"
        self.lengths = [0] * num_rows

    def open_row(self, row: int, num_tokens: int) -> None:
        """The next forward appends num_tokens to one row (prefill)."""
        start = self.lengths[row]
        self.window = Window(row=row, num_rows=1, start=start, end=start + num_tokens)
        self._check_room()

    def open_all(self, num_slots: int, device: torch.device, *, behind: int = 0) -> None:
        """The next forward writes num_slots nodes behind every live row, `behind` slots further than its length."""
        start, longest = min(self.lengths) + behind, max(self.lengths) + behind
        num_rows = len(self.lengths)
        if start == longest:
            self.window = Window(row=0, num_rows=num_rows, start=start, end=start + num_slots)
        else:
            lengths_B1 = torch.tensor(self.lengths, device=device)[:, None]
            self.window = Window(
                row=0,
                num_rows=num_rows,
                start=start,
                end=longest + num_slots,
                slots_BM=lengths_B1 + torch.arange(behind, behind + num_slots, device=device),
                rows_B1=torch.arange(num_rows, device=device)[:, None],
            )
        self._check_room()

    def open_behind(self, length_B: Tensor, num_slots: int, *, span: int) -> None:
        """The next forward writes num_slots nodes behind rows whose lengths only the device knows, and reads the
        first `span` slots: a step that is captured."""
        assert span <= self.num_slots, f"{span} of {self.num_slots} slots"
        self.window = Window(
            row=0,
            num_rows=length_B.shape[0],
            start=span - num_slots,
            end=span,
            slots_BM=length_B[:, None] + torch.arange(num_slots, device=length_B.device),
            rows_B1=torch.arange(length_B.shape[0], device=length_B.device)[:, None],
        )

    def _check_room(self) -> None:
        assert self.window.end <= self.num_slots, (
            f"cache slot {self.window.end} of {self.num_slots}: the engine refuses what does not fit before it starts"
        )

    def advance(self, row: int, num_tokens: int) -> None:
        """The first num_tokens slots behind the row are now committed."""
        self.lengths[row] += num_tokens

    @torch.inference_mode()
    def compact(self, path_slots_BC: Tensor, length_B: Tensor | None = None) -> None:
        """Move accepted nodes into place: slot lengths[b] + i takes what stands at lengths[b] + path_slots_BC[b, i].

        path_slots_BC: int64 (B, C), column 0 = 0 (the root), then the accepted nodes' slots in path order; padding
        repeats any slot. Gathers before it scatters, so overlapping moves are safe. At most C slots per layer are
        touched. length_B: in place of `lengths`, where the device alone knows them.
        """
        num_rows, num_moved = path_slots_BC.shape
        device = path_slots_BC.device
        lengths_B1 = (torch.tensor(self.lengths, device=device) if length_B is None else length_B)[:, None]
        source_BC = lengths_B1 + path_slots_BC
        target_BC = lengths_B1 + torch.arange(num_moved, device=device)
        rows_B1 = torch.arange(num_rows, device=device)[:, None]
        for buffer in self._buffers():
            buffer[rows_B1, :, target_BC] = buffer[rows_B1, :, source_BC]

    @torch.inference_mode()
    def keep(self, rows: list[int], *, used: int | None = None) -> None:
        """Rows leave: new row i is old row rows[i] (increasing). Copies only what is committed, once per leaving row;
        used: or so many slots, where `lengths` are not up to date."""
        if used is None:
            used = max((self.lengths[row] for row in rows), default=0)
        for buffer in self._buffers():
            for new, old in enumerate(rows):
                if new != old:
                    buffer[new, :, :used] = buffer[old, :, :used]
        self.lengths = [self.lengths[row] for row in rows]

    @torch.inference_mode()
    def erase(self) -> None:
        """Zero every slot: after a forward that was not finite, masked slots must hold numbers again."""
        for buffer in self._buffers():
            buffer.zero_()

    def num_bytes(self) -> int:
        """Allocated bytes, all layers."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self._buffers())
