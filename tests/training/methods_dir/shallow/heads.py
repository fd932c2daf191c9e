"""The module: n linear heads (D -> V) behind a dropout."""

from __future__ import annotations

import torch
from torch import nn


class Heads(nn.Module):
    def __init__(self, *, depth: int, width: int, vocab_size: int, dropout: float) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(width, vocab_size, bias=False) for _ in range(depth))
        self.dropout = nn.Dropout(dropout)

    def forward(self, states_ND: torch.Tensor, depth: int) -> torch.Tensor:
        return self.heads[depth](self.dropout(states_ND))
