"""Frames of many anchors over packed documents in one pass: each sees its own text before it, itself, its own frames.

B rows, T tokens, A anchors, n anchors of one row in a chunk, U frames, O own slots (the anchor's and its frames',
1 + U; U where the first frame is the anchor itself), D width, G key heads, R queries per key head, d width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from methods.ctc.module import CtcNetwork, RotaryTable
from specbench.lm.packed import positions_of

_MOST_SCORES = 1 << 24
"""Attention scores that exist at one time; the backward pass computes them again."""


def frames_of_anchors(
    network: CtcNetwork, own_AD: Tensor, anchor_A: Tensor, text_BTD: Tensor, document_BT: Tensor
) -> Tensor:
    """own_AD: z of the anchors. anchor_A: flat places (b * T + t), ascending. text_BTD: features of the text -> f
    (A, U, D). Anchor t looks at text_BTD before t in its own document, then at its own z and frames."""
    layer, arch = network.layer, network.architecture
    assert layer is not None
    num_rows, num_tokens = document_BT.shape
    device = document_BT.device
    place_BT = positions_of(document_BT)
    table = RotaryTable(arch.head_dim, arch.rope_theta, num_tokens + arch.frames + 1, like=text_BTD)
    attention = layer.self_attn
    cos, sin = table.cos[place_BT][:, :, None], table.sin[place_BT][:, :, None]
    key_BTGd = table.rotate(attention.keys(text_BTD), cos, sin)
    value_BTGd = attention.values(text_BTD)
    row_A, token_A = anchor_A // num_tokens, anchor_A % num_tokens
    # Rows padded to the row with most anchors, so that a chunk is one batched product.
    counts_B = torch.bincount(row_A, minlength=num_rows)
    rank_A = torch.arange(anchor_A.shape[0], device=device) - (counts_B.cumsum(0) - counts_B)[row_A]
    most = int(counts_B.max()) if anchor_A.shape[0] else 0
    z_BnD = own_AD.new_zeros(num_rows, most, own_AD.shape[1]).index_put((row_A, rank_A), own_AD)
    token_Bn = token_A.new_zeros(num_rows, most).index_put((row_A, rank_A), token_A)
    before = 0 if arch.first_frame == "anchor" else 1
    frame_O = torch.arange(arch.frames + before, device=device)
    own_sees_UO = frame_O <= (frame_O[before:, None] if arch.causal_frames else arch.frames)
    token_T = torch.arange(num_tokens, device=device)

    def part(z_BnD: Tensor, token_Bn: Tensor) -> Tensor:
        g_BnUD = network.frames(z_BnD)
        place_BnO = place_BT.gather(1, token_Bn)[..., None] + frame_O
        cos, sin = table.cos[place_BnO][..., None, :], table.sin[place_BnO][..., None, :]
        own_BnOD = torch.cat([z_BnD[:, :, None], g_BnUD], 2) if before else g_BnUD
        query = table.rotate(attention.queries(g_BnUD), cos[:, :, before:], sin[:, :, before:])
        query = query.unflatten(3, (arch.kv_heads, -1)) * arch.head_dim**-0.5
        own_key, own_value = table.rotate(attention.keys(own_BnOD), cos, sin), attention.values(own_BnOD)
        sees_BnT = (document_BT[:, None] == document_BT.gather(1, token_Bn)[..., None]) & (
            token_T < token_Bn[..., None]
        )
        text = torch.einsum("bnugrd,btgd->bgrnut", query, key_BTGd)
        text = text.masked_fill(~sees_BnT[:, None, None, :, None], float("-inf"))
        own = torch.einsum("bnugrd,bnogd->bgrnuo", query, own_key).masked_fill(~own_sees_UO, float("-inf"))
        weights = torch.cat([text, own], -1).softmax(-1)
        mixed = torch.einsum("bgrnut,btgd->bnugrd", weights[..., :num_tokens], value_BTGd)
        mixed = mixed + torch.einsum("bgrnuo,bnogd->bnugrd", weights[..., num_tokens:], own_value)
        return layer.after(g_BnUD, mixed.flatten(3))

    each = max(_MOST_SCORES // (num_rows * arch.frames * arch.heads * (num_tokens + arch.frames + 1)), 1)
    parts = [
        checkpoint(part, z_BnD[:, start : start + each], token_Bn[:, start : start + each], use_reentrant=False)
        for start in range(0, max(most, 1), each)
    ]
    return torch.cat(parts, 1)[row_A, rank_A]
