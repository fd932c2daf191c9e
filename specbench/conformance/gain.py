"""What a method would gain on a real target: `specbench.probe` over a few questions of the demo suite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from specbench import suite
from specbench.card import Card
from specbench.engine.graphs import graphs_for
from specbench.errors import EnvironmentFailed, UsageError
from specbench.findings import Finding
from specbench.lm.cached_lm import CachedLM
from specbench.lm.load import load_lm, pick_device, pick_dtype
from specbench.method import Build
from specbench.probe import findings, probe

NUM_QUESTIONS = 4
NEW_TOKENS = 64
_ROOM = 16
"""New tokens a question must leave room for to be worth asking."""


def expected_gain(card: Card, build: Build, options: Mapping[str, Any], *, target: str) -> list[Finding]:
    """Acceptance, cost ratio and the speed-up to expect; one line saying why where there is nothing to probe.

    Raises what loading the target raises, and EnvironmentFailed where it has no tokenizer.
    """
    if card.kind != "chain" or card.requires == ("reference",) or card.wraps:
        return [
            Finding(name="speed-up to expect", state="ok", what="not asked: theory's answer is about chain drafters")
        ]
    device = pick_device("auto")
    lm = load_lm(target, device=device, dtype=pick_dtype("auto", device))
    prompts = _prompts(lm, target)
    room = min([NEW_TOKENS, *(lm.context_length - len(prompt) for prompt in prompts if lm.context_length is not None)])
    try:
        found = probe(lm, build, options, prompts, max_new_tokens=room, graphs=graphs_for(lm))
    except UsageError as nothing:
        return [Finding(name="speed-up to expect", state="warning", what=nothing.what, remedy=nothing.try_)]
    return findings(found, card)


def _prompts(lm: CachedLM, target: str) -> list[tuple[int, ...]]:
    """The demo suite's questions that fit, in the target's own template, or bare where it has none."""
    if lm.tokenizer is None:
        raise EnvironmentFailed(
            f"target {target!r} has no tokenizer files, so no prompt can be made for it",
            try_="put tokenizer.json and tokenizer_config.json beside its weights",
        )
    template = "chat" if lm.tokenizer.chat_template else "plain"
    prompts = [
        tuple(suite.render(lm.tokenizer, [{"role": "user", "content": question.turns[0]}], template))
        for question in suite.load_suite("demo").limited(NUM_QUESTIONS, seed=0).questions
    ]
    fitting = [prompt for prompt in prompts if lm.context_length is None or len(prompt) + _ROOM <= lm.context_length]
    if not fitting:
        raise UsageError(f"the context of {target!r} holds no question of the demo suite", try_="choose another target")
    return fitting
