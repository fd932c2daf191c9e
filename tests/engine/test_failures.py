"""What the engine refuses, and that a failed question leaves nothing behind for the next one."""

from __future__ import annotations

import gc

import psutil
import pytest
import torch

from specbench.engine.answer import NotFinite
from specbench.engine.decode import Engine
from specbench.engine.recorded import RecordedGraphs
from specbench.errors import UsageError
from specbench.lm.cached_lm import CachedLM
from specbench.lm.chain import ChainDrafter
from specbench.lm.draft_tree import TreeDrafter, TreeShape
from specbench.method import DraftNoise, DraftTree
from specbench.sampling import Sampling
from tests.helpers import NoDrafter, RefDrafter, requests_for, tiny_lm

POISON = 63
"""A token whose embedding is not a number."""


def _poisoned(value: float = float("nan"), *, family: str = "llama", attention_name: str | None = None) -> CachedLM:
    extra = {} if attention_name is None else {"attention_name": attention_name}
    lm = tiny_lm(family, tie_word_embeddings=False, **extra)
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[POISON] = value
    return lm


def _engine(lm: CachedLM, **changed: object) -> Engine:
    settings: dict[str, object] = {"sampling": Sampling(), "max_batch": 4, "max_len": 64, "max_nodes": 12, **changed}
    return Engine(lm, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1)], ids=str)
def test_nan_logits_after_the_prompt_fail_the_question(sampling: Sampling) -> None:
    with pytest.raises(NotFinite, match="NaN") as caught:
        _engine(_poisoned(), sampling=sampling).generate(NoDrafter(), requests_for([(1, POISON, 2)]))
    assert caught.value.exit_code == 3


class _Poisoner(RefDrafter):
    """Drafts the poisonous token: the verification of its node gives NaN while the root's is fine."""

    def __init__(self) -> None:
        super().__init__([[], []], kind="chain")

    def _guess(self, row: int, num: int) -> list[int]:
        return [POISON, 5]


def test_nan_logits_of_a_step_fail_the_question_whichever_node_has_them() -> None:
    with pytest.raises(NotFinite, match="step 0"):
        _engine(_poisoned()).generate(_Poisoner(), requests_for([(1, 2), (3, 4, 5)]))


class _Fork(NoDrafter):
    """Two children of the root and one of the second, never right; drafted by the step's graph, or on the host."""

    max_nodes = 3

    def __init__(self, *, capturable: bool) -> None:
        self.capturable = capturable

    def draft(self, noise: DraftNoise | None) -> DraftTree:
        parents_BN = torch.tensor([[-1, -1, 1]]).expand(self._num_rows, -1)
        return DraftTree(
            tokens_BN=torch.tensor([[60, 61, 62]]).expand_as(parents_BN), parents_BN=parents_BN, max_depth=2
        )


@pytest.mark.parametrize("slot", range(4))
@pytest.mark.parametrize("how", ["step by step", "drafted on the host", "captured whole"])
def test_nan_in_the_logits_of_a_single_node_fails_the_question(how: str, slot: int) -> None:
    """Its keys and values are numbers: no other slot's logits show it, and the answer would go on without a word."""
    lm = tiny_lm("llama", tie_word_embeddings=False)

    def spoil(_module: object, _inputs: object, logits: torch.Tensor) -> torch.Tensor:
        if logits.shape[1] > 1:  # a verification: the prompt's logits are those of its last token alone
            logits[-1, slot] = float("nan")
        return logits

    requests = requests_for([(1, 2), (3, 4, 5)])
    engine = _engine(lm, graphs=None if how == "step by step" else RecordedGraphs())
    drafter = _Fork(capturable=how == "captured whole")
    assert all(step.num_accepted == 0 for each in engine.generate(drafter, requests).generations for step in each.steps)
    lm.lm_head.register_forward_hook(spoil)
    engine.reserve(20)  # a larger cache: steps are captured anew
    with pytest.raises(NotFinite, match="at step 0"):
        engine.generate(drafter, requests)


def test_infinite_logits_fail_too() -> None:
    """16-bit overflow shows as infinity first."""
    lm = tiny_lm("llama")
    overflows = True

    def overflow(_module: object, _inputs: object, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(-1, torch.tensor([7]), float("inf")) if overflows else logits

    class Trigger(NoDrafter):
        def draft(self, noise: DraftNoise | None) -> DraftTree:
            nonlocal overflows
            overflows = True
            return super().draft(noise)

    lm.lm_head.register_forward_hook(overflow)
    with pytest.raises(NotFinite, match="after the prompt"):
        _engine(lm).generate(NoDrafter(), requests_for([(1, 2)]))
    overflows = False
    with pytest.raises(NotFinite, match="step 0"):
        _engine(lm).generate(Trigger(), requests_for([(1, 2)]))


@pytest.mark.parametrize("attention_name", ["specbench_fused", "specbench_plain"])
def test_a_failed_question_leaves_no_nan_for_the_next_batch(attention_name: str) -> None:
    """A short row's unused slots are masked, not erased: weight 0 times NaN would be NaN."""
    engine = _engine(_poisoned(attention_name=attention_name))
    requests = requests_for([(1, 2, 3, 4, 5, 6, 7, 8, 9), (4, 5)])
    wanted = [each.tokens for each in engine.generate(NoDrafter(), requests).generations]
    with pytest.raises(NotFinite):
        engine.generate(NoDrafter(), requests_for([(POISON,) * 30, (POISON,) * 30]))
    with pytest.raises(NotFinite):
        engine.generate(_Poisoner(), requests_for([(1, 2), (3, 4, 5)]))
    assert [each.tokens for each in engine.generate(NoDrafter(), requests).generations] == wanted


@pytest.mark.parametrize("is_captured", [False, True], ids=["steps", "captured"])
@pytest.mark.parametrize("shape", [None, TreeShape(beam_width=2)], ids=["chain", "tree"])
def test_a_draft_model_s_own_nan_is_told_and_forgotten(shape: TreeShape | None, is_captured: bool) -> None:
    """The target's numbers are fine and so is the text; the next question's drafts must not read what is left."""
    engine = _engine(tiny_lm("llama"), graphs=RecordedGraphs() if is_captured else None)
    draft, chain = tiny_lm("llama"), {"num_tokens": 3, "num_shared": 64}
    drafter = (
        ChainDrafter(draft, engine.view(), **chain)  # type: ignore[arg-type]
        if shape is None
        else TreeDrafter(draft, engine.view(), tree=shape, **chain)
    )
    table = draft.model.get_input_embeddings().weight
    assert isinstance(table, torch.Tensor)
    kept = table[POISON].clone()
    several, long = requests_for([(1, 2, 3, 4, 5, 6), (4, 5), (9,) * 9]), [(POISON,) * 30] * 3
    answered = [engine.generate(drafter, requests_for(long[:1])).generations]
    for requests in (several[1:2], several):
        wanted = engine.generate(drafter, requests)
        for num_new in (1, 8):  # one token alone: nothing is drafted behind the prompt
            table[POISON] = float("nan")
            poisoned = engine.generate(drafter, requests_for(long[: len(requests)], max_new_tokens=num_new))
            table[POISON] = kept
            assert wanted.is_draft_finite and not poisoned.is_draft_finite
            assert poisoned.generations[0].tokens == answered[0][0].tokens[:num_new]
            again = engine.generate(drafter, requests)
            assert again.is_draft_finite
            for mine, theirs in zip(again.generations, wanted.generations, strict=True):
                assert [step.num_accepted for step in mine.steps] == [step.num_accepted for step in theirs.steps]


def test_a_prompt_longer_than_the_cache_is_refused_with_the_numbers_and_the_option() -> None:
    with pytest.raises(UsageError, match=r"60 tokens \+ 24 new ones = 84, but the cache holds 64") as caught:
        _engine(tiny_lm("llama")).generate(NoDrafter(), requests_for([(1,) * 60]))
    assert caught.value.try_ == "--max-len 84"


def test_a_prompt_longer_than_the_model_is_refused_with_what_still_fits() -> None:
    engine = _engine(tiny_lm("llama"), max_len=500)
    with pytest.raises(UsageError, match="built for 128") as caught:
        engine.generate(NoDrafter(), requests_for([(1,) * 120]))
    assert caught.value.try_ == "--max-new-tokens 8"
    with pytest.raises(UsageError, match="built for 128") as caught:
        engine.generate(NoDrafter(), requests_for([(1,) * 128]))
    assert "longer context" in caught.value.try_


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(UsageError, match="empty"):
        _engine(tiny_lm("llama")).generate(NoDrafter(), requests_for([()]))


def test_a_token_outside_the_vocabulary_is_refused() -> None:
    for token in (64, -1):
        with pytest.raises(UsageError, match=rf"token id {token} is outside the vocabulary"):
            _engine(tiny_lm("llama")).generate(NoDrafter(), requests_for([(1, token)]))


def test_typical_needs_a_temperature() -> None:
    with pytest.raises(UsageError, match="temperature above 0"):
        _engine(tiny_lm("llama"), rule="typical")


def test_a_text_that_fills_the_cache_and_the_context_to_the_last_slot_is_decoded() -> None:
    """The limits are exact: one token more is refused, this one is not; drafts reach past both."""
    for family in ("gpt2", "llama", "mistral"):
        lm = tiny_lm(family)
        engine = _engine(lm, max_len=128)
        requests = requests_for([(5,) * 100, (6,) * 90], max_new_tokens=28)
        answers = [each.tokens for each in engine.generate(NoDrafter(), requests[:1]).generations]
        assert len(answers[0]) == 28
        for kind in ("chain", "tree"):
            again = engine.generate(RefDrafter([answers[0]], kind=kind, seed=3), requests[:1]).generations[0]
            assert again.tokens == answers[0]


@pytest.mark.slow
def test_memory_is_flat_over_two_hundred_questions() -> None:
    """Resident memory after question 20 and after question 200 within 2 %."""
    lm = tiny_lm("llama", dtype=torch.float32)
    engine = _engine(lm, sampling=Sampling(temperature=1.0, repetition_penalty=1.1))
    process = psutil.Process()
    seen = []
    for question in range(200):
        requests = requests_for([(question % 60 + 1,) * (3 + question % 20)], max_new_tokens=12, first_id=question)
        engine.generate(RefDrafter([[1, 2, 3]], kind="tree", seed=question, hit=0.3), requests)
        if question in (20, 199):
            gc.collect()
            seen.append(process.memory_info().rss)
    assert seen[1] <= seen[0] * 1.02
