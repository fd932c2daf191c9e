"""The rule `rejection` against the enumerated law of a tiny vocabulary; a wrong rule fails the same test.

Every key is fixed: the p-values are the same at every run. A right rule must reach P_VALUE, a wrong one must fall
below it.
"""

from __future__ import annotations

import pytest
import torch

from specbench.conformance.targets import TableLM, enumerated_law
from specbench.engine.decode import Engine
from specbench.engine.recorded import RecordedGraphs
from specbench.lm.chain import ChainDrafter
from specbench.method import Drafter
from specbench.sampling import Sampling
from tests.engine.tables import SampledChain, SiblingTree, chi_square, draw, random_tables
from tests.helpers import NoDrafter, disturbed_lm, requests_for, tiny_lm

P_VALUE = 1e-4
NUM = 4000

SAMPLINGS = [Sampling(temperature=1.0), Sampling(temperature=0.7, top_k=4, top_p=0.95)]


def _drafters(q: torch.Tensor, sampling: Sampling) -> dict[str, Drafter]:
    return {
        "plain steps": NoDrafter(),
        "chain drawn from q": SampledChain(q, sampling),
        "two siblings without replacement": SiblingTree(q, sampling, width=2, is_drawn=True),
        "three siblings without replacement": SiblingTree(q, sampling, width=3, is_drawn=True),
        "a beam, a point mass each": SiblingTree(q, sampling, width=2, is_drawn=False),
    }


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["T=1", "T=0.7 top-k top-p"])
@pytest.mark.parametrize("name", _drafters(torch.zeros(5, 5), Sampling(temperature=1.0)))
def test_the_joint_law_of_three_tokens_is_the_targets(name: str, sampling: Sampling) -> None:
    """125 answers of a vocabulary of five; accepted, corrected and bonus tokens all take part."""
    p, q = random_tables(5, seed=3)
    answers = draw(TableLM(p), _drafters(q, sampling)[name], sampling, rule="rejection", num=NUM, length=3)
    assert chi_square(answers, enumerated_law(p, sampling, length=3)) > P_VALUE


@pytest.mark.parametrize("closeness", [0.0, 0.95], ids=["a poor draft", "a good draft"])
def test_the_law_does_not_depend_on_how_good_the_draft_is(closeness: float) -> None:
    sampling = Sampling(temperature=1.0)
    p, q = random_tables(6, seed=8, closeness=closeness)
    law = enumerated_law(p, sampling, length=2)
    for drafter in (SampledChain(q, sampling), SiblingTree(q, sampling, width=3, is_drawn=True)):
        assert chi_square(draw(TableLM(p), drafter, sampling, rule="rejection", num=NUM, length=2), law) > P_VALUE


def test_a_draft_that_is_the_target_is_always_accepted() -> None:
    """min(1, p/q) = 1 for every draw: 1 prefill token, then steps of four tokens."""
    sampling = Sampling(temperature=1.0)
    p, _ = random_tables(5, seed=3)
    engine = Engine(TableLM(p), sampling=sampling, rule="rejection", max_batch=4, max_len=40, max_nodes=3)
    result = engine.generate(SampledChain(p, sampling), requests_for([(0, 1)] * 4, max_new_tokens=13))
    for generation in result.generations:
        assert all(step.num_accepted == 3 for step in generation.steps)


def test_captured_steps_draw_the_targets_law() -> None:
    """Drafts of a graph have noise of their own too. Here half of them are rejected, and what is left of p has two
    tokens: drawn with the noise of which the rejected one had most, they come too seldom and too often (p = 2e-19)."""
    sampling = Sampling(temperature=1.0)
    p, q = (
        torch.tensor(each, dtype=torch.float64).log().expand(3, 3) for each in ([0.1, 0.55, 0.35], [0.5, 0.45, 0.05])
    )
    captured, plain = (
        draw(TableLM(p), SampledChain(q, sampling), sampling, rule="rejection", num=NUM, length=3, graphs=graphs)
        for graphs in (RecordedGraphs(), None)
    )
    assert chi_square(captured, enumerated_law(p, sampling, length=3)) > P_VALUE
    assert captured == plain


def test_captured_steps_are_those_of_the_plain_loop_until_a_length_shortens_its_drafts() -> None:
    """Near the limit the plain loop drafts what still fits, a captured step all it ever does. Where less is drafted the
    next token is drawn, where more is, it may be an accepted one: both by the target's law, and not the same."""
    lm, num = tiny_lm("llama"), 4
    plain, captured = (
        Engine(
            lm, sampling=Sampling(temperature=1.0), rule="rejection", max_batch=4, max_len=80, max_nodes=num, graphs=g
        )
        for g in (None, RecordedGraphs())
    )
    one, other = (
        ChainDrafter(disturbed_lm(noise=0.3), each.view(), num_tokens=num, num_shared=lm.vocab_size, picks="sampled")
        for each in (plain, captured)
    )
    num_accepted = num_rejected = 0
    for seed in range(3):
        requests = requests_for(max_new_tokens=30, seed=seed)
        wanted = plain.generate(one, requests).generations
        found = captured.generate(other, requests).generations
        for request, mine, theirs in zip(requests, found, wanted, strict=True):
            # A step behind c tokens drafts `num` of them and draws one more: whole where c + num + 1 fit.
            same = request.max_new_tokens - num
            assert mine.tokens[:same] == theirs.tokens[:same]
            assert len(mine.tokens) == len(theirs.tokens) == request.max_new_tokens
            whole = [step for step in theirs.steps if step.num_nodes == num and not step.num_truncated]
            for ours, step in zip(mine.steps, whole, strict=False):
                assert (ours.tokens, ours.num_accepted, ours.ranks) == (step.tokens, step.num_accepted, step.ranks)
                num_accepted += step.num_accepted
                num_rejected += step.num_accepted < num
    assert num_accepted > 20 and num_rejected > 20, "laws that both accept and reject"
    assert captured.graphs is not None and captured.graphs.num_graphs(other) and not captured.graphs.refusal(other)


def _worked_example() -> tuple[torch.Tensor, torch.Tensor]:
    """p = (.5, .3, .2), q = (.6, .3, .1), whatever the last token."""
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log().expand(3, 3)
    q = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64).log().expand(3, 3)
    return p, q


def test_the_ratio_test_on_a_deterministic_beam_fails_the_same_test() -> None:
    """The control. A beam's best token is not a draw of q: accepting it with min(1, p/q) and resampling from max(0, p
    - q) gives (5/6, 0, 1/6) instead of (.5, .3, .2), and its second token can never appear (redrafter's own sampling
    path)."""
    sampling = Sampling(temperature=1.0)
    p, q = _worked_example()
    lying = SiblingTree(q, sampling, width=1, is_drawn=False, lies=True)
    answers = [answer[1:] for answer in draw(TableLM(p), lying, sampling, rule="rejection", num=NUM, length=2)]
    assert chi_square(answers, enumerated_law(p, sampling, length=1)) < P_VALUE
    assert chi_square(answers, {(0,): 5 / 6, (1,): 0.0, (2,): 1 / 6}) > P_VALUE
    honest = SiblingTree(q, sampling, width=1, is_drawn=True)
    answers = [answer[1:] for answer in draw(TableLM(p), honest, sampling, rule="rejection", num=NUM, length=2)]
    assert chi_square(answers, enumerated_law(p, sampling, length=1)) > P_VALUE


@pytest.mark.parametrize("width", [2, 3])
def test_wider_beams_that_claim_to_be_draws_fail_too(width: int) -> None:
    sampling = Sampling(temperature=1.0)
    p, q = random_tables(5, seed=3)
    lying = SiblingTree(q, sampling, width=width, is_drawn=False, lies=True)
    answers = draw(TableLM(p), lying, sampling, rule="rejection", num=NUM, length=3)
    assert chi_square(answers, enumerated_law(p, sampling, length=3)) < P_VALUE


def test_more_siblings_than_the_filters_leave_tokens_are_skipped() -> None:
    """top-k 2 leaves two tokens; the third and fourth child have probability 0 and were not drawn: accepting one
    would be wrong."""
    wide, narrow = Sampling(temperature=1.0), Sampling(temperature=1.0, top_k=2)
    p, q = random_tables(5, seed=3, closeness=0.0)
    drafter = SiblingTree(q, narrow, width=4, is_drawn=True)
    answers = draw(TableLM(p), drafter, wide, rule="rejection", num=NUM, length=2)
    assert chi_square(answers, enumerated_law(p, wide, length=2)) > P_VALUE


def test_typical_is_lossy() -> None:
    """It keeps what the draft proposes above a bar: another law than the target's, and so labelled."""
    sampling = Sampling(temperature=1.0)
    p, q = random_tables(5, seed=3)
    answers = draw(TableLM(p), SampledChain(q, sampling), sampling, rule="typical", num=NUM, length=3)
    assert chi_square(answers, enumerated_law(p, sampling, length=3)) < P_VALUE


def test_coupled_draws_the_targets_law_with_drafts_of_its_own_noise() -> None:
    """The default rule over many keys: seeded, exact per key, and the right law over keys."""
    sampling = Sampling(temperature=1.0)
    p, q = random_tables(5, seed=3)
    law = enumerated_law(p, sampling, length=3)
    answers = draw(TableLM(p), SampledChain(q, sampling), sampling, rule="coupled", num=NUM, length=3)
    assert chi_square(answers, law) > P_VALUE
    assert answers == draw(TableLM(p), NoDrafter(), sampling, rule="coupled", num=NUM, length=3)
