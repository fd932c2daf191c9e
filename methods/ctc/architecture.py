"""What makes a CTC drafter's network: the facts a checkpoint stores, and those a target's config gives by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from specbench.blocks import HeadKind
from specbench.errors import EnvironmentFailed, UsageError
from specbench.method import TargetView

Form = Literal["nar", "eagle"]
ModuleKind = Literal["layer", "linear"]
FrameLoss = Literal["ctc", "ce"]
FirstFrame = Literal["own", "anchor"]
"""What frame 1 is: a query of its own behind the anchor, or the layer's output for the anchor's own feature, which is
what an ordinary decoder layer would say next."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Stored in the checkpoint. Raises UsageError where the parts do not fit each other."""

    form: Form
    module: ModuleKind
    hidden_size: int
    embed_size: int
    vocab_size: int
    """The target's."""
    heads: int
    kv_heads: int
    intermediate_size: int
    fc_bias: bool = True
    rope_theta: float = 10000.0
    norm_eps: float = 1e-6
    frames: int = 0
    """U; 0 for eagle."""
    labels: int = 0
    """L that were learnt; 0 for eagle."""
    loss: FrameLoss = "ctc"
    """ctc: there is a blank, the class behind the last token."""
    causal_frames: bool = True
    first_frame: FirstFrame = "own"
    head: HeadKind = "target"
    trimmed: int = 0
    """Tokens that can be said; 0 = all of them."""

    def __post_init__(self) -> None:
        if self.module == "layer":
            fits = self.hidden_size % self.heads == 0 and self.heads % self.kv_heads == 0
            if not fits or self.head_dim % 2:
                raise UsageError(
                    f"{self.heads} heads and {self.kv_heads} key heads do not divide a width of {self.hidden_size} "
                    "into even heads",
                    where="ctc.heads",
                    try_="choose ctc.heads and ctc.kv_heads so that heads divide the width and kv_heads the heads",
                )
        if self.form == "nar" and self.frames < self.labels:
            raise UsageError(
                f"{self.frames} frames cannot say {self.labels} labels",
                where="ctc.frames",
                try_=f"ctc.frames={2 * self.labels}, or 0 for two per label",
            )

    @property
    def head_dim(self) -> int:
        """Columns of one head."""
        return self.hidden_size // self.heads

    @property
    def has_blank(self) -> bool:
        """Whether frames have a class of their own for saying nothing."""
        return self.form == "nar" and self.loss == "ctc"

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


def heads_of(target: TargetView, *, heads: int, kv_heads: int) -> tuple[int, int]:
    """(heads, key heads): those asked for, else the target's; where the target's do not divide its width evenly, the
    most heads of an even width that do."""
    width = target.hidden_size
    num = heads or int(getattr(target.config, "num_attention_heads", 0) or 1)
    if not heads:
        while width % num or (width // num) % 2:
            num -= 1
    num_kv = kv_heads or int(getattr(target.config, "num_key_value_heads", 0) or num)
    if not kv_heads:
        while num % num_kv:
            num_kv -= 1
    return num, num_kv


def intermediate_of(target: TargetView, asked: int) -> int:
    """Width of the SwiGLU: asked for, the target's, or 8/3 of its width."""
    return asked or int(getattr(target.config, "intermediate_size", 0) or target.hidden_size * 8 // 3)
