"""Connectionist temporal classification over gathered columns: exact, and as small as its labels (Graves 2006).

    b_u(l)  P(frames 1 .. u say the first l labels, and frame u is blank, or u = 0)
    n_u(l)  the same, and frame u says label l
    e_u(l)  P(label l is said for the first time by frame u) = p_u(y_l) (b_{u-1}(l-1) + [y_l != y_{l-1}] n_{u-1}(l-1))
    n_u(l) = e_u(l) + p_u(y_l) n_{u-1}(l)          b_u(l) = p_u(blank) (b_{u-1}(l) + n_{u-1}(l))

    P(exactly y_1 .. y_l) = b_U(l) + n_U(l)        P(begins with y_1 .. y_l) = sum_u e_u(l)

Only the log-probabilities of the labels and of the blank are read: nothing of the size of the vocabulary is kept.

N anchors, U frames, L labels, V entries of a frame's law without the blank.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NEVER = -1e30
"""log of 0 that has a gradient."""


class Lattice(NamedTuple):
    """All in log space. exact_NL: P(exactly the first l labels), l = 0 .. L (L + 1 columns). prefix_NL: P(begins with
    the first l), L + 1 columns, the first 0. blank_NUL, label_NUL: b and n before each frame, b_{u-1}(l) and
    n_{u-1}(l), L + 1 columns."""

    exact_NL: Tensor
    prefix_NL: Tensor
    blank_NUL: Tensor
    label_NUL: Tensor


def lattice(label_NUL: Tensor, blank_NU: Tensor, labels_NL: Tensor) -> Lattice:
    """label_NUL: log p_u(y_l). blank_NU: log p_u(blank). labels_NL: the labels, only compared with each other; what
    follows a shorter row's labels changes nothing before it."""
    num, frames, length = label_NUL.shape
    is_other = torch.ones(num, length, dtype=torch.bool, device=label_NUL.device)
    is_other[:, 1:] = labels_NL[:, 1:] != labels_NL[:, :-1]
    blank = label_NUL.new_full((num, length + 1), NEVER)
    blank[:, 0] = 0.0
    label = label_NUL.new_full((num, length + 1), NEVER)
    blanks, labels, firsts = [], [], []
    for u in range(frames):
        blanks.append(blank)
        labels.append(label)
        before = torch.logaddexp(blank[:, :-1], torch.where(is_other, label[:, :-1], NEVER))
        first = label_NUL[:, u] + before
        firsts.append(first)
        said = torch.logaddexp(first, label_NUL[:, u] + label[:, 1:])
        blank = blank_NU[:, u, None] + torch.logaddexp(blank, label)
        label = F.pad(said, (1, 0), value=NEVER)
    prefix_NL = F.pad(torch.stack(firsts, 1).logsumexp(1), (1, 0))
    return Lattice(torch.logaddexp(blank, label), prefix_NL, torch.stack(blanks, 1), torch.stack(labels, 1))


def feasible_length(labels_NL: Tensor, length_N: Tensor, *, frames: int) -> Tensor:
    """The most of each row's first `length` labels that fit the frames: a label that repeats the one before it needs a
    blank between them."""
    is_repeat = torch.zeros_like(labels_NL)
    is_repeat[:, 1:] = labels_NL[:, 1:] == labels_NL[:, :-1]
    needed_NL = (1 + is_repeat).cumsum(1)
    place_L = torch.arange(labels_NL.shape[1], device=labels_NL.device)
    fits_NL = (needed_NL <= frames) & (place_L < length_N[:, None])
    return fits_NL.sum(1)


def ctc(found: Lattice, length_N: Tensor) -> Tensor:
    """-log P(exactly each row's labels) (N,)."""
    return -found.exact_NL.gather(1, length_N[:, None])[:, 0]


def next_laws(found: Lattice, frame_law_NUV: Tensor, labels_NL: Tensor, length_N: Tensor) -> Tensor:
    """log q(v | the output begins with y_1 .. y_l) for l = 0 .. L - 1: (N, L, V).

    The ratio of prefix marginals; what is missing from 1 is the chance that the output ends there. frame_law_NUV:
    probabilities of the tokens, the blank's left out. length_N: labels of each row; laws behind them mean nothing.
    """
    length = labels_NL.shape[1]
    is_real = torch.arange(length, device=labels_NL.device) < length_N[:, None]
    prefix = torch.where(is_real, found.prefix_NL[:, :length], 0.0)[..., None]
    blank_NLU = (found.blank_NUL[..., :length].transpose(1, 2) - prefix).exp()
    label_NLU = (found.label_NUL[..., :length].transpose(1, 2) - prefix).exp()
    mass_NLV = (blank_NLU + label_NLU) @ frame_law_NUV
    if length > 1:
        # A label can follow itself only behind a blank.
        last_NL1 = labels_NL[:, :-1, None]
        said_NLU = frame_law_NUV.gather(2, last_NL1.transpose(1, 2).expand(-1, frame_law_NUV.shape[1], -1))
        again_NL1 = (blank_NLU[:, 1:] * said_NLU.transpose(1, 2)).sum(-1, keepdim=True)
        repeated = mass_NLV[:, 1:].scatter(2, last_NL1, again_NL1)
        mass_NLV = torch.cat([mass_NLV[:, :1], repeated], 1)
    return mass_NLV.clamp(min=1e-30).log()
