"""What makes an LSTM speculator, checked where it enters: options, checkpoints and other programs' configs.

H width of the target's final state, V its vocabulary, n trained heads, d width of the recurrent state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, cast

from specbench.blocks import HeadKind
from specbench.errors import EnvironmentFailed, UsageError
from specbench.method import Options, TargetView

Cell = Literal["sum_lstm", "sum_rnn"]
EmbeddingKind = Literal["own", "target", "factored"]
_WIDTHS = ("inner_dim", "proj_dim", "emb_dim")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Raises UsageError where the widths do not fit together or `sum_lstm` is asked for what it has no place for."""

    method: Cell
    num_heads: int
    """n."""
    hidden_size: int
    """H."""
    embed_size: int
    """Width of the target's embedding table; read only where that table is borrowed."""
    vocab_size: int
    """V."""
    inner_dim: tuple[int, ...]
    """Stages of the state: [0] is what the norm sees, [-1] is d, what heads and the next step read."""
    proj_dim: tuple[int, ...]
    emb_dim: tuple[int, ...]
    tie_weights: bool = True
    tie_lstm_embs: bool = True
    scale_input: bool = True
    embedding: EmbeddingKind = "own"
    embedding_rank: int = 0
    """Columns of a factored table; 0 otherwise."""
    head: HeadKind = "own"
    trimmed: int = 0
    """Tokens the head can say; 0 = all V."""
    base_model_archs: tuple[str, ...] = ()
    """Class names of the target, which Arctic's loader asks for."""

    def __post_init__(self) -> None:
        if self.method == "sum_lstm":
            if not self.tie_weights:
                raise UsageError(
                    "sum_lstm has one set of weights for all depths", where="lstm.tie_weights", try_="tie_weights=true"
                )
            dotted = next((name for name in _WIDTHS if len(getattr(self, name)) > 1), None)
            if dotted is not None:
                raise UsageError(
                    f"sum_lstm has no further stages, but {dotted} is {join_widths(getattr(self, dotted))}",
                    where=f"lstm.{dotted}",
                    try_=f"{dotted}={getattr(self, dotted)[0]}, or method=sum_rnn",
                )
        for name in ("proj_dim", "emb_dim"):
            last = getattr(self, name)[-1]
            if last != self.inner_dim[0]:
                raise UsageError(
                    f"{name} ends with width {last}, but is added to a state of width {self.inner_dim[0]}",
                    where=f"lstm.{name}",
                    try_=f"let {name} end with {self.inner_dim[0]}, inner_dim's first stage",
                )

    @property
    def token_weight(self) -> float:
        """a = w_e / w_s, what an embedding is multiplied by before it is added to the projected state.

        w_s = 2 ** (-1 / 2n): after n steps the first state's share of the variance is a half. w_e = sqrt((1 - w_s**2)
        d / 2) with d the embedding's last width (equal to the state's first, which is checked).
        """
        state = math.pow(2, -1 / (2 * self.num_heads))
        return math.sqrt((1 - state**2) * self.emb_dim[-1] / 2) / state

    @property
    def num_gate_tables(self) -> int:
        """Embedding tables of a step: four untied gates, else one."""
        return 4 if self.method == "sum_lstm" and not self.tie_lstm_embs else 1

    def weights_of(self, depth: int) -> int:
        """Which set of embedding, norm and head serves this depth."""
        return 0 if self.tie_weights else depth

    def projection_of(self, depth: int) -> int:
        """Which projection serves this depth: the first reads H, the others d."""
        return min(depth, 1) if self.tie_weights else depth

    @property
    def num_weights(self) -> int:
        """Sets of embedding, norm and head."""
        return 1 if self.tie_weights else self.num_heads

    @property
    def num_projections(self) -> int:
        """Projections held."""
        return min(self.num_heads, 2) if self.tie_weights else self.num_heads

    def as_dict(self) -> dict[str, Any]:
        """For config.json."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Architecture:
        """`as_dict` undone. Raises EnvironmentFailed: not of this method, or damaged."""
        names = {each.name for each in fields(cls)}
        unknown = sorted(set(raw) - names)
        try:
            if unknown:
                raise ValueError(f"unknown {', '.join(unknown)}")
            values: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()
            }
            return cls(**values)
        except (TypeError, ValueError, IndexError) as error:
            raise EnvironmentFailed(f"the drafter's architecture is damaged: {error}", where="config.json") from error

    @classmethod
    def from_options(cls, options: Options, target: TargetView) -> Architecture:
        """The card's `training:` section for this target. Raises UsageError."""
        method = cast("Cell", options["method"])
        hidden_size = target.hidden_size
        inner = parse_widths(options["inner_dim"], option="inner_dim", auto=hidden_size)
        embedding = cast("EmbeddingKind", options["embedding"])
        trimmed = cast("int", options["vocabulary"])
        num_stops = len(target.stop_ids)
        if 0 < trimmed <= num_stops:
            raise UsageError(
                f"a vocabulary of {trimmed} has no room for the target's {num_stops} stop id(s) and anything else",
                where="lstm.vocabulary",
                try_="vocabulary=2048, or 0 for all tokens",
            )
        return cls(
            method=method,
            num_heads=cast("int", options["num_heads"]),
            hidden_size=hidden_size,
            embed_size=target.embed_width,
            vocab_size=target.vocab_size,
            inner_dim=inner,
            proj_dim=parse_widths(options["proj_dim"], option="proj_dim", auto=inner[0]),
            emb_dim=parse_widths(options["emb_dim"], option="emb_dim", auto=inner[0]),
            tie_weights=cast("bool", options["tie_weights"]),
            # Only sum_lstm has gates; one way of writing down a plain recurrence.
            tie_lstm_embs=method == "sum_lstm" and cast("bool", options["tie_lstm_embs"]),
            scale_input=cast("bool", options["scale_input"]),
            embedding=embedding,
            embedding_rank=cast("int", options["embedding_rank"]) if embedding == "factored" else 0,
            head=cast("HeadKind", options["head"]),
            trimmed=trimmed if trimmed < target.vocab_size else 0,
            base_model_archs=tuple(getattr(target.config, "architectures", None) or ()),
        )


def parse_widths(text: object, *, option: str, auto: int) -> tuple[int, ...]:
    """ "4096.2048" -> (4096, 2048); "auto" -> (auto,). Raises UsageError."""
    if text == "auto":
        return (auto,)
    parts = str(text).split(".")
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(
            f"{option} {text!r} is no width", where=f"lstm.{option}", try_=f"{option}=4096, {option}=4096.2048 or auto"
        )
    return tuple(int(part) for part in parts)


def join_widths(widths: tuple[int, ...]) -> str:
    """(4096, 2048) -> "4096.2048"."""
    return ".".join(str(width) for width in widths)
