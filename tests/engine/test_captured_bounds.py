"""Bounds of captured steps: one step too many, a number of graphs, 64 rows, no word to the host."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from specbench.conformance.broken import BrokenPromise
from specbench.conformance.capture import NoHostReads
from specbench.engine import graphs
from specbench.engine.decode import Engine
from specbench.engine.graphs import Graph, Step
from specbench.engine.recorded import RecordedGraphs
from specbench.engine.stop import Stop
from specbench.lm.cached_lm import CachedLM
from specbench.lm.chain import ChainDrafter
from specbench.method import Drafter, Request, Rule
from specbench.sampling import Sampling
from tests.engine.test_captured import SAMPLINGS, STOP, Bigrams, Plain, Reader, _demand_same, _followers, _lm
from tests.helpers import FAMILIES, NoDrafter, RefDrafter, requests_for, tiny_lm, tokens_of


class Watched(RecordedGraphs):
    """Counts what is captured and what is sent to the host: one send a step that was launched."""

    def __init__(self, *, allows_reads: bool = True) -> None:
        super().__init__()
        self.num_captured = 0
        self.num_sent = 0
        self.num_replayed = 0
        self._allows_reads = allows_reads

    def run_and_capture(self, step: Step) -> tuple[Any, Graph | None, str]:
        self.num_captured += 1
        if self._allows_reads:
            return super().run_and_capture(step)

        def guarded() -> Any:
            with NoHostReads("step"):
                return step()

        return super().run_and_capture(guarded)

    def runs(self, graph: Any) -> None:
        self.num_replayed += 1
        super().runs(graph)

    def send(self, out: Tensor) -> Callable[[], list[int]]:
        self.num_sent += 1
        return super().send(out)


def _engine(
    lm: CachedLM,
    backend: RecordedGraphs | None,
    *,
    sampling: Sampling = SAMPLINGS["greedy"],
    rule: Rule = "coupled",
    max_batch: int = 4,
    max_len: int = 64,
    stop: Stop = STOP,
) -> Engine:
    return Engine(
        lm, sampling=sampling, rule=rule, max_batch=max_batch, max_len=max_len, max_nodes=12, stop=stop,
        prefill_chunk=8, graphs=backend,
    )  # fmt: skip


# --- a stop is noticed one step late ---------------------------------------------------------------------------------


@pytest.mark.parametrize("num_rows", [1, 4])
@pytest.mark.parametrize("is_plain", [True, False], ids=["plain", "drafts"])
def test_a_stop_costs_at_most_one_step_that_is_thrown_away(is_plain: bool, num_rows: int) -> None:
    """The plain loop says how many steps there are."""
    lm, requests = _lm("llama"), requests_for()
    for first in range(0, 4, num_rows):
        asked, backend = requests[first : first + num_rows], Watched()
        found, wanted = (
            _engine(lm, each, sampling=SAMPLINGS["T=1"])
            .generate(Plain() if is_plain else Bigrams(_followers("llama")), asked)
            .generations
            for each in (backend, None)
        )
        _demand_same(found, wanted)
        num_extra = backend.num_sent - max(len(each.steps) for each in wanted)
        assert 0 <= num_extra <= 1
        if is_plain and num_rows == 1:
            assert num_extra == (wanted[0].finish_reason == "stop_id"), "the end of a length is foreseen"


def test_the_requests_above_end_both_ways() -> None:
    engine = _engine(_lm("llama"), None, sampling=SAMPLINGS["T=1"])
    ends = [each.finish_reason for each in engine.generate(NoDrafter(), requests_for()).generations]
    assert set(ends) == {"stop_id", "length"}


# --- memory ----------------------------------------------------------------------------------------------------------


class Repeats(RefDrafter):
    """Draws the same drafts in every generation."""

    def begin(self, requests: Sequence[Request]) -> None:
        super().begin(requests)
        self._rng = random.Random(1)


@pytest.mark.parametrize("kind", ["captured whole", "chain", "tree"])
def test_at_the_limit_nothing_more_is_captured_and_steps_without_a_graph_are_right_and_counted(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replay runs no Python: the calls of the target are the steps that had no graph."""
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 2)
    lm, requests, backend = tiny_lm("llama"), requests_for(), Watched()
    plain, captured = _engine(lm, None), _engine(lm, backend)
    answers = [each.tokens for each in plain.generate(NoDrafter(), requests).generations]
    drafter, again = (
        Bigrams(_followers("llama")) if kind == "captured whole" else Repeats(answers, kind=kind) for _ in range(2)
    )
    wanted = plain.generate(again, requests).generations
    assert captured.graphs is not None
    captured.generate(drafter, requests, capturing="all")
    assert backend.num_captured == 2, "and no third is tried"
    calls, verify = [], lm.verify_behind
    monkeypatch.setattr(lm, "verify_behind", lambda *a, **k: (calls.append(a), verify(*a, **k))[1])
    before, backend.num_replayed = captured.graphs.num_single(drafter), 0
    for capturing in ("met", "none"):
        _demand_same(captured.generate(drafter, requests, capturing=capturing).generations, wanted)
    assert captured.graphs.num_single(drafter) - before == len(calls) and backend.num_replayed > 0
    assert calls or kind != "captured whole", "batches of 4, 2 and 1: one of them has no graph"
    assert backend.num_captured == 2 == captured.graphs.num_graphs(drafter)
    assert captured.graphs.is_full(drafter) and not captured.graphs.refusal(drafter)


# --- many rows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "drafts", "from the host"])
def test_sixty_four_rows_that_end_one_after_the_other_are_those_of_the_plain_loop(kind: str) -> None:
    lm, rng, sampling = _lm("llama"), random.Random(3), SAMPLINGS["T=1"]
    prompts = [tokens_of(row, rng.randrange(2, 16)) for row in range(64)]
    requests = [replace(each, max_new_tokens=rng.randrange(1, 24)) for each in requests_for(prompts)]
    plain, captured = (_engine(lm, each, max_batch=64, sampling=sampling) for each in (None, Watched()))
    answers = [each.tokens for each in plain.generate(NoDrafter(), requests).generations]
    kinds: dict[str, Callable[[], Drafter]] = {
        "plain": Plain,
        "drafts": lambda: Bigrams(_followers("llama")),
        "from the host": lambda: Repeats(answers, kind="tree"),
    }
    wanted = plain.generate(kinds[kind](), requests).generations
    assert {each.finish_reason for each in wanted} == {"stop_id", "length"}
    assert len({len(each.steps) for each in wanted}) > 8, "rows end at many different steps"
    drafter = kinds[kind]()
    for _ in range(2):
        _demand_same(captured.generate(drafter, requests).generations, wanted)
    assert captured.graphs is not None and not captured.graphs.refusal(drafter)
    assert captured.graphs.num_graphs(drafter) > 1, "and not the plain loop by another name"


# --- the host --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_no_step_of_any_family_tells_the_host_anything(family: str) -> None:
    """From the draft to the commit, transformers' own forward included. float32 where a model has experts, which run
    there as on a card: in float64 torch has no product of groups, and transformers asks which experts were chosen."""
    lm = tiny_lm(family, dtype=torch.float32) if family in ("mixtral", "gpt_oss") else _lm(family)
    engine, drafter = _engine(lm, Watched(allows_reads=False)), Plain()
    engine.generate(drafter, requests_for())
    assert engine.graphs is not None and engine.graphs.num_graphs(drafter) and not engine.graphs.refusal(drafter)


RULES: list[tuple[str, Rule]] = [
    ("greedy", "coupled"),
    ("all processors", "coupled"),
    ("all processors", "rejection"),
    ("all processors", "typical"),
]


@pytest.mark.parametrize("kind", ["captured whole", "chain", "tree"])
@pytest.mark.parametrize(("name", "rule"), RULES)
def test_no_rule_tells_the_host_anything_before_a_step_has_ended(name: str, rule: Rule, kind: str) -> None:
    engine = _engine(_lm("llama"), Watched(allows_reads=False), sampling=SAMPLINGS[name], rule=rule)
    drafter: Drafter = Bigrams(_followers("llama"))
    if kind != "captured whole":
        drafter = RefDrafter([(5, 6, 7, 8, 9, 10) * 5] * 4, kind=kind, seed=2)
    engine.generate(drafter, requests_for())
    assert engine.graphs is not None and engine.graphs.num_graphs(drafter) and not engine.graphs.refusal(drafter)


def test_a_step_that_tells_the_host_something_is_found_out() -> None:
    """What the tests above rest on."""
    with pytest.raises(BrokenPromise, match="reads a value on the host"):
        _engine(_lm("llama"), Watched(allows_reads=False)).generate(Reader(_followers("llama")), requests_for())


# --- the end of a context --------------------------------------------------------------------------------------------


class FourBigrams(Bigrams):
    max_nodes = 4


@pytest.mark.parametrize("kind", ["captured whole", "tree"])
def test_drafts_may_reach_past_the_last_learned_position(kind: str) -> None:
    """118 + 10 tokens fill GPT-2's table of 128 positions, and the last steps' nodes stand up to four behind it: none
    is ever committed, and none may be looked up there. A captured step cannot draft less near the end."""
    lm = _lm("gpt2")
    assert lm.context_length == 128
    requests = requests_for([tokens_of(seed, 118) for seed in range(2)], max_new_tokens=9)  # the second: 10
    plain, captured = (_engine(lm, each, max_batch=2, max_len=128, stop=Stop()) for each in (None, RecordedGraphs()))
    wanted = plain.generate(NoDrafter(), requests).generations
    answers = [each.tokens for each in wanted]
    assert [len(each) for each in answers] == [9, 10]
    drafter = FourBigrams(_followers("gpt2")) if kind == "captured whole" else RefDrafter(answers, kind=kind, hit=0.5)
    for _ in range(2):
        assert [each.tokens for each in captured.generate(drafter, requests).generations] == answers
    assert captured.graphs is not None and captured.graphs.num_graphs(drafter) and not captured.graphs.refusal(drafter)


@pytest.mark.parametrize("kind", ["captured whole", "tree"])
@pytest.mark.parametrize("max_len", [60, 300], ids=["one span", "two spans"])
def test_texts_that_fill_the_cache_are_those_of_the_plain_loop(max_len: int, kind: str) -> None:
    """Behind the longest text there is room for one draft, and steps that are thrown away find none of their own."""
    lm = tiny_lm("llama", max_position_embeddings=600)
    prompts = [tokens_of(seed, max_len - 24 - seed) for seed in range(4)]
    requests = requests_for(prompts, max_new_tokens=24)
    assert all(len(each.prompt) + each.max_new_tokens == max_len for each in requests)
    for stop in (Stop(), STOP):
        plain, captured = (_engine(lm, each, max_len=max_len, stop=stop) for each in (None, RecordedGraphs()))
        assert captured.lm.cache.num_slots == max_len + 12 + 1
        wanted = plain.generate(NoDrafter(), requests).generations
        answers = [each.tokens for each in wanted]
        drafter = _target_as_draft(captured) if kind == "captured whole" else RefDrafter(answers, kind="tree", hit=0.95)
        for capturing in ("all", "none"):
            found = captured.generate(drafter, requests, capturing=capturing).generations
            assert [each.tokens for each in found] == answers
            assert [each.finish_reason for each in found] == [each.finish_reason for each in wanted]
            assert max(step.num_accepted for each in found for step in each.steps) >= 4


def _target_as_draft(engine: Engine) -> Drafter:
    """Always right, twelve tokens at a time."""
    draft = tiny_lm("llama", max_position_embeddings=600)
    return ChainDrafter(draft, engine.view(), num_tokens=12, num_shared=draft.vocab_size)
