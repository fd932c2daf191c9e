# mypy: ignore-errors
# Triton compiles these functions from their source; to Python's type checkers they mean nothing.
"""Tree attention in Triton: split-K flash decoding of a draft's slots against a ragged cache.

Every program takes some folded query rows of one key head and one share of the committed tokens, with the usual running
maximum; the last share takes the tree behind them too, where a slot sees what its ancestor bits say. `_merge` adds the
shares up by their log-sum-exp. Keys and values are read once per block of query rows, up to the row's own length.

B rows, M slots, S cache slots, H heads, G = H / kv heads, R = G * M folded query rows (head-major), W words of 32
ancestor bits, P shares, d and d_v widths of a key and a value.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_SLOTS = 129
"""A root and 128 nodes: the most that the bits and the blocks of rows are meant for."""
_BLOCK_S = 64
_MOST_SHARES = 64
_PER_PROCESSOR = 2
"""Programs of a multiprocessor that the shares are chosen to give, at most. Compiled for compute capability 9.0 (heads
of 128, 16 bits) shared memory holds one of 64 query rows at a time and three of 16: they run in two even rounds, or at
once."""
INTERPRETED = triton.knobs.runtime.interpret


@triton.jit
def _scores(query, key, scale, cap, HAS_CAP: tl.constexpr, UPCAST: tl.constexpr):
    if UPCAST:
        # The interpreter's product of two bf16 blocks is wrong, and numpy has no type for them.
        query = query.to(tl.float32)
        key = key.to(tl.float32)
    scores = tl.dot(query, key, input_precision="ieee") * scale
    if HAS_CAP:
        scores = cap * (2 * tl.sigmoid(2 * scores / cap) - 1)
    return scores


@triton.jit
def _add(best, norm, mixed, scores, value, UPCAST: tl.constexpr):
    """One more block of scores and values under the running maximum."""
    higher = tl.maximum(best, tl.max(scores, 1))
    base = tl.where(higher == float("-inf"), 0.0, higher)
    weight = tl.exp(scores - base[:, None])
    shrink = tl.exp(best - base)
    if UPCAST:
        value = value.to(tl.float32)
    product = tl.dot(weight.to(value.dtype), value, input_precision="ieee")
    return higher, norm * shrink + tl.sum(weight, 1), mixed * shrink[:, None] + product


# A number of shares is no kernel of its own: a text that grows meets all of them.
@triton.jit(do_not_specialize=["num_shares"])
def _attend(
    query_ptr, key_ptr, value_ptr, length_ptr, depth_ptr, bits_ptr, mixed_ptr, sum_ptr,
    scale, cap, window,
    query_b, query_h, query_m, query_d,
    key_b, key_h, key_s, key_d,
    value_b, value_h, value_s, value_d,
    num_slots, num_heads_kv, num_shares,
    GROUP: tl.constexpr, WORDS: tl.constexpr,
    WIDTH: tl.constexpr, WIDTH_V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr,
    HAS_CAP: tl.constexpr, HAS_WINDOW: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """mixed (B, kv, P, R, d_v) and log-sum-exp (B, kv, P, R) of each share, float32."""
    pair, share = tl.program_id(1), tl.program_id(2)
    batch, head = (pair // num_heads_kv).to(tl.int64), (pair % num_heads_kv).to(tl.int64)
    length = tl.load(length_ptr + batch)
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    num_rows = GROUP * num_slots
    is_row = row < num_rows
    slot = row % num_slots
    at_d, at_v, at_s = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V), tl.arange(0, BLOCK_S)
    is_d, is_v = at_d < WIDTH, at_v < WIDTH_V
    query = tl.load(
        query_ptr
        + batch * query_b
        + ((head * GROUP + row // num_slots) * query_h + slot * query_m)[:, None]
        + at_d[None, :] * query_d,
        mask=is_row[:, None] & is_d[None, :],
        other=0.0,
    )
    key_ptr += batch * key_b + head * key_h
    value_ptr += batch * value_b + head * value_h
    depth_ptr += batch * num_slots
    position = length + tl.load(depth_ptr + slot, mask=is_row, other=0)

    best = tl.full([BLOCK_R], float("-inf"), tl.float32)
    norm = tl.zeros([BLOCK_R], tl.float32)
    mixed = tl.zeros([BLOCK_R, BLOCK_V], tl.float32)

    first = 0
    if HAS_WINDOW:
        # The root looks furthest back.
        first = tl.maximum(length - window + 1, 0)
    each = tl.cdiv(tl.cdiv(length - first, num_shares), BLOCK_S) * BLOCK_S
    start = first + share * each
    end = tl.minimum(start + each, length)
    for block in range(start, end, BLOCK_S):
        token = (block + at_s).to(tl.int64)
        is_token = token < end
        key = tl.load(
            key_ptr + token[None, :] * key_s + at_d[:, None] * key_d, mask=is_token[None, :] & is_d[:, None], other=0.0
        )
        scores = _scores(query, key, scale, cap, HAS_CAP, UPCAST)
        seen = is_token[None, :]
        if HAS_WINDOW:
            seen = seen & (position[:, None] - token[None, :] < window)
        scores = tl.where(seen, scores, float("-inf"))
        value = tl.load(
            value_ptr + token[:, None] * value_s + at_v[None, :] * value_d,
            mask=is_token[:, None] & is_v[None, :],
            other=0.0,
        )
        best, norm, mixed = _add(best, norm, mixed, scores, value, UPCAST)

    if share == num_shares - 1:
        # A pointer stays a pointer: a name whose type changes inside a branch is refused by the compiler.
        words_ptr = bits_ptr + (batch * num_slots + slot) * WORDS
        for block in range(0, num_slots, BLOCK_S):
            node = block + at_s
            is_node = node < num_slots
            place = (length + node).to(tl.int64)
            key = tl.load(
                key_ptr + place[None, :] * key_s + at_d[:, None] * key_d,
                mask=is_node[None, :] & is_d[:, None],
                other=0.0,
            )
            scores = _scores(query, key, scale, cap, HAS_CAP, UPCAST)
            known = is_row[:, None] & is_node[None, :]
            word = tl.load(words_ptr[:, None] + (node // 32)[None, :], mask=known, other=0)
            seen = ((word >> (node % 32)[None, :]) & 1) != 0
            if HAS_WINDOW:
                behind = length + tl.load(depth_ptr + node, mask=is_node, other=0)
                seen = seen & (position[:, None] - behind[None, :] < window)
            scores = tl.where(seen & known, scores, float("-inf"))
            value = tl.load(
                value_ptr + place[:, None] * value_s + at_v[None, :] * value_d,
                mask=is_node[:, None] & is_v[None, :],
                other=0.0,
            )
            best, norm, mixed = _add(best, norm, mixed, scores, value, UPCAST)

    place = (pair.to(tl.int64) * num_shares + share) * num_rows + row
    whole = tl.where(norm > 0, norm, 1.0)
    tl.store(
        mixed_ptr + place[:, None] * WIDTH_V + at_v[None, :],
        mixed / whole[:, None],
        mask=is_row[:, None] & is_v[None, :],
    )
    tl.store(sum_ptr + place, tl.where(norm > 0, best + tl.log(whole), float("-inf")), mask=is_row)


@triton.jit(do_not_specialize=["num_shares"])
def _merge(
    mixed_ptr, sum_ptr, sink_ptr, out_ptr, num_slots, num_heads_kv, num_shares,
    GROUP: tl.constexpr, BLOCK_P: tl.constexpr, WIDTH_V: tl.constexpr, BLOCK_V: tl.constexpr,
    HAS_SINK: tl.constexpr,
):  # fmt: skip
    """Shares of one query row -> its row of the output (B, M, H, d_v)."""
    row, pair = tl.program_id(0), tl.program_id(1)
    batch, head = pair // num_heads_kv, (pair % num_heads_kv) * GROUP + row // num_slots
    share, at_v = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_V)
    is_share, is_v = share < num_shares, at_v < WIDTH_V
    num_rows = GROUP * num_slots
    place = (pair.to(tl.int64) * num_shares + share) * num_rows + row
    sums = tl.load(sum_ptr + place, mask=is_share, other=float("-inf"))
    best = tl.max(sums, 0)
    if HAS_SINK:
        sink = tl.load(sink_ptr + head).to(tl.float32)
        best = tl.maximum(best, sink)
    weight = tl.exp(sums - best)
    norm = tl.sum(weight, 0)
    if HAS_SINK:
        norm += tl.exp(sink - best)
    mixed = tl.load(
        mixed_ptr + place[:, None] * WIDTH_V + at_v[None, :], mask=is_share[:, None] & is_v[None, :], other=0.0
    )
    out = tl.sum(mixed * weight[:, None], 0) / norm
    num_heads = num_heads_kv * GROUP
    target = ((batch.to(tl.int64) * num_slots + row % num_slots) * num_heads + head) * WIDTH_V
    tl.store(out_ptr + target + at_v, out, mask=is_v)


def num_shares(programs: int, num_tokens: int, num_multiprocessors: int) -> int:
    """P for `programs` programs without shares and a cache read up to num_tokens: as many as fill the card evenly, none
    shorter than a block. All are of one length and end together; one more than the card takes would be a round of its
    own."""
    most = min(_PER_PROCESSOR * num_multiprocessors // max(programs, 1), -(-num_tokens // _BLOCK_S), _MOST_SHARES)
    return max(1, most)


def blocks_of(num_folded: int, width: int, width_v: int) -> dict[str, int]:
    """The blocks of `_attend`: folded rows, cache slots, widths of keys and values."""
    return {
        "BLOCK_R": max(16, min(64, triton.next_power_of_2(num_folded))),
        "BLOCK_S": _BLOCK_S if width <= 128 else _BLOCK_S // 2,
        "BLOCK_D": max(16, triton.next_power_of_2(width)),
        "BLOCK_V": max(16, triton.next_power_of_2(width_v)),
    }


def tree_attention(
    query_BHMd: Tensor,
    key_BkSd: Tensor,
    value_BkSv: Tensor,
    *,
    length_B: Tensor,
    depth_BM: Tensor,
    bits_BMW: Tensor,
    scale: float,
    window: int | None = None,
    cap: float | None = None,
    sink_H: Tensor | None = None,
    shares: int | None = None,
) -> Tensor:
    """Attention of M <= 129 slots -> (B, M, H, d_v) in the query's dtype: what `attention.plain_attention` defines.

    Row b's slots see tokens 0 .. length_B[b] - 1 and, behind them, the slots whose bits are set (`ancestor_bits`).
    length_B, depth_BM, bits_BMW: int32, on the device. window: tokens a slot looks back, itself included. cap: Gemma
    2's soft cap. sink_H: gpt-oss' logits without a value. shares: P; None chooses.
    """
    num_rows, num_heads, num_slots, width = query_BHMd.shape
    num_kv, width_v = key_BkSd.shape[1], value_BkSv.shape[3]
    assert num_slots <= MOST_SLOTS, f"{num_slots} slots in a kernel for {MOST_SLOTS}"
    group = num_heads // num_kv
    num_folded = group * num_slots
    blocks = blocks_of(num_folded, width, width_v)
    blocks_r = triton.cdiv(num_folded, blocks["BLOCK_R"])
    device = query_BHMd.device
    if shares is None:
        processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
        shares = num_shares(blocks_r * num_rows * num_kv, key_BkSd.shape[2], processors)
    mixed = torch.empty(num_rows, num_kv, shares, num_folded, width_v, dtype=torch.float32, device=device)
    sums = torch.empty(num_rows, num_kv, shares, num_folded, dtype=torch.float32, device=device)
    out = query_BHMd.new_empty(num_rows, num_slots, num_heads, width_v)
    _attend[(blocks_r, num_rows * num_kv, shares)](
        query_BHMd, key_BkSd, value_BkSv, length_B, depth_BM, bits_BMW, mixed, sums,
        scale, cap or 1.0, window or 0,
        *query_BHMd.stride(), *key_BkSd.stride(), *value_BkSv.stride(),
        num_slots, num_kv, shares,
        GROUP=group, WORDS=bits_BMW.shape[2],
        WIDTH=width, WIDTH_V=width_v, **blocks,
        HAS_CAP=cap is not None, HAS_WINDOW=window is not None, UPCAST=INTERPRETED,
    )  # fmt: skip
    _merge[(num_folded, num_rows * num_kv)](
        mixed, sums, sums if sink_H is None else sink_H, out, num_slots, num_kv, shares,
        GROUP=group, BLOCK_P=triton.next_power_of_2(shares), WIDTH_V=width_v, BLOCK_V=blocks["BLOCK_V"],
        HAS_SINK=sink_H is not None,
    )  # fmt: skip
    return out


def ancestor_bits(sees_BMM: Tensor) -> Tensor:
    """bool (B, M, M) -> int32 (B, M, W): bit j % 32 of word j // 32 says whether the slot sees slot j."""
    num_rows, num_slots, _ = sees_BMM.shape
    num_words = -(-num_slots // 32)
    padded = torch.nn.functional.pad(sees_BMM, (0, 32 * num_words - num_slots)).view(num_rows, num_slots, num_words, 32)
    powers = torch.ones(32, dtype=torch.int64, device=sees_BMM.device) << torch.arange(32, device=sees_BMM.device)
    # The highest bit is the sign of an int32: the sum is taken in 64 bits and wraps when it is cut.
    return (padded * powers).sum(-1).to(torch.int32)
