"""From frames to a draft tree: the most probable beginnings of the collapsed output, marginal over all alignments.

The search goes depth by depth (Graves 2006, 3.2), not frame by frame. A beam is a prefix l with its forward variables

    blank_u = P(frames before u say l, the last of them blank | the output begins with l)
    label_u = P(the same, the last of them l's last token     | the output begins with l)

so the law of the next token is exact for every prefix that is kept,

    q(v | l) = sum_u p_u(v) (blank_u + label_u)        without label_u for l's own last token: it repeats behind a blank

and is one matrix product over all frames. What a frame-by-frame search banks and merges never arises: a prefix is
reached once, at the depth of its length, where the engine's noise for that position is added. Nothing of the blank is
left in the result. `plain.py` says the same slowly.

B rows, U frames, W beams, C candidate columns (the vocabulary, or the frames' top tokens), D depths.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from specbench.beams import Expansion, expand

_FLOOR = -1e4
"""Stands for log 0, so that differences of it are 0 and not undefined."""
_TINY = 1e-30


class Frames(NamedTuple):
    """logp_BUC: log-probabilities of the candidates. blank_BU: of the blank. ids_BC: the drafter's index of each
    column; None = the column itself. is_copy_BC: the column's token stands further left already."""

    logp_BUC: Tensor
    blank_BU: Tensor
    ids_BC: Tensor | None = None
    is_copy_BC: Tensor | None = None


class Levels(NamedTuple):
    """One entry a depth. ids: drafter's vocabulary (B, W_d). grown: what `beams.grow` wants."""

    ids: list[Tensor]
    grown: list[Expansion]


class _Beams(NamedTuple):
    """blank_BWU, label_BWU as above. last_BW: column of the last token. said_BWU: its probability in every frame."""

    blank_BWU: Tensor
    label_BWU: Tensor
    last_BW: Tensor
    said_BWU: Tensor


def frames_of(logits_BUX: Tensor, *, has_blank: bool, top_k: int) -> Frames:
    """Frame logits, the blank's last where there is one -> what the search reads. top_k 0: every token is looked at."""
    logp = logits_BUX.log_softmax(-1)
    tokens, blank = (logp[..., :-1], logp[..., -1]) if has_blank else (logp, torch.full_like(logp[..., 0], _FLOOR))
    if not 0 < top_k < tokens.shape[-1]:
        return Frames(tokens, blank)
    ids_BC = tokens.topk(top_k, dim=-1).indices.flatten(1)
    is_copy = (ids_BC[:, :, None] == ids_BC[:, None, :]).tril(-1).any(-1)
    return Frames(tokens.gather(2, ids_BC[:, None].expand(-1, tokens.shape[1], -1)), blank, ids_BC, is_copy)


@cache  # captured steps read it where it lies
def _later(frames: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(U, U): 0 where the column's frame comes after the row's, else log 0."""
    is_later = torch.ones(frames, frames, dtype=torch.bool, device=device).triu(1)
    return torch.zeros(frames, frames, dtype=dtype, device=device).masked_fill_(~is_later, float("-inf"))


def search(
    frames: Frames,
    *,
    depth: int,
    width: int,
    branch: int = 0,
    process: Callable[[Tensor], Tensor] | None = None,
    noise: Callable[[int], Tensor] | None = None,
) -> Levels:
    """`width` prefixes per depth, `depth` tokens deep. branch: most children of one prefix, 0 = as many as win.

    process None: priorities are the prefixes' own log marginals. process: the engine's processors, applied to log
    q(v | prefix); noise(d): for depth d, over the drafter's vocabulary; priorities then are those of `beams.expand`.
    Static shapes, nothing is read on the host.
    """
    law_BUC = frames.logp_BUC.exp()
    num_rows, num_frames, size = law_BUC.shape
    silent_BU = frames.blank_BU.cumsum(-1) - frames.blank_BU
    later = _later(num_frames, law_BUC.device, law_BUC.dtype)
    silence_BUU = (silent_BU[:, None, :] - silent_BU[:, :, None] + later).exp()
    beams: _Beams | None = None
    open_BWU = silent_BU.exp()[:, None]
    weight_BW = open_BWU.new_ones(num_rows, 1) if process is None else open_BWU.new_zeros(num_rows, 1)
    levels = Levels([], [])
    for at in range(1, depth + 1):
        mass_BWC = open_BWU @ law_BUC
        if beams is not None:
            again = (beams.blank_BWU * beams.said_BWU).sum(-1, keepdim=True)
            mass_BWC = mass_BWC.scatter_(2, beams.last_BW[..., None], again)
        if process is None:
            if frames.is_copy_BC is not None:
                mass_BWC = mass_BWC.masked_fill(frames.is_copy_BC[:, None], 0.0)
            column_BW, grown, weight_BW, chance_BW = _most_probable(mass_BWC, weight_BW, width=width, branch=branch)
        else:
            noise_BC = None if noise is None else noise(at)
            if noise_BC is not None and frames.ids_BC is not None:
                noise_BC = noise_BC.gather(1, frames.ids_BC)
            # A prefix that used up all frames has no next token; its law must stay a number.
            scores_BWC = mass_BWC.clamp(min=_TINY).log()
            if frames.is_copy_BC is not None:
                scores_BWC = scores_BWC.masked_fill(frames.is_copy_BC[:, None], float("-inf"))
            grown = expand(weight_BW, process(scores_BWC), noise_BC, width=width, branch=branch)
            column_BW, weight_BW = grown.index_BW, grown.priority_BW
            chance_BW = mass_BWC.flatten(1).gather(1, grown.parent_BW * size + column_BW)
        levels.ids.append(column_BW if frames.ids_BC is None else frames.ids_BC.gather(1, column_BW))
        levels.grown.append(grown)
        if at < depth:
            beams = _grow(frames, silence_BUU, later, beams, open_BWU, grown.parent_BW, column_BW, chance_BW)
            open_BWU = beams.blank_BWU + beams.label_BWU
    return levels


def _most_probable(
    mass_BWC: Tensor, prior_BW: Tensor, *, width: int, branch: int
) -> tuple[Tensor, Expansion, Tensor, Tensor]:
    """The best children by their prefix marginals: (column, expansion, marginal, chance given the parent)."""
    num_beams, size = mass_BWC.shape[1:]
    # A mass of 1 may round to more, and a child above its parent would be kept without it.
    mass_BWC = mass_BWC.clamp(max=1.0)
    index_BWK: Tensor | None = None
    if 0 < branch < min(width, size):
        mass_BWC, index_BWK = mass_BWC.topk(branch, dim=-1)
        size = branch
    joint = (prior_BW[..., None] * mass_BWC).flatten(1)
    best_BW, flat_BW = joint.topk(min(width, num_beams * size), dim=-1)
    parent_BW = flat_BW // size
    column_BW = flat_BW % size if index_BWK is None else index_BWK.flatten(1).gather(1, flat_BW)
    chance_BW = mass_BWC.flatten(1).gather(1, flat_BW)
    grown = Expansion(best_BW.log(), parent_BW, column_BW, chance_BW.log())
    return column_BW, grown, best_BW, chance_BW


def _grow(
    frames: Frames,
    silence_BUU: Tensor,
    later: Tensor,
    beams: _Beams | None,
    open_BWU: Tensor,
    parent_BW: Tensor,
    column_BW: Tensor,
    chance_BW: Tensor,
) -> _Beams:
    """Forward variables of the chosen children."""
    num_frames = later.shape[0]
    if beams is None:
        before_BWU = open_BWU
    else:
        from_parent = parent_BW[..., None].expand(-1, -1, num_frames)
        repeats_BW1 = (beams.last_BW.gather(1, parent_BW) == column_BW)[..., None]
        label_BWU = beams.label_BWU.gather(1, from_parent).masked_fill(repeats_BW1, 0.0)
        before_BWU = beams.blank_BWU.gather(1, from_parent) + label_BWU
    logp_BWU = frames.logp_BUC.gather(2, column_BW[:, None].expand(-1, num_frames, -1)).transpose(1, 2)
    said_BWU = logp_BWU.exp()
    first_BWU = before_BWU * said_BWU / chance_BW.clamp(min=_TINY)[..., None]
    through = logp_BWU.cumsum(-1)
    # From frame j, which says the token first, to before frame u: all frames between them repeat it.
    repeated_BWUU = ((through - logp_BWU)[..., None, :] - through[..., None] + later).exp()
    label_BWU = (first_BWU[..., None, :] @ repeated_BWUU)[..., 0, :]
    return _Beams(label_BWU @ silence_BUU, label_BWU, column_BW, said_BWU)


def independent(
    logits_BUV: Tensor,
    *,
    depth: int,
    width: int,
    branch: int = 0,
    process: Callable[[Tensor], Tensor],
    noise: Callable[[int], Tensor] | None = None,
) -> Levels:
    """`transform: off`: frame d is the law of depth d, whatever stands before it. No blank among the columns."""
    priority_BW = torch.zeros_like(logits_BUV[:, :1, 0])
    levels = Levels([], [])
    for at in range(1, depth + 1):
        scores_BWV = process(logits_BUV[:, at - 1 : at]).expand(-1, priority_BW.shape[1], -1)
        grown = expand(priority_BW, scores_BWV, None if noise is None else noise(at), width=width, branch=branch)
        levels.ids.append(grown.index_BW)
        levels.grown.append(grown)
        priority_BW = grown.priority_BW
    return levels


__all__ = ["Frames", "Levels", "frames_of", "independent", "search"]
