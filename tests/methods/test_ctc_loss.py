"""The CTC loss is torch's, is the sum over all alignments, and its laws of the next token are ratios of such sums."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from methods.ctc.ctc_loss import ctc, feasible_length, lattice, next_laws
from methods.ctc.plain import begins_with, outputs

FRAMES, VOCAB = 5, 3


def _logits(num: int, *, seed: int = 0, frames: int = FRAMES, vocab: int = VOCAB) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, frames, vocab + 1, generator=generator, dtype=torch.float64, requires_grad=True)


def _loss(logits: Tensor, labels: Tensor, length: Tensor) -> Tensor:
    logp = logits.log_softmax(-1)
    spoken = logp[..., :-1].gather(2, labels[:, None].expand(-1, logits.shape[1], -1))
    return ctc(lattice(spoken, logp[..., -1], labels), length)


LABELS = torch.tensor([[0, 1, 2], [1, 1, 0], [2, 2, 2], [0, 1, 0], [1, 2, 2]])
LENGTHS = torch.tensor([3, 3, 3, 1, 2])


def test_value_and_gradient_are_torchs() -> None:
    mine, theirs = _logits(5), _logits(5)
    loss = _loss(mine, LABELS, LENGTHS)
    wanted = torch.nn.functional.ctc_loss(
        theirs.log_softmax(-1).transpose(0, 1),
        LABELS,
        torch.full((5,), FRAMES),
        LENGTHS,
        blank=VOCAB,
        reduction="none",
    )
    torch.testing.assert_close(loss, wanted, rtol=0, atol=1e-12)
    weight = torch.arange(1.0, 6.0, dtype=torch.float64)
    (loss * weight).sum().backward()
    (wanted * weight).sum().backward()
    assert mine.grad is not None and theirs.grad is not None
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=1e-12)


def test_value_is_the_sum_over_all_alignments_and_gradient_its_slope() -> None:
    logits = _logits(5, seed=1)
    loss = _loss(logits, LABELS, LENGTHS)
    for row in range(5):
        law = outputs(logits[row].softmax(-1).tolist())
        chance = law[tuple(LABELS[row, : LENGTHS[row]].tolist())]
        assert float(loss[row].detach()) == pytest.approx(-math.log(chance), abs=1e-12)
    assert torch.autograd.gradcheck(lambda x: _loss(x, LABELS, LENGTHS), (logits,))


def test_repeated_labels_need_a_blank_between_them_and_windows_are_cut_to_fit() -> None:
    labels = torch.tensor([[4, 4, 4], [4, 5, 4], [4, 4, 5]])
    assert feasible_length(labels, torch.tensor([3, 3, 3]), frames=3).tolist() == [2, 3, 2]
    assert feasible_length(labels, torch.tensor([1, 2, 3]), frames=5).tolist() == [1, 2, 3]
    infeasible = _loss(_logits(1, frames=3), torch.tensor([[1, 1, 1]]), torch.tensor([3]))
    assert float(infeasible.detach()) > 1e20


def test_laws_of_the_next_token_are_ratios_of_prefix_marginals() -> None:
    logits = _logits(5, seed=2)
    logp = logits.log_softmax(-1)
    found = lattice(logp[..., :-1].gather(2, LABELS[:, None].expand(-1, FRAMES, -1)), logp[..., -1], LABELS)
    laws = next_laws(found, logp[..., :-1].exp(), LABELS, LENGTHS).exp()
    for row in range(5):
        law = outputs(logits[row].softmax(-1).tolist())
        for length in range(int(LENGTHS[row])):
            prefix = tuple(LABELS[row, :length].tolist())
            whole = begins_with(law, prefix)
            assert float(found.prefix_NL[row, length].detach().exp()) == pytest.approx(whole, abs=1e-12)
            for token in range(VOCAB):
                assert float(laws[row, length, token].detach()) == pytest.approx(
                    begins_with(law, (*prefix, token)) / whole, abs=1e-12
                )


def test_what_follows_a_shorter_rows_labels_changes_nothing() -> None:
    logits = _logits(1, seed=3).repeat(2, 1, 1)
    loss = _loss(logits, torch.tensor([[0, 2, 2], [0, 1, 1]]), torch.tensor([1, 1]))
    assert float(loss[0].detach()) == float(loss[1].detach())


def test_gradients_stay_finite_where_labels_do_not_fit() -> None:
    logits = _logits(1, frames=3).detach().float().requires_grad_()
    labels = torch.tensor([[1, 1, 1]])
    logp = logits.log_softmax(-1)
    found = lattice(logp[..., :-1].gather(2, labels[:, None].expand(-1, 3, -1)), logp[..., -1], labels)
    laws = next_laws(found, logp[..., :-1].exp(), labels, torch.tensor([2]))
    (ctc(found, torch.tensor([2])).sum() + laws[:, :2].sum()).backward()
    assert logits.grad is not None and bool(logits.grad.isfinite().all())
