"""A compiled forward is the same forward: trees, ragged rows, windows, caps and sinks, and the states methods read.

Most families are traced without code being generated (backend aot_eager), which shows everything but inductor's own
arithmetic; one goes through inductor.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from specbench.engine.decode import Engine
from specbench.engine.stop import Stop
from specbench.errors import UsageError
from specbench.lm.cached_lm import CachedLM
from specbench.sampling import Sampling
from specbench.tree import from_lists
from tests.helpers import CPU, NoDrafter, RefDrafter, requests_for, tiny_lm

FAMILIES = ["gemma2", "granite"]
"""Windows and soft caps, in attention and behind the head; scaled logits."""
STOP = Stop(ids=frozenset({3, 17, 31, 40}))


def _compiled(family: str, *, backend: str = "aot_eager", **shape: Any) -> CachedLM:
    torch.compiler.reset()
    lm = tiny_lm(family, **shape)
    lm.compile(backend=backend)
    return lm


def _engine(lm: CachedLM, sampling: Sampling) -> Engine:
    return Engine(lm, sampling=sampling, max_batch=4, max_len=64, max_nodes=12, stop=STOP, prefill_chunk=8)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_compiled_target_writes_the_text_of_the_target(family: str) -> None:
    requests = requests_for()
    answers = _engine(tiny_lm(family), Sampling(temperature=1.0)).generate(NoDrafter(), requests).generations
    tokens = [each.tokens for each in answers]
    engine = _engine(_compiled(family), Sampling(temperature=1.0))
    for drafter in (NoDrafter(), RefDrafter(tokens, kind="tree", seed=2)):
        assert [each.tokens for each in engine.generate(drafter, requests).generations] == tokens
    assert engine.lm.compile_s > 0


def test_the_yardstick_of_rounding_is_not_compiled_and_what_follows_it_is() -> None:
    """A compiled forward attends through our cache, which has no part in what rounding alone makes."""
    plain, compiled = tiny_lm("granite"), _compiled("granite")
    ids = [1, 2, 3, 4, 8, 9, 5, 7]
    assert compiled.own_spread(ids, num_last=3) == plain.own_spread(ids, num_last=3)
    assert compiled.is_compiled and compiled.compile_s == 0
    compiled.allocate(max_batch=1, max_len=40, max_nodes=8)
    compiled.begin(1)
    compiled.prefill(0, torch.tensor(ids))
    assert compiled.compile_s > 0


def test_what_inductor_makes_of_a_tree_is_what_torch_makes_of_it() -> None:
    """float32: sums are taken in another order."""
    few: dict[str, Any] = {"dtype": torch.float32, "num_hidden_layers": 1}  # each layer is compiled by itself
    plain, compiled = tiny_lm("llama", **few), _compiled("llama", backend="inductor", **few)
    tree = from_lists([[3, 5, 7, 9, 4]], [[-1, 0, 1, 2, -1]], device=CPU)
    found = []
    for lm in (plain, compiled):
        lm.allocate(max_batch=1, max_len=40, max_nodes=8)
        lm.tap(("final",))
        lm.begin(1)
        lm.prefill(0, torch.tensor([1, 2, 3, 4, 8, 9]))  # as many as the tree has slots: one shape to compile
        verified = lm.verify(torch.tensor([6]), tree)
        assert verified.hidden_BMKD is not None
        found.append((verified.logits_BMV, verified.hidden_BMKD[:, :, 0]))
    for mine, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    assert compiled.is_compiled and compiled.compile_s > 0


def test_a_method_that_reads_layers_is_refused_by_a_compiled_target() -> None:
    lm = _compiled("llama")
    with pytest.raises(UsageError, match="between the target's layers"):
        lm.tap((0, "final"))
