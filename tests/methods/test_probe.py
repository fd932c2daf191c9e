"""The probe of a draft model: its acceptance is counted rightly, its theory is the paper's."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import PROMPTS, NoDrafter, tiny_lm, tiny_model

from specbench import registry
from specbench.engine.decode import Engine
from specbench.engine.recorded import RecordedGraphs
from specbench.errors import UsageError
from specbench.lm.cached_lm import CachedLM
from specbench.lm.chain import ChainDrafter
from specbench.method import Drafter, Options, TargetView
from specbench.metrics import leviathan
from specbench.probe import Expectation, Probe, findings, probe, verification_costs
from specbench.sampling import Sampling


def _build(seed: int) -> type:
    def build(options: Options, target: TargetView, inner: Drafter | None = None) -> Drafter:
        return ChainDrafter(CachedLM(tiny_model(seed=seed), name="draft"), target, num_tokens=3, num_shared=64)

    return build  # type: ignore[return-value]


def test_a_draft_that_is_the_target_is_always_accepted() -> None:
    found = probe(tiny_lm(), _build(0), {}, PROMPTS[:2], max_new_tokens=24)
    assert found.alpha == 1.0
    assert found.num_tried >= 2 * 12
    assert found.c == pytest.approx(found.draft_token_s / found.target_step_s)
    assert 0 < found.c < 5
    assert [each.num_tokens for each in found.expectations] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_stranger_is_hardly_accepted_and_theory_follows_the_paper() -> None:
    found = probe(tiny_lm(), _build(11), {}, PROMPTS[:2], max_new_tokens=24)
    assert found.alpha < 0.5
    for each in found.expectations:
        assert each.leviathan == leviathan(alpha=found.alpha, gamma=each.num_tokens, c=found.c)


@pytest.mark.parametrize("as_tree", [False, True])
def test_verification_is_measured_through_graphs_where_the_engine_has_them(as_tree: bool) -> None:
    """On a GPU a verification that is launched operator by operator costs what its launches do, whatever its size."""
    captured = Engine(tiny_lm(), sampling=Sampling(), max_len=48, max_nodes=8, graphs=RecordedGraphs())
    plain = Engine(tiny_lm(), sampling=Sampling(), max_len=48, max_nodes=8)
    for engine in (captured, plain):
        costs = verification_costs(engine, PROMPTS[0], (0, 2, 8), as_tree=as_tree)
        assert len(costs) == 3 and all(0.1 < cost < 100 for cost in costs)


class _SetClock:
    """A verification of n nodes takes 2 + n s, in the first round a hundred times as long."""

    def __init__(self, target: CachedLM, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[int] = []
        verify = target.verify

        def watched(root_B: Any, tree: Any) -> Any:
            self.seen.append(tree.num_nodes)
            return verify(root_B, tree)

        monkeypatch.setattr(target, "verify", watched)
        monkeypatch.setattr("specbench.probe.clock_for", lambda device: self)

    def finish(self) -> None:
        pass

    def mark(self) -> int:
        return len(self.seen)

    def seconds(self, start: int, end: int) -> float:
        assert end == start + 1, "one verification between two marks"
        is_first = self.seen.count(self.seen[start]) == 1
        return (2.0 + self.seen[start]) * (100.0 if is_first else 1.0)


@pytest.mark.parametrize("as_tree", [False, True])
def test_verification_costs_are_ratios_to_that_of_no_draft(monkeypatch: pytest.MonkeyPatch, as_tree: bool) -> None:
    """Whatever the lengths and their order; the last is the largest, so no ratio to it could be above 1."""
    engine = Engine(tiny_lm(), sampling=Sampling(), max_len=48, max_nodes=8)
    clock = _SetClock(engine.lm, monkeypatch)
    assert verification_costs(engine, PROMPTS[0], (2, 0, 8), as_tree=as_tree) == [2.0, 1.0, 5.0]
    # In turns, so that a machine that slows down meanwhile slows all of them.
    assert clock.seen[:8] == [0, 2, 0, 8] * 2


def test_those_of_captured_steps_are_too(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tiny_lm(), sampling=Sampling(), max_len=48, max_nodes=8, graphs=RecordedGraphs())

    def generate(self: Engine, drafter: Drafter, requests: object, *, capturing: str) -> Any:
        # The first generation captures: its steps are no measurement, however many they are.
        verify_s, num = (100.0, 9) if capturing == "all" else (2.0 + drafter.max_nodes, 1)
        return SimpleNamespace(generations=[SimpleNamespace(steps=[SimpleNamespace(verify_s=verify_s)] * num)])

    monkeypatch.setattr(Engine, "generate", generate)
    assert verification_costs(engine, PROMPTS[0], (2, 0, 8)) == [2.0, 1.0, 5.0]


def test_an_expectation_takes_the_verification_of_its_own_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """K drafted tokens, a target step, and what verifying K nodes takes beyond verifying none."""
    monkeypatch.setattr("specbench.probe.verification_costs", lambda engine, context, counts: [1.0 + n for n in counts])
    found = probe(tiny_lm(), _build(0), {}, PROMPTS[:1], max_new_tokens=12)
    assert found.alpha == 1.0
    step_s, draft_s = found.target_step_s, found.draft_token_s
    # All are accepted, so K + 1 tokens a step; the verification's own time is what is left between two lengths.
    took = [(each.num_tokens + 1) * step_s / each.from_parts for each in found.expectations]
    verify_s = [(took[num - 1] - num * draft_s - step_s) / num for num in range(1, 9)]
    assert verify_s == pytest.approx([verify_s[0]] * 8) and 0 < verify_s[0] <= step_s


def test_the_timed_steps_of_a_captured_probe_are_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, tuple[int, int]] = {}
    generate = Engine.generate

    def watched(self: Engine, drafter: Drafter, *args: Any, **kwargs: Any) -> Any:
        result = generate(self, drafter, *args, **kwargs)
        assert self.graphs is not None
        seen[id(drafter)] = self.graphs.num_graphs(drafter), self.graphs.num_single(drafter)
        return result

    monkeypatch.setattr(Engine, "generate", watched)
    found = probe(tiny_lm(), _build(0), {}, PROMPTS[:2], max_new_tokens=12, graphs=RecordedGraphs())
    assert found.alpha == 1.0
    assert seen and all(num > 0 and single == 0 for num, single in seen.values())


SLOW = Probe(
    alpha=0.1,
    num_tried=100,
    c=0.9,
    draft_token_s=0.009,
    target_step_s=0.01,
    expectations=(
        Expectation(num_tokens=1, leviathan=0.58, from_parts=0.5),
        Expectation(num_tokens=2, leviathan=0.4, from_parts=0.6),
    ),
)


def test_a_pair_that_cannot_pay_is_said_to_be_slower() -> None:
    assert SLOW.best.num_tokens == 2
    last = findings(SLOW, registry.card("draft_model"))[-1]
    assert last.state == "warning"
    assert "slower than autoregression" in last.consequence
    assert last.name == "speed-up to expect by num_tokens" and "best 0.60 at num_tokens=2" in last.what
    assert "draft model" in last.remedy


@pytest.mark.parametrize(
    "name", [entry.name for entry in registry.cards() if entry.card and entry.card.kind == "chain"]
)
def test_the_probe_advises_options_of_the_method_alone(name: str) -> None:
    """What a line proposes can be typed: `suffix` was told to set two options that it refuses."""
    card = registry.card(name)
    told = findings(SLOW, card)
    words = " ".join(f"{each.name} {each.what} {each.remedy}" for each in told)
    proposed = {word for word in re.findall(r"\w+", words) if word in {"num_tokens", "adaptive", "cost_ratio", "model"}}
    assert proposed - {"model"} == card.options.keys() & {"num_tokens", "adaptive", "cost_ratio"}
    assert ("model" in proposed) == ("draft_model" in card.requires) and all(each.what for each in told)
    if "num_tokens" not in card.options:
        assert told[-1].name.endswith("by tokens drafted") and "best 0.60 at 2 tokens drafted" in told[-1].what


def test_a_method_that_drafts_nothing_is_refused() -> None:
    def build(options: Options, target: TargetView, inner: Drafter | None = None) -> Drafter:
        return NoDrafter()

    with pytest.raises(UsageError, match="drafted nothing"):
        probe(tiny_lm(), build, {}, PROMPTS[:1], max_new_tokens=8)
