"""What a held-out figure says at a temperature is what the run's own rule accepts, and its bounds hold."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from helpers import requests_for, tokens_of
from torch import Tensor

from specbench.lm.chain import Picks
from specbench.losses import Law, top_law, whole_law
from specbench.method import Rule
from specbench.training.acceptance import Compared, chance, compared_by, known
from specbench.training.evidence import evidence
from tests.adapt.adapted import engine, learning_drafter, learns, save_draft

TEMPERATURES = (0.5, 1.0, 2.0)


def _plain(p_V: Tensor, q_V: Tensor, compared: Compared) -> float:
    """Written out from both whole laws; q may be shorter, its words are p's first."""
    p, q = p_V.tolist(), [*q_V.tolist(), *[0.0] * (len(p_V) - len(q_V))]
    if compared == "choice":
        return float(p[q.index(max(q))])
    if compared == "laws":
        return sum(map(min, p, q))
    if compared == "draws":
        return sum(one * other for one, other in zip(p, q, strict=True))
    both = [i for i in range(len(p)) if p[i] and q[i]]
    return sum(1 / sum(max(p[j] / p[i], q[j] / q[i]) for j in range(len(p))) for i in both)


def _cut(logits_NV: Tensor, num: int) -> Law:
    """As a verdict is kept: the `num` first entries in order and the rest."""
    whole = whole_law(logits_NV)
    if num < logits_NV.shape[-1]:
        return top_law(whole, num)
    logp, ids = whole.logp_RK.sort(-1, descending=True)
    return Law(logp, ids, torch.full_like(logp[:, 0], -69.0))


def _random(seed: int, *shape: int) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_shared_noise_meets_as_often_as_the_formula_says() -> None:
    """Against 200,000 draws; and less often than sum min(p, q), which orders candidates otherwise."""
    p_V, q_V = _random(0, 12).softmax(-1), _random(1, 12).softmax(-1)
    uniform = torch.rand(200_000, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    noise = -torch.log(-torch.log(uniform))
    meet = ((p_V.log() + noise).argmax(-1) == (q_V.log() + noise).argmax(-1)).double()
    exact = _plain(p_V, q_V, "noise")
    assert abs(float(meet.mean()) - exact) < 4 * (exact * (1 - exact) / 200_000) ** 0.5
    assert exact < _plain(p_V, q_V, "laws") - 0.02
    p, one, other = (torch.tensor(law) for law in ((0.4, 0.3, 0.3), (0.76, 0.109, 0.131), (0.37, 0.628, 0.002)))
    assert _plain(p, other, "laws") > _plain(p, one, "laws") + 0.03
    assert _plain(p, other, "noise") < _plain(p, one, "noise") - 0.04


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("compared", get_args(Compared))
def test_a_law_of_which_nothing_is_cut_has_its_exact_figure(compared: Compared, temperature: float) -> None:
    """For a draft of fewer words too, whose missing ones the target may well draw."""
    p_NV, q_NS = _random(3, 40, 9), _random(4, 40, 7)
    target = known(_cut(p_NV, 9), temperature=temperature, num_shared=7, num_ids=9)
    found = chance(q_NS / temperature, target, compared)
    wanted = [
        _plain((p / temperature).softmax(-1), (q / temperature).softmax(-1), compared)
        for p, q in zip(p_NV, q_NS, strict=True)
    ]
    torch.testing.assert_close(found.most_N, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=1e-7)
    assert float(found.width_N.max()) < 1e-6


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("compared", get_args(Compared))
def test_whatever_the_tail_of_a_law_looks_like_its_figure_lies_between_the_bounds(
    compared: Compared, temperature: float
) -> None:
    """Brute force: many laws with the same entries and the same tail, each tail as uneven as its entries allow or not
    at all, where the draft has most or nothing; each against the one pair of bounds that the cut law gives."""
    generator = torch.Generator().manual_seed(5)
    num_ids, num_kept, num_shared = 9, 4, 8
    nearest_above = nearest_below = 1.0
    for trial in range(40):
        p_V = (_random(10 + trial, num_ids) / 2).softmax(-1).sort(descending=True).values
        words = torch.randperm(num_ids, generator=generator)
        q_S = _random(100 + trial, num_shared)
        if trial % 4 == 0:  # a draft that agrees with the tail, wherever it is
            q_S = p_V[words.argsort()].log()[:num_shared]
        tail, least = float(p_V[num_kept:].sum()), float(p_V[num_kept - 1])
        law = Law(p_V[:num_kept].log()[None], words[None, :num_kept], torch.tensor([tail], dtype=torch.float64).log())
        target = known(law, temperature=temperature, num_shared=num_shared, num_ids=num_ids)
        [most], [width] = (each.tolist() for each in chance(q_S[None] / temperature, target, compared))
        for way in range(60):
            others = _tail(tail, least, num_ids - num_kept, way, generator)
            whole = torch.zeros(num_ids, dtype=torch.float64)
            whole[words] = torch.cat([p_V[:num_kept], others])
            tempered = whole ** (1 / temperature)
            exact = _plain(tempered / tempered.sum(), (q_S / temperature).softmax(-1), compared)
            assert most - width - 1e-6 <= exact <= most + 1e-6, (trial, way)
            nearest_above, nearest_below = min(nearest_above, most - exact), min(nearest_below, exact - most + width)
    assert nearest_above < 0.02 and nearest_below < 0.05, "bounds that nothing comes near say little"


def _tail(tail: float, least: float, num: int, way: int, generator: torch.Generator) -> Tensor:
    """`num` probabilities that add up to `tail`, none above `least`."""
    if way % 3 == 0:  # as few words as can hold it
        held, found = tail, []
        for _ in range(num):
            found.append(min(held, least))
            held -= found[-1]
        return torch.tensor(found, dtype=torch.float64)[torch.randperm(num, generator=generator)]
    if way % 3 == 1:
        return torch.full((num,), tail / num, dtype=torch.float64)
    even = torch.full((num,), tail / num, dtype=torch.float64)
    drawn = torch.rand(num, generator=generator, dtype=torch.float64) ** 3
    drawn = tail * drawn / drawn.sum()
    # As far towards the draw as the cap lets it.
    share = min(1.0, float((least - tail / num) / (drawn.max() - tail / num).clamp(min=1e-12)))
    return even + share * (drawn - even)


@pytest.fixture(scope="module")
def rough_draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that is often wrong, so that the rules differ by more than chance."""
    return save_draft(tmp_path_factory.mktemp("rough"), noise=0.7)


@pytest.mark.parametrize(
    ("rule", "picks"),
    [
        ("coupled", "shared-noise"),
        ("coupled", "greedy"),
        ("coupled", "sampled"),
        ("rejection", "shared-noise"),
        ("rejection", "greedy"),
    ],
)
def test_the_judged_acceptance_is_what_the_engine_accepts(rough_draft: Path, rule: Rule, picks: Picks) -> None:
    """One drafted token a step, hundreds of steps: within four standard errors of what was accepted."""
    on = engine(temperature=1.0, rule=rule, max_batch=8)
    drafter = learning_drafter(rough_draft, on, top_k=64, per_answer=64, num_tokens=1, draft=picks)
    on.reserve(drafter.max_nodes)
    adaptation = learns(drafter)
    for start in range(0, 32, 8):
        prompts = [tokens_of(seed, 4 + seed % 5) for seed in range(start, start + 8)]
        on.generate(drafter, requests_for(prompts, max_new_tokens=64))
        adaptation.gather()
    memory = adaptation.domain("").memory
    answers = [*memory.new, *memory.held_out]
    accepted = torch.cat([answer.accepted_N for answer in answers]).double()
    found = evidence(adaptation, answers, None, None)
    assert found.width_before < 1e-6 and len(accepted) > 800
    error = float((accepted.var() / len(accepted)) ** 0.5)
    assert abs(found.before - float(accepted.mean())) < 4 * error, (found.before, float(accepted.mean()), error)
    if rule == "coupled":
        overlap = float(torch.cat([answer.overlap_N for answer in answers]).mean())
        assert overlap > found.before + 0.02, "sum min(p, q) would be another figure"


def test_what_is_compared_follows_from_rule_and_picks() -> None:
    found = {(rule, picks): compared_by(rule, picks) for rule in get_args(Rule) for picks in get_args(Picks)}
    assert found == {
        ("coupled", "shared-noise"): "noise",
        ("coupled", "greedy"): "choice",
        ("coupled", "sampled"): "draws",
        ("rejection", "shared-noise"): "laws",
        ("rejection", "greedy"): "choice",
        ("rejection", "sampled"): "laws",
        ("typical", "shared-noise"): "noise",
        ("typical", "greedy"): "choice",
        ("typical", "sampled"): "draws",
    }
