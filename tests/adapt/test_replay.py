"""Replaying a known answer gives the steps that decoding takes."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import plain_logits, requests_for

from methods.adaptive_lora.drafter import build
from specbench.adapt.replay import chain_steps, choices
from specbench.engine.decode import Engine
from specbench.engine.stop import Stop
from specbench.lm.load import load_lm
from tests.adapt.adapted import engine, options, save_draft


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("stop", [frozenset(), frozenset({12, 29, 41})], ids=["length", "stop"])
def test_replayed_steps_are_those_of_decoding(tmp_path: Path, stop: frozenset[int], temperature: float) -> None:
    """Every step's draft, acceptance and kept tokens, through to answers cut by a stop id and by the limit."""
    plain = engine(temperature=temperature)
    on = Engine(plain.lm, sampling=plain.sampling, max_batch=1, max_len=110, max_nodes=8, stop=Stop(ids=stop))
    folder = save_draft(tmp_path / "draft")
    drafter = build(options(folder), on.view())
    draft = load_lm(str(folder), device=on.lm.device, dtype=on.lm.dtype)
    num_accepted = 0
    for request in requests_for(max_new_tokens=24):
        [generation] = on.generate(drafter, [request]).generations
        text = [*request.prompt, *generation.tokens]
        start = len(request.prompt) + 1
        logits = plain_logits(draft, text)[start - 1 : -1]
        picked = choices(logits, temperature=temperature, key=request.key, first=start).tolist()
        agrees = [False] * start + [a == b for a, b in zip(picked, text[start:], strict=True)]
        steps = chain_steps(agrees, num_prompt=len(request.prompt), max_new_tokens=request.max_new_tokens, num_tokens=3)
        found = [(step.num_drafted, min(step.num_accepted, step.num_kept), step.num_kept) for step in steps]
        wanted = [
            (step.depth, min(step.num_accepted, kept), kept)
            for step in generation.steps
            for kept in (step.num_committed - step.num_truncated,)
        ]
        assert found == wanted
        num_accepted += sum(step.num_accepted for step in steps)
    assert num_accepted > 5
