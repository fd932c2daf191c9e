"""The recurrent drafter's network (Zhang 2024): a small RNN beside the target's last state, residual blocks, a head.

    s_0 = 0
    s_i = SiLU(Ww e(x_{i-1}) + Wu s_{i-1} + bu)      x_0 = the root; without rnn: s_i = s_{i-1} + e(x_{i-1})
    z   = [h ; s_i]                                   context first; z = Wp z + bp where exit_dim is not its width
    z   = z + SiLU(A_k z + a_k)                       k = 0 .. num_layers - 1
    logits = Wo z

N positions, H width of the target's final state, M width of its embedding, S width of s (H with rnn, M without), E
exit_dim, W the drafter's vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specbench.blocks import DraftVocabulary, HeadKind, TargetHead, check_width
from specbench.errors import EnvironmentFailed
from specbench.method import TargetView


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What makes the network; stored in the checkpoint."""

    hidden_size: int
    """H."""
    embed_size: int
    """M."""
    vocab_size: int
    """The target's V."""
    exit_dim: int
    """E, resolved: never 0."""
    num_layers: int
    rnn: bool
    head: HeadKind = "own"
    """target: Wo is the target's own frozen head, E = H."""
    trimmed: int = 0
    """Tokens the head can say; 0 = all V."""

    @property
    def state_size(self) -> int:
        """S."""
        return self.hidden_size if self.rnn else self.embed_size

    @property
    def has_projection(self) -> bool:
        """Whether [h ; s] must change its width."""
        return self.hidden_size + self.state_size != self.exit_dim

    @classmethod
    def read(cls, values: Mapping[str, Any], *, where: str) -> Architecture:
        """From config.json. Raises EnvironmentFailed: a field is missing or unknown."""
        try:
            return cls(**values)
        except TypeError as error:
            raise EnvironmentFailed(f"the drafter's architecture cannot be read: {error}", where=where) from error

    def as_dict(self) -> dict[str, Any]:
        """For config.json."""
        return asdict(self)


class ReDrafterNetwork(nn.Module):
    """What learns. The target's embedding, and its head where that is borrowed, are handed in and never held."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = arch = architecture
        width = arch.exit_dim
        self.vocabulary = DraftVocabulary(arch.vocab_size, num=arch.trimmed)
        self.rnn_u = nn.Linear(arch.hidden_size, arch.hidden_size) if arch.rnn else None
        self.rnn_w = nn.Linear(arch.embed_size, arch.hidden_size, bias=False) if arch.rnn else None
        self.input_proj = nn.Linear(arch.hidden_size + arch.state_size, width) if arch.has_projection else None
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(arch.num_layers))
        self.head = nn.Linear(width, self.vocabulary.size, bias=False) if arch.head == "own" else None

    def initial_state(self, num: int, like: Tensor) -> Tensor:
        """s_0 of `num` positions: (num, S) of zeros, in the dtype and on the device of `like`."""
        return like.new_zeros(num, self.architecture.state_size)

    def next_state(self, embedded_NM: Tensor, state_NS: Tensor) -> Tensor:
        """s_i from e(x_{i-1}) and s_{i-1}."""
        if self.rnn_w is None or self.rnn_u is None:
            return state_NS + embedded_NM
        return F.silu(self.rnn_w(embedded_NM) + self.rnn_u(state_NS))

    def mix(self, joined_NZ: Tensor) -> Tensor:
        """[h ; s] (N, H + S) -> z before the head (N, E)."""
        z = joined_NZ if self.input_proj is None else self.input_proj(joined_NZ)
        for block in self.blocks:
            z = z + F.silu(block(z))
        return z

    def logits_with(self, borrowed: Callable[[Tensor], Tensor] | None) -> Callable[[Tensor], Tensor]:
        """[h ; s] -> logits (N, W). borrowed: the target's head, where this network has none of its own."""
        head = self.head if self.head is not None else borrowed
        assert head is not None, "a network without a head needs the target's"

        def logits(joined_NZ: Tensor) -> Tensor:
            out: Tensor = head(self.mix(joined_NZ))
            return out

        return logits

    def borrowed_head(self, target: TargetView) -> TargetHead | None:
        """The target's head over this vocabulary, or None where the network has its own. Raises UsageError where
        exit_dim is not the head's width."""
        if self.head is not None:
            return None
        check_width(
            "redrafter", wanted=self.architecture.exit_dim, width=target.hidden_size, option="redrafter.exit_dim"
        )
        return TargetHead(target, self.vocabulary)


def parameter_dtype(network: nn.Module) -> torch.dtype:
    """What the network computes in."""
    return next(network.parameters()).dtype
