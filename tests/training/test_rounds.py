"""A round of learning: every loss moves every matrix, held-out evidence alone promotes, what fails leaves nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import plain_logits, requests_for

from specbench.adapt import collector
from specbench.adapt.adaptation import InUse, Live
from specbench.adapt.versions import AdapterStore
from specbench.lm.cached_lm import CachedLM
from specbench.losses import Law, kl, overlap, top_law, whole_law
from specbench.training import evidence as evidence_module
from specbench.training import rounds
from specbench.training.evidence import evidence
from specbench.training.rounds import between_requests, due, learn
from specbench.training.verdict_loss import Agreement, AnswerBatch, Answers, VerdictLearner, _stacked, agreement
from tests.adapt.adapted import PROMPTS, drafts_with, engine, learning_drafter, learns, noisy_weights, same, taught


@pytest.mark.parametrize("loss", ["kl-tv", "kl", "tv", "lk", "ce", "mixed"])
def test_gradient_of_every_loss_reaches_a_and_b_of_every_layer(draft: Path, loss: str) -> None:
    """The reference implementation's default loss has none; its tests look at values alone."""
    adaptation = learns(taught(draft, num=8, loss=loss))
    adaptation.layers.set(noisy_weights(adaptation.layers, size=0.05))
    source = Answers(adaptation.lm, adaptation.plan, num_shared=64, seed=0)
    source.answers = adaptation.domain("").memory.new
    for share in (0.1, 0.9):
        with torch.enable_grad(), adaptation.layers.learning() as module:
            learner = VerdictLearner(adaptation.lm, adaptation.layers, module, adaptation.plan)
            learner.at(share)
            learner(source.make([])).total.backward()
            for parameter in module.parameters():
                assert parameter.grad is not None and float(parameter.grad.norm()) > 0
        assert all(parameter.grad is None for parameter in adaptation.lm.model.parameters())


def test_the_loss_is_the_weighted_divergence_of_the_recorded_laws(draft: Path) -> None:
    """Against sums written out, from a plain forward of the draft and the whole vocabulary as entries."""
    adaptation = learns(taught(draft, num=4, top_k=64, pull=0.0, loss="kl", early=2.0, depth_decay=0.5))
    answer = max(adaptation.domain("").memory.new, key=lambda each: each.num_positions)
    source = Answers(adaptation.lm, adaptation.plan, num_shared=64, seed=0)
    source.answers = [answer]
    with adaptation.layers.learning() as module:
        found = VerdictLearner(adaptation.lm, adaptation.layers, module, adaptation.plan)(source.make([]))
    positions = answer.position_N.long()
    q = plain_logits(adaptation.lm, answer.tokens_T.tolist()).float().log_softmax(-1)[positions - 1]
    p = answer.target.logp_RK[torch.arange(len(positions))[:, None], answer.target.ids_RK.long().argsort(-1)]  # type: ignore[union-attr]
    divergence = (p.exp() * (p - q)).sum(-1)
    weight = (1 + 2.0 * (1 - answer.overlap_N)) * 0.5 ** (answer.depth_N.float() - 1)
    torch.testing.assert_close(found.total.detach().float(), (weight * divergence).sum(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.num_anchors.float(), weight.sum())


def test_the_pull_is_zero_at_the_base_and_grows_away_from_it(draft: Path) -> None:
    adaptation = learns(taught(draft, num=4, pull=1.0))
    source = Answers(adaptation.lm, adaptation.plan, num_shared=64, seed=0)
    source.answers = adaptation.domain("").memory.new
    found = []
    for size in (0.0, 0.01, 0.1):
        adaptation.layers.set(noisy_weights(adaptation.layers, size=size))
        with adaptation.layers.learning() as module:
            learner = VerdictLearner(adaptation.lm, adaptation.layers, module, adaptation.plan)
            found.append(float(learner(source.make([])).parts["pull"]))
    assert abs(found[0]) < 1e-3 < found[1] < found[2]


def test_held_out_acceptance_is_what_decoding_accepts(draft: Path) -> None:
    """Teacher-forced agreement at temperature 0, position by position, is whether the draft was accepted there."""
    adaptation = learns(taught(draft, num=8))
    for observed in adaptation.domain("").memory.new:
        source = Answers(adaptation.lm, adaptation.plan, num_shared=64, seed=0)
        source.answers = [observed]
        [agreed] = agreement(adaptation.lm, source.every(), temperature=0.0, compared="noise", num_ids=64)
        assert agreed == (int(observed.accepted_N.sum()), 0.0)
        [(expected, width)] = agreement(adaptation.lm, source.every(), temperature=1.0, compared="laws", num_ids=64)
        exact = float(observed.overlap_N.sum())
        assert expected - width - 1e-3 <= exact <= expected + 1e-3, "with a tail it is an upper bound of this width"
        assert width > 1e-3, "the tails of these laws hold something"


def test_learning_from_verdicts_raises_held_out_acceptance_and_is_promoted(
    draft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole loop: observe, learn, judge, keep a version, swap; the gain holds on prompts never learnt from."""
    # Of 64 words nothing would be cut.
    monkeypatch.setattr(collector, "JUDGED_TOP_K", 8)
    store = tmp_path / "store"
    drafter = taught(draft, num=40, temperature=1.0, steps=40, lr=3e-3, rank=8, store=str(store), pull=0.0)
    adaptation = learns(drafter)
    found = learn(adaptation)
    assert found.outcome == "promoted", found.why
    assert found.gain is not None and found.gain.low > 0 and found.after is not None and found.before is not None
    kept = AdapterStore(store)
    assert kept.active() == found.version == 1
    lineage = kept.load(1, base_hash=adaptation.lm.weights_hash).lineage
    assert lineage.parent is None and lineage.num_positions == found.num_positions and len(lineage.data_hash) == 64
    assert same(dict(kept.load(1).weights), drafts_with(adaptation))
    again = evidence(adaptation, adaptation.domain("").memory.held_out, None, kept.load(1).weights)
    assert (again.before, again.after) == (found.before, found.after)
    widths = (found.width_before, found.width_after)
    assert widths == (again.width_before, again.width_after) and 0 < again.width_after < again.after
    assert (lineage.figures["width_before"], lineage.figures["width_after"]) == widths
    judged_for = {name: lineage.figures[name] for name in ("temperature", "rule", "draft")}
    assert judged_for == {"temperature": 1.0, "rule": "coupled", "draft": "shared-noise"}
    assert adaptation.domain("").memory.new == [] and adaptation.domain("").memory.num_new_positions == 0


def test_what_was_judged_once_under_the_adapter_in_use_is_not_judged_again(
    draft: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of a round's judging; a swap makes all of it void."""
    adaptation = learns(taught(draft, num=20, lr=0.0))
    held_out, read = adaptation.domain("").memory.held_out, list[int]()
    exact = evidence_module.agreement

    def watch(lm: CachedLM, batch: AnswerBatch, **how: Any) -> list[Agreement]:
        read.append(batch.tokens_BT.shape[0])
        return exact(lm, batch, **how)

    monkeypatch.setattr(evidence_module, "agreement", watch)
    learn(adaptation)
    adaptation.domain("").memory.renew()
    first, again = sum(read), learn(adaptation)
    assert (first, sum(read)) == (2 * len(held_out), 3 * len(held_out)) and again.before == again.after
    adaptation.swap("", InUse(number=1, weights=noisy_weights(adaptation.layers), parent=InUse()))
    adaptation.domain("").memory.renew()
    learn(adaptation)
    assert sum(read) == 5 * len(held_out)


def test_without_evidence_nothing_is_promoted_and_the_same_bits_are_drafted_with(draft: Path) -> None:
    adaptation = learns(taught(draft, num=8, min_held_out=50))
    before = drafts_with(adaptation)
    found = learn(adaptation)
    assert found.outcome == "kept" and "are needed to judge" in found.why
    assert same(drafts_with(adaptation), before) and adaptation.domain("").in_use.number == 0


def test_a_candidate_that_is_not_better_is_not_drafted_with(draft: Path) -> None:
    adaptation = learns(taught(draft, num=20, lr=0.0))
    found = learn(adaptation)
    assert found.outcome == "kept" and "not surely" in found.why and found.before == found.after


@pytest.mark.parametrize("fault", ["memory", "nan"])
def test_a_round_that_fails_is_dropped_and_drafting_goes_on(
    draft: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    on = engine()
    drafter = taught(draft, num=8, on=on)
    adaptation = learns(drafter)
    mine = noisy_weights(adaptation.layers, size=0.1)
    adaptation.swap("", InUse(number=3, weights=mine))
    if fault == "memory":
        message = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate"

        def fail(*_: object, **__: object) -> None:
            raise RuntimeError(message)

        monkeypatch.setattr(rounds.Stepper, "step", fail)
    else:
        monkeypatch.setattr(adaptation, "plan", replace(adaptation.plan, lr=1e30, clip=0.0, steps=20))
    found = learn(adaptation)
    assert found.outcome == "dropped" and found.version == 3, found
    assert same(drafts_with(adaptation), mine)
    asked = requests_for(PROMPTS[20:22], max_new_tokens=8)
    answers = on.generate(drafter, asked).generations
    assert any(step.num_nodes for answer in answers for step in answer.steps), "the same drafter goes on drafting"
    for request, answer in zip(asked, answers, strict=True):
        text = list(request.prompt)
        for _ in answer.tokens:
            text.append(int(plain_logits(on.lm, text)[-1].argmax()))
        assert (*request.prompt, *answer.tokens) == tuple(text)
    assert adaptation.gather() > 0, "and observing"


def test_an_interrupted_round_leaves_what_was_drafted_with(draft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adaptation = learns(taught(draft, num=8))
    before = drafts_with(adaptation)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rounds, "_judge", interrupt)
    with pytest.raises(KeyboardInterrupt):
        learn(adaptation)
    assert same(drafts_with(adaptation), before)


def test_a_round_stays_within_its_steps_and_seconds(draft: Path) -> None:
    adaptation = learns(taught(draft, num=8, steps=3))
    assert learn(adaptation).num_steps == 3
    learnt = adaptation.domain("").candidate
    adaptation.plan = replace(adaptation.plan, round_s=1e-9)
    assert learn(adaptation).outcome == "dropped"
    assert learnt is not None and adaptation.domain("").candidate is learnt, "nothing was done to it"
    assert "round_s (1e-09 s) was over before its first step" in learn(adaptation).why
    stands_still = learn(adaptation, clock=lambda: 7.0)
    assert stands_still.num_steps == 3, "seconds in which it was stopped are not of its budget"


def test_memory_bounds_a_step_by_drawing_positions(draft: Path) -> None:
    adaptation = learns(taught(draft, num=8))
    source = Answers(adaptation.lm, replace(adaptation.plan, round_mb=1), num_shared=64, seed=0)
    source.answers = adaptation.domain("").memory.new
    source._most = 5
    assert source.make([]).index_N.shape == (5,) and source.every().index_N.shape[0] > 5


def test_rounds_come_when_they_are_due(draft: Path) -> None:
    adaptation = learns(taught(draft, num=8, after_positions=10_000))
    assert due(adaptation, "") == "" and between_requests(adaptation) == []
    adaptation.plan = replace(adaptation.plan, idle=True)
    assert due(adaptation, "") == "idle"
    adaptation.plan = replace(adaptation.plan, idle=False, after_positions=5)
    assert "new positions" in due(adaptation, "")
    adaptation.plan = replace(adaptation.plan, after_positions=0, after_drop=0.1)
    adaptation.domain("").live = Live(num_tried=100, num_accepted=40, best=0.6)
    assert due(adaptation, "") == "acceptance fell from 0.600 to 0.400"
    learn(adaptation)
    adaptation.domain("").memory.renew()
    adaptation.saw("", tried=10, accepted=4)
    assert due(adaptation, "") == "", "one fall is a reason for one round"
    adaptation.saw("", tried=2000, accepted=400)
    assert "acceptance fell" in due(adaptation, ""), "a further fall is for another"
    adaptation.domain("").memory.learnt()
    assert due(adaptation, "") == "", "there is nothing new to learn"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA"),
        MemoryError(),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("MPS backend out of memory (MPS allocated: 18.1 GB)"),
    ],
)
def test_whatever_memory_runs_out_of_a_round_is_dropped(
    draft: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    adaptation = learns(taught(draft, num=4))

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(rounds.Stepper, "step", fail)
    assert learn(adaptation).why == "round dropped: out of memory"


def test_a_round_whose_evidence_is_no_number_is_dropped(draft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adaptation = learns(taught(draft, num=20, temperature=1.0))
    nothing = Agreement(float("nan"), 0.0)
    monkeypatch.setattr(evidence_module, "agreement", lambda _lm, batch, **_: [nothing] * batch.tokens_BT.shape[0])
    found = learn(adaptation)
    assert found.outcome == "dropped" and "is not a number" in found.why


def test_a_first_choice_that_the_draft_cannot_say_is_never_agreed_with(draft: Path) -> None:
    """Of a target with more ids: its second choice is what the draft may hit, and that is a rejection."""
    adaptation = learns(taught(draft, num=8))
    [observed, *_] = adaptation.domain("").memory.new
    source = Answers(adaptation.lm, adaptation.plan, num_shared=64, seed=0)
    source.answers = [observed]
    [agreed] = agreement(adaptation.lm, source.every(), temperature=0.0, compared="noise", num_ids=64)
    law = observed.target
    assert law.ids_RK is not None
    first = law.logp_RK.argmax(-1, keepdim=True)
    beyond = replace(observed, target=Law(law.logp_RK, law.ids_RK.scatter(-1, first, 64), law.log_tail_R))
    source.answers = [beyond]
    none = agreement(adaptation.lm, source.every(), temperature=0.0, compared="noise", num_ids=65)
    assert agreed.chance > 0 and none == [(0.0, 0.0)]


def test_domains_learn_apart(draft: Path) -> None:
    on = engine()
    drafter = learning_drafter(draft, on, domains="category", after_positions=1, min_held_out=50)
    on.reserve(drafter.max_nodes)
    for place, request in enumerate(requests_for(PROMPTS[:8], max_new_tokens=8)):
        on.generate(drafter, [replace(request, domain="maths" if place % 2 else "code")])
        drafter.adaptation.gather()  # type: ignore[union-attr]
    adaptation = learns(drafter)
    sizes = {name: adaptation.domain(name).memory.num_positions for name in ("", "maths", "code")}
    assert sizes[""] == 0 < min(sizes["maths"], sizes["code"])
    adaptation.swap("code", InUse(number=1, weights=noisy_weights(adaptation.layers)))
    swaps = adaptation.swaps
    on.generate(drafter, [replace(requests_for(PROMPTS[:1], max_new_tokens=8)[0], domain="code")])
    assert adaptation.swaps == swaps + 1 and adaptation.loaded.number == 1
    on.generate(drafter, [replace(requests_for(PROMPTS[:1], max_new_tokens=8)[0], domain="maths")])
    assert adaptation.loaded.number == 0


def test_laws_with_fewer_entries_stand_beside_longer_ones() -> None:
    """Entries of mass 0 fill them up and change no divergence: held-out and learnt answers, or another top_k later."""
    logits = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    whole = whole_law(torch.randn(2, 16, generator=torch.Generator().manual_seed(1)))
    short, long = (top_law(whole_law(whole.logp_RK[row : row + 1]), num) for row, num in ((0, 3), (1, 9)))
    both = _stacked([short, long], torch.device("cpu"))
    apart = torch.cat([kl(logits[:1], short), kl(logits[1:], long)])
    torch.testing.assert_close(kl(logits, both), apart)
    torch.testing.assert_close(
        overlap(logits, both), torch.cat([overlap(logits[:1], short), overlap(logits[1:], long)])
    )
