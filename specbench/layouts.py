"""Other programs' checkpoint layouts of a method, both ways. `methods/NAME/layouts.py` defines `LAYOUTS`.

Unknown or missing keys are an error with the list; a tied copy that differs from its twin is one too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Written:
    """config: the content of config.json. tensors: names and values of the safetensors file."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Read:
    """architecture and state as a specbench checkpoint holds them; notes: what the user should know (an ignored
    `emb_norm`, ...)."""

    architecture: dict[str, Any]
    state: dict[str, Tensor]
    hidden_size: int
    vocab_size: int
    notes: tuple[str, ...] = ()


class Layout(Protocol):
    """One program's layout."""

    name: str
    """What is typed after --layout: `apple`, `arctic`, `eagle`, ..."""
    summary: str

    def write(
        self, architecture: Mapping[str, Any], state: Mapping[str, Tensor], *, target: Mapping[str, Any]
    ) -> Written:
        """Raises UsageError where the layout has no place for this architecture. target: the checkpoint's facts."""
        ...

    def read(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Read:
        """Raises UsageError listing missing and unknown keys."""
        ...

    def num_tokens(self, architecture: Mapping[str, Any], options: Mapping[str, Any]) -> int:
        """Tokens a drafter learnt to propose in a row, which `serving` asks for. options: the card's `training:` ones
        it was made with; empty for an import."""
        ...

    def serving(self, folder: str, *, target: str, num_tokens: int) -> str:
        """The command line of an engine that can load it; empty where none can."""
        ...
