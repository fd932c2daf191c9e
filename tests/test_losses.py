"""Losses over laws against sums written out; chunks and counts against the plain thing."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from specbench.losses import (
    Law,
    LossName,
    Objective,
    chunked,
    count_depths,
    kl,
    overlap,
    per_position,
    ranks,
    top_law,
    whole_law,
)

V = 6


def _logits(seed: int, num: int = 4) -> Tensor:
    return 2 * torch.randn(num, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _probabilities(logits: Tensor, tau: float = 1.0) -> list[list[float]]:
    rows = []
    for row in logits.tolist():
        weights = [math.exp(x / tau) for x in row]
        rows.append([w / sum(weights) for w in weights])
    return rows


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_kl_is_the_sum_over_the_vocabulary(tau: float) -> None:
    q_logits, p_logits = _logits(0), _logits(1)
    p, q = _probabilities(p_logits, tau), _probabilities(q_logits, tau)
    wanted = [tau**2 * sum(a * math.log(a / b) for a, b in zip(x, y, strict=True)) for x, y in zip(p, q, strict=True)]
    found = per_position(q_logits, torch.zeros(4, dtype=torch.long), whole_law(p_logits), Objective(temperature=tau))
    assert found.tolist() == pytest.approx(wanted)


@pytest.mark.parametrize("tau", [1.0, 2.0])
@pytest.mark.parametrize("shares_rows", [False, True])
def test_the_gradient_of_kl_written_out_is_that_of_finite_differences(tau: float, shares_rows: bool) -> None:
    law = whole_law(_logits(1))
    if shares_rows:
        law = law.rows(torch.tensor([2, 2, 0, 3, 2]))
    logits = _logits(0, 5 if shares_rows else 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: kl(x, law, temperature=tau), (logits,))


def test_a_law_the_drafter_can_only_partly_say_is_renormalised_in_kl() -> None:
    p_logits, q_logits = _logits(1), _logits(0)
    kept = torch.tensor([0, 2, 5])
    whole = whole_law(p_logits).logp_RK
    lost = (1 - whole[:, kept].exp().sum(-1)).log()
    found = kl(q_logits[:, kept], Law(whole[:, kept], log_lost_R=lost))
    torch.testing.assert_close(found, kl(q_logits[:, kept], whole_law(p_logits[:, kept])))


def test_kl_of_a_law_with_itself_is_nothing_whole_or_cut() -> None:
    law = whole_law(_logits(0))
    for each in (law, top_law(law, 3)):
        assert kl(_logits(0), each).abs().max() < 1e-12


def test_kl_of_a_cut_law_has_one_bucket_for_everything_else() -> None:
    p_logits, q_logits = _logits(1), _logits(0)
    found = kl(q_logits, top_law(whole_law(p_logits), 2))
    for row, (p, q) in enumerate(zip(_probabilities(p_logits), _probabilities(q_logits), strict=True)):
        best = sorted(range(V), key=lambda v: -p[v])[:2]
        rest_p, rest_q = 1 - sum(p[v] for v in best), 1 - sum(q[v] for v in best)
        wanted = sum(p[v] * math.log(p[v] / q[v]) for v in best) + rest_p * math.log(rest_p / rest_q)
        assert float(found[row]) == pytest.approx(wanted)


def test_overlap_is_the_sum_of_the_smaller_probabilities_and_a_cut_law_bounds_it_from_above() -> None:
    p_logits, q_logits = _logits(1, 20), _logits(0, 20)
    pairs = zip(_probabilities(p_logits), _probabilities(q_logits), strict=True)
    wanted = [sum(min(a, b) for a, b in zip(p, q, strict=True)) for p, q in pairs]
    whole = overlap(q_logits, whole_law(p_logits))
    assert whole.tolist() == pytest.approx(wanted)
    assert bool((overlap(q_logits, top_law(whole_law(p_logits), 2)) >= whole - 1e-12).all())
    torch.testing.assert_close(overlap(q_logits, top_law(whole_law(p_logits), V)), whole)


def test_tv_and_lk_are_the_rejection_rate_and_the_log_of_the_acceptance_rate() -> None:
    law, logits, label = whole_law(_logits(1)), _logits(0), torch.zeros(4, dtype=torch.long)
    accepted = overlap(logits, law)
    torch.testing.assert_close(per_position(logits, label, law, Objective(loss="tv")), 1 - accepted)
    torch.testing.assert_close(per_position(logits, label, law, Objective(loss="lk")), -accepted.log())


def test_ce_ignores_labels_that_cannot_be_said_and_alpha_mixes_it_in() -> None:
    logits, law = _logits(0), whole_law(_logits(1))
    label = torch.tensor([2, -1, 0, 5])
    ce = per_position(logits, label, None, Objective(loss="ce"))
    q = _probabilities(logits)
    assert ce.tolist() == pytest.approx([-math.log(q[0][2]), 0.0, -math.log(q[2][0]), -math.log(q[3][5])])
    mixed = per_position(logits, label, law, Objective(loss="kd", alpha=0.7))
    torch.testing.assert_close(mixed, 0.7 * kl(logits, law) + 0.3 * ce)


@pytest.mark.parametrize("loss", ["ce", "kd", "tv", "lk"])
def test_chunks_change_neither_losses_nor_gradients(loss: LossName) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(11, 3, generator=generator, dtype=torch.float64)
    label = torch.randint(-1, V, (11,), generator=generator)
    laws = whole_law(torch.randn(11, V, generator=generator, dtype=torch.float64))
    torch.manual_seed(0)
    head = nn.Linear(3, V).double()
    seen: list[tuple[Tensor, Tensor, list[Tensor]]] = []
    for chunk, kept in ((100, 0), (4, 100), (4, 0), (1, 0)):
        head.zero_grad()
        moved = inputs.clone().requires_grad_()
        found = chunked(
            head, moved, label, lambda where: Law(laws.logp_RK[where]), Objective(loss=loss, chunk=chunk, kept=kept)
        )  # fmt: skip
        found.loss_N.sum().backward()  # type: ignore[no-untyped-call]
        assert moved.grad is not None
        grads = [parameter.grad.clone() for parameter in head.parameters() if parameter.grad is not None]
        seen.append((found.loss_N.detach(), found.rank_N, [moved.grad, *grads]))
    plain = per_position(head(inputs), label, laws, Objective(loss=loss))
    for losses, found_ranks, grads in seen:
        torch.testing.assert_close(losses, plain.detach())
        assert torch.equal(found_ranks, seen[0][1])
        torch.testing.assert_close(grads, seen[0][2])


def test_no_positions_cost_nothing_and_still_reach_the_parameters() -> None:
    head = nn.Linear(3, V)
    found = chunked(head, torch.empty(0, 3), torch.empty(0, dtype=torch.long), None, Objective(loss="ce"))
    assert found.loss_N.shape == (0,)
    found.loss_N.sum().backward()  # type: ignore[no-untyped-call]
    assert head.weight.grad is not None and not bool(head.weight.grad.any())


def test_a_rank_counts_the_tokens_thought_more_probable_than_the_label() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    found = chunked(nn.Identity(), logits, torch.tensor([0, 2, -1]), None, Objective(loss="ce"))
    assert found.rank_N.tolist() == [0, 2, 3]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_rank_of_0_is_the_first_choice_of_argmax_where_logits_are_equal(dtype: torch.dtype) -> None:
    """Of 4,000 logits in half precision many are equal; a draft says one of them."""
    logits = (4 * torch.randn(40, 4000, generator=torch.Generator().manual_seed(0))).to(dtype)
    logits[:, [5, 70, 3000]] = logits.amax(-1, keepdim=True) + 1
    for label, wanted in ((5, 0), (70, 1), (3000, 2)):
        found = chunked(nn.Identity(), logits, torch.full((40,), label), None, Objective(loss="ce", chunk=16))
        assert set(found.rank_N.tolist()) == {wanted}
    first = logits.argmax(-1)
    assert set(first.tolist()) == {5}
    order = logits.double().argsort(dim=-1, descending=True, stable=True)
    for place in (0, 1, 2, 3, 50, 3999):
        assert ranks(logits, order[:, place]).tolist() == [place] * 40


def test_counts_per_depth_are_those_of_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    loss = torch.rand(30, 3, generator=generator)
    rank = torch.randint(0, 4, (30, 3), generator=generator)
    valid = torch.rand(30, 3, generator=generator) < 0.7
    counts = count_depths(loss, rank, valid, rank=2)
    for depth, top in itertools.product(range(3), range(2)):
        anchors = [a for a in range(30) if valid[a, depth]]
        whole = [a for a in range(30) if bool(valid[a, : depth + 1].all())]
        assert int(counts.num_n[depth]) == len(anchors)
        assert int(counts.correct_nR[depth, top]) == sum(int(rank[a, depth]) <= top for a in anchors)
        assert float(counts.loss_n[depth]) == pytest.approx(sum(float(loss[a, depth]) for a in anchors))
        assert int(counts.whole_n[depth]) == len(whole)
        assert int(counts.right_n[depth]) == sum(bool((rank[a, : depth + 1] == 0).all()) for a in whole)
    assert torch.equal(counts.plus(counts).num_n, 2 * counts.num_n)
    assert torch.equal(counts.said_n, counts.num_n)


def test_a_label_that_cannot_be_said_is_a_miss_without_a_loss_at_any_rank() -> None:
    loss = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    rank = torch.tensor([[0, 0], [0, 3]])
    valid = torch.ones(2, 2, dtype=torch.bool)
    said = torch.tensor([[True, False], [True, False]])
    counts = count_depths(loss, rank, valid, rank=5, said_An=said)
    assert (counts.num_n.tolist(), counts.said_n.tolist()) == ([2, 2], [2, 0])
    assert counts.loss_n.tolist() == [5.0, 0.0]
    assert counts.correct_nR[:, -1].tolist() == [2, 0], "three words are fewer than the five ranks looked at"
    assert (counts.whole_n.tolist(), counts.right_n.tolist()) == ([2, 2], [2, 0])
