"""The network as a draft runs it: few large operations, weights in the order the device likes, h's share done once.

    block 0 of z = [h ; s]:   A_0 z + a_0 = (A_0[:, :H] h + a_0) + A_0[:, H:] s      bracket: once per step
    with input_proj:          z = (Wp[:, :H] h + bp) + Wp[:, H:] s                    likewise
    the RNN's input:          Ww e(x) + bu                                            a row of a table of all tokens

Same numbers as `ReDrafterNetwork` up to rounding. N rows (B, or B * W beams), H, M, S, E as in module.py.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.redrafter.module import ReDrafterNetwork, parameter_dtype
from specbench.blocks import TABLE_BYTES
from specbench.linear import FrozenLinear, input_major
from specbench.method import TargetView

Table = Literal["auto", "on", "off"]


class Context(NamedTuple):
    """What stays the same while one draft grows. context_NH: h; share_NE: its part of the first matrix product."""

    context_NH: Tensor
    share_NE: Tensor

    def widened(self, beams: int) -> Context:
        """Each row `beams` times; a single row is only viewed so."""
        if self.context_NH.shape[0] == 1:
            return Context(self.context_NH.expand(beams, -1), self.share_NE)
        return Context(self.context_NH.repeat_interleave(beams, 0), self.share_NE.repeat_interleave(beams, 0))


class LaidOut:
    """The network's weights as operands. live: views of them, so that training moves these too, and no table."""

    def __init__(self, network: ReDrafterNetwork, target: TargetView, *, table: Table, live: bool = False) -> None:
        arch = network.architecture
        self.dtype = parameter_dtype(network)
        self._embed = target.embed_tokens
        self._copies = not live and target.device.type == "cpu" and self.dtype == torch.float32
        split = arch.hidden_size
        first = network.input_proj if network.input_proj is not None else network.blocks[0]
        assert isinstance(first, nn.Linear)
        self._first_h, self._first_s = self._operand(first.weight[:, :split]), self._operand(first.weight[:, split:])
        self._first_bias = first.bias.detach()
        self._has_projection = network.input_proj is not None
        rest = [block for block in network.blocks if block is not first]
        self._rest = [
            (self._operand(block.weight), block.bias.detach()) for block in rest if isinstance(block, nn.Linear)
        ]
        self._rnn = network.rnn_w is not None
        self._table_VH: Tensor | None = None
        if network.rnn_w is not None and network.rnn_u is not None:
            self._w, self._u = self._operand(network.rnn_w.weight), self._operand(network.rnn_u.weight)
            self._u_bias = network.rnn_u.bias.detach()
            num_bytes = arch.vocab_size * arch.hidden_size * self.dtype.itemsize
            if not live and (table == "on" or (table == "auto" and num_bytes <= TABLE_BYTES)):
                self._table_VH = self._make_table(arch.vocab_size, target.device)
        self._head = network.borrowed_head(target)
        if network.head is not None:
            weight = network.head.weight.detach()
            self._own_head = FrozenLinear(input_major(weight) if self._copies else weight)

    def _operand(self, weight: Tensor) -> Tensor:
        """The right factor of x @ weight.T."""
        turned = weight.detach().t()
        return turned.contiguous() if self._copies else turned

    @torch.no_grad()
    def _make_table(self, num: int, device: torch.device, chunk: int = 4096) -> Tensor:
        ids = torch.arange(num, device=device)
        return torch.cat([torch.addmm(self._u_bias, self._embedded(part), self._w) for part in ids.split(chunk)])

    def _embedded(self, tokens_N: Tensor) -> Tensor:
        return self._embed(tokens_N).to(self.dtype)  # type: ignore[no-any-return]

    def context(self, hidden_BH: Tensor) -> Context:
        """h of each row -> what the draft needs of it."""
        hidden_BH = hidden_BH.to(self.dtype)
        return Context(hidden_BH, torch.addmm(self._first_bias, hidden_BH, self._first_h))

    def next_state(self, tokens_N: Tensor, state_NS: Tensor | None) -> Tensor:
        """s_i after these tokens; state None = s_0."""
        if not self._rnn:
            embedded_NM = self._embedded(tokens_N)
            return embedded_NM if state_NS is None else embedded_NM + state_NS
        if self._table_VH is not None:
            inner = self._table_VH.index_select(0, tokens_N)
        else:
            inner = torch.addmm(self._u_bias, self._embedded(tokens_N), self._w)
        if state_NS is not None:
            inner = torch.addmm(inner, state_NS, self._u)
        return F.silu(inner, inplace=True)

    def logits(self, context: Context, state_NS: Tensor) -> Tensor:
        """Logits (N, W) over the drafter's vocabulary."""
        inner = torch.addmm(context.share_NE, state_NS, self._first_s)
        if self._has_projection:
            z_NE = inner
        else:
            z_NE = torch.cat([context.context_NH, state_NS], 1)
            z_NE += F.silu(inner, inplace=True)
        for weight, bias in self._rest:
            z_NE += F.silu(torch.addmm(bias, z_NE, weight), inplace=True)
        return self._own_head(z_NE) if self._head is None else self._head(z_NE)
