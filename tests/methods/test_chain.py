"""The chain drafter keeps a second model's cache in step: what it drafts is what that model alone would write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import PROMPTS, NoDrafter, disturbed_lm, plain_logits, requests_for, tiny_lm, tiny_model

from specbench.engine.decode import Engine
from specbench.engine.stop import Stop
from specbench.lm.adaptive_length import AdaptiveLength, Evidence
from specbench.lm.cached_lm import CachedLM
from specbench.lm.chain import ChainDrafter
from specbench.lm.taps import decoder_of
from specbench.method import Commit, DraftNoise, DraftTree, Request
from specbench.metrics import leviathan
from specbench.sampling import Sampling

SAMPLINGS = [
    Sampling(),
    Sampling(temperature=1.0),
    Sampling(temperature=0.7, top_k=20, top_p=0.9, repetition_penalty=1.3),
    Sampling(repetition_penalty=1.5),
]


def _engine(sampling: Sampling, **kwargs: Any) -> Engine:
    return Engine(
        tiny_lm(), sampling=sampling, max_batch=4, max_len=100, max_nodes=8, stop=Stop(ids=frozenset({3})), **kwargs
    )


def _adaptive() -> AdaptiveLength:
    return AdaptiveLength(first=3, maximum=8, cost_ratio=0.1)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("picks", ["shared-noise", "greedy", "sampled", "adaptive"])
def test_the_text_is_the_autoregressive_one_alone_and_in_a_ragged_batch(sampling: Sampling, picks: str) -> None:
    engine = _engine(sampling)
    requests = requests_for(max_new_tokens=30)
    expected = [engine.generate(NoDrafter(), [request]).generations[0].tokens for request in requests]
    drafter = ChainDrafter(
        disturbed_lm(),
        engine.view(),
        num_tokens=4,
        num_shared=64,
        picks="shared-noise" if picks == "adaptive" else picks,  # type: ignore[arg-type]
        adaptive=_adaptive() if picks == "adaptive" else None,
    )
    alone = [engine.generate(drafter, [request]).generations[0].tokens for request in requests]
    assert alone == expected
    assert [answer.tokens for answer in engine.generate(drafter, requests).generations] == expected


def test_a_row_accepts_the_same_alone_and_in_a_ragged_batch() -> None:
    """A slip in the draft's ragged cache never changes the text; it shows in what is accepted."""
    engine = _engine(Sampling(temperature=1.0))
    requests = requests_for(max_new_tokens=40)
    drafter = ChainDrafter(disturbed_lm(), engine.view(), num_tokens=4, num_shared=64)

    def accepted(rows: list[Request]) -> list[list[int]]:
        return [[step.num_accepted for step in each.steps] for each in engine.generate(drafter, rows).generations]

    alone = [accepted([request])[0] for request in requests]
    assert accepted(requests) == alone
    assert {0, 4} <= {count for row in alone for count in row}, "some rejected at once, some accepted whole"


class _Watched(ChainDrafter):
    """Keeps what it drafted, and counts its model's forwards."""

    def __init__(self, lm: CachedLM, *args: Any, **kwargs: Any) -> None:
        super().__init__(lm, *args, **kwargs)
        self.drafts: list[list[int]] = []
        self.num_forwards = 0
        decoder = decoder_of(lm.model)
        forward: Callable[..., Any] = decoder.forward

        def counted(*inputs: Any, **named: Any) -> Any:
            self.num_forwards += 1
            return forward(*inputs, **named)

        decoder.forward = counted  # type: ignore[method-assign]

    def start(self, len_B: list[int], root_B: torch.Tensor) -> None:
        super().start(len_B, root_B)
        self.num_forwards = 0

    def draft(self, noise: DraftNoise | None) -> DraftTree:
        tree = super().draft(noise)
        self.drafts.append(tree.tokens_BN[0].tolist())
        return tree


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_the_drafts_are_those_of_plain_forwards_of_the_draft_model(family: str) -> None:
    engine = _engine(Sampling())
    draft_lm = disturbed_lm(family=family)
    oracle = disturbed_lm(family=family)
    drafter = _Watched(draft_lm, engine.view(), num_tokens=4, num_shared=64)
    request = requests_for(PROMPTS[:1], max_new_tokens=30)[0]
    answer = engine.generate(drafter, [request]).generations[0]
    text = [*request.prompt, answer.tokens[0]]
    for step, drafted in zip(answer.steps, drafter.drafts, strict=True):
        path: list[int] = []
        for _ in drafted:
            path.append(int(plain_logits(oracle, [*text, *path])[-1].argmax()))
        assert drafted == path
        text += step.tokens


def test_a_step_costs_one_forward_a_drafted_token_and_no_more() -> None:
    engine = _engine(Sampling())
    drafter = _Watched(disturbed_lm(), engine.view(), num_tokens=4, num_shared=64)
    answer = engine.generate(drafter, requests_for(PROMPTS[:1], max_new_tokens=40)).generations[0]
    assert {step.num_accepted for step in answer.steps} >= {4}, "whole chains were accepted, too"
    assert drafter.num_forwards == sum(step.num_nodes for step in answer.steps)


def test_no_more_is_drafted_than_the_answer_has_room_for() -> None:
    engine = _engine(Sampling())
    drafter = ChainDrafter(disturbed_lm(noise=0.0), engine.view(), num_tokens=4, num_shared=64)
    steps = engine.generate(drafter, requests_for(PROMPTS[2:3], max_new_tokens=9)).generations[0].steps
    assert [step.num_nodes for step in steps] == [4, 2]


def test_past_the_draft_models_context_nothing_is_drafted_and_the_text_stays() -> None:
    engine = _engine(Sampling())
    requests = requests_for(max_new_tokens=30)
    expected = [engine.generate(NoDrafter(), [request]).generations[0].tokens for request in requests]
    drafter = ChainDrafter(disturbed_lm(max_position_embeddings=18), engine.view(), num_tokens=4, num_shared=64)
    for request, tokens in zip(requests, expected, strict=True):
        answer = engine.generate(drafter, [request]).generations[0]
        assert answer.tokens == tokens
        assert any(step.num_nodes for step in answer.steps) == (len(request.prompt) < 18)
        length = len(request.prompt) + 1
        for step in answer.steps:
            # The last drafted token is not read: 18 positions hold the text and all drafted tokens but one.
            assert step.num_nodes <= max(18 + 1 - length, 0)
            length += step.num_committed
    assert [answer.tokens for answer in engine.generate(drafter, requests).generations] == expected


@pytest.mark.parametrize(("draft_size", "num_shared"), [(48, 48), (80, 64), (64, 50)])
def test_a_padded_vocabulary_never_proposes_an_id_that_is_not_shared(draft_size: int, num_shared: int) -> None:
    for sampling in (Sampling(), Sampling(temperature=1.0, repetition_penalty=1.2)):
        engine = _engine(sampling)
        lm = CachedLM(tiny_model(seed=3, vocab_size=draft_size), name="draft")
        drafter = _Watched(lm, engine.view(), num_tokens=4, num_shared=num_shared)
        requests = requests_for([(1, 2, 63, 62), (60, 61, 5)], max_new_tokens=30)
        expected = [engine.generate(NoDrafter(), [request]).generations[0].tokens for request in requests]
        assert [engine.generate(drafter, [request]).generations[0].tokens for request in requests] == expected
        assert max(token for row in drafter.drafts for token in row) < num_shared


def test_under_rejection_row_i_of_the_law_is_that_of_slot_i() -> None:
    """A law one row off would pass unnoticed by every test of equality and make speculative sampling wrong."""
    sampling = Sampling(temperature=0.8)
    engine = _engine(sampling, rule="rejection")
    oracle = disturbed_lm()
    laws: list[tuple[list[int], torch.Tensor]] = []

    class Kept(ChainDrafter):
        def draft(self, noise: DraftNoise | None) -> DraftTree:
            tree = super().draft(noise)
            if tree.logq_BMV is not None:
                laws.append((tree.tokens_BN[0].tolist(), tree.logq_BMV[0]))
            return tree

    drafter = Kept(disturbed_lm(), engine.view(), num_tokens=3, num_shared=64, picks="sampled")
    request = requests_for(PROMPTS[:1], max_new_tokens=6)[0]
    answer = engine.generate(drafter, [request]).generations[0]
    drafted, law_MV = laws[0]
    text = [*request.prompt, answer.tokens[0]]
    for slot in range(len(drafted)):
        expected_V = (plain_logits(oracle, [*text, *drafted[:slot]])[-1] / 0.8).log_softmax(-1)
        # transformers' own norms and softmax compute in float32.
        torch.testing.assert_close(law_MV[slot], expected_V, atol=1e-6, rtol=0)
    assert law_MV.shape[0] == len(drafted) + 1


def test_adaptive_length_follows_the_acceptance_it_sees() -> None:
    length = AdaptiveLength(first=4, maximum=8, cost_ratio=0.1)
    assert length.num_tokens() == 4, "nothing is known yet"
    for _ in range(60):
        length.learn([length.num_tokens()], [length.num_tokens()])
    assert length.num_tokens() == 8
    for _ in range(80):
        length.learn([0], [length.num_tokens()])
    assert length.num_tokens() == 1


def test_adaptive_length_is_the_maximum_of_the_expected_improvement() -> None:
    length = AdaptiveLength(first=4, maximum=8, cost_ratio=0.1)
    length.evidence = Evidence(num_accepted=14.0, num_tried=20.0)
    gains = [leviathan(alpha=0.7, gamma=num, c=0.1) for num in range(1, 9)]
    assert length.num_tokens() == 1 + gains.index(max(gains)) == 4


def test_a_rejected_row_counts_the_positions_it_tried() -> None:
    length = AdaptiveLength(first=4, maximum=8, cost_ratio=0.1)
    length.learn([0, 2, 4], [4, 4, 4])
    assert length.evidence == Evidence(num_accepted=6.0, num_tried=1 + 3 + 4)


def test_a_row_tried_no_more_than_it_had_room_to_draft() -> None:
    length = AdaptiveLength(first=4, maximum=8, cost_ratio=0.1)
    length.learn([0, 2, 4], [0, 2, 4])
    seen = length.evidence
    assert seen == Evidence(num_accepted=6.0, num_tried=0 + 2 + 4)
    for accepted, drafted in (([], []), ([0], [0])):
        length.learn(accepted, drafted)
    assert length.evidence is seen, "a step that tried nothing makes nothing older"


class _Followed(ChainDrafter):
    """Is told of its own drafts as a method that wraps it tells it."""

    def commit(self, commit: Commit) -> None:
        self.follow(commit, [True] * len(commit.tokens))


@pytest.mark.parametrize("kind", [ChainDrafter, _Followed])
def test_rows_that_cannot_draft_say_nothing_about_the_draft(kind: type[ChainDrafter]) -> None:
    """A row past the draft model's context would otherwise count as a rejection at every step."""
    engine = Engine(tiny_lm(), sampling=Sampling(), max_batch=2, max_len=100, max_nodes=8)
    requests = requests_for([PROMPTS[0][:3], tuple(range(5, 35))], max_new_tokens=20)
    found = []
    for rows in (requests[:1], requests):
        drafter = kind(
            disturbed_lm(max_position_embeddings=24), engine.view(), num_tokens=3, num_shared=64, adaptive=_adaptive()
        )
        steps = [answer.steps for answer in engine.generate(drafter, rows).generations]
        assert len(rows) == 1 or (len(steps[1]) > len(steps[0]) and not any(step.num_nodes for step in steps[1]))
        found.append(drafter.snapshot())
    assert found[0] != Evidence() and found[1] == found[0]


def test_an_adaptive_drafter_restored_to_its_snapshot_repeats_its_steps() -> None:
    engine = _engine(Sampling(temperature=1.0))
    drafter = ChainDrafter(disturbed_lm(), engine.view(), num_tokens=3, num_shared=64, adaptive=_adaptive())
    assert drafter.carries == "stream"
    requests = requests_for(max_new_tokens=40)
    before = drafter.snapshot()

    def shapes() -> list[int]:
        return [
            step.num_nodes for request in requests for step in engine.generate(drafter, [request]).generations[0].steps
        ]

    first = shapes()
    assert drafter.snapshot() != before
    assert shapes() != first, "what was learnt goes on to matter"
    drafter.restore(before)
    assert shapes() == first


def test_a_fixed_length_carries_nothing() -> None:
    engine = _engine(Sampling())
    drafter = ChainDrafter(disturbed_lm(), engine.view(), num_tokens=3, num_shared=64)
    assert drafter.carries == "nothing"
    assert drafter.snapshot() is None
