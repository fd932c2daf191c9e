"""Keys and values of the text's features, as a drafter caches them: rows of their own length, behind them scratch.

Slot i of a row holds the feature z_i. Slots past a row's length are scratch: a draft's own frames or nodes stand there
while it is made, count for nothing and are written over by the next committed features.

B rows, C new features, M queries, S slots, H heads, G key heads, d width of a head, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.ctc.module import Attention, RotaryTable
from specbench.method import TargetView

_BLOCK = 64
"""On a CPU the slots read are cut behind the longest possible row, in steps of so many."""


class FeatureCache:
    """Buffers for target.max_batch rows, made once, in the dtype of the attention's weights: live ones are float32
    whatever the target's are. scratch: most slots a draft, or the commit of one, writes behind a row."""

    def __init__(self, attention: Attention, *, kv_heads: int, head_dim: int, theta: float, target: TargetView,
                 scratch: int) -> None:  # fmt: skip
        self._attention = attention
        num_slots = target.max_len + 2 * scratch + 2
        like = torch.empty(0, dtype=attention.k_proj.weight.dtype, device=target.device)
        self._key = like.new_zeros(target.max_batch, num_slots, kv_heads, head_dim)
        self._value = torch.zeros_like(self._key)
        self._table = RotaryTable(head_dim, theta, num_slots, like=like)
        self._rows_B1 = torch.arange(target.max_batch, device=target.device)[:, None]
        self._slots_S = torch.arange(num_slots, device=target.device)
        self._scratch = scratch
        self.len_B = self._slots_S[:0]
        self._num_rows = 0
        # On a CPU reading less is faster; elsewhere whoever launches does not know how far rows may have come.
        self._is_cut = target.device.type == "cpu"
        self._span: int | None = None
        self._longest = 0
        """At most so many features in any row: known without reading the device."""

    def begin(self, num_rows: int) -> None:
        """num_rows empty rows."""
        self._num_rows, self._longest, self._span = num_rows, 0, None
        self.len_B = torch.zeros(num_rows, dtype=torch.long, device=self._key.device)

    def hold(self, span: int | None) -> None:
        """See `Drafter.hold`."""
        self._span = span

    @property
    def num_read(self) -> int:
        """S: slots that the next draft may look at."""
        if self._span is not None:
            return min(self._span + self._scratch, int(self._key.shape[1]))
        if not self._is_cut:
            return int(self._key.shape[1])
        blocks = -(-(self._longest + self._scratch) // _BLOCK)
        return min(blocks * _BLOCK, int(self._key.shape[1]))

    def slots(self, num: int) -> Tensor:
        """(S,) the first so many slots."""
        return self._slots_S[:num]

    def fill(self, row: int, z_TD: Tensor, start: int) -> None:
        """A prompt's features from `start` on; lengths are set by `set_lengths`."""
        slots = slice(start, start + z_TD.shape[0])
        cos, sin = self._table.cos[slots, None], self._table.sin[slots, None]
        self._key[row, slots] = self._table.rotate(self._attention.keys(z_TD), cos, sin)
        self._value[row, slots] = self._attention.values(z_TD)

    def set_lengths(self, len_B: Tensor, longest: int) -> None:
        """Features each row holds."""
        self.len_B, self._longest = len_B, longest

    def append(self, z_BCD: Tensor, num_B: Tensor) -> None:
        """C features behind each row, of which the first num_B count. num_B is on the device."""
        column_C = self._slots_S[: z_BCD.shape[1]]
        slots_BC = self.len_B[:, None] + column_C
        if z_BCD.shape[1] > self._scratch:
            # A step of another's drafts (`Drafter.follow`) is as wide as the widest of its rows. Padding ends in the
            # last slot, which no text reaches; what counts keeps its own, so that too long a text still fails.
            last = self._slots_S.shape[0] - 1
            slots_BC = torch.where(column_C < num_B[:, None], slots_BC, slots_BC.clamp(max=last))
        self.write(z_BCD, slots_BC)
        self.len_B = self.len_B + num_B
        self._longest = min(self._longest + z_BCD.shape[1], int(self._key.shape[1]))

    def write(self, z_BCD: Tensor, slots_BC: Tensor, places_BC: Tensor | None = None) -> None:
        """Keys and values of z at slots_BC, turned for positions places_BC (the slots themselves where not given)."""
        places = slots_BC if places_BC is None else places_BC
        cos, sin = self._table.cos[places][:, :, None], self._table.sin[places][:, :, None]
        where = (self._rows_B1[: z_BCD.shape[0]], slots_BC)
        self._key[where] = self._table.rotate(self._attention.keys(z_BCD), cos, sin)
        self._value[where] = self._attention.values(z_BCD)

    def read(self, x_BMD: Tensor, places_BM: Tensor, sees_BMS: Tensor) -> Tensor:
        """What queries of x at positions places see: (B, M, H * d). sees_BMS: bool over the first S slots."""
        cos, sin = self._table.cos[places_BM][:, :, None], self._table.sin[places_BM][:, :, None]
        return self._seen(self._table.rotate(self._attention.queries(x_BMD), cos, sin), sees_BMS)

    def _seen(self, query: Tensor, sees_BMS: Tensor) -> Tensor:
        """Turned queries (B, M, H, d) -> (B, M, H * d)."""
        num_rows, num_queries, num_read = sees_BMS.shape
        key = self._key[:num_rows, :num_read].transpose(1, 2)
        value = self._value[:num_rows, :num_read].transpose(1, 2)
        kv_heads = key.shape[1]
        group = query.shape[2] // kv_heads
        # Queries of one key head stand together, so that keys are read once and never repeated.
        folded = query.unflatten(2, (kv_heads, group)).permute(0, 2, 3, 1, 4).flatten(2, 3)
        mask = sees_BMS[:, None] if group == 1 else sees_BMS.repeat(1, group, 1)[:, None]
        mixed = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask)
        unfolded: Tensor = mixed.unflatten(2, (group, num_queries)).permute(0, 3, 1, 2, 4).flatten(2)
        return unfolded

    def grow(self, heads_BMXd: Tensor, slots_BM: Tensor, places_BM: Tensor, sees_BMS: Tensor) -> Tensor:
        """M new nodes a row: their queries, keys and values (B, M, H + 2 G, d), not yet turned, written at slots as of
        positions places -> what their queries see, (B, M, H * d). sees_BMS: bool over the first S slots."""
        kv_heads = self._key.shape[2]
        cos, sin = self._table.cos[places_BM][:, :, None], self._table.sin[places_BM][:, :, None]
        turned = self._table.rotate(heads_BMXd[:, :, :-kv_heads], cos, sin)
        where = (self._rows_B1[: heads_BMXd.shape[0]], slots_BM)
        self._key[where] = turned[:, :, -kv_heads:]
        self._value[where] = heads_BMXd[:, :, -kv_heads:]
        return self._seen(turned[:, :, :-kv_heads], sees_BMS)

    def advance(self, heads_BXd: Tensor, place_B: Tensor) -> Tensor:
        """One new feature a row: its queries, keys and values (B, H + 2 G, d), not yet turned -> what its queries see
        of all slots up to its own, (B, H * d)."""
        num_rows, kv_heads = heads_BXd.shape[0], self._key.shape[2]
        cos, sin = (part.index_select(0, place_B)[:, None] for part in (self._table.cos, self._table.sin))
        turned = self._table.rotate(heads_BXd[:, :-kv_heads], cos, sin)
        where = (self._rows_B1[:num_rows, 0], place_B)
        self._key[where] = turned[:, -kv_heads:]
        self._value[where] = heads_BXd[:, -kv_heads:]
        num_read = self.num_read
        mixed = F.scaled_dot_product_attention(
            turned[:, :-kv_heads].unflatten(1, (kv_heads, -1)),
            self._key[:num_rows, :num_read].transpose(1, 2),
            self._value[:num_rows, :num_read].transpose(1, 2),
            attn_mask=(self._slots_S[:num_read] <= place_B[:, None])[:, None, None],
        )
        return mixed.flatten(1)

    def erase(self) -> None:
        """Zero every slot."""
        self._key.zero_()
        self._value.zero_()

    def keep(self, rows: list[int]) -> None:
        """Rows leave: new row i is old row rows[i] (increasing)."""
        used = self._longest if self._span is None else self._span
        for buffer in (self._key, self._value):
            for new, old in enumerate(rows):
                if new != old:
                    buffer[new, :used] = buffer[old, :used]
        self.len_B = self.len_B[rows]
        self._num_rows = len(rows)
