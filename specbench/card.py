"""A method's card (method.yaml): its name, the options it takes, what it needs. Unknown keys are refused. No torch.

name: prompt_lookup
title: Prompt lookup
paper: https://github.com/apoorvumang/prompt-lookup-decoding
kind: chain
summary: Copies the continuation of the longest n-gram already seen.
options:
  num_draft_tokens: {type: int, default: 10, minimum: 1, help: Most tokens drafted per step.}
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from specbench import paths
from specbench.errors import UsageError, did_you_mean

_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}

MADE_HERE = "made for the check"
"""What `model` and `weights` say where `specbench methods check` makes them itself, for each of its targets."""


class Option(BaseModel):
    """One option of a method."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["int", "float", "str", "bool", "path"]
    default: int | float | str | bool | None = None
    """null = has no default: must be said, unless the card's `demo` says it for the embedded target."""
    help: str
    choices: tuple[int | float | str, ...] | None = None
    minimum: float | None = None
    maximum: float | None = None

    @model_validator(mode="after")
    def _default_is_allowed(self) -> Option:
        if self.default is not None:
            self.read(self.default)
        return self

    def read(self, value: Any) -> int | float | str | bool:
        """value as this option's type, from text or from YAML. Raises ValueError saying what is allowed."""
        typed = self._typed(value)
        if self.choices is not None and typed not in self.choices:
            listing = did_you_mean(str(typed), [str(choice) for choice in self.choices])
            raise ValueError(f"{typed!r} is not a choice; {listing}")
        if isinstance(typed, int | float) and not isinstance(typed, bool):
            if self.minimum is not None and typed < self.minimum:
                raise ValueError(f"{typed} is below the minimum {self.minimum:g}")
            if self.maximum is not None and typed > self.maximum:
                raise ValueError(f"{typed} is above the maximum {self.maximum:g}")
        return typed

    def _typed(self, value: Any) -> int | float | str | bool:
        refusal = ValueError(f"{value!r} is not of type {self.type}")
        if self.type == "bool":
            if isinstance(value, bool):
                return value
            word = str(value).strip().lower()
            if word not in _TRUE | _FALSE:
                raise ValueError(f"{value!r} is not of type bool (true or false)")
            return word in _TRUE
        if isinstance(value, bool) or value is None:
            raise refusal
        if self.type == "int":
            if isinstance(value, float):
                raise refusal
            try:
                return int(value)
            except ValueError as error:
                raise refusal from error
        if self.type == "float":
            try:
                number = float(value)
            except ValueError as error:
                raise refusal from error
            if not math.isfinite(number):
                raise ValueError(f"{value!r} is not a finite number")
            return number
        if not isinstance(value, str):
            raise refusal
        if self.type != "path":
            return value
        try:
            return str(paths.expanded(value))
        except UsageError as error:
            raise ValueError(error.what) from error


class Card(BaseModel):
    """One method, as its author describes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """The folder's name, and the word typed after --methods."""
    title: str
    paper: str
    """A link or a citation; empty where there is none."""
    kind: Literal["baseline", "chain", "tree"]
    summary: str
    """One sentence for lists."""
    notes: tuple[str, ...] = ()
    """Sentences on how it works in a step that its measurements hang on: what it reads on the host, say."""
    options: dict[str, Option] = Field(default_factory=dict)
    training: dict[str, Option] = Field(default_factory=dict)
    """Options of `specbench train`, read by `build` in train.py; empty for methods that are not trained."""
    requires: tuple[Literal["reference", "weights", "draft_model"], ...] = ()
    """`reference`: the engine hands it the autoregressive answer (Request.reference)."""
    demo: dict[str, int | float | str | bool] = Field(default_factory=dict)
    """Values that make the method ready for the embedded target."""
    demo_lr: float | None = Field(default=None, gt=0)
    """Highest learning rate of a training on the embedded target where none is typed: published rates are those of
    targets a thousand times as large. None: that of any other target."""
    tune: dict[str, tuple[int | float | str | bool, ...]] = Field(default_factory=dict)
    """Values of drafting options that `specbench tune` tries, in all combinations."""
    ranked: bool = True
    """False for controls such as `oracle`: shown, never ranked."""
    wraps: bool = False
    """True when `build` is handed another, already built drafter (`inner`). Its method is named by the option `inner`,
    its options are set under its own name."""

    @field_validator("options", "training")
    @classmethod
    def _option_names(cls, options: dict[str, Option]) -> dict[str, Option]:
        wrong = next((name for name in options if not name.isidentifier()), None)
        if wrong is not None:
            raise ValueError(f"option name {wrong!r} cannot be typed after --set")
        return options

    @model_validator(mode="after")
    def _wrapper_names_its_inner(self) -> Card:
        inner = self.options.get("inner")
        if self.wraps and (inner is None or inner.type != "str" or inner.default is None):
            raise ValueError("a card that says `wraps` needs an option `inner` of type str with a default")
        return self

    @model_validator(mode="after")
    def _listed_values_fit(self) -> Card:
        listed = [("demo", name, value) for name, value in self.demo.items()]
        listed += [("tune", name, value) for name, values in self.tune.items() for value in values]
        for section, name, value in listed:
            if name not in self.options:
                raise ValueError(f"{section} sets {name!r}, which is not an option; {did_you_mean(name, self.options)}")
            self.options[name].read(value)
        return self
