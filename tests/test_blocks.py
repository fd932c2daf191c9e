"""What trained drafters share: trimmed vocabularies and borrowed heads."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from specbench.blocks import DraftVocabulary, SharedLaws, TargetHead, check_width, frequent_ids, parameter_report
from specbench.engine.decode import Engine
from specbench.errors import UsageError
from specbench.losses import Law, kl, top_law, whole_law
from specbench.sampling import Sampling
from tests.helpers import tiny_lm

IDS = torch.tensor([1, 3, 4])


def test_a_trimmed_vocabulary_translates_both_ways() -> None:
    vocabulary = DraftVocabulary(6, IDS)
    assert vocabulary.size == 3
    assert vocabulary.to_target(torch.tensor([[2, 0]])).tolist() == [[4, 1]]
    assert vocabulary.to_draft(torch.arange(6)).tolist() == [-1, 0, -1, 1, 2, -1]
    whole = DraftVocabulary(6)
    assert whole.size == 6
    assert whole.to_draft(torch.arange(6)).tolist() == list(range(6))
    assert whole.state_dict() == {}


def test_words_chosen_later_or_loaded_are_the_same_as_words_given() -> None:
    """The way back (target id -> index) is not saved; a loaded vocabulary must not keep that of another."""
    given, chosen, loaded = (
        DraftVocabulary(6, IDS),
        DraftVocabulary(6, num=3),
        DraftVocabulary(6, torch.tensor([0, 1, 2])),
    )
    assert not chosen.is_chosen
    chosen.set_ids(IDS)
    loaded.load_state_dict(given.state_dict())
    for each in (chosen, loaded):
        assert each.is_chosen
        assert each.to_draft(torch.arange(6)).tolist() == given.to_draft(torch.arange(6)).tolist()


def test_loading_inside_a_larger_module_finds_the_way_back_too() -> None:
    outer, other = (
        torch.nn.ModuleDict({"v": DraftVocabulary(6, num=3)}),
        torch.nn.ModuleDict({"v": DraftVocabulary(6, IDS)}),
    )
    outer.load_state_dict(other.state_dict())
    assert outer["v"].to_draft(torch.tensor([4])).tolist() == [2]


def test_a_law_restricted_to_a_trimmed_vocabulary_keeps_what_can_be_said_and_the_mass_of_the_rest() -> None:
    logits = torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    law, vocabulary = whole_law(logits), DraftVocabulary(6, IDS)
    whole = vocabulary.restrict(law)
    assert whole.log_tail_R is not None
    torch.testing.assert_close(whole.logp_RK, law.logp_RK[:, IDS])
    torch.testing.assert_close(whole.logp_RK.exp().sum(-1) + whole.log_tail_R.exp(), torch.ones(5, dtype=torch.float64))
    cut = vocabulary.restrict(top_law(law, 3))
    assert cut.ids_RK is not None and cut.log_tail_R is not None
    mass = cut.logp_RK.exp().sum(-1) + cut.log_tail_R.exp()
    torch.testing.assert_close(mass, torch.ones(5, dtype=torch.float64))
    for row in range(5):
        for logp, index in zip(cut.logp_RK[row].tolist(), cut.ids_RK[row].tolist(), strict=True):
            if logp > float("-inf"):
                assert logp == pytest.approx(float(law.logp_RK[row, IDS[index]]))


def test_a_drafter_that_says_what_it_can_in_the_targets_proportions_has_no_divergence() -> None:
    logits = torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    restricted = DraftVocabulary(6, IDS).restrict(whole_law(logits))
    assert kl(logits[:, IDS], restricted).abs().max() < 1e-12


@pytest.mark.parametrize(("kept", "calls"), [(3, [[0, 1, 4]]), (2, [[1, 4], [0, 4]])])
def test_laws_are_made_once_per_state_where_all_may_be_kept_and_else_once_a_chunk(
    kept: int, calls: list[list[int]]
) -> None:
    logits = torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    state_N = torch.tensor([4, 1, 4, 4, 0])
    for vocabulary in (DraftVocabulary(6), DraftVocabulary(6, IDS)):
        asked: list[list[int]] = []

        def law(index: torch.Tensor, asked: list[list[int]] = asked) -> Law:
            asked.append(index.tolist())
            return whole_law(logits[index])

        of = SharedLaws(law, state_N, vocabulary, kept=kept).at(state_N)
        for where in (slice(0, 3), slice(3, 99)):
            found, wanted = of(where).spread(), vocabulary.restrict(whole_law(logits[state_N[where]]))
            torch.testing.assert_close(found.logp_RK, wanted.logp_RK)
            torch.testing.assert_close(found.log_tail_R, wanted.log_tail_R)
        assert asked == calls


def test_the_most_frequent_words_are_kept_and_forced_ones_always() -> None:
    counts = torch.tensor([5, 0, 9, 5, 1, 0])
    assert frequent_ids(counts, 3).tolist() == [0, 2, 3]
    assert frequent_ids(counts, 2).tolist() == [0, 2]  # of two equal ones the lower id
    assert frequent_ids(counts, 3, always=(5,)).tolist() == [0, 2, 5]


def test_a_borrowed_head_is_the_targets_over_the_words_that_can_be_said() -> None:
    lm = tiny_lm("llama")
    view = Engine(lm, sampling=Sampling(), max_len=8).view()
    states = torch.randn(2, 3, 32, dtype=torch.float64)
    wanted = F.linear(states, lm.lm_head.weight)
    torch.testing.assert_close(TargetHead(view, DraftVocabulary(64))(states), wanted)
    torch.testing.assert_close(TargetHead(view, DraftVocabulary(64, IDS))(states), wanted[..., IDS])
    assert not TargetHead(view, DraftVocabulary(64))(states).requires_grad


def test_a_borrowed_head_follows_words_that_are_chosen_or_loaded_later() -> None:
    """A resume, or a training from finished weights, changes the words under a head that is already in use."""
    view = Engine(tiny_lm("llama"), sampling=Sampling(), max_len=8).view()
    states = torch.randn(2, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    vocabulary = DraftVocabulary(64, num=3)
    head = TargetHead(view, vocabulary)
    counts = torch.zeros(64, dtype=torch.long)
    counts[[5, 40, 9]] = 7
    vocabulary.choose(counts, replace(view, stop_ids=(9,)))
    torch.testing.assert_close(head(states), view.lm_head(states)[:, [5, 9, 40]])
    vocabulary.load_state_dict({"ids": torch.tensor([1, 2, 3])})
    torch.testing.assert_close(head(states), view.lm_head(states)[:, [1, 2, 3]])


def test_scores_and_noise_are_those_of_the_words_that_can_be_said() -> None:
    lm = tiny_lm("llama")
    view = Engine(lm, sampling=Sampling(temperature=2.0, repetition_penalty=1.5), max_len=8).view()
    seen = torch.zeros(64, dtype=torch.bool)
    seen[3] = True
    logits = torch.tensor([1.0, 2.0, -3.0])
    vocabulary = DraftVocabulary(64, IDS)
    assert vocabulary.scores(logits, view, seen).tolist() == pytest.approx([0.5, 2.0 / 1.5 / 2, -1.5])
    noise = torch.arange(64.0)[None]
    found = vocabulary.noise(noise)
    assert found is not None and found.tolist() == [[1.0, 3.0, 4.0]]
    assert vocabulary.noise(None) is None
    greedy = replace(view, sampling=Sampling())
    assert vocabulary.scores(logits, greedy).tolist() == logits.tolist()


def test_a_width_that_does_not_fit_is_refused_with_the_width_that_does() -> None:
    check_width("x", wanted=4, width=4, option="x.size")
    with pytest.raises(UsageError) as refused:
        check_width("x", wanted=5, width=4, option="x.size")
    assert "x.size=4" in str(refused.value.try_)


def test_parameters_are_counted_per_part_and_shared_ones_once() -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = torch.nn.Linear(2, 3)
            self.b = torch.nn.Linear(2, 3, bias=False)
            self.b.weight = self.a.weight

    assert parameter_report(Two()) == {"a": 9, "total": 9}
