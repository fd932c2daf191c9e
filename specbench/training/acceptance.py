"""The chance that one drafted token is accepted, by the rule that accepts and by how the token was picked.

Under the target's own noise both tokens are argmax(log law + g) with one g, and are the same token i with chance
1 / sum_j max(p_j / p_i, q_j / q_i): they are first arrivals of exponential clocks with rates p and q, and both are i
where i's arrival comes before every other's in both races. sum min(p, q), which `rejection` reaches, is never less.

Of p the k most probable entries may be known alone. Whatever the rest looks like, the chance lies between two bounds:
tokens taken together as one are hit together at least as often as apart (1 / (1/u + 1/v) is concave in u and v), so
the rest as one token bounds from above; rests that have no token in common bound from below.

N positions, K entries of a law, E of them and the rest (K + 1), S ids both models know.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from specbench.lm.chain import Picks
from specbench.losses import Law
from specbench.method import Rule

Compared = Literal["noise", "laws", "choice", "draws"]
"""What draft and target are compared by. noise: one noise for both picks. laws: sum min(p, q). choice: the draft's
first choice against the target's draw. draws: two independent draws."""

_ROUNDING = 2.0**-22
"""Of a tail, which is 1 less a float32 sum."""


def compared_by(rule: Rule, picks: Picks) -> Compared:
    """Above temperature 0. `typical` is counted as `coupled`, which accepts no more: its bar asks for all of p."""
    if picks == "greedy":
        return "choice"
    if rule == "rejection":
        return "laws"
    return "noise" if picks == "shared-noise" else "draws"


class Chance(NamedTuple):
    """Per position, float64 (N,)."""

    most_N: Tensor
    """The chance, or the most it may be."""
    width_N: Tensor
    """Of the bounds: it lies between most - width and most. 0 but for rounding where all of p is known."""


class Known(NamedTuple):
    """What a recorded law tells of p at another temperature: weights, not normalised, that add up to kept + lost + the
    rest. All float64."""

    weight_NK: Tensor
    """0 where the draft cannot say the entry."""
    ids_NK: Tensor
    """0 there."""
    lost_N: Tensor
    """Of those entries together."""
    least_N: Tensor
    """Of the rest of p the least it may weigh,"""
    most_N: Tensor
    """and the most,"""
    each_N: Tensor
    """and the most that one token of it may."""


def known(law: Law, *, temperature: float, num_shared: int, num_ids: int) -> Known:
    """law: recorded at temperature 1, its most probable entries and their tail. num_shared: ids below it the draft can
    say. num_ids: of the target; the tail is of those that have no entry, none of which is more probable than any entry.
    """
    assert law.ids_RK is not None and law.log_tail_R is not None
    power = 1 / temperature
    logp_NK = law.logp_RK.double()
    is_there_NK = logp_NK > float("-inf")
    # Relative to the first entry: at a low temperature the weights themselves would be 0.
    top_N1 = logp_NK.amax(-1, keepdim=True)
    weight_NK = ((logp_NK - top_N1) * power).exp()
    cap_N = torch.where(is_there_NK, logp_NK - top_N1, 0).amin(-1).exp()
    tail_N = (law.log_tail_R.double() - top_N1[:, 0]).exp()
    # At least so many tokens as reach the tail.
    num_N = (num_ids - is_there_NK.sum(-1)).double().maximum(tail_N / cap_N)
    if power == 1:
        least_N = most_N = tail_N
    elif power > 1:
        # t ** power is convex: most where few tokens have all of it, least where all have the same.
        least_N = tail_N**power * num_N.clamp(min=1e-300) ** (1 - power)
        most_N = torch.minimum(tail_N**power, tail_N * cap_N ** (power - 1))
    else:
        slack_N = _ROUNDING * (-top_N1[:, 0]).exp()
        less_N, more_N = (tail_N - slack_N).clamp(min=0), tail_N + slack_N
        least_N = torch.maximum(less_N**power, less_N * cap_N ** (power - 1))
        most_N = num_N ** (1 - power) * more_N**power
    is_said_NK = is_there_NK & (law.ids_RK < num_shared)
    return Known(
        weight_NK=weight_NK.where(is_said_NK, 0),
        ids_NK=law.ids_RK.long().where(is_said_NK, 0),
        lost_N=weight_NK.where(~is_said_NK, 0).sum(-1),
        least_N=least_N.minimum(most_N),
        most_N=most_N,
        each_N=torch.minimum(cap_N**power, most_N),
    )


def chance(logits_NS: Tensor, target: Known, compared: Compared) -> Chance:
    """That the token drafted from logits_NS is accepted. Logits as the draft picks by: divided by the temperature."""
    q_NS = logits_NS.softmax(-1)
    is_said_NK = target.weight_NK > 0
    q_NK = q_NS.gather(-1, target.ids_NK) * is_said_NK
    if compared == "choice":
        return _choice(q_NS, target)
    # q less itself is 0 exactly; what is not an entry takes nothing away.
    outside_NS = q_NS.scatter_add(-1, target.ids_NK, -q_NK)
    rest_N = outside_NS.sum(-1, dtype=torch.float64)
    if compared == "noise":
        return _noise(q_NK.double(), rest_N, target)
    if compared == "laws":
        return _laws(q_NK.double(), rest_N, target)
    return _draws(q_NK.double(), rest_N, outside_NS.amax(-1).double(), target)


def _noise(q_NK: Tensor, rest_N: Tensor, target: Known) -> Chance:
    q_NE = torch.cat([q_NK, rest_N[:, None]], dim=1)
    one_NE, other_NE = (
        _meetings(torch.cat([target.weight_NK, rest[:, None]], dim=1), q_NE, lost_N=target.lost_N)
        for rest in (target.least_N, target.most_N)
    )
    # A heavier rest is met more often, and every entry less often.
    most_N = one_NE[:, :-1].sum(-1) + other_NE[:, -1]
    apart_NK = _meetings(target.weight_NK, q_NK, lost_N=target.lost_N + target.most_N, rest_N=rest_N)
    return _between(apart_NK.sum(-1), most_N)


def _meetings(p_NE: Tensor, q_NE: Tensor, *, lost_N: Tensor, rest_N: Tensor | None = None) -> Tensor:
    """1 / sum_j max(p_j / p_i, q_j / q_i) of every i, of weights (N, E); 0 where p_i or q_i is. lost: weight of p that
    q has nothing of; rest: the other way round. O(E log E): p_j / p_i is the larger where q_j / p_j <= q_i / p_i."""
    ratio_NE = torch.where(p_NE > 0, q_NE / p_NE.clamp(min=1e-300), float("inf"))
    order_NE = ratio_NE.argsort(-1)
    p_NE, q_NE = p_NE.gather(-1, order_NE), q_NE.gather(-1, order_NE)
    p_up_NE = p_NE.cumsum(-1) + lost_N[:, None]
    q_above_NE = q_NE.flip(-1).cumsum(-1).flip(-1) - q_NE
    if rest_N is not None:
        q_above_NE = q_above_NE + rest_N[:, None]
    can_meet_NE = (p_NE > 0) & (q_NE > 0)
    sums_NE = p_up_NE / p_NE.clamp(min=1e-300) + q_above_NE.clamp(min=0) / q_NE.clamp(min=1e-300)
    return torch.zeros_like(p_NE).scatter(-1, order_NE, torch.where(can_meet_NE, 1 / sums_NE, 0))


def _laws(q_NK: Tensor, rest_N: Tensor, target: Known) -> Chance:
    light_N1, heavy_N1 = _norms(target)
    least_N = torch.minimum(target.weight_NK / heavy_N1, q_NK).sum(-1)
    tails_N = torch.minimum(target.most_N / heavy_N1[:, 0], rest_N)
    return _between(least_N, torch.minimum(target.weight_NK / light_N1, q_NK).sum(-1) + tails_N)


def _choice(q_NS: Tensor, target: Known) -> Chance:
    light_N1, heavy_N1 = _norms(target)
    is_it_NK = (target.ids_NK == q_NS.argmax(-1, keepdim=True)) & (target.weight_NK > 0)
    it_N = target.weight_NK.where(is_it_NK, 0).sum(-1)
    is_known_N = is_it_NK.any(-1)
    most_N = torch.where(is_known_N, it_N, target.each_N) / light_N1[:, 0]
    return _between(it_N / heavy_N1[:, 0], most_N)


def _draws(q_NK: Tensor, rest_N: Tensor, first_N: Tensor, target: Known) -> Chance:
    """first_N: q of the most probable token without an entry."""
    light_N1, heavy_N1 = _norms(target)
    kept_N = (target.weight_NK * q_NK).sum(-1)
    rests_N = torch.minimum(first_N * target.most_N / heavy_N1[:, 0], rest_N * target.each_N / light_N1[:, 0])
    return _between(kept_N / heavy_N1[:, 0], kept_N / light_N1[:, 0] + rests_N)


def _norms(target: Known) -> tuple[Tensor, Tensor]:
    """What the weights add up to, (N, 1): with the lightest rest, with the heaviest."""
    named_N = target.weight_NK.sum(-1) + target.lost_N
    return (named_N + target.least_N)[:, None], (named_N + target.most_N)[:, None]


def _between(least_N: Tensor, most_N: Tensor) -> Chance:
    most_N = most_N.clamp(max=1.0)
    return Chance(most_N, (most_N - least_N).clamp(min=0))
