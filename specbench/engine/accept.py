"""Acceptance rules: pure functions from target scores and a draft tree to the tokens that are kept.

Each rule picks one token per slot (`chosen`); walking the tree along the chosen tokens gives the accepted path, and
the token chosen where the walk ends is the bonus. Every rule but `typical` is lossless.

B rows, N nodes, M = N + 1 slots (0 = root), P = the tree's max_depth, C = P + 1, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from specbench.tree import DraftTree, sibling_ranks


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """num_accepted_B: bonus excluded. path_BP: accepted nodes, root first, -1 padded. tokens_BC: accepted, bonus,
    padding. slots_BC: the slot whose logits chose tokens_BC (0 = root), for the tapped states."""

    num_accepted_B: Tensor
    path_BP: Tensor
    tokens_BC: Tensor
    slots_BC: Tensor


def coupled(scores_BMV: Tensor, noise_BMV: Tensor | None) -> Tensor:
    """chosen_BM = argmax(score + noise of that slot's next position); noise None at temperature 0.

    A function of target and noise alone, so the text equals seeded autoregression whatever was drafted.
    """
    return (scores_BMV if noise_BMV is None else scores_BMV + noise_BMV).argmax(-1)


def rejection(
    logp_BMV: Tensor, noise_BMV: Tensor, uniform_BMR: Tensor, tree: DraftTree, *, max_children: int
) -> Tensor:
    """Speculative sampling: chosen_BM with the target's law at every slot (Leviathan 2023; Chen 2023; siblings drawn
    without replacement: Yang 2024, Jeon 2024).

    Children of a slot are tried in draw order: accept x with min(1, p(x) / q(x)); on rejection p <- norm(max(0, p -
    q)) and q <- norm(q without x). With none accepted the token is drawn from what is left of p. Where the tree's
    nodes were
    picked (logq None) no q exists and the target's own draw is matched instead, which accepts most and is exact.
    noise_BMV: independent Gumbel noise of the final draw; uniform_BMR: one uniform per slot and child rank.
    """
    if tree.logq_BMV is None or tree.num_nodes == 0:
        return (logp_BMV + noise_BMV).argmax(-1)
    p = logp_BMV.exp()
    q = tree.logq_BMV.to(p.dtype).exp()
    children_BMR = children_by_rank(tree, max_children)
    chosen_BM = torch.full(p.shape[:2], -1, dtype=torch.long, device=p.device)
    for rank in range(max_children):
        token_BM = children_BMR[:, :, rank]
        index = token_BM.clamp(min=0)[..., None]
        p_x, q_x = p.gather(-1, index)[..., 0], q.gather(-1, index)[..., 0]
        # A child of probability 0 was not drawn (more children than the filters left tokens): it proves nothing, skip
        # it.
        is_open = (token_BM >= 0) & (chosen_BM < 0) & (q_x > 0)
        accepted = is_open & (uniform_BMR[:, :, rank] * q_x < p_x)
        chosen_BM = torch.where(accepted, token_BM, chosen_BM)
        rejected = (is_open & ~accepted)[..., None]
        residual = (p - q).clamp_(min=0)
        mass = residual.sum(-1, keepdim=True)
        # p == q leaves no residual; a rejection there has probability 0 and comes from rounding alone.
        p = torch.where(
            rejected & (mass > 0), residual / mass.clamp(min=1e-300 if p.dtype == torch.float64 else 1e-37), p
        )
        without = q.scatter(-1, index, 0.0)
        left = without.sum(-1, keepdim=True)
        q = torch.where(rejected, without / left.clamp(min=1e-300 if p.dtype == torch.float64 else 1e-37), q)
    return torch.where(chosen_BM >= 0, chosen_BM, (p.log() + noise_BMV).argmax(-1))


def typical(
    logp_BMV: Tensor,
    noise_BMV: Tensor,
    tree: DraftTree,
    *,
    max_children: int,
    threshold: float = 0.09,
    alpha: float = 0.3,
) -> Tensor:
    """Medusa's rule (Cai 2024): a child is kept when p(x) > min(threshold, alpha * exp(-H(p))). Lossy; labelled so
    everywhere.

    The first such child of a slot is chosen; without one the token is drawn from p.
    """
    entropy = -(logp_BMV.exp() * logp_BMV.clamp(min=-1e4)).sum(-1)
    bar = torch.clamp(alpha * (-entropy).exp(), max=threshold)
    chosen_BM = (logp_BMV + noise_BMV).argmax(-1)
    if tree.num_nodes == 0:
        return chosen_BM
    children_BMR = children_by_rank(tree, max_children)
    for rank in reversed(range(max_children)):
        token_BM = children_BMR[:, :, rank]
        p_x = logp_BMV.gather(-1, token_BM.clamp(min=0)[..., None])[..., 0].exp()
        chosen_BM = torch.where((token_BM >= 0) & (p_x > bar), token_BM, chosen_BM)
    return chosen_BM


def children_by_rank(tree: DraftTree, max_children: int) -> Tensor:
    """Token of each slot's r-th child, -1 where there is none: int64 (B, M, R)."""
    num_rows, num_nodes = tree.tokens_BN.shape
    # One column and one row more take what is no child of interest: no shape depends on a value.
    table = tree.tokens_BN.new_full((num_rows, (num_nodes + 1) * (max_children + 1)), -1)
    rank_BN = sibling_ranks(tree).clamp(max=max_children)
    if tree.valid_BN is not None:
        rank_BN = torch.where(tree.valid_BN, rank_BN, max_children)
    table.scatter_(1, (tree.parents_BN + 1) * (max_children + 1) + rank_BN, tree.tokens_BN)
    return table.view(num_rows, num_nodes + 1, max_children + 1)[..., :max_children]


def walk(chosen_BM: Tensor, tree: DraftTree) -> Verdict:
    """Follow the chosen tokens from the root as deep as the tree proposes them."""
    if tree.is_chain:
        return _walk_chain(chosen_BM, tree)
    num_rows, _ = tree.tokens_BN.shape
    parent_slot_BN = tree.parents_BN + 1
    matches_BN = tree.tokens_BN == chosen_BM.gather(1, parent_slot_BN)
    if tree.valid_BN is not None:
        matches_BN = matches_BN & tree.valid_BN
    slot_B1 = torch.zeros(num_rows, 1, dtype=torch.long, device=chosen_BM.device)
    alive_B1 = torch.ones_like(slot_B1, dtype=torch.bool)
    path, slots = [], [slot_B1]
    for _ in range(tree.max_depth):
        is_next_BN = matches_BN & (parent_slot_BN == slot_B1) & alive_B1
        alive_B1 = is_next_BN.any(1, keepdim=True)
        node_B1 = is_next_BN.int().argmax(1, keepdim=True)
        path.append(torch.where(alive_B1, node_B1, -1))
        slot_B1 = torch.where(alive_B1, node_B1 + 1, slot_B1)
        slots.append(slot_B1)
    path_BP, slots_BC = torch.cat(path, dim=1), torch.cat(slots, dim=1)
    num_accepted_B = (path_BP >= 0).sum(1)
    return Verdict(
        num_accepted_B=num_accepted_B,
        path_BP=path_BP,
        tokens_BC=_masked(chosen_BM.gather(1, slots_BC), num_accepted_B),
        slots_BC=slots_BC,
    )


def _walk_chain(chosen_BM: Tensor, tree: DraftTree) -> Verdict:
    num_rows, num_nodes = tree.tokens_BN.shape
    if num_nodes == 0:
        none = chosen_BM.new_zeros(num_rows)
        return Verdict(
            num_accepted_B=none, path_BP=chosen_BM.new_zeros(num_rows, 0), tokens_BC=chosen_BM, slots_BC=none[:, None]
        )
    matches_BN = tree.tokens_BN == chosen_BM[:, :-1]
    if tree.valid_BN is not None:
        matches_BN = matches_BN & tree.valid_BN
    run_BN = matches_BN.long().cumprod(1)
    num_accepted_B = run_BN.sum(1)
    places = torch.arange(num_nodes + 1, device=chosen_BM.device)
    path_BP = torch.where(run_BN.bool(), places[:-1], -1)
    return Verdict(
        num_accepted_B=num_accepted_B,
        path_BP=path_BP,
        tokens_BC=_masked(chosen_BM, num_accepted_B),
        slots_BC=torch.minimum(places, num_accepted_B[:, None]),
    )


def _masked(tokens_BC: Tensor, num_accepted_B: Tensor) -> Tensor:
    places = torch.arange(tokens_BC.shape[1], device=tokens_BC.device)
    return torch.where(places <= num_accepted_B[:, None], tokens_BC, 0)
