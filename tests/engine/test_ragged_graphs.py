"""Batches whose rows end at different steps: every timed step meets a graph, and rows that have ended change nothing.

On a CPU graphs are recorded operator by operator (`engine.recorded`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
from torch import Tensor

from methods.hybrid.drafter import build as build_hybrid
from methods.prompt_lookup.drafter import build as build_prompt_lookup
from methods.suffix.drafter import build as build_suffix
from specbench import registry
from specbench.engine import graphs
from specbench.engine.answer import Generation
from specbench.engine.decode import Engine
from specbench.engine.pinned_run import batch_of, batches, spans
from specbench.engine.recorded import RecordedGraphs
from specbench.engine.step_shapes import StepShape, TreeShape, in_order
from specbench.engine.stop import Stop
from specbench.lm.cached_lm import CachedLM, Verified
from specbench.lm.chain import ChainDrafter
from specbench.method import Drafter, DraftNoise, DraftTree, Request, Rule
from specbench.sampling import Sampling
from specbench.tree import chain, empty, from_lists
from tests.helpers import CPU, NoDrafter, RefDrafter, disturbed_lm, requests_for, tiny_lm, tokens_of

Make = Callable[[Engine], Drafter]


def _options(name: str, **changed: Any) -> dict[str, Any]:
    return registry.check_options(registry.card(name), {}) | changed


def _draft_model(engine: Engine) -> ChainDrafter:
    return ChainDrafter(disturbed_lm(max_position_embeddings=600), engine.view(), num_tokens=4, num_shared=64)


METHODS: dict[str, Make] = {
    "prompt_lookup": lambda engine: build_prompt_lookup(_options("prompt_lookup"), engine.view()),
    "suffix": lambda engine: build_suffix(_options("suffix"), engine.view()),
    "hybrid": lambda engine: build_hybrid(_options("hybrid"), engine.view(), _draft_model(engine)),
}
TREES: dict[str, Make] = {
    "prompt_lookup, 2 continuations": lambda engine: build_prompt_lookup(
        _options("prompt_lookup", continuations=2, num_tokens=5), engine.view()
    ),
    "suffix, trees": lambda engine: build_suffix(
        _options("suffix", shape="tree", max_spec_offset=2.0, max_tokens=8), engine.view()
    ),
}


class Plain(NoDrafter):
    """Autoregression whose steps may be captured."""

    capturable = True


@cache
def _lm() -> CachedLM:
    return tiny_lm("llama", max_position_embeddings=600)


def _engine(
    *,
    is_captured: bool,
    max_batch: int,
    sampling: Sampling | None = None,
    rule: Rule = "coupled",
    max_len: int = 300,
    stop: Stop | None = None,
) -> Engine:
    return Engine(
        _lm(), sampling=sampling or Sampling(), rule=rule, max_batch=max_batch, max_len=max_len, max_nodes=16,
        stop=stop or Stop(), prefill_chunk=256, graphs=RecordedGraphs() if is_captured else None,
    )  # fmt: skip


def _ragged(num: int, *, seed: int, shortest: int = 225) -> list[Request]:
    """Prompts that repeat themselves, some of them near the end of the first span; answers of all lengths, several of
    which end in one step."""
    rng = random.Random(seed)
    found = []
    for row in range(num):
        piece = [rng.randrange(4, 40) for _ in range(12)]
        prompt = tuple((piece * 30)[: shortest + rng.randrange(20)])
        found.append(Request(key=100 * seed + row, prompt=prompt, max_new_tokens=3 + rng.randrange(12)))
    return found


def _warm_up(engine: Engine, drafter: Drafter, num: int, *, shortest: int = 225) -> None:
    """As a run does it: one short prompt in every row."""
    prompt = _ragged(1, seed=99, shortest=shortest)[0].prompt[:shortest]
    start = drafter.snapshot()
    engine.generate(drafter, [Request(key=1, prompt=prompt, max_new_tokens=6)] * num, capturing="all")
    drafter.restore(start)


def _counts(generation: Generation) -> list[tuple[Any, ...]]:
    return [
        (s.num_nodes, s.depth, s.num_accepted, s.num_committed, s.num_truncated, s.ranks, s.tokens)
        for s in generation.steps
    ]


def _demand_same(found: Sequence[Generation], wanted: Sequence[Generation]) -> None:
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine.tokens, mine.finish_reason) == (theirs.tokens, theirs.finish_reason)
        assert _counts(mine) == _counts(theirs)


def _timed(engine: Engine, drafter: Drafter, asked: Sequence[Request]) -> tuple[tuple[Generation, ...], int]:
    """Answers, and how many steps met no graph."""
    assert engine.graphs is not None
    before = engine.graphs.num_single(drafter)
    found = engine.generate(drafter, asked, capturing="none").generations
    return found, engine.graphs.num_single(drafter) - before


@pytest.mark.parametrize("name", METHODS)
def test_no_step_of_64_rows_that_end_one_by_one_goes_without_a_graph(name: str) -> None:
    plain, captured = (_engine(is_captured=is_captured, max_batch=64) for is_captured in (False, True))
    asked = _ragged(64, seed=3)
    wanted = plain.generate(METHODS[name](plain), asked).generations
    alone = plain.generate(NoDrafter(), asked).generations
    drafter = METHODS[name](captured)
    _warm_up(captured, drafter, 64)
    found, num_single = _timed(captured, drafter, asked)
    assert num_single == 0
    assert captured.graphs is not None and captured.graphs.num_graphs(drafter) == 7 * 2 * 6
    _demand_same(found, wanted)
    assert [each.tokens for each in found] == [each.tokens for each in alone]
    steps = [step for each in found for step in each.steps]
    assert sum(step.num_accepted for step in steps) > 20, "no draft was ever right: nothing was compared"
    assert len({len(each.steps) for each in found}) > 5, "rows end at different steps"
    first = found[0].steps
    assert all(step.draft_s > 0 and step.verify_s > 0 and step.accept_s > 0 and step.commit_s > 0 for step in first)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7, repetition_penalty=1.3)], ids=str)
@pytest.mark.parametrize("name", [*METHODS, *TREES])
def test_rows_that_have_ended_and_rows_that_never_were_change_nothing(
    name: str, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven rows in the graphs of eight, five in those of a group that was not warmed up; and so few graphs that most
    steps run in a larger one."""
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 30)
    make = (METHODS | TREES)[name]
    plain, captured = (_engine(is_captured=i, max_batch=8, sampling=sampling) for i in (False, True))
    reference, drafter = make(plain), make(captured)
    _warm_up(captured, drafter, 8)
    assert captured.graphs is not None and captured.graphs.is_full(drafter)
    for seed, num in ((1, 7), (2, 5)):
        asked = _ragged(num, seed=seed)
        start, own_start = reference.snapshot(), drafter.snapshot()
        found, num_single = _timed(captured, drafter, asked)
        assert num_single == 0
        _demand_same(found, plain.generate(reference, asked).generations)
        reference.restore(start)
        drafter.restore(own_start)


def test_a_long_row_that_has_ended_stands_still_inside_what_the_short_ones_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its place is verified along with the others', whose texts end far in front of it, and goes on no further."""
    captured = _engine(is_captured=True, max_batch=4)
    lm, seen = captured.lm, []
    verify = lm.verify_behind

    def checked(root_B: Tensor, tree: DraftTree, length_B: Tensor, *, span: int) -> Verified:
        seen.append((span, int(length_B.max()) + tree.num_nodes + 1))
        return verify(root_B, tree, length_B, span=span)

    monkeypatch.setattr(lm, "verify_behind", checked)
    prompts = [tokens_of(1, 280), *(tokens_of(seed, 30) for seed in (2, 3, 4))]
    ends = [4, 25, 25, 25]
    asked = [Request(key=1, prompt=tuple(p), max_new_tokens=end) for p, end in zip(prompts, ends, strict=True)]
    captured.generate(NoDrafter(), asked, capturing="none")
    assert {span for span, _ in seen} == {256, 317}, "the long row's and the others'"
    assert all(behind <= span for span, behind in seen)
    assert captured._pins is not None and captured._pins.length_R.tolist() == [283, 54, 54, 54]


@pytest.mark.parametrize("kind", ["chain", "tree"])
@pytest.mark.parametrize("rule", ["coupled", "rejection", "typical"])
def test_the_largest_shape_stands_in_for_every_other(kind: str, rule: Rule) -> None:
    """With eight graphs, for four sizes of batch and two spans, every step runs in the widest tree."""
    sampling = Sampling(temperature=0.8, top_k=20)
    plain, captured = (_engine(is_captured=i, max_batch=8, sampling=sampling, rule=rule) for i in (False, True))
    asked = _ragged(8, seed=5)
    answers = [each.tokens for each in plain.generate(NoDrafter(), asked).generations]
    wanted = plain.generate(RefDrafter(answers, kind=kind, seed=4), asked).generations
    drafter = RefDrafter(answers, kind=kind, seed=4)
    _warm_up(captured, drafter, 8)
    assert captured.graphs is not None
    kept = captured.graphs._kept[drafter]
    for shape in list(kept):
        if isinstance(shape, StepShape) and shape.tree != TreeShape(12, 12, False):
            del kept[shape]
    assert captured.graphs.num_graphs(drafter) == 8
    drafter._rng.seed(4)
    found, num_single = _timed(captured, drafter, asked)
    assert num_single == 0
    _demand_same(found, wanted)


def test_steps_whose_drafts_bring_their_laws_count_as_steps_without_a_graph() -> None:
    """Nothing of theirs is captured: a row must not look as if it were. Ended rows change nothing there either."""
    sampling = Sampling(temperature=0.9)
    plain, captured = (_engine(is_captured=i, max_batch=8, sampling=sampling, rule="rejection") for i in (False, True))
    asked = _ragged(7, seed=6)
    reference, drafter = METHODS["hybrid"](plain), METHODS["hybrid"](captured)
    _warm_up(captured, drafter, 7)
    found, num_single = _timed(captured, drafter, asked)
    _demand_same(found, plain.generate(reference, asked).generations)
    assert 0 < num_single <= max(len(each.steps) for each in found)


def test_a_drafter_that_denies_its_trees_is_found_out() -> None:
    class Denies(Drafter):
        branches = False
        max_nodes = 2

        def draft(self, noise: DraftNoise | None) -> DraftTree:
            return from_lists([[4, 5]], [[-1, -1]], device=CPU)

    captured = _engine(is_captured=True, max_batch=1)
    with pytest.raises(AssertionError, match="drafts a tree, its `branches` says none"):
        captured.generate(Denies(), _ragged(1, seed=1))


def test_a_drafter_that_passes_its_max_nodes_is_found_out() -> None:
    class Passes(Drafter):
        max_nodes = 1

        def draft(self, noise: DraftNoise | None) -> DraftTree:
            return chain(empty(1, CPU).tokens_BN.new_ones(1, 3))

    captured = _engine(is_captured=True, max_batch=1)
    with pytest.raises(AssertionError, match="drafts 3 nodes, its max_nodes says 1"):
        captured.generate(Passes(), _ragged(1, seed=1))


def test_methods_say_whether_they_branch() -> None:
    engine = _engine(is_captured=False, max_batch=1)
    assert not any(make(engine).branches for make in METHODS.values())
    assert all(make(engine).branches for make in TREES.values())


# --- drafters whose whole step is captured ---------------------------------------------------------------------------


def test_several_rows_that_end_in_one_step_leave_no_batch_without_graphs() -> None:
    """Five of eight rows end together: the other three go on in the graphs of four."""
    plain, captured = (_engine(is_captured=is_captured, max_batch=8) for is_captured in (False, True))
    drafter = Plain()
    _warm_up(captured, drafter, 8, shortest=20)
    asked = [Request(key=row, prompt=(4, 5, 6 + row), max_new_tokens=6 if row % 3 else 30) for row in range(8)]
    found, num_single = _timed(captured, drafter, asked)
    assert num_single == 0
    _demand_same(found, plain.generate(NoDrafter(), asked).generations)


@pytest.mark.parametrize("name", ["autoregressive", "draft_model"])
def test_a_warm_up_that_outgrows_a_span_leaves_smaller_batches_their_graphs_of_it(name: str) -> None:
    """The texts of the warm-up pass slot 256 before a batch ever shrinks; others shrink in front of it."""
    plain, captured = (_engine(is_captured=is_captured, max_batch=4) for is_captured in (False, True))
    drafter = Plain() if name == "autoregressive" else _draft_model(captured)
    captured.generate(
        drafter, [Request(key=1, prompt=tuple(tokens_of(9, 235)), max_new_tokens=24)] * 4, capturing="all"
    )
    asked = [Request(key=row, prompt=tuple(tokens_of(row, 235)), max_new_tokens=3 + 4 * row) for row in range(4)]
    found, num_single = _timed(captured, drafter, asked)
    assert num_single == 0
    assert [each.tokens for each in found] == [e.tokens for e in plain.generate(NoDrafter(), asked).generations]


@pytest.mark.parametrize("name", ["autoregressive", *METHODS])
def test_rows_that_end_with_their_first_token_leave_no_batch_without_graphs(name: str) -> None:
    prompts = [tokens_of(seed, 30) for seed in range(6)]
    requests = requests_for(prompts, max_new_tokens=20)
    firsts = [
        each.tokens[0] for each in _engine(is_captured=False, max_batch=6).generate(NoDrafter(), requests).generations
    ]
    stop = Stop(ids=frozenset({firsts[2]}))
    plain, captured = (_engine(is_captured=i, max_batch=6, stop=stop) for i in (False, True))
    drafter = Plain() if name == "autoregressive" else METHODS[name](captured)
    kept = next(request for request, first in zip(requests, firsts, strict=True) if first != firsts[2])
    captured.generate(drafter, [kept] * 6, capturing="all")
    found, num_single = _timed(captured, drafter, requests)
    wanted = plain.generate(NoDrafter(), requests).generations
    assert any(not each.steps for each in wanted) and any(each.steps for each in wanted)
    assert num_single == 0
    assert [(each.tokens, each.finish_reason) for each in found] == [(e.tokens, e.finish_reason) for e in wanted]


# --- which shapes there are ------------------------------------------------------------------------------------------


def test_a_batch_of_64_comes_in_seven_sizes() -> None:
    assert batches(64) == [64, 32, 16, 8, 4, 2, 1] and batches(48) == [48, 32, 16, 8, 4, 2, 1] and batches(1) == [1]
    assert [batch_of(num, most=48) for num in (48, 33, 32, 17, 3, 1)] == [48, 48, 32, 32, 4, 1]


@pytest.mark.parametrize("max_nodes", [10, 16])
def test_chains_of_64_rows_and_8_thousand_slots_fit_among_the_graphs(max_nodes: int) -> None:
    """As the three methods draft by default: everything that can come is captured exactly."""
    possible = TreeShape.all_of(max_nodes, branches=False)
    found = list(in_order({}, possible, batches=batches(64), spans=spans(8192)))
    assert len(possible) == 6 and len(found) == len(set(found)) == 7 * 6 * 6 == 252 <= graphs.MOST_GRAPHS


def test_trees_of_16_nodes_come_in_14_shapes_beside_the_chains() -> None:
    assert len(TreeShape.all_of(16, branches=True)) == 20
    assert TreeShape.all_of(0, branches=True) == {TreeShape(0, 0, True)}


def test_the_first_graphs_are_those_that_stand_in_for_all_others_then_come_those_that_were_met() -> None:
    possible = TreeShape.all_of(16, branches=True)
    met = {TreeShape(2, 2, True): 3, TreeShape(8, 4, False): 5}
    order = list(in_order(met, possible, batches=[4, 2, 1], spans=[256, 512]))
    assert len(order) == len(set(order)) == 20 * 6
    trees = [shape.tree for shape in order[::6]]
    assert trees[:3] == [TreeShape(16, 16, False), TreeShape(8, 4, False), TreeShape(2, 2, True)]
    assert all(trees[0].holds(tree) for tree in possible)
    # Whatever is left out when graphs run short, each size of batch and each span has what the others have.
    assert order[:6] == [StepShape(rows, span, trees[0]) for rows in (4, 2, 1) for span in (256, 512)]


def test_a_shape_takes_what_can_be_padded_to_it_and_nothing_else() -> None:
    tree, line = TreeShape(8, 4, False), TreeShape(8, 8, True)
    assert tree.holds(TreeShape(4, 4, True)) and tree.holds(TreeShape(8, 2, False)) and tree.holds(tree)
    assert not tree.holds(line), "paths longer than the walk is"
    assert not line.holds(TreeShape(2, 1, False)), "siblings are no chain"
    shape = StepShape(4, 256, tree)
    assert shape.takes(tree, num_rows=3, longest=248)
    assert not shape.takes(tree, num_rows=3, longest=249), "its nodes would stand behind what is read"
    assert not shape.takes(tree, num_rows=5, longest=10)
