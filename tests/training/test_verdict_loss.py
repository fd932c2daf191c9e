"""What a round's loss compares: the words of its plan, both laws at its temperature, and nothing that is lost."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from specbench.adapt.observed import shared_law
from specbench.adapt.plan import LearningPlan, LossWord
from specbench.losses import Law, kl, overlap, per_position, top_law, whole_law
from specbench.training.verdict_loss import _stacked, objective


def _laws() -> tuple[Tensor, Tensor]:
    """Logits of p and q over eight words."""
    generator = torch.Generator().manual_seed(0)
    p_NV, q_NV = (2 * torch.randn(5, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    return p_NV, q_NV


def _every_entry(p_NV: Tensor) -> Law:
    """A cut law that lacks nothing, as a verdict is kept."""
    whole = whole_law(p_NV).logp_RK
    order = whole.argsort(-1, descending=True)
    return Law(whole.gather(-1, order), order, torch.full((5,), -69.0, dtype=torch.float64))


@pytest.mark.parametrize("temperature", [1.0, 0.3, 2.0])
@pytest.mark.parametrize(("word", "share"), [("tv", 0.1), ("lk", 0.9), ("kl-tv", 0.9), ("kl", 0.9), ("kl-tv", 0.1)])
def test_both_laws_are_compared_at_the_plans_temperature_under_every_loss(
    word: LossWord, share: float, temperature: float
) -> None:
    p_NV, q_NV = _laws()
    found = per_position(
        q_NV,
        torch.zeros(5, dtype=torch.long),
        _every_entry(p_NV),
        objective(LearningPlan(loss=word, learn_temperature=temperature), share),
    )
    p, q = (p_NV / temperature).softmax(-1), (q_NV / temperature).softmax(-1)
    accepted = torch.minimum(p, q).sum(-1)
    wanted = {
        "tv": 1 - accepted,
        "lk": -accepted.log(),
        "kl": temperature**2 * (p * (p / q).log()).sum(-1),
    }
    kind = word if word != "kl-tv" else "kl" if share < 0.5 else "tv"
    torch.testing.assert_close(found, wanted[kind])


def test_a_whole_law_is_tempered_as_a_cut_one_of_all_entries_is() -> None:
    p_NV, q_NV = _laws()
    plan = objective(LearningPlan(loss="tv", learn_temperature=0.7), 0.0)
    label = torch.zeros(5, dtype=torch.long)
    shared = whole_law(p_NV[:2]).rows(torch.tensor([1, 0, 1, 1, 0]))
    whole = per_position(q_NV, label, shared, plan)
    torch.testing.assert_close(whole, per_position(q_NV, label, _every_entry(p_NV[[1, 0, 1, 1, 0]]), plan))


def test_answers_whose_entries_the_draft_lacks_stand_beside_others() -> None:
    """Of one law some mass is lost, of the other none: each costs what it costs alone."""
    p_NV, q_NV = _laws()
    p_NV[0, :5] += 20
    p_NV[1, 6] += 20
    recorded = [top_law(whole_law(p_NV[row : row + 1]), 4) for row in range(2)]
    laws = [shared_law(law, 5) for law in recorded]
    assert laws[0].log_lost_R is None and laws[1].log_lost_R is not None
    both, q_N5 = shared_law(_stacked(recorded, torch.device("cpu")), 5), q_NV[:2, :5]
    torch.testing.assert_close(kl(q_NV[1:2, :5], laws[1]), kl(q_N5, both)[1:])
    torch.testing.assert_close(overlap(q_NV[1:2, :5], laws[1]), overlap(q_N5, both)[1:])
    assert both.log_lost_R is not None and float(both.log_lost_R[0]) == float("-inf")
    assert shared_law(_stacked(recorded[:1], torch.device("cpu")), 5).log_lost_R is None
