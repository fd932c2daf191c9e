"""Captured steps of quantised targets: the same tokens as step by step, or no capturing at all."""

from __future__ import annotations

import importlib.util

import pytest

from specbench.engine.decode import Engine
from specbench.engine.recorded import RecordedGraphs
from specbench.lm import quantise
from specbench.lm.cached_lm import CachedLM
from specbench.lm.chain import ChainDrafter
from specbench.sampling import Sampling
from tests.helpers import CPU, VOCAB, NoDrafter, RefDrafter, requests_for, tiny_lm, tiny_model

needs_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="needs torchao: pip install 'specbench[quant]'"
)
GREEDY = Sampling(temperature=0.0)


def engine_of(lm: CachedLM, *, is_captured: bool) -> Engine:
    graphs = RecordedGraphs() if is_captured else None
    return Engine(lm, sampling=GREEDY, max_batch=4, max_len=64, max_nodes=12, prefill_chunk=8, graphs=graphs)


@needs_torchao
@pytest.mark.parametrize("kind", ["chain", "tree"])
def test_captured_steps_of_a_quantised_target_are_those_of_the_plain_loop(kind: str) -> None:
    """float64, so token for token; the graph replays the operators of torchao's products on the quantised tensors."""
    model = tiny_model()
    scheme = quantise.quantise(model, "fp8", device=CPU, where="--quantisation")
    lm = CachedLM(model, name="tiny-fp8", quantisation=scheme.name, is_capturable=scheme.is_capturable)
    plain, captured = (engine_of(lm, is_captured=is_captured) for is_captured in (False, True))
    requests = requests_for()
    answers = [each.tokens for each in plain.generate(NoDrafter(), requests).generations]
    drafter = RefDrafter(answers, kind=kind, seed=1)
    found = captured.generate(drafter, requests).generations
    assert [each.tokens for each in found] == answers
    assert captured.graphs is not None and captured.graphs.num_graphs(drafter) and not captured.graphs.refusal(drafter)
    assert sum(step.num_accepted for each in found for step in each.steps) > 0


def test_a_target_that_cannot_be_captured_is_decoded_step_by_step() -> None:
    lm = CachedLM(tiny_model(), name="tiny", is_capturable=False)
    engine = engine_of(lm, is_captured=True)
    assert engine.graphs is None
    wanted = engine_of(tiny_lm(), is_captured=False).generate(NoDrafter(), requests_for()).generations
    found = engine.generate(NoDrafter(), requests_for()).generations
    assert [each.tokens for each in found] == [each.tokens for each in wanted]


@pytest.mark.parametrize("is_capturable", [True, False])
def test_nor_is_a_drafter_whose_draft_model_cannot_be(is_capturable: bool) -> None:
    draft = CachedLM(tiny_model(seed=2), name="draft", is_capturable=is_capturable)
    view = engine_of(tiny_lm(), is_captured=False).view()
    drafter = ChainDrafter(draft, view, num_tokens=2, num_shared=VOCAB, picks="greedy")
    assert drafter.capturable == is_capturable
