"""Replaying recorded texts counts what a run of the engine counts, for every kind of drafter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from specbench.engine.decode import Engine
from specbench.engine.replay import Replayed, Text, replay
from specbench.engine.stop import Stop
from specbench.events import StepRow
from specbench.lm.cached_lm import CachedLM
from specbench.lm.chain import ChainDrafter
from specbench.method import Commit, Drafter, DraftNoise, DraftTree, Request, TargetView
from specbench.sampling import Sampling, top_children
from specbench.tree import from_lists
from tests.helpers import CPU, VOCAB, NoDrafter, RefDrafter, requests_for, tiny_lm

SAMPLINGS = {"greedy": Sampling(), "drawn": Sampling(temperature=0.9)}


class _StateReader(Drafter):
    """Proposes a two-level tree from the tapped states alone: wrong states or a wrong root change what it proposes."""

    taps = ("final",)
    max_nodes = 4

    def __init__(self, view: TargetView) -> None:
        self._view = view

    def begin(self, requests: Sequence[Request]) -> None:
        self._state = torch.zeros(len(requests), self._view.hidden_size, dtype=self._view.dtype)

    def prefill(self, row: int, tokens_T: Tensor, hidden_TKD: Tensor | None, offset: int) -> None:
        assert hidden_TKD is not None
        self._state[row] = hidden_TKD[-1, 0]

    def start(self, len_B: list[int], root_B: Tensor) -> None:
        self._root_B = root_B

    def draft(self, noise: DraftNoise | None) -> DraftTree:
        mixed = self._state + self._view.embed_tokens(self._root_B)
        best = top_children(self._view.lm_head(mixed), None, 2).tolist()
        parents = [[-1, -1, 0, 0]] * len(best)
        return from_lists([[a, b, a, b] for a, b in best], parents, device=CPU)

    def commit(self, commit: Commit) -> None:
        assert commit.hidden_BCKD is not None
        rows = torch.arange(commit.tokens_BC.shape[0])
        self._state = commit.hidden_BCKD[rows, commit.num_accepted_B, 0]
        self._root_B = commit.tokens_BC[rows, commit.num_accepted_B]

    def keep(self, rows: list[int]) -> None:
        self._state, self._root_B = self._state[rows], self._root_B[rows]


def _drafter(kind: str, lm: CachedLM, engine: Engine, answers: Sequence[Sequence[int]]) -> Drafter:
    if kind == "states":
        return _StateReader(engine.view())
    if kind == "chain":
        draft = tiny_lm("llama")
        generator = torch.Generator().manual_seed(5)
        for parameter in draft.model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        return ChainDrafter(draft, engine.view(), num_tokens=3, num_shared=VOCAB)
    return RefDrafter(answers, kind="tree", seed=4)


def _of_steps(rows: Sequence[StepRow]) -> tuple[int, int, dict[int, int]]:
    """Steps, tokens kept, and by depth how often at least so many were accepted within the answer."""
    accepted: Counter[int] = Counter()
    for row in rows:
        accepted.update(range(1, min(row.num_accepted, len(row.tokens)) + 1))
    return len(rows), sum(len(row.tokens) for row in rows), dict(accepted)


def _counts(replayed: Replayed) -> tuple[int, int, dict[int, int]]:
    accepted = {depth: count for depth, count in enumerate(replayed.accepted_at, 1) if count}
    return replayed.num_steps, replayed.num_tokens, accepted


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("kind", ["states", "chain", "tree"])
def test_a_replay_counts_the_steps_of_the_run_it_replays(kind: str, sampling: Sampling) -> None:
    """Simulated acceptance during training is the bench's acceptance, step by step, not an estimate of it."""
    lm = tiny_lm("llama")
    engine = Engine(lm, sampling=sampling, max_batch=4, max_len=80, max_nodes=12)
    requests = requests_for()
    answers = [g.tokens for g in engine.generate(NoDrafter(), requests).generations]
    run = engine.generate(_drafter(kind, lm, engine, answers), requests)
    assert [g.tokens for g in run.generations] == answers
    texts = [Text(prompt=r.prompt, answer=a, key=r.key) for r, a in zip(requests, answers, strict=True)]
    replayed = replay(lm, _drafter(kind, lm, engine, answers), texts, sampling=sampling, max_batch=4)
    assert _counts(replayed) == _of_steps([row for g in run.generations for row in g.steps])
    assert sorted(replayed.steps_of) == sorted(len(g.steps) for g in run.generations)
    assert sum(replayed.accepted_at) > 0, "nothing was accepted: the comparison would prove little"


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_an_answer_that_stopped_before_its_limit_is_drafted_for_up_to_the_limit(sampling: Sampling) -> None:
    """As it was in the run: a drafter cannot know that a stop will come."""
    lm = tiny_lm("llama")
    free = Engine(lm, sampling=sampling, max_batch=4, max_len=80, max_nodes=12)
    requests = requests_for()
    texts = [g.tokens for g in free.generate(NoDrafter(), requests).generations]
    stops = frozenset(text[14] for text in texts)
    engine = Engine(lm, sampling=sampling, max_batch=4, max_len=80, max_nodes=12, stop=Stop(ids=stops))
    answers = [g.tokens for g in engine.generate(NoDrafter(), requests).generations]
    assert any(len(a) < r.max_new_tokens for a, r in zip(answers, requests, strict=True))
    run = engine.generate(_drafter("chain", lm, engine, answers), requests)
    steps = [row for g in run.generations for row in g.steps]
    replayed = replay(
        lm,
        _drafter("chain", lm, engine, answers),
        [
            Text(prompt=r.prompt, answer=a, key=r.key, max_new_tokens=r.max_new_tokens)
            for r, a in zip(requests, answers, strict=True)
        ],
        sampling=sampling,
        max_batch=4,
    )
    assert _counts(replayed) == _of_steps(steps)
    assert replayed.steps_at == tuple(sorted(Counter(step.num_nodes for step in steps).items()))


def test_texts_are_replayed_in_groups_and_those_without_a_step_are_left_out() -> None:
    lm = tiny_lm("llama")
    engine = Engine(lm, sampling=Sampling(), max_batch=2, max_len=80, max_nodes=4)
    requests = requests_for()
    answers = [engine.generate(NoDrafter(), [request]).generations[0].tokens for request in requests]
    texts = [Text(prompt=r.prompt, answer=a) for r, a in zip(requests, answers, strict=True)]
    one_by_one = replay(lm, _StateReader(engine.view()), texts, max_batch=1)
    in_pairs = replay(lm, _StateReader(engine.view()), [*texts, Text(prompt=(1, 2), answer=(5,))], max_batch=2)
    assert _counts(one_by_one) == _counts(in_pairs)
    assert in_pairs.num_tokens == sum(len(answer) - 1 for answer in answers)
    assert in_pairs.acceptance_length == in_pairs.num_tokens / in_pairs.num_steps
