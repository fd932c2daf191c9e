"""`Drafter.shows_q`: a replay sees q, and drafts the very tokens of the timed run."""

from __future__ import annotations

import pytest

from specbench import registry, suite
from specbench.api import load
from specbench.engine.decode import Engine
from specbench.engine.watched import read_row
from specbench.method import Request
from specbench.sampling import Sampling


@pytest.fixture(scope="module")
def demo():
    return load("demo", dtype="float64")


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("method", ["draft_model", "lstm", "redrafter", "ctc"])
def test_q_is_shown_for_every_node_and_changes_no_token(demo, method, temperature):
    """The embedded drafters draft chains, which leave q out when they are timed."""
    engine = Engine(demo, sampling=Sampling(temperature=temperature), max_len=256)
    drafter = registry.build(registry.choose(method, {}, target_is_demo=True), engine.view())
    engine.reserve(drafter.max_nodes)
    prompt = tuple(suite.render(demo.tokenizer, [{"role": "user", "content": "What is 12 times 7?"}], "chat"))
    request = Request(key=3, prompt=prompt, max_new_tokens=16)
    seen = {}
    for shows_q in (False, True):
        drafter.shows_q = shows_q
        rows = []
        result = engine.generate(
            drafter, [request], watch=lambda step, rows=rows: rows.append(read_row(step, 0, sampling=engine.sampling))
        )
        seen[shows_q] = result.generations[0].tokens, [row.tokens for row in rows], [q for row in rows for q in row.q]
    assert seen[False][:2] == seen[True][:2]
    assert seen[False][2] and set(seen[False][2]) == {None}
    assert all(q is not None and 0 < q <= 1 + 1e-9 for q in seen[True][2])
    if temperature == 0:
        # The first choice of a law over at most V tokens is at least as probable as any other.
        assert min(seen[True][2]) >= 1 / demo.vocab_size
