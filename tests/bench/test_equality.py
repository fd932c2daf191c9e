"""Classes of difference from the reference (measurement 12), with the planted cache slip that must be a bug."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from specbench.bench.equality import EqualityCheck, Noise, first_difference, measure_noise_floor, measure_rounding
from specbench.engine.decode import Engine
from specbench.lm.kv_cache import KVCache
from specbench.method import Request
from specbench.sampling import Sampling, sequence_key
from tests.helpers import NoDrafter, RefDrafter, tiny_lm

PROMPT = (5, 9, 9, 2, 0, 7, 11)
KEY = sequence_key(seed=0, question_id="q", turn=0)


def engine_of(lm, sampling=None):
    return Engine(lm, sampling=sampling or Sampling(), max_len=80, max_nodes=16)


def answer(engine, drafter, num=40):
    request = Request(key=KEY, prompt=PROMPT, max_new_tokens=num)
    return engine.generate(drafter, [request]).generations[0].tokens


def test_first_difference_finds_the_place_and_the_missing_end():
    assert first_difference([1, 2, 3], [1, 2, 3]) is None
    assert first_difference([1, 9, 3], [1, 2, 3]) == 1
    assert first_difference([1, 2], [1, 2, 3]) == 2


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.8, repetition_penalty=1.2)])
def test_equal_tokens_are_identical(sampling):
    lm = tiny_lm()
    tokens = answer(engine_of(lm, sampling), NoDrafter())
    check = EqualityCheck(lm, sampling, noise_floor=1e-9)
    assert check.verdict(PROMPT, tokens, tokens, key=KEY).verdict == "identical"


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.8, top_p=0.9)])
def test_a_token_the_model_would_never_write_is_a_bug(sampling):
    lm = tiny_lm()
    reference = answer(engine_of(lm, sampling), NoDrafter())
    wrong = (*reference[:5], (reference[5] + 1) % 64, *reference[6:])
    verdict = EqualityCheck(lm, sampling, noise_floor=1e-9).verdict(PROMPT, wrong, reference, key=KEY)
    assert (verdict.verdict, verdict.first_difference) == ("bug", 5)
    assert verdict.gap is not None and verdict.gap > 1e-6


def test_a_difference_within_the_noise_floor_is_a_tie():
    lm = tiny_lm()
    reference = answer(engine_of(lm), NoDrafter())
    wrong = (*reference[:5], (reference[5] + 1) % 64)
    verdict = EqualityCheck(lm, Sampling(), noise_floor=1e6).verdict(PROMPT, wrong, reference, key=KEY)
    assert verdict.verdict == "tie"


def test_when_an_ordinary_forward_yields_the_methods_token_the_difference_is_numeric():
    """Here the reference is the one that is off: the model itself sides with the method."""
    lm = tiny_lm()
    true = answer(engine_of(lm), NoDrafter())
    strange_reference = (*true[:5], (true[5] + 1) % 64)
    verdict = EqualityCheck(lm, Sampling(), noise_floor=1e-9).verdict(PROMPT, true[:6], strange_reference, key=KEY)
    assert verdict.verdict == "numeric"


def test_an_answer_that_ends_elsewhere_is_a_bug():
    lm = tiny_lm()
    reference = answer(engine_of(lm), NoDrafter())
    check = EqualityCheck(lm, Sampling(), noise_floor=1.0)
    assert check.verdict(PROMPT, reference[:-1], reference, key=KEY).verdict == "bug"


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0)])
def test_a_planted_cache_slip_of_one_slot_is_classed_a_bug(sampling, monkeypatch):
    """The control of the whole check: compaction that copies from one slot too far must not pass as rounding."""
    lm = tiny_lm()
    engine = engine_of(lm, sampling)
    reference = answer(engine, NoDrafter())
    floor = measure_noise_floor(lm, [(PROMPT, reference)], num_nodes=8)
    check = EqualityCheck(lm, sampling, noise_floor=floor)
    honest = answer(engine, RefDrafter([reference], kind="tree", seed=3))
    assert check.verdict(PROMPT, honest, reference, key=KEY).verdict == "identical"

    right = KVCache.compact

    def slipped(self: KVCache, path_slots_BC: torch.Tensor) -> None:
        right(self, torch.where(path_slots_BC > 0, path_slots_BC + 1, path_slots_BC))

    monkeypatch.setattr(KVCache, "compact", slipped)
    verdicts = set()
    for seed in range(4):
        broken = answer(engine, RefDrafter([reference], kind="tree", seed=seed))
        verdicts.add(check.verdict(PROMPT, broken, reference, key=KEY).verdict)
    assert "bug" in verdicts and not verdicts & {"tie", "numeric"}


def test_the_noise_floor_is_rounding_and_not_more():
    lm = tiny_lm(dtype=torch.float32)
    reference = answer(engine_of(lm), NoDrafter())
    floor = measure_noise_floor(lm, [(PROMPT, reference)], num_nodes=8)
    assert 0 < floor < 1e-3


def test_the_noise_floor_sees_a_slip(monkeypatch):
    """If verification read another context than decoding, the floor would show it: the measurement can fail."""
    lm = tiny_lm()
    reference = answer(engine_of(lm), NoDrafter())
    right = type(lm).verify
    monkeypatch.setattr(type(lm), "verify", lambda self, root, tree: right(self, (root + 1) % 64, tree))
    assert measure_noise_floor(lm, [(PROMPT, reference)], num_nodes=8) > 1e-3


def noise_of(lm, *, nodes=8, num=40):
    reference = answer(engine_of(lm), NoDrafter(), num)
    answered = [(PROMPT, reference)]
    measured = measure_noise_floor(lm, answered, num_nodes=nodes)
    return reference, Noise(measured=measured, rounding=measure_rounding(lm, answered, num_nodes=nodes))


def off_by_one(monkeypatch, lm):
    """A verification whose slots answer for their neighbours', as a wrong row of logits would make it."""
    right = type(lm).verify

    def shifted(self, root, tree):
        verified = right(self, root, tree)
        return dataclasses.replace(verified, logits_BMV=verified.logits_BMV.roll(1, dims=1))

    monkeypatch.setattr(type(lm), "verify", shifted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "mixtral"])
def test_what_honest_verification_differs_by_is_rounding(family, dtype):
    """Whatever the floor is in a type that rounds coarsely, answers are judged by it as they were."""
    _, noise = noise_of(tiny_lm(family, dtype=dtype))
    assert noise.is_rounding and noise.floor == noise.measured and noise.complaint(dtype) == ""
    assert noise.rounding < 1 if dtype == torch.bfloat16 else noise.rounding < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_verification_does_not_excuse_its_own_answers(monkeypatch, dtype):
    """The floor is measured with the code that is judged: off by a slot, it would call every wrong answer a tie."""
    lm = tiny_lm(dtype=dtype)
    reference, honest = noise_of(lm)
    off_by_one(monkeypatch, lm)
    _, wrong = noise_of(lm)
    assert wrong.measured > 0.3 and not wrong.is_rounding and wrong.floor == wrong.rounding
    # The yardstick is transformers' own: what is wrong with our verification does not reach it.
    assert wrong.rounding == pytest.approx(honest.rounding, rel=0.5)
    said = wrong.complaint(dtype)
    assert "are bugs here, not ties" in said and "--attention plain" in said and str(dtype).split(".")[1] in said
    check = EqualityCheck(lm, Sampling(), noise_floor=wrong.floor)
    broken = answer(engine_of(lm), RefDrafter([reference], kind="chain", seed=0))
    verdict = check.verdict(PROMPT, broken, reference, key=KEY)
    assert verdict.verdict == "bug"
    trusting = EqualityCheck(lm, Sampling(), noise_floor=wrong.measured)
    assert trusting.verdict(PROMPT, broken, reference, key=KEY).verdict == "tie"


def test_a_verification_that_is_not_finite_is_no_rounding(monkeypatch):
    lm = tiny_lm(dtype=torch.float32)
    right = type(lm).verify

    def poisoned(self, root, tree):
        verified = right(self, root, tree)
        factor = float("nan") if tree.num_nodes else 1.0
        return dataclasses.replace(verified, logits_BMV=verified.logits_BMV * factor)

    monkeypatch.setattr(type(lm), "verify", poisoned)
    _, noise = noise_of(lm)
    assert noise.measured == math.inf and 0 < noise.floor < 1e-3


def test_rounding_is_measured_without_our_cache_and_leaves_the_model_as_it_was():
    lm = tiny_lm()
    engine = engine_of(lm)
    before, used = answer(engine, NoDrafter()), lm.model.config._attn_implementation
    lm.begin(1)
    lm.prefill(0, torch.tensor(PROMPT))
    lengths = list(lm.lengths)
    spread = lm.own_spread([*PROMPT, *before], num_last=5)
    assert lm.lengths == lengths and lm.model.config._attn_implementation == used
    assert 0 <= spread.difference < 1e-5 and spread.largest > 0.5
    assert answer(engine, NoDrafter()) == before
    assert measure_rounding(lm, [(PROMPT, before[:1])], num_nodes=4) == 0.0


def test_rounding_is_measured_behind_the_end_of_a_long_prompt():
    """Of 300 learned positions: reading all of a prompt of 420 tokens would fail, and take long where it does not."""
    lm = tiny_lm("gpt2", max_position_embeddings=300)
    assert measure_rounding(lm, [(PROMPT * 60, (1, 2, 3, 4))], num_nodes=2) > 0
