"""The gated cell as a draft runs it: few operations, weights in the order the device likes, what only depends on a
token read from a table.

    u = P s + T[x]            T[x] = a E[x] of each gate: a row of a table of all tokens
    [c ; -c]                  P and T hold the cell's rows a second time with the other sign: the numbers' mean is then
                              0, and torch's layer norm is the RMS norm, in one kernel instead of seven
    logits = (H M) s          where the head is the target's H behind a map M: their product, made once

Same numbers as `SumLSTM` up to rounding, so it is for finished weights: a network that learns is read as it is.
N positions, d state's width, V target's vocabulary, W drafter's.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.lstm.module import EPSILON, GATES, BiasedRMSNorm, Speculator, State, SumLSTM
from specbench.blocks import TABLE_BYTES
from specbench.linear import FrozenLinear, stored
from specbench.method import TargetView


class Cell(Protocol):
    """What a draft asks of a network."""

    def start(self, hidden_NH: Tensor) -> State:
        """s_0 of the target's states."""
        ...

    def step(self, depth: int, tokens_N: Tensor, state: State) -> State:
        """s_{depth + 1} after reading these tokens."""
        ...

    def logits(self, depth: int, state: State) -> Tensor:
        """(N, W) of the state that `step(depth, ...)` returned."""
        ...


def lay_out(network: Speculator, target: TargetView) -> Cell:
    """The quickest cell with the network's numbers."""
    if isinstance(network, SumLSTM):
        num_bytes = target.vocab_size * (len(GATES) + 1) * network.width * network.dtype.itemsize
        if num_bytes <= TABLE_BYTES:
            return LaidOut(network, target)
    return network


class LaidOut:
    """See the module. Nothing of the network is changed or kept."""

    @torch.no_grad()
    def __init__(self, network: SumLSTM, target: TargetView) -> None:
        self._start = network.start
        self._width = width = network.width
        ids = torch.arange(target.vocab_size, device=target.device)
        rows = torch.cat([network.embedding(part).unflatten(-1, (-1, width)) for part in ids.split(4096)])
        gates_VGd = network.token_weight * rows.expand(-1, len(GATES), width)
        self._table = torch.cat([gates_VGd, -gates_VGd[:, -1:]], 1).flatten(1)
        projections = [torch.cat([matrix, -matrix[-width:]]) for matrix in network.projections]
        # There is nothing to forget at depth 0: those rows are not read.
        projections[0] = projections[0][width:]
        self._first_table = self._table[:, width:]
        self._projections = [_Plus(matrix) for matrix in projections]
        self._cell_norm, self._state_norm = _doubled(network.cell_norm), _doubled(network.state_norm)
        weight, bias = network.head_of(0).matrix()
        self._head = FrozenLinear(stored(weight), bias)

    def start(self, hidden_NH: Tensor) -> State:
        """As the network's."""
        return self._start(hidden_NH)

    def step(self, depth: int, tokens_N: Tensor, state: State) -> State:
        """As the network's."""
        width, before = self._width, state.cell_ND
        table = self._first_table if before is None else self._table
        u = self._projections[min(depth, len(self._projections) - 1)](state.hidden_ND, table.index_select(0, tokens_N))
        gates, both = u[:, : -2 * width].sigmoid_(), u[:, -2 * width :]
        emit, admit = gates[:, -width:], gates[:, -2 * width : -width]
        cell = admit * F.gelu(_rms(both, self._cell_norm))
        if before is not None:
            cell = torch.addcmul(cell, gates[:, :width], before)
        return State(emit * F.gelu(_rms(torch.cat([cell, -cell], 1), self._state_norm)), cell)

    def logits(self, depth: int, state: State) -> Tensor:
        """As the network's."""
        return self._head(state.hidden_ND)


class _Plus:
    """x @ weight.T + y, y (N, O)."""

    def __init__(self, weight_OI: Tensor) -> None:
        weight = stored(weight_OI)
        self._turned_IO, self._linear = weight.t(), FrozenLinear(weight)

    def __call__(self, x_NI: Tensor, y_NO: Tensor) -> Tensor:
        if x_NI.shape[0] == 1:
            return torch.addmm(y_NO, x_NI, self._turned_IO)
        return self._linear(x_NI).add_(y_NO)


def _doubled(norm: BiasedRMSNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias (2 d) of a layer norm over [x ; -x]; the second half's result is not looked at."""
    return torch.cat([norm.weight.detach()] * 2), torch.cat([norm.bias.detach()] * 2)


def _rms(both_N2d: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
    """[x ; -x] -> the RMS norm of x, (N, d)."""
    width_2 = both_N2d.shape[1]
    return F.layer_norm(both_N2d, (width_2,), *norm, EPSILON)[:, : width_2 // 2]
