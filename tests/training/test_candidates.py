"""What one round learnt is where the next begins: its matrices, its optimiser's moments, and when it is given up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from specbench.adapt import candidate as candidates
from specbench.adapt.adaptation import InUse, Live
from specbench.adapt.candidate import Candidate, moments_of, put_moments
from specbench.adapt.plan import LearningPlan
from specbench.adapt.versions import AdapterStore
from specbench.errors import EnvironmentFailed
from specbench.training.rounds import learn, rolled_back
from tests.adapt.adapted import learns, taught


def _candidate(seed: int = 0, **given: object) -> Candidate:
    generator = torch.Generator().manual_seed(seed)
    weights = {"q.lora_A.weight": torch.randn(2, 3, generator=generator)}
    moments = {"a.0.exp_avg": torch.randn(2, 3, generator=generator), "a.0.exp_avg_sq": torch.rand(2, 3)}
    return replace(Candidate(weights=weights, moments=moments, num_updates=7, alpha=32.0, began=1), **given)  # type: ignore[arg-type]


def test_an_optimiser_goes_on_as_if_it_had_never_stopped() -> None:
    """Against AdamW itself, bit by bit."""
    torch.manual_seed(0)
    whole = nn.Linear(5, 3).double()
    cut = nn.Linear(5, 3).double()
    cut.load_state_dict(whole.state_dict())
    batches = torch.randn(8, 4, 5, dtype=torch.float64)

    def run(module: nn.Module, optimiser: torch.optim.Optimizer, part: torch.Tensor) -> None:
        for batch in part:
            optimiser.zero_grad()
            module(batch).square().mean().backward()
            optimiser.step()

    one = torch.optim.AdamW(whole.parameters(), lr=0.01)
    run(whole, one, batches)
    first = torch.optim.AdamW(cut.parameters(), lr=0.01)
    run(cut, first, batches[:5])
    second = torch.optim.AdamW(cut.parameters(), lr=0.01)
    put_moments(second, cut, _candidate(moments=moments_of(first, cut), num_updates=5))
    run(cut, second, batches[5:])
    assert torch.equal(whole.weight, cut.weight) and torch.equal(whole.bias, cut.bias)


def test_a_round_begins_where_the_one_before_ended(draft: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adaptation = learns(taught(draft, num=24, min_held_out=50))
    assert learn(adaptation).outcome == "kept"
    first = adaptation.domain("").candidate
    assert first is not None and first.num_updates == 3 and first.began == 0
    assert all(bool(moment.any()) for moment in first.moments.values())
    begun: list[dict[str, torch.Tensor]] = []
    right = adaptation.layers.set

    def told(weights: dict[str, torch.Tensor] | None) -> None:
        begun.append({} if weights is None else dict(weights))
        right(weights)

    monkeypatch.setattr(adaptation.layers, "set", told)
    learn(adaptation)
    assert all(torch.equal(begun[0][name], tensor) for name, tensor in first.weights.items())
    second = adaptation.domain("").candidate
    assert second is not None and second.num_updates == 6
    assert any(not torch.equal(second.weights[name], tensor) for name, tensor in first.weights.items())


def test_a_candidate_that_seems_worse_is_given_some_rounds_and_then_begun_anew(draft: Path) -> None:
    """With a rate of 0 it never seems better."""
    adaptation = learns(taught(draft, num=24, lr=0.0, patience=2))
    worse = []
    for _ in range(3):
        assert learn(adaptation).outcome == "kept"
        kept = adaptation.domain("").candidate
        worse.append(None if kept is None else (kept.num_worse, kept.num_updates))
    assert worse == [(1, 3), (2, 6), None]


def test_after_a_promotion_learning_goes_on_and_after_a_rollback_it_does_not(draft: Path) -> None:
    given = {"temperature": 1.0, "num": 40, "steps": 40, "lr": 3e-3, "rank": 8, "pull": 0.0}
    adaptation = learns(taught(draft, **given, watch_positions=100))
    found = learn(adaptation)
    assert found.outcome == "promoted", found.why
    domain = adaptation.domain("")
    assert domain.candidate is not None
    assert (domain.candidate.began, domain.candidate.num_updates, domain.candidate.num_worse) == (1, 40, 0)
    domain.live = Live(num_tried=100, num_accepted=10, since_swap=100, before=0.6, before_tried=100)
    assert domain.in_use.parent == InUse()
    back = rolled_back(adaptation, "")
    assert back is not None and back.version == 0 and domain.candidate is None


def test_what_was_learnt_is_kept_beside_the_answers_and_forgotten_under_another_version(tmp_path: Path) -> None:
    candidates.save(tmp_path, "maths", _candidate(), base_hash="abc")
    found = candidates.load(tmp_path, "maths", base_hash="abc", began=1)
    assert found is not None and (found.num_updates, found.num_worse) == (7, 0)
    for mine, read in ((_candidate().weights, found.weights), (_candidate().moments, found.moments)):
        assert mine.keys() == read.keys()
    assert torch.equal(found.weights["q.lora_A.weight"], _candidate().weights["q.lora_A.weight"])
    assert candidates.fits(found, _candidate().weights, alpha=32.0)
    assert not candidates.fits(found, _candidate().weights, alpha=16.0)
    assert not candidates.fits(found, {"q.lora_A.weight": torch.zeros(4, 3)}, alpha=32.0)
    assert candidates.load(tmp_path, "maths", base_hash="abc", began=2) is None
    assert candidates.load(tmp_path, "maths", base_hash="other", began=1) is None
    assert candidates.load(tmp_path, "code", base_hash="abc", began=1) is None
    AdapterStore(tmp_path).purge_versions()
    assert candidates.load(tmp_path, "maths", base_hash="abc", began=1) is None


def test_a_damaged_file_is_named_and_a_full_disk_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates.save(tmp_path, "", _candidate(), base_hash="abc")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(candidates, "save_file", full)
    with pytest.raises(EnvironmentFailed, match="No space left"):
        candidates.save(tmp_path, "", _candidate(num_updates=9), base_hash="abc")
    kept = candidates.load(tmp_path, "", base_hash="abc", began=1)
    assert kept is not None and kept.num_updates == 7
    [file] = (tmp_path / "candidates").iterdir()
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(EnvironmentFailed, match="cannot be read") as caught:
        candidates.load(tmp_path, "", base_hash="abc", began=1)
    assert caught.value.where == str(file)


def test_a_round_visits_new_answers_so_often_and_learns_few_ones_by_heart_no_longer() -> None:
    plan = LearningPlan(batch=8, replay=0.5, steps=40, visits=1.5)
    assert [plan.steps_for(num, has_old=False) for num in (1, 8, 16, 400)] == [1, 2, 3, 40]
    assert [plan.steps_for(num, has_old=True) for num in (1, 8, 16, 400)] == [1, 3, 6, 40]
    assert replace(plan, visits=0.0).steps_for(1, has_old=True) == 40
    assert replace(plan, replay=1.0).steps_for(4, has_old=True) == 6


def test_a_round_is_told_which_of_its_answers_are_new(draft: Path) -> None:
    """A process of its own gets all answers in one file: the old ones make the reservoir again."""
    memory = learns(taught(draft, num=24)).domain("").memory
    answers = list(memory.new)
    memory.learnt_but(len(answers) + 3)
    assert memory.new == answers, "more than there are: all of them"
    memory.learnt_but(3)
    assert memory.new == answers[-3:] and memory.old == answers[:-3]
    assert memory.num_new_positions == sum(each.num_positions for each in answers[-3:])
    memory.learnt_but(0)
    assert memory.new == [] and len(memory.old) == memory.num_old_seen == len(answers)
    memory.renew()
    memory.learnt()
    assert len(memory.old) == memory.num_old_seen == len(answers), "learnt from once more it is one answer"
