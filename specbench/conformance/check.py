"""What every method must keep, from one body: `specbench methods check NAME` and the tests run it.

The method runs on tiny random targets in float64, where its text must equal seeded autoregression token for token; a
draft model it asks for is made on the spot. So are trained weights, by the method's own recipe, unless some are named:
then the method is run on the target they belong to.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from specbench import registry
from specbench.card import MADE_HERE, Card
from specbench.conformance.broken import BrokenPromise
from specbench.conformance.promises import DRAWN, GREEDY, PROCESSED, Promises
from specbench.conformance.stands import Stands, names_weights
from specbench.conformance.targets import ARCHITECTURES, random_target
from specbench.errors import SpecbenchError, UsageError
from specbench.findings import Finding
from specbench.lm.cached_lm import CachedLM


def check_method(
    name: str,
    *,
    target: str | None = None,
    options: Mapping[str, Any] | None = None,
    methods_dirs: Sequence[Path] = (),
    quick: bool = False,
    training: Mapping[str, Any] | None = None,
) -> list[Finding]:
    """Every promise as a finding; with a `target` followed by a short probe of what the method would gain on it.

    options: as for `registry.check_options`; those of a wrapped method as `NAME.OPTION`. quick: one architecture and a
    third of the chi-square's draws. training: options of `specbench train` for weights that are made here, because the
    method requires some and none are named. Raises UsageError (unknown method or option; weights named without their
    target) and what `load_lm` raises.
    """
    said = registry.by_method(name, options or {})
    choice = _chosen(name, said, target_is_demo=target == "demo", methods_dirs=methods_dirs)
    card = choice.card
    targets = [random_target(architecture) for architecture in ARCHITECTURES[: 1 if quick else None]]
    has_weights = names_weights(choice)
    if has_weights:
        targets = [_own_target(card, target)]
    with tempfile.TemporaryDirectory(prefix="specbench-check-") as scratch:
        asked = Promises(Stands(choice, targets, Path(scratch), methods_dirs=methods_dirs, training=training))
        promises: list[tuple[str, Callable[[], str]]] = [
            ("greedy text", lambda: asked.text(GREEDY)),
            ("seeded text", lambda: asked.text(DRAWN)),
            ("seeded text, all processors", lambda: asked.text(PROCESSED)),
            ("forgets", asked.forgets),
            ("recovers", asked.recovers),
            ("batches", asked.batches),
            ("prefill chunks", asked.chunks),
            ("follows", asked.follows),
            ("captured steps", asked.captures),
            ("rejection law", lambda: asked.rejection(1 if quick else 3)),
        ]
        if not has_weights:
            promises.insert(3, ("stops", asked.stops))
        findings = [_keeps("builds", asked.builds)]
        if findings[0].state == "ok":
            findings += [_keeps(title, promise) for title, promise in promises]
    if target is not None and "weights" in choice.requires and not has_weights:
        findings.append(
            Finding(name="speed-up to expect", state="ok", what=f"not asked: no weights are named for {target}")
        )
    elif target is not None and all(finding.state != "failed" for finding in findings):
        from specbench.conformance.gain import (
            expected_gain,
        )  # the suites and a real model, only where a target is named

        findings += expected_gain(card, registry.load(name, methods_dirs=methods_dirs), choice.options, target=target)
    return findings


def _chosen(
    name: str, said: Mapping[str, Mapping[str, Any]], *, target_is_demo: bool, methods_dirs: Sequence[Path]
) -> registry.Choice:
    """`registry.choose`; draft models and weights nobody named are made by the checker: no reason not to be ready."""
    given = {method: dict(values) for method, values in said.items()}
    for _ in range(2):  # the method, then what it wraps
        for method, values in given.items():
            card = registry.card(method, methods_dirs=methods_dirs)
            for need, option in (("draft_model", "model"), ("weights", "weights")):
                is_named = values.get(option) is not None or (target_is_demo and option in card.demo)
                if need in card.requires and not is_named:
                    values[option] = MADE_HERE
        found = registry.card(name, methods_dirs=methods_dirs)
        if found.wraps:
            given.setdefault(str(given[name].get("inner", found.options["inner"].default)), {})
    return registry.choose(name, given, target_is_demo=target_is_demo, methods_dirs=methods_dirs)


def _own_target(card: Card, target: str | None) -> CachedLM:
    """The target the method's weights belong to, in float64."""
    from specbench.lm.load import load_lm, pick_device  # half a second of hub code, only for trained methods

    if target is None:
        raise UsageError(
            f"{card.name} needs trained weights, which belong to one target",
            try_=f"specbench methods check {card.name} --target MODEL",
        )
    return load_lm(target, device=pick_device("cpu"), dtype=torch.float64)


def _keeps(title: str, promise: Callable[[], str]) -> Finding:
    try:
        return Finding(name=title, state="ok", what=promise())
    except BrokenPromise as broken:
        return Finding(name=title, state="failed", what=str(broken), consequence="its numbers cannot be trusted")
    except SpecbenchError as error:
        return Finding(name=title, state="failed", what=error.what, remedy=error.try_)
    # Somebody else's code: whatever it raises is a promise not kept, and the other promises are still worth asking for.
    except Exception as error:  # noqa: BLE001
        what = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
        return Finding(name=title, state="failed", what=what, consequence="the method cannot finish a generation")
