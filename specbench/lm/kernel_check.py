"""Whether the Triton kernel computes on this device what the plain reference does. Asked once, before `auto` takes it.

A kernel that compiles may still be wrong, or refuse a card whose shared memory is small. Two ragged rows of random
numbers in the target's own head shapes show it within milliseconds; compiling them takes seconds the first time, and
what is compiled is kept by Triton and used by the target.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from specbench.lm import attention, visibility
from specbench.tree import DraftTree, Topology, chain, topology

Kernel = Callable[..., Tensor]
"""`tree_kernel.tree_attention`."""

ALLOWED = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Norm of the difference to the reference in float64, of the reference's own norm: a few roundings of the dtype."""
_NODES = (0, 16, 64, 128)
"""Of the trees that are tried: 32 slots are one word of ancestor bits, and 65 two blocks of the cache."""
_FEW = 16
"""Nodes of a tree that is tried without the target's own window, cap and sinks as well."""
_LENGTHS = [90, 7]
_WINDOW = 20
"""Shorter than a row, so that it bites, whatever the target's own."""


class Heads(NamedTuple):
    """What of a target's attention the kernel is built for. cap: soft cap of the logits; None: none."""

    num: int
    num_kv: int
    width: int
    has_window: bool
    cap: float | None
    has_sink: bool


def heads_of(config: PretrainedConfig) -> Heads:
    """Read from a text config; widths that differ between layers are the model's own secret."""
    num = int(config.num_attention_heads)
    num_kv = getattr(config, "num_key_value_heads", None) or num
    width = getattr(config, "head_dim", None) or int(config.hidden_size) // num
    cap = getattr(config, "attn_logit_softcapping", None)
    has_window = isinstance(getattr(config, "sliding_window", None), int)
    return Heads(num, int(num_kv), int(width), has_window, cap, config.model_type == "gpt_oss")


def why_wrong(
    config: PretrainedConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    kernel: Kernel | None = None,
    most_nodes: int = max(_NODES),
) -> str:
    """Why the kernel must not be used for this text config on this device; '' where it agrees with the reference.
    kernel: tests' own. most_nodes: of the trees that are tried; each number is a second or two of compiling, once."""
    if dtype not in ALLOWED:
        return f"the Triton kernel has no {str(dtype).removeprefix('torch.')}"
    try:
        if kernel is None:
            from specbench.lm.tree_kernel import tree_attention  # Triton need not be installed

            kernel = tree_attention
        heads = heads_of(config)
        plain = heads._replace(has_window=False, cap=None, has_sink=False)
        for num_nodes in (each for each in _NODES if each <= most_nodes):
            for each in dict.fromkeys((plain, heads) if num_nodes <= _FEW else (heads,)):
                error = _error(each, _binary(num_nodes), kernel, device=device, dtype=dtype)
                if not error <= ALLOWED[dtype]:
                    return (
                        f"the Triton kernel is wrong here: {error:.2g} off the plain reference "
                        f"(allowed {ALLOWED[dtype]:.2g}), {num_nodes} nodes"
                    )
    # A compiler, a linker, a driver and a card that no test has seen: whatever they raise, there is no kernel then.
    except Exception as fault:  # noqa: BLE001
        said = str(fault).strip().splitlines()
        return f"the Triton kernel does not run here: {type(fault).__name__}: {said[0] if said else 'no message'}"
    return ""


def _binary(num_nodes: int) -> DraftTree:
    """Nodes 0 and 1 hang on the root, node i on node i // 2 - 1; none of them is a chain of none."""
    if num_nodes == 0:
        return chain(torch.zeros(2, 0, dtype=torch.long))
    parents_BN = (torch.arange(num_nodes) // 2 - 1).expand(2, -1)
    return DraftTree(tokens_BN=torch.zeros_like(parents_BN), parents_BN=parents_BN, max_depth=num_nodes.bit_length())


def _error(heads: Heads, tree: DraftTree, kernel: Kernel, *, device: torch.device, dtype: torch.dtype) -> float:
    """Norm of the difference / norm of the reference; infinite where the kernel's numbers are not finite."""
    shape, num_slots = topology(tree), tree.num_nodes + 1
    span = max(_LENGTHS) + num_slots + 5
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(device=device, dtype=dtype)

    query = draw(len(_LENGTHS), num_slots, heads.num, heads.width).transpose(1, 2)
    keys, values = (draw(len(_LENGTHS), heads.num_kv, span, heads.width) for _ in range(2))
    sink = draw(heads.num) if heads.has_sink else None
    window = _WINDOW if heads.has_window else None
    on_device = Topology(depth_BM=shape.depth_BM.to(device), sees_BMM=shape.sees_BMM.to(device))
    forward = visibility.DeviceForward(
        on_device,
        torch.tensor(_LENGTHS, device=device),
        span=span,
        is_chain=tree.is_chain,
        max_depth=tree.max_depth,
        dtype=torch.float64,
    )
    with attention.use(forward):
        wanted, _ = attention.plain_attention(
            nn.Module(), query.double(), keys.double(), values.double(), None, sliding_window=window,
            softcap=heads.cap, s_aux=None if sink is None else sink.double(),
        )  # fmt: skip
    of = forward.kernel_shape
    found = kernel(
        query, keys, values, length_B=of.length_B, depth_BM=of.depth_BM, bits_BMW=of.bits_BMW,
        scale=heads.width**-0.5, window=window, cap=heads.cap, sink_H=sink,
    )  # fmt: skip
    error = float((found.double() - wanted).norm() / wanted.norm())
    return error if math.isfinite(error) else math.inf
