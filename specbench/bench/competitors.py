"""Which methods compete in a run, with which options, under which labels. No torch.

The baseline always runs, and runs a second time under another name: the A/A control whose interval must contain 1
(measurement 7).
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from specbench import registry
from specbench.bench.defaults import DEMO_TARGETS
from specbench.bench.request import RunRequest, Variant
from specbench.card import Card

BASELINE: Final = "autoregressive"
CONTROL: Final = "autoregressive#2"


@dataclass(frozen=True, kw_only=True)
class Competitor:
    """One row of the table to come."""

    label: str
    choice: registry.Choice
    is_control: bool = False

    @property
    def card(self) -> Card:
        return self.choice.card

    @property
    def options(self) -> dict[str, Any]:
        """As recorded: those of a wrapped method stand beside the method's own."""
        return self.choice.recorded_options


def competitors(request: RunRequest) -> tuple[Competitor, ...]:
    """The baseline, its control, then the methods asked for, once per combination of their grid axes.

    Raises UsageError for an unknown method or option, and for a method that still needs something.
    """
    assert request.methods is not None and request.target is not None, "with_defaults() comes first"
    is_demo = request.target in DEMO_TARGETS
    said: dict[str, dict[str, Any]] = defaultdict(dict)
    for item in request.settings:
        said[item.method][item.option] = item.value
    baseline = registry.choose(BASELINE, said, target_is_demo=is_demo, methods_dirs=request.methods_dirs)
    chosen = [
        Competitor(label=BASELINE, choice=baseline),
        Competitor(label=CONTROL, choice=baseline, is_control=True),
    ]
    for name in request.methods:
        if name == BASELINE:
            continue
        for varied in _combinations(name, request):
            # A wrapped method's axes are varied inside what wraps it, and it may need one of them to be ready.
            first = _choose(name, said, _firsts(request) | varied.options, request, is_demo=is_demo)
            inner_axes = _combinations(first.inner.card.name, request) if first.inner else [_Combination()]
            for more in inner_axes:
                choice = _choose(name, said, varied.options | more.options, request, is_demo=is_demo)
                chosen.append(Competitor(label=_label(choice, varied, more), choice=choice))
    return tuple(chosen)


def _label(choice: registry.Choice, own: _Combination, inner: _Combination) -> str:
    """Method, or METHOD:NAME of a named variant, then what else is varied: `hybrid(ctc:eagle)[max_tokens=8]`."""
    method = choice.card.name
    name = method + (f":{own.name}" if own.name else "")
    if choice.inner is not None:
        name += f"({choice.inner.name}{f':{inner.name}' if inner.name else ''})"
    shown = [
        f"{option if whose == method else f'{whose}.{option}'}={value}"
        for (whose, option), value in (own.shown | inner.shown).items()
        if (whose, option) != (method, "inner")
    ]
    return f"{name}[{','.join(shown)}]" if shown else name


_Varied = dict[tuple[str, str], str]
"""(method, option) -> value, still text."""


@dataclass(frozen=True, kw_only=True)
class _Combination:
    """A variant under one value of every grid axis."""

    name: str = ""
    variant: _Varied = field(default_factory=dict)
    axes: _Varied = field(default_factory=dict)

    @property
    def options(self) -> _Varied:
        return self.variant | self.axes

    @property
    def shown(self) -> _Varied:
        """What the label tells: a name stands for its options."""
        return self.axes if self.name else self.options


def _combinations(method: str, request: RunRequest) -> list[_Combination]:
    """Its variants, each once per combination of its grid axes."""
    axes = [axis for axis in request.grid if axis.method == method]
    variants = [variant for variant in request.variants if variant.method == method]
    return [
        _Combination(
            name=variant.name,
            variant={(method, option): value for option, value in variant.options},
            axes={(method, axis.option): value for axis, value in zip(axes, values, strict=True)},
        )
        for variant in variants or [Variant(method, ())]
        for values in itertools.product(*(axis.values for axis in axes))
    ]


def _firsts(request: RunRequest) -> _Varied:
    found = {(item.method, option): value for item in reversed(request.variants) for option, value in item.options}
    return found | {(axis.method, axis.option): axis.values[0] for axis in request.grid}


def _choose(
    name: str, said: Mapping[str, Mapping[str, Any]], varied: _Varied, request: RunRequest, *, is_demo: bool
) -> registry.Choice:
    given = {method: dict(options) for method, options in said.items()}
    for (method, option), value in varied.items():
        given.setdefault(method, {})[option] = value
    return registry.choose(name, given, target_is_demo=is_demo, methods_dirs=request.methods_dirs)
