"""The layer over packed documents, every position at one time: what it makes of a text's own features.

B rows, T tokens, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.ctc.module import CtcNetwork, RotaryTable
from specbench.lm.packed import positions_of


def text_states(network: CtcNetwork, z_BTD: Tensor, document_BT: Tensor) -> Tensor:
    """f (B, T, D) of features; f_t reads z_i, i <= t of its document, and stands for the target's h_{t+1}."""
    layer, arch = network.layer, network.architecture
    if layer is None:
        return network.mapped(z_BTD)
    table = RotaryTable(arch.head_dim, arch.rope_theta, document_BT.shape[1], like=z_BTD)
    place_BT = positions_of(document_BT)
    cos, sin = table.cos[place_BT][:, :, None], table.sin[place_BT][:, :, None]
    attention, group = layer.self_attn, arch.heads // arch.kv_heads
    query = table.rotate(attention.queries(z_BTD), cos, sin).transpose(1, 2)
    key = table.rotate(attention.keys(z_BTD), cos, sin).transpose(1, 2).repeat_interleave(group, 1)
    value = attention.values(z_BTD).transpose(1, 2).repeat_interleave(group, 1)
    causal = torch.ones(place_BT.shape[1], place_BT.shape[1], dtype=torch.bool, device=place_BT.device).tril()
    sees = causal & (document_BT[:, :, None] == document_BT[:, None, :])
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=sees[:, None])
    return layer.after(z_BTD, mixed.transpose(1, 2).flatten(2))
