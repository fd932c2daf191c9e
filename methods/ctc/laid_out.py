"""The layer as drafting runs it: a few rows at a time, few and large operations.

    z   = T[x] + F_h h                  T[x] = F_e E[x] + b: a row of a table of all tokens
    q, k, v                             one product; q and k are turned together
    gate, up                            one product
    norm r                              torch's layer norm of [r ; -r], whose mean is 0: one kernel instead of six

Same numbers as `Layer` up to rounding, so it is for finished weights: a network that learns is read as it is.
N rows (of a batch, and of the paths of each), D width, H heads, G key heads, d width of a head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.ctc.module import CtcNetwork, Layer
from specbench.blocks import TABLE_BYTES
from specbench.linear import FrozenLinear, stored
from specbench.method import TargetView


def fits(network: CtcNetwork, target: TargetView) -> bool:
    """Whether there is a layer to lay out, and room for the table."""
    num_bytes = target.vocab_size * network.architecture.hidden_size * network.dtype.itemsize
    return network.layer is not None and num_bytes <= TABLE_BYTES


class LaidOutLayer:
    """See the module. Nothing of the network is changed or kept."""

    @torch.no_grad()
    def __init__(self, network: CtcNetwork, layer: Layer, target: TargetView) -> None:
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

    def features(self, tokens_N: Tensor, states_ND: Tensor) -> Tensor:
        """z (N, D) of tokens and the states that predicted them."""
        return torch.addmm(self._table_VD.index_select(0, tokens_N), states_ND, self._from_state_DD)

    def follow(self, z_ND: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        """f (N, D) of features. attend: their queries, keys and values (N, H + 2 G, d), not yet turned -> what the
        queries see, (N, H * d); it keeps the keys and values where they belong."""
        heads = self._qkv(z_ND).unflatten(1, (-1, self._head_dim))
        r_ND = self._out(attend(heads)).add_(z_ND)
        both = torch.cat([r_ND, -r_ND], 1)
        normed = F.layer_norm(both, (2 * self._width,), self._norm_2D, None, self._eps)[:, : self._width]
        gate, up = self._gate_up(normed).chunk(2, dim=1)
        return self._down(F.silu(gate) * up).add_(r_ND)
