"""How large the models of `real_target.py` are and how long they learn, and why.

On CUDA a baseline that reads its weights at less than 60 % of the speed of a copy gives no ranks: it may be slow for
want of care. A target of 100 to 300 M parameters can miss that with every care, because its bytes are read so soon that
operators which read next to nothing take most of a step. So its shape is a matter of arithmetic, for one H200, whose
copy is taken to reach 4.2 TB/s and whose products to read their weights at 95 % of that:

    c = bytes / 4.2 TB/s        a step may take c / 0.6, so all else in it c / 0.6 - c / 0.95 = 0.61 c

A step has about 45 operators outside the layers (masks, head, acceptance, what the host is sent) and, in float32, 37 a
layer, in bfloat16 41: 7 products, attention with its merge, 2 writes to the cache, norms, rotation, activation. A layer
that is compiled with all others has 14: 4 products (queries, keys and values are one, gate and up another), 6 fused
ones, 2 writes, attention and merge. (Layer by layer they are 15, and 9 more outside; two layers are soon compiled
whole.) They were counted on a CPU, by recording a step and in the compiler's own code. On an H100 a kernel of a CUDA
graph takes 1.3 us before it does anything (Spector et al., 2025,
https://hazyresearch.stanford.edu/blog/2025-05-27-no-bubbles, who found engines to read a model of 1 B parameters at
half the bandwidth at most); a small one that works is taken for 2 here. So, compiled whole:

    width x layers, inner     parameters  c        may take  operators  each may take  share at 1.3 and at 2 us each
    1024 x 16, 2816   bf16    185 M        88 us   146 us    269        0.20 us        20 %, 14 %
    2560 x  4, 6912   bf16    286 M       136 us   227 us    101        0.83 us        50 %, 39 %
    3584 x  2, 10240  bf16    294 M       140 us   233 us     73        1.18 us        58 %, 48 %
    2560 x  4, 6912   fp32    286 M       272 us   454 us    101        1.65 us        65 %, 56 %
    3584 x  2, 10240  fp32    294 M       280 us   466 us     73        2.36 us        72 %, 64 %

Only the last has room for ranks up to 2 us an operator: two layers, read in float32. In bfloat16 no target of this size
has, and of a target that size nobody should expect 60 %. Nothing of this has been measured on a card.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.fitting import Fit


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large everything is."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    draft_hidden: int
    draft_layers: int
    fit: Fit
    """Of the target; the draft model's differs in its rate."""
    draft_rate: float
    rows: int
    """Of each data set, at most."""
    answers: int
    temperature: float
    """Of the answers; a toy target says nothing but line breaks at 0."""
    new_tokens: int
    adapter_prompts: int
    """For adaptive_lora's adapter; one in five is held out, and versions are judged by 24 of those at least."""
    adapter_rounds: int
    drafter_tokens: int
    limit: int
    """Questions of a suite."""
    repeats: int
    batches: tuple[int, ...]
    """Questions at a time: where each method stops paying."""
    batch_limit: int
    """Questions of that, once each: an interval over groups wants several groups of the largest batch."""
    batch_tokens: int


FULL = Size(
    hidden=3584,
    layers=2,
    heads=28,
    kv_heads=4,
    inner=10240,
    draft_hidden=256,
    draft_layers=2,
    fit=Fit(tokens=24_000_000, batch_tokens=32_768, warmup=100, rate=4e-4),  # as wide as models of 7 B
    draft_rate=1e-3,
    rows=100_000,
    answers=16_000,
    temperature=0.0,
    new_tokens=256,
    adapter_prompts=240,
    adapter_rounds=4,
    drafter_tokens=8_000_000,
    limit=80,
    repeats=3,
    batches=(1, 4, 16, 64),
    batch_limit=512,
    batch_tokens=128,
)
SMALL = Size(
    hidden=64,
    layers=2,
    heads=4,
    kv_heads=2,
    inner=128,
    draft_hidden=32,
    draft_layers=1,
    fit=Fit(tokens=150_000, batch_tokens=1_024, warmup=5, rate=1e-2),
    draft_rate=1e-2,
    rows=64,
    answers=24,
    temperature=1.0,
    new_tokens=24,
    adapter_prompts=8,
    adapter_rounds=1,
    drafter_tokens=6_000,
    limit=2,
    repeats=1,
    batches=(1, 2),
    batch_limit=4,
    batch_tokens=24,
)

DRAFTERS: dict[str, tuple[str, float, tuple[str, ...]]] = {
    "redrafter": ("redrafter", 2e-3, ()),
    "lstm": ("lstm", 2e-3, ("num_heads=5", "embedding=target", "head=target")),
    "eagle": ("ctc", 1e-3, ("form=eagle", "lambda_ctc=0", "lambda_soft=1")),
    "nar": ("ctc", 1e-3, ("labels=5", "frames=8", "prefix_weighted=true", "first_frame=anchor", "lambda_text=1")),
}
"""Name -> method, learning rate, training options."""
