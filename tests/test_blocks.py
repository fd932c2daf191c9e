"""What trained drafters share: trimmed vocabularies and borrowed heads."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from specbench.blocks import DraftVocabulary, SharedLaws, TargetHead, check_width, frequent_ids, parameter_report
from specbench.engine.decode import Engine
from specbench.errors import UsageError
from specbench.losses import Law, Objective, kl, overlap, per_position, top_law, whole_law
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
    assert whole.log_lost_R is not None and whole.log_tail_R is None
    torch.testing.assert_close(whole.logp_RK, law.logp_RK[:, IDS])
    torch.testing.assert_close(whole.logp_RK.exp().sum(-1) + whole.log_lost_R.exp(), torch.ones(5, dtype=torch.float64))
    top = top_law(law, 3)
    cut = vocabulary.restrict(top)
    assert cut.ids_RK is not None and cut.log_tail_R is not None and cut.log_lost_R is not None
    torch.testing.assert_close(cut.log_tail_R, top.log_tail_R)
    mass = cut.logp_RK.exp().sum(-1) + cut.log_tail_R.exp() + cut.log_lost_R.exp()
    torch.testing.assert_close(mass, torch.ones(5, dtype=torch.float64))
    assert bool((cut.log_lost_R > -5).any()), "something of the best three cannot be said"
    for row in range(5):
        for logp, index in zip(cut.logp_RK[row].tolist(), cut.ids_RK[row].tolist(), strict=True):
            if logp > float("-inf"):
                assert logp == pytest.approx(float(law.logp_RK[row, IDS[index]]))


def test_a_drafter_that_says_what_it_can_in_the_targets_proportions_has_no_divergence() -> None:
    logits = torch.randn(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    restricted = DraftVocabulary(6, IDS).restrict(whole_law(logits))
    assert kl(logits[:, IDS], restricted).abs().max() < 1e-12


def _said_in_part(seed: int, num: int = 6) -> tuple[torch.Tensor, torch.Tensor, DraftVocabulary]:
    """Logits of p over nine words and of q over the seven of them that can be said. Words 2 and 5 cannot, and they are
    among the target's best four everywhere."""
    generator = torch.Generator().manual_seed(seed)
    p_NV = torch.randn(num, 9, generator=generator, dtype=torch.float64)
    p_NV[:, [2, 5]] += 5
    kept = torch.tensor([0, 1, 3, 4, 6, 7, 8])
    return p_NV, torch.randn(num, 7, generator=generator, dtype=torch.float64), DraftVocabulary(9, kept)


LOSSES = [
    Objective(),
    Objective(temperature=2.5),
    Objective(alpha=0.6),
    Objective(loss="tv"),
    Objective(loss="tv", temperature=0.5),
    Objective(loss="lk"),
]


def _losses(q_NW: torch.Tensor, law: Law, objective: Objective) -> torch.Tensor:
    return per_position(q_NW, torch.tensor([0, 3, -1, 6, -1, 1]), law, objective)


@pytest.mark.parametrize("objective", LOSSES, ids=lambda each: f"{each.loss} {each.temperature:g} {each.alpha:g}")
def test_a_cut_law_of_all_entries_teaches_a_trimmed_vocabulary_what_the_whole_law_teaches_it(
    objective: Objective,
) -> None:
    """Value and gradient: what a cache keeps of a law must not change what is asked for."""
    p_NV, q_NW, vocabulary = _said_in_part(0)
    law = whole_law(p_NV)
    order = law.logp_RK.argsort(-1, descending=True)
    every = Law(law.logp_RK.gather(-1, order), order, torch.full((6,), -69.0, dtype=torch.float64))
    found = []
    for each in (law, every):
        logits = q_NW.clone().requires_grad_()
        losses = _losses(logits, vocabulary.restrict(each), objective)
        losses.sum().backward()  # type: ignore[no-untyped-call]
        found.append((losses.detach(), logits.grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("top_k", [3, 4, 6])
def test_a_cut_law_in_part_unsayable_has_its_entries_one_bucket_and_nothing_of_what_is_lost(top_k: int) -> None:
    """Against sums written out. kd: p renormalised over what can be said; tv and lk: p as it is."""
    p_NV, q_NW, vocabulary = _said_in_part(1)
    whole = whole_law(p_NV)
    law = vocabulary.restrict(top_law(whole, top_k))
    kd, tv, lk = (_losses(q_NW, law, Objective(loss=loss)) for loss in ("kd", "tv", "lk"))
    ids = vocabulary.to_target(torch.arange(7)).tolist()
    for row in range(6):
        p, q = whole.logp_RK[row].exp().tolist(), q_NW[row].softmax(-1).tolist()
        best = sorted(range(9), key=lambda v: -p[v])[:top_k]
        said = [(p[v], q[ids.index(v)]) for v in best if v in ids]
        rest_p, rest_q = 1 - sum(p[v] for v in best), 1 - sum(b for _, b in said)
        pairs = [*said, (rest_p, rest_q)]
        norm = sum(a for a, _ in pairs)
        assert norm < 0.6, "much of it cannot be said"
        assert float(kd[row]) == pytest.approx(sum(a / norm * math.log(a / norm / b) for a, b in pairs))
        accepted = sum(min(a, b) for a, b in pairs)
        assert float(tv[row]) == pytest.approx(1 - accepted)
        assert float(lk[row]) == pytest.approx(-math.log(accepted))


def test_a_cut_law_bounds_what_the_whole_law_asks_of_a_trimmed_vocabulary() -> None:
    """Merging entries into one bucket can only hide divergence and rejections, where the cut holds all that is lost."""
    p_NV, q_NW, vocabulary = _said_in_part(2)
    whole = whole_law(p_NV)
    exact = vocabulary.restrict(whole)
    for top_k in (4, 5, 7):
        cut = vocabulary.restrict(top_law(whole, top_k))
        torch.testing.assert_close(cut.log_lost_R, exact.log_lost_R)
        for loss in ("kd", "tv", "lk"):
            objective = Objective(loss=loss)
            assert bool((_losses(q_NW, cut, objective) <= _losses(q_NW, exact, objective) + 1e-12).all())
        assert float(overlap(q_NW, cut).max()) < 0.7


@pytest.mark.parametrize("top_k", [0, 2, 5])
def test_the_best_drafter_of_a_trimmed_vocabulary_says_what_can_be_said_in_the_targets_order(top_k: int) -> None:
    """Mass that went to the bucket would have it say what the target all but never does."""
    p_NV, _, vocabulary = _said_in_part(3)
    law = whole_law(p_NV)
    law = vocabulary.restrict(top_law(law, top_k) if top_k else law)
    wanted = p_NV[:, vocabulary.to_target(torch.arange(7))]
    logits = wanted.clone().requires_grad_()
    kl(logits, law).sum().backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None and float(logits.grad.abs().max()) < 1e-9


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
            torch.testing.assert_close(found.log_lost_R, wanted.log_lost_R)
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
