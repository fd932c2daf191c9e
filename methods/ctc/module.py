"""The CTC drafter's networks: features of the text, one transformer layer (or linear maps), and what reads it.

    z_i = F [E(x_{i+1}) ; h_i] + b                        a feature of the text; its keys and values are cached
    eagle  r = z + Attn(z_<=i), f = r + SwiGLU(norm r)    EAGLE-1: no norm before the attention, none at the end
    nar    g_u = A z_t + Q_u, u = 1 .. U                  frames, at positions t + 1 .. t + U
           r = g + Attn(z_<=t, g_1 .. g_u), f = r + SwiGLU(norm r)
    linear f = z + M z (eagle), f_u = z + M_u z (nar)     no attention

N positions or rows, M queries, U frames, D width, H heads, G key heads, d width of a head, S key slots, W the drafter's
vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.ctc.architecture import Architecture
from specbench.blocks import DraftVocabulary, TargetHead, check_width
from specbench.method import TargetView

_STD = 0.02
"""Of freshly drawn matrices, as the Llama family has it."""


class RotaryTable(nn.Module):
    """cos and signed sin of positions, (positions, d): rotate(x) = x cos + roll(x, d / 2) sin. Made once, not saved."""

    cos: Tensor
    sin: Tensor

    def __init__(self, head_dim: int, theta: float, num_positions: int, *, like: Tensor) -> None:
        super().__init__()
        frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64, device=like.device) / head_dim)
        angle = torch.arange(num_positions, dtype=torch.float64, device=like.device)[:, None] * frequency
        self.register_buffer("cos", torch.cat([angle.cos()] * 2, 1).to(like.dtype), persistent=False)
        # Halves as transformers lays them out: the first takes minus the second.
        self.register_buffer("sin", torch.cat([-angle.sin(), angle.sin()], 1).to(like.dtype), persistent=False)

    def rotate(self, heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """heads (..., H, d); cos, sin: rows of the table, shaped to broadcast."""
        return torch.addcmul(heads * cos, heads.roll(heads.shape[-1] // 2, -1), sin)


class RMSNorm(nn.Module):
    """x / rms(x) * weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self._eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self._eps)


class Attention(nn.Module):
    """Projections, named as EAGLE names them."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        width, inner, kv = arch.hidden_size, arch.heads * arch.head_dim, arch.kv_heads * arch.head_dim
        self.q_proj = nn.Linear(width, inner, bias=False)
        self.k_proj = nn.Linear(width, kv, bias=False)
        self.v_proj = nn.Linear(width, kv, bias=False)
        self.o_proj = nn.Linear(inner, width, bias=False)
        self._arch = arch

    def queries(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., H, d)."""
        out: Tensor = self.q_proj(x).unflatten(-1, (self._arch.heads, self._arch.head_dim))
        return out

    def keys(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., G, d)."""
        out: Tensor = self.k_proj(x).unflatten(-1, (self._arch.kv_heads, self._arch.head_dim))
        return out

    def values(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., G, d)."""
        out: Tensor = self.v_proj(x).unflatten(-1, (self._arch.kv_heads, self._arch.head_dim))
        return out


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(arch.hidden_size, arch.intermediate_size, bias=False)
        self.up_proj = nn.Linear(arch.hidden_size, arch.intermediate_size, bias=False)
        self.down_proj = nn.Linear(arch.intermediate_size, arch.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Layer(nn.Module):
    """One decoder layer without a norm in front of its attention."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.self_attn = Attention(arch)
        self.mlp = MLP(arch)
        self.post_attention_layernorm = RMSNorm(arch.hidden_size, arch.norm_eps)

    def after(self, x: Tensor, mixed: Tensor) -> Tensor:
        """x (..., D) and what its queries read (..., H * d) -> f (..., D)."""
        r = x + self.self_attn.o_proj(mixed)
        out: Tensor = r + self.mlp(self.post_attention_layernorm(r))
        return out


class CtcNetwork(nn.Module):
    """What learns, of both forms. The target's embedding, and its head where that is borrowed, are handed in."""

    def __init__(self, arch: Architecture, *, blank_bias: float = -2.0) -> None:
        super().__init__()
        self.architecture = arch
        width = arch.hidden_size
        self.vocabulary = DraftVocabulary(arch.vocab_size, num=arch.trimmed)
        self.fc = nn.Linear(arch.embed_size + width, width, bias=arch.fc_bias)
        is_nar, has_layer = arch.form == "nar", arch.module == "layer"
        self.layers = nn.ModuleList([Layer(arch)] if has_layer else [])
        num_maps = 0 if has_layer else max(arch.frames, 1)
        self.maps = nn.Parameter(torch.empty(num_maps, width, width)) if num_maps else None
        self.anchor = nn.Linear(width, width, bias=False) if is_nar and has_layer else None
        num_asked = arch.frames - (arch.first_frame == "anchor")
        self.frame = nn.Parameter(torch.empty(num_asked, width)) if is_nar else None
        self.head = nn.Linear(width, self.vocabulary.size, bias=False) if arch.head == "own" else None
        self.blank = nn.Linear(width, 1) if arch.has_blank else None
        self._draw(blank_bias)

    @torch.no_grad()
    def _draw(self, blank_bias: float) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=_STD)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        # A feature begins as the target's own state, so that a frame's size is one the head is used to.
        width = self.architecture.hidden_size
        self.fc.weight[:, -width:] += torch.eye(width)
        if self.anchor is not None:
            self.anchor.weight += torch.eye(width)
        if self.blank is not None:
            self.blank.bias.fill_(blank_bias)

    @property
    def layer(self) -> Layer | None:
        """The transformer layer; None under `linear`."""
        found = next(iter(self.layers), None)
        assert found is None or isinstance(found, Layer)
        return found

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return self.fc.weight.dtype

    def features(self, embedded: Tensor, states: Tensor) -> Tensor:
        """z (..., D) from E(x_{i+1}) (..., E) and h_i (..., D)."""
        z: Tensor = self.fc(torch.cat([embedded, states], -1))
        return z

    def frames(self, anchor: Tensor) -> Tensor:
        """z_t (..., D) -> g (..., U, D)."""
        assert self.frame is not None and self.anchor is not None
        projected: Tensor = self.anchor(anchor)
        asked = projected[..., None, :] + self.frame
        if self.architecture.first_frame == "own":
            return asked
        return torch.cat([anchor[..., None, :], asked], -2)

    def mapped(self, z: Tensor) -> Tensor:
        """`linear`: z (..., D) -> f (..., U, D) for nar, (..., D) for eagle."""
        assert self.maps is not None
        if self.frame is None:
            return z + F.linear(z, self.maps[0])
        return z[..., None, :] + torch.einsum("...d,ued->...ue", z, self.maps) + self.frame

    def borrowed_head(self, target: TargetView) -> TargetHead | None:
        """The target's head over this vocabulary, or None where the network has its own."""
        if self.head is not None:
            return None
        check_width("ctc", wanted=self.architecture.hidden_size, width=target.hidden_size, option="ctc.head")
        return TargetHead(target, self.vocabulary)

    def token_logits(self, states: Tensor, borrowed: Callable[[Tensor], Tensor] | None) -> Tensor:
        """f (..., D) -> (..., W)."""
        head = self.head if self.head is not None else borrowed
        assert head is not None, "a network without a head needs the target's"
        logits: Tensor = head(states)
        return logits

    def logits(self, states: Tensor, borrowed: Callable[[Tensor], Tensor] | None) -> Tensor:
        """f (..., D) -> (..., W), or (..., W + 1) with the blank as the last class. float32 at least."""
        tokens = self.token_logits(states, borrowed)
        tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        if self.blank is None:
            return tokens
        return torch.cat([tokens, self.blank(states.to(self.dtype)).to(tokens.dtype)], -1)
