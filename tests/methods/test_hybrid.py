"""The hybrid chooses per row and step, asks the wrapped drafter only when wanted, and never loses its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers import CPU, NoDrafter, disturbed_lm, requests_for, tiny_lm, tiny_model

from methods.hybrid.drafter import Evidence, HybridDrafter, build, mixed
from specbench import registry
from specbench import tree as trees
from specbench.conformance.watch import inspect_tree
from specbench.engine.decode import Engine
from specbench.engine.recorded import RecordedGraphs
from specbench.engine.stop import Stop
from specbench.errors import UsageError
from specbench.lm.adaptive_length import AdaptiveLength
from specbench.lm.cached_lm import CachedLM
from specbench.lm.chain import ChainDrafter
from specbench.method import Commit, Drafter, DraftNoise, DraftTree, Request, Rule
from specbench.sampling import Sampling
from specbench.suffix import Proposal

OPTIONS: dict[str, Any] = registry.check_options(registry.card("hybrid"), {})
REPEATING = ((1, 2, 3, 4, 5, 6) * 4, (9,) * 15, (4, 5), (7, 8, 9, 10) * 5)


def _engine(sampling: Sampling | None = None, rule: Rule = "coupled", graphs: RecordedGraphs | None = None) -> Engine:
    return Engine(
        tiny_lm(),
        sampling=sampling or Sampling(),
        rule=rule,
        max_batch=4,
        max_len=100,
        max_nodes=16,
        stop=Stop(ids=frozenset({3})),
        graphs=graphs,
    )


class _Counted(ChainDrafter):
    """Keeps what it drafted by (tokens committed of row 0), and how often it was asked."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.num_asked = 0
        self.drafts: dict[int, list[int]] = {}

    def draft(self, noise: DraftNoise | None) -> DraftTree:
        tree = super().draft(noise)
        self.num_asked += 1
        self.drafts[self._len_B[0]] = tree.tokens_BN[0].tolist()
        return tree


def _chain(engine: Engine, **kwargs: Any) -> _Counted:
    return _Counted(disturbed_lm(), engine.view(), num_tokens=4, num_shared=64, **kwargs)


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.3), Sampling(temperature=0.7, repetition_penalty=1.3)], ids=str
)
@pytest.mark.parametrize("changed", [{}, {"threshold": 1.0, "shape": "tree", "max_spec_offset": 2.0}], ids=str)
@pytest.mark.parametrize("picks", ["shared-noise", "sampled", "adaptive"])
def test_the_text_is_the_autoregressive_one_alone_and_in_a_ragged_batch(
    sampling: Sampling, changed: dict[str, Any], picks: str
) -> None:
    engine = _engine(sampling)
    requests = requests_for(REPEATING, max_new_tokens=30)
    expected = [engine.generate(NoDrafter(), [request]).generations[0].tokens for request in requests]
    inner = _chain(
        engine,
        picks="shared-noise" if picks == "adaptive" else picks,
        adaptive=AdaptiveLength(first=3, maximum=8, cost_ratio=0.1) if picks == "adaptive" else None,
    )
    drafter = build(OPTIONS | changed, engine.view(), inner)
    alone = [engine.generate(drafter, [request]).generations[0].tokens for request in requests]
    assert alone == expected
    assert [answer.tokens for answer in engine.generate(drafter, requests).generations] == expected


@pytest.mark.parametrize("rule", ["coupled", "rejection"])
def test_a_row_accepts_the_same_alone_and_in_a_ragged_batch(rule: Rule) -> None:
    """A slip in the wrapped drafter's place never changes a text; it shows in what is accepted.

    Under `rejection` the drawn text itself depends on what was drafted: equal counts of equal drafts.
    """
    engine = _engine(Sampling(temperature=0.5), rule)
    requests = requests_for(REPEATING, max_new_tokens=40)
    drafter = build(OPTIONS, engine.view(), _chain(engine))
    start = drafter.snapshot()

    def steps(rows: list[Request]) -> list[list[tuple[int, int]]]:
        drafter.restore(start)
        answers = engine.generate(drafter, rows).generations
        return [[(step.num_nodes, step.num_accepted) for step in each.steps] for each in answers]

    together = steps(requests)
    assert [steps([request])[0] for request in requests] == together
    assert {nodes for row in together for nodes, _ in row} > {4}, "both kinds of draft were used"


class _Following(_Counted):
    """Keeps what it was yet to read whenever a step went by without it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.was_pending: list[list[int]] = []

    def follow(self, commit: Commit, is_own: list[bool]) -> None:
        self.was_pending += self._pending_BM.tolist()
        super().follow(commit, is_own)


def test_captured_steps_leave_a_draft_model_that_is_asked_now_and_then_what_it_has_yet_to_read() -> None:
    """It may wait through steps that others drafted, replayed on the memory that its last commit was read from."""
    requests = requests_for(REPEATING[3:], max_new_tokens=40)
    steps, pending = [], []
    for graphs in (None, RecordedGraphs()):
        engine = _engine(graphs=graphs)
        inner = _Following(disturbed_lm(noise=0.5), engine.view(), num_tokens=4, num_shared=64)
        drafter = build(OPTIONS | {"max_tokens": 4, "threshold": 2.0}, engine.view(), inner)
        start = drafter.snapshot()
        for _ in range(2):
            drafter.restore(start)
            [answer] = engine.generate(drafter, requests).generations
        steps.append([(step.num_nodes, step.num_accepted) for step in answer.steps])
        pending.append(inner.was_pending)
    assert pending[0] and pending[1] == pending[0]
    assert steps[1] == steps[0]


def test_the_wrapped_drafter_drafts_what_it_would_have_drafted_alone() -> None:
    """Its cache missed whole suffix drafts meanwhile; `follow` brought it up to date."""
    engine = _engine()
    request = requests_for(REPEATING[:1], max_new_tokens=60)[0]
    plain, wrapped = _chain(engine), _chain(engine)
    engine.generate(plain, [request])
    answer = engine.generate(build(OPTIONS, engine.view(), wrapped), [request]).generations[0]
    assert wrapped.num_asked < len(answer.steps), "not asked where the suffix draft won"
    common = plain.drafts.keys() & wrapped.drafts.keys()
    assert len(common) >= 3
    assert {at: wrapped.drafts[at] for at in common} == {at: plain.drafts[at] for at in common}


class _Deaf(Drafter):
    """Proposes token 5; keeps what it was told."""

    max_nodes = 1

    def __init__(self) -> None:
        self.told: list[tuple[str, list[bool], list[list[int]], list[list[int]]]] = []
        self.num_rows = 0

    def start(self, len_B: list[int], root_B: torch.Tensor) -> None:
        self.num_rows = len(len_B)

    def draft(self, noise: DraftNoise | None) -> DraftTree:
        return trees.chain(torch.full((self.num_rows, 1), 5))

    def commit(self, commit: Commit) -> None:
        self.told.append(("commit", [], commit.path_BP.tolist(), commit.tokens))

    def follow(self, commit: Commit, is_own: list[bool]) -> None:
        self.told.append(("follow", is_own, commit.path_BP.tolist(), commit.tokens))

    def keep(self, rows: list[int]) -> None:
        self.num_rows = len(rows)


def _told(prompts: Sequence[Sequence[int]]) -> list[tuple[str, list[bool], list[list[int]], list[list[int]]]]:
    """One step on these prompts, of which every node is accepted and token 50 is the bonus."""
    engine = _engine()
    inner = _Deaf()
    drafter = build(OPTIONS | {"threshold": 1.0}, engine.view(), inner)
    drafter.begin(requests_for([prompt[:-1] for prompt in prompts]))
    drafter.start([len(prompt) for prompt in prompts], torch.tensor([prompt[-1] for prompt in prompts]))
    tree = drafter.draft(None)
    [*rows] = inspect_tree(tree, num_rows=len(prompts), max_nodes=16, vocab_size=64)
    counts = [len(row.tokens) for row in rows]
    path = [[node if node < count else -1 for node in range(tree.max_depth)] for count in counts]
    tokens = [[*row.tokens, 50] for row in rows]
    width = tree.max_depth + 1
    drafter.commit(
        Commit(
            num_accepted_B=torch.tensor(counts),
            path_BP=torch.tensor(path),
            tokens_BC=torch.tensor([row + [0] * (width - len(row)) for row in tokens]),
            hidden_BCKD=None,
            tokens=tokens,
            finished=[False for _ in prompts],
        )
    )
    return inner.told


def test_the_wrapped_drafter_is_told_whose_drafts_were_taken() -> None:
    repeats, new = [1, 2, 3, 4, 1, 2, 3], [11, 12, 13]
    assert _told([new]) == [("commit", [], [[0]], [[5, 50]])]
    assert _told([repeats]) == [("follow", [False], [[-1, -1, -1]], [[4, 1, 2, 50]])]
    assert _told([repeats, new]) == [
        ("follow", [False, True], [[-1, -1, -1], [0, -1, -1]], [[4, 1, 2, 50], [5, 50]]),
    ]


def test_rows_of_both_kinds_share_a_tree_and_leave_the_wrapped_drafters_tensors_alone() -> None:
    inner = trees.chain(torch.tensor([[5, 6], [7, 8]]), logq_BMV=torch.full((2, 3, 10), 0.1).log())
    before = inner.tokens_BN.clone()
    found = Proposal(tokens=[1, 2, 3], parents=[-1, -1, 0], score=2.0, num_matched=4)
    tree = mixed(inner, [None, found])
    own, suffix = inspect_tree(tree, num_rows=2, max_nodes=3, vocab_size=10)
    assert (own.tokens, own.parents) == ((5, 6), (-1, 0))
    assert (suffix.tokens, suffix.parents) == ((1, 2, 3), (-1, -1, 0))
    assert tree.max_depth == 2 and not tree.is_chain
    assert tree.logq_BMV is not None
    assert tree.logq_BMV[1, 0].exp().tolist() == [0, 1] + [0] * 8
    assert tree.logq_BMV[1, 1].exp().tolist() == [0, 0, 0, 1] + [0] * 6
    assert torch.equal(inner.tokens_BN, before)
    assert trees.chain(torch.tensor([[5, 6], [7, 8]])).parents_BN.tolist() == [[-1, 0], [-1, 0]]
    as_chain = mixed(inner, [Proposal(tokens=[1], parents=[-1], score=2.0, num_matched=4), None])
    assert as_chain.is_chain and as_chain.valid_BN is not None
    assert as_chain.valid_BN.tolist() == [[True, False], [True, True]]
    assert mixed(trees.empty(1, CPU), [found]).tokens_BN.tolist() == [[1, 2, 3]]


def test_the_learnt_rule_weighs_promises_against_what_the_wrapped_drafter_had_accepted() -> None:
    evidence = Evidence()
    assert (evidence.inner_mean, evidence.trust) == (1.0, 1.0)
    evidence.learn(4, score=None)
    assert (evidence.inner_mean, evidence.trust) == (4.0, 1.0)
    evidence.learn(0, score=None)
    assert evidence.inner_mean == pytest.approx(3.6 / 1.9)
    evidence.learn(1, score=4.0)
    assert evidence.trust == pytest.approx(3 / 6)
    evidence.learn(2, score=None)
    assert evidence.trust == pytest.approx(2.9 / 5.6), "towards good faith again"


def test_the_published_threshold_is_the_wrapped_methods_depth() -> None:
    engine = _engine()
    request = requests_for(REPEATING[:1], max_new_tokens=40)[0]
    always, never = _chain(engine), _chain(engine)
    engine.generate(build(OPTIONS | {"threshold": 0.01}, engine.view(), always), [request])
    answer = engine.generate(build(OPTIONS | {"threshold": 1000.0}, engine.view(), never), [request]).generations[0]
    assert always.num_asked < never.num_asked == len(answer.steps)
    published = build(OPTIONS | {"threshold": -1.0}, engine.view(), _chain(engine))
    assert isinstance(published, HybridDrafter) and published._threshold == 4.0
    with pytest.raises(UsageError, match="is no number of tokens"):
        build(OPTIONS | {"threshold": -0.5}, engine.view(), always)


def test_facts_of_the_wrapped_drafter_are_passed_on() -> None:
    engine = _engine()
    inner = _chain(engine)
    inner.taps, inner.weights_hash, inner.trained_on = (1, "final"), "abc", "def"
    drafter = build(OPTIONS, engine.view(), inner)
    assert (drafter.taps, drafter.weights_hash, drafter.trained_on) == ((1, "final"), "abc", "def")
    assert drafter.num_parameters() == inner.num_parameters() > 0
    assert (drafter.carries, drafter.capturable, drafter.max_nodes) == ("stream", False, 16)
    wide = build(OPTIONS | {"max_tokens": 2}, engine.view(), inner)
    assert wide.max_nodes == 4


def test_past_the_draft_models_context_the_suffix_goes_on() -> None:
    engine = _engine()
    lm = CachedLM(tiny_model(max_position_embeddings=18), name="draft")
    requests = requests_for(REPEATING, max_new_tokens=30)
    expected = [engine.generate(NoDrafter(), [request]).generations[0].tokens for request in requests]
    drafter = build(OPTIONS, engine.view(), ChainDrafter(lm, engine.view(), num_tokens=4, num_shared=64))
    assert [engine.generate(drafter, [request]).generations[0].tokens for request in requests] == expected
    assert [answer.tokens for answer in engine.generate(drafter, requests).generations] == expected


# --- choosing what to wrap -------------------------------------------------------------------------------------------


def _choose(**said: Any) -> registry.Choice:
    given = {"hybrid": said, "draft_model": {"model": "./d"}}
    return registry.choose("hybrid", given, target_is_demo=False)


def test_the_wrapped_methods_options_are_its_own_and_recorded_beside_the_hybrids() -> None:
    choice = _choose()
    assert choice.name == "hybrid(draft_model)"
    assert choice.recorded_options["draft_model.model"] == "./d"
    assert choice.recorded_options["max_depth"] == 64 and "max_depth" in choice.options
    assert _choose(inner="prompt_lookup").name == "hybrid(prompt_lookup)"


@pytest.mark.parametrize(
    ("inner", "why", "instead"),
    [
        ("draft_modle", "there is no method 'draft_modle'", "did you mean 'draft_model'?"),
        ("hybrid", "it wraps another method itself", "draft_model"),
        ("autoregressive", "the baseline drafts nothing", "draft_model"),
        ("oracle", "it replays the known answer", "draft_model"),
    ],
)
def test_what_cannot_be_wrapped_is_refused_with_the_reason(inner: str, why: str, instead: str) -> None:
    with pytest.raises(UsageError) as caught:
        _choose(inner=inner)
    assert why in caught.value.what and instead in caught.value.try_
    listed = caught.value.try_.partition("known: ")[2].split(", ")
    assert "oracle" not in listed and "hybrid" not in listed


def test_a_wrapped_method_that_needs_something_says_what() -> None:
    with pytest.raises(UsageError, match=r"wraps 'draft_model'.*--set draft_model\.model") as caught:
        registry.choose("hybrid", {}, target_is_demo=False)
    assert "hybrid.inner=" in caught.value.try_
    assert registry.choose("hybrid", {}, target_is_demo=True).name == "hybrid(draft_model)"
