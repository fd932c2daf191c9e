"""Tree attention over the cache, handed to unmodified transformers models through their attention interface.

transformers builds no mask for an implementation it has no mask function for; ours come from the forward that is
under way (`visibility.Forward`), so one definition of who sees whom serves every architecture. Three implementations:
`plain`, the slow reference; `sdpa`, torch's fused kernel, which lacks logit soft-capping and attention sinks; `triton`,
a kernel of our own for drafts on GPUs. What an attention function is handed and does not understand is an error, never
ignored.

B rows, M query slots, S cache slots, H query heads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from specbench.errors import UsageError
from specbench.lm.visibility import Forward

PLAIN = "specbench_plain"
# Not named after sdpa: transformers refuses any name holding that word for families whose soft-capping or sinks
# torch's kernel lacks (gemma2, gpt_oss); here those layers take the plain path.
SDPA = "specbench_fused"
TRITON = "specbench_triton"

# Facts the models pass along for other implementations; they change nothing here because positions, cache and mask
# are ours.
_HARMLESS = frozenset(
    {
        "position_ids", "cache_position", "use_cache", "position_embeddings", "past_key_values", "is_causal",
        "output_attentions", "output_hidden_states", "output_router_logits",
    }
)  # fmt: skip

_current: Forward | None = None


class use:
    """`with use(forward): model(...)`: the forward whose masks the attention functions read. One at a time, not
    re-entrant."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward

    def __enter__(self) -> None:
        global _current  # noqa: PLW0603 - transformers hands attention functions no place for a caller's state
        assert _current is None, "a cached forward inside a cached forward"
        _current = self._forward

    def __exit__(self, *_: object) -> None:
        global _current  # noqa: PLW0603
        _current = None


def _checked(name: str, dropout: float, mask: Tensor | None, extra: dict[str, Any]) -> Forward:
    assert _current is not None, "a model loaded by specbench.lm must be run through CachedLM"
    if mask is not None:
        # OPT under the first releases of transformers 5.
        raise UsageError(
            f"transformers {transformers.__version__} hands this attention a mask of its own, which knows no trees",
            where="--target",
            try_="pip install -U transformers, or another target",
        )
    _refuse_unknown(name, dropout, extra)
    _current.implementations.add(name)
    return _current


def _refuse_unknown(name: str, dropout: float, extra: dict[str, Any]) -> None:
    unknown = {key for key, value in extra.items() if value is not None} - _HARMLESS
    if unknown or dropout:
        raise NotImplementedError(
            f"attention was handed {sorted(unknown) or 'dropout'}, which {name} attention does not implement"
        )


def plain_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """The definition, in the open: softmax(q k^T * scaling + mask) v in at least fp32.

    query (B, H, M, d), key (B, kv, S, d), value (B, kv, S, d_v) -> (B, M, H, d_v). softcap: logits become cap *
    tanh(logits / cap) (Gemma 2). s_aux (H,): one learned logit per head that takes part in the softmax and carries no
    value (gpt-oss).
    """
    forward = _checked("plain", dropout, attention_mask, extra)
    num_rows, num_heads, num_slots, head_dim = query.shape
    group = num_heads // key.shape[1]
    compute = torch.promote_types(query.dtype, torch.float32)
    scale = head_dim**-0.5 if scaling is None else scaling
    folded = query.reshape(num_rows, key.shape[1], group * num_slots, head_dim).to(compute)
    scores = (folded @ key.to(compute).transpose(-1, -2)) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    bias = forward.bias(sliding_window, group)
    if bias is not None:
        scores = scores + bias.to(compute)
    if s_aux is None:
        weights = scores.softmax(-1)
    else:
        sink = s_aux.to(compute).view(key.shape[1], group, 1).expand(-1, -1, num_slots).reshape(1, key.shape[1], -1, 1)
        weights = torch.cat([scores, sink.expand(num_rows, -1, -1, -1)], dim=-1).softmax(-1)[..., :-1]
    mixed = (weights @ value.to(compute)).to(query.dtype)
    return mixed.reshape(num_rows, num_heads, num_slots, -1).transpose(1, 2).contiguous(), None


def sdpa_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """`plain_attention` through torch's fused kernel. Layers with soft-capping or sinks, which the kernel lacks, take
    the plain path and say so in `Forward.implementations`."""
    if softcap is not None or s_aux is not None:
        return plain_attention(module, query, key, value, attention_mask, softcap=softcap, s_aux=s_aux, **options)
    return _fused(query, key, value, attention_mask, **options)


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """Grouped heads are folded into the query rows, so that keys and values are read once and never repeated."""
    forward = _checked("sdpa", dropout, attention_mask, extra)
    num_rows, num_heads, num_slots, head_dim = query.shape
    num_kv = key.shape[1]
    group = num_heads // num_kv
    folded = query if group == 1 else query.reshape(num_rows, num_kv, group * num_slots, head_dim)
    mixed = F.scaled_dot_product_attention(
        folded, key, value, attn_mask=forward.bias(sliding_window, group), scale=scaling
    )
    return mixed.reshape(num_rows, num_heads, num_slots, -1).transpose(1, 2).contiguous(), None


def triton_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """`plain_attention` in Triton (`tree_kernel`), every layer alike. A prompt's chunk, which has more slots than a
    draft may have, a forward that is learnt from, of which the kernel has no gradient, and a level read behind others,
    of which it has no ancestors, go through `sdpa_attention`."""
    from specbench.lm.tree_kernel import MOST_SLOTS

    is_learnt_from = torch.is_grad_enabled() and any(each.requires_grad for each in (query, key, value))
    is_level = _current is not None and _current.topology.is_level
    if query.shape[2] > MOST_SLOTS or is_learnt_from or is_level:
        return sdpa_attention(module, query, key, value, attention_mask, **options)
    return _in_triton(query, key, value, attention_mask, **options)


def _in_triton(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    from specbench.lm.tree_kernel import tree_attention

    forward = _checked("triton", dropout, attention_mask, extra)
    shape = forward.kernel_shape
    mixed = tree_attention(
        query,
        key,
        value,
        length_B=shape.length_B,
        depth_BM=shape.depth_BM,
        bits_BMW=shape.bits_BMW,
        scale=query.shape[3] ** -0.5 if scaling is None else scaling,
        window=sliding_window,
        cap=softcap,
        sink_H=s_aux,
    )
    return mixed, None


_Function = Callable[..., tuple[Tensor, None]]
_FUNCTIONS: dict[str, _Function] = {PLAIN: plain_attention, SDPA: sdpa_attention, TRITON: triton_attention}


def attend_cached(name: str, query: Tensor, key: Tensor, value: Tensor, *, layer: int, **options: Any) -> Tensor:
    """One layer of a compiled forward: cache keys and values (B, kv, M, d), then attend -> (B, M, H, d_v)."""
    assert _current is not None and _current.cache is not None, "a compiled model must be run through CachedLM"
    keys, values = _current.cache.update(key, value, layer)
    return _FUNCTIONS[name](_NO_MODULE, query, keys, values, None, **options)[0]


_NO_MODULE = nn.Module()


def _entry(name: str) -> _Function:
    """What transformers calls: the function, or where a model is being traced one operator in place of all of it."""
    function = _FUNCTIONS[name]

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        if torch.compiler.is_compiling():
            return _traced(name, module, query, key, value, attention_mask, **options), None
        return function(module, query, key, value, attention_mask, **options)

    return attention


def _traced(
    name: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **extra: Any,
) -> Tensor:
    """`specbench::attend` (`lm.compiled`), which is registered before anything is traced."""
    assert attention_mask is None, "transformers built a mask of its own; tree attention would ignore it"
    _refuse_unknown(name, dropout, extra)
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    layer: Any = module.layer_idx
    mixed: Tensor = torch.ops.specbench.attend(
        query, key, value, s_aux, name, layer, scale, sliding_window or 0, softcap or 0.0
    )
    return mixed


def leave_cudnn_out(device: torch.device) -> None:
    """From now on this process's SDPA goes without cuDNN's kernels, for whatever it runs, where `device` is CUDA.

    cuDNN (from 9.15 on what torch 2.11 takes first on compute capability 9.0) makes a plan for every shape it has not
    met, for tenths of a second: each length of a prompt would pay for one, and each step of a cache that grows by a
    token. torch's own kernels, flash and memory-efficient, take any shape as it comes.
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


def register() -> None:
    """Make all implementations known to transformers; idempotent."""
    for name in _FUNCTIONS:
        AttentionInterface.register(name, _entry(name))


def silence_padding_warning(model: PreTrainedModel) -> None:
    """Some families (gpt2) look for padding in every input to warn of it: a value read on the host in every step.
    There is none here, and a mask of our own."""
    for module in model.modules():
        if hasattr(module, "warn_if_padding_and_no_attention_mask"):
            object.__setattr__(module, "warn_if_padding_and_no_attention_mask", lambda *_, **__: None)
