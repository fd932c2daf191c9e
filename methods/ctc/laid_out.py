"""The layer as a chain of states runs it: one row of a sequence at a time, few and large operations.

    z   = T[x] + F_h h                  T[x] = F_e E[x] + b: a row of a table of all tokens
    q, k, v                             one product; q and k are turned together
    gate, up                            one product
    norm r                              torch's layer norm of [r ; -r], whose mean is 0: one kernel instead of six

Same numbers as `Layer` up to rounding, so it is for finished weights: a network that learns is read as it is.
B rows, D width, H heads, G key heads, d width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.ctc.context import FeatureCache
from methods.ctc.module import CtcNetwork, Layer
from specbench.linear import FrozenLinear, stored
from specbench.method import TargetView

TABLE_BYTES = 64 << 20
"""Most that the table of all tokens may take."""


def fits(network: CtcNetwork, target: TargetView) -> bool:
    """Whether there is a layer to lay out, and room for the table."""
    num_bytes = target.vocab_size * network.architecture.hidden_size * network.dtype.itemsize
    return network.layer is not None and num_bytes <= TABLE_BYTES


class LaidOutLayer:
    """See the module. Nothing of the network is changed or kept."""

    @torch.no_grad()
    def __init__(self, network: CtcNetwork, layer: Layer, target: TargetView, cache: FeatureCache) -> None:
        arch, attention, mlp = network.architecture, layer.self_attn, layer.mlp
        width = arch.hidden_size
        from_token, from_state = network.fc.weight.split([arch.embed_size, width], dim=1)
        ids = torch.arange(target.vocab_size, device=target.device)
        self._table_VD = torch.cat(
            [F.linear(target.embed_tokens(part).to(network.dtype), from_token) for part in ids.split(4096)]
        )
        if network.fc.bias is not None:
            self._table_VD += network.fc.bias
        self._from_state_DD = stored(from_state).t()
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        self._qkv = FrozenLinear(stored(torch.cat([each.weight for each in projections])))
        self._head_dim = arch.head_dim
        self._out = FrozenLinear(stored(attention.o_proj.weight))
        self._gate_up = FrozenLinear(stored(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])))
        self._down = FrozenLinear(stored(mlp.down_proj.weight))
        weight = layer.post_attention_layernorm.weight.detach()
        self._norm_2D, self._eps, self._width = torch.cat([weight, weight]), arch.norm_eps, width
        self._cache = cache

    def features(self, tokens_B: Tensor, states_BD: Tensor) -> Tensor:
        """z (B, D) of tokens and the states that predicted them."""
        return torch.addmm(self._table_VD.index_select(0, tokens_B), states_BD, self._from_state_DD)

    def follow(self, z_BD: Tensor, place_B: Tensor) -> Tensor:
        """f (B, D) of features at these places, whose keys and values are written there."""
        heads = self._qkv(z_BD).unflatten(1, (-1, self._head_dim))
        r_BD = self._out(self._cache.advance(heads, place_B)).add_(z_BD)
        both = torch.cat([r_BD, -r_BD], 1)
        normed = F.layer_norm(both, (2 * self._width,), self._norm_2D, None, self._eps)[:, : self._width]
        gate, up = self._gate_up(normed).chunk(2, dim=1)
        return self._down(F.silu(gate) * up).add_(r_BD)
