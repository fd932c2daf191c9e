"""The tree drafter: its nodes are those of a plain search without a cache, and the cache keeps the text alone."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from helpers import PROMPTS, NoDrafter, disturbed_lm, plain_logits, requests_for, tiny_lm, tiny_model, tokens_of
from torch import Tensor

from specbench.engine.decode import Engine
from specbench.engine.recorded import RecordedGraphs
from specbench.engine.stop import Stop
from specbench.lm import attention
from specbench.lm.cached_lm import CachedLM
from specbench.lm.chain import ChainDrafter
from specbench.lm.draft_tree import TreeDrafter, TreeShape
from specbench.lm.taps import decoder_of
from specbench.method import Commit, DraftNoise, DraftTree, Request, Rule, TargetView
from specbench.sampling import Sampling, log_probs, process
from specbench.tree import Topology

SAMPLINGS = [
    Sampling(),
    Sampling(temperature=1.0),
    Sampling(temperature=0.7, top_k=20, top_p=0.9, repetition_penalty=1.3),
    Sampling(repetition_penalty=1.5),
]
SHAPES = [TreeShape(beam_width=3), TreeShape(beam_width=4, branch=2, max_nodes=7)]
Path_ = tuple[int, ...]


def _engine(sampling: Sampling, *, family: str = "llama", **kwargs: Any) -> Engine:
    stop = Stop(ids=frozenset({3}))
    return Engine(tiny_lm(family), sampling=sampling, max_batch=4, max_len=100, max_nodes=20, stop=stop, **kwargs)


class _Kept(TreeDrafter):
    """Keeps, by the length of row 0's text, its drafts as path -> log q; counts its model's forwards."""

    def __init__(self, lm: CachedLM, target: TargetView, **draft: Any) -> None:
        super().__init__(lm, target, **draft)
        self.seen: list[tuple[list[int], dict[Path_, float]]] = []
        self.noise: list[list[Tensor]] = []
        self.texts: list[list[int]] = []
        self.num_forwards = 0
        decoder = decoder_of(lm.model)
        forward = decoder.forward

        def counted(*inputs: Any, **named: Any) -> Any:
            self.num_forwards += 1
            return forward(*inputs, **named)

        decoder.forward = counted  # type: ignore[method-assign]

    def begin(self, requests: Any) -> None:
        super().begin(requests)
        self.texts = [list(request.prompt) for request in requests]

    def start(self, len_B: list[int], root_B: Tensor) -> None:
        super().start(len_B, root_B)
        for text, root in zip(self.texts, root_B.tolist(), strict=True):
            text.append(root)
        self.num_forwards = 0

    def draft(self, noise: DraftNoise | None) -> DraftTree:
        tree = super().draft(noise)
        for row, text in enumerate(self.texts):
            self.seen.append((list(text), _paths(tree, row)))
            self.noise.append([] if noise is None else [noise.at_depth(at)[row].clone() for at in range(1, 5)])
        return tree

    def commit(self, commit: Commit) -> None:
        super().commit(commit)
        for text, tokens in zip(self.texts, commit.tokens, strict=True):
            text += tokens

    def keep(self, rows: list[int]) -> None:
        super().keep(rows)
        self.texts = [self.texts[row] for row in rows]


def _paths(tree: DraftTree, row: int) -> dict[Path_, float]:
    """Path of each valid node -> its log q."""
    if tree.num_nodes == 0:
        return {}
    assert tree.score_BN is not None
    paths: list[Path_] = []
    for token, parent in zip(tree.tokens_BN[row].tolist(), tree.parents_BN[row].tolist(), strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    valid = [True] * len(paths) if tree.valid_BN is None else tree.valid_BN[row].tolist()
    found = {path: score for path, score, good in zip(paths, tree.score_BN[row].tolist(), valid, strict=True) if good}
    assert len(found) == sum(valid), "no path stands twice"
    return found


def _law(lm: CachedLM, text: list[int], sampling: Sampling) -> Tensor:
    """log q behind this text, from one full forward without a cache."""
    logits_V = plain_logits(lm, text)[-1]
    seen_V = torch.zeros_like(logits_V, dtype=torch.bool)
    seen_V[text] = True
    return log_probs(process(logits_V, sampling, seen_V))


def _searched(
    lm: CachedLM, text: list[int], sampling: Sampling, noise: list[Tensor], *, shape: TreeShape, depth: int
) -> dict[Path_, float]:
    """The search by the book: every path read whole, every choice a sort of Python numbers. Path -> log q."""
    beams: list[tuple[float, Path_]] = [(0.0, ())]
    priorities: dict[Path_, float] = {}
    logq: dict[Path_, float] = {}
    each = min(shape.branch or shape.beam_width, shape.beam_width)
    for at in range(depth):
        grown: list[tuple[float, Path_]] = []
        for before, path in beams:
            law_V = _law(lm, [*text, *path], sampling)
            gain_V = law_V
            if noise:
                gain_V = law_V + noise[at]
                gain_V = gain_V - gain_V.max()
            children = sorted(enumerate(gain_V.tolist()), key=lambda pair: -pair[1])[:each]
            grown += [(before + gain, (*path, token)) for token, gain in children if gain > float("-inf")]
            logq.update({(*path, token): float(law_V[token]) for token, _ in children})
        beams = sorted(grown, key=lambda pair: -pair[0])[: shape.beam_width]
        priorities.update({path: priority for priority, path in beams})
    # Shorter paths first among equals: a child that costs nothing ties with its parent.
    ranked = sorted(priorities, key=lambda path: (-priorities[path], len(path)))
    return {path: logq[path] for path in ranked[: shape.max_nodes or len(ranked)]}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_every_node_and_its_q_are_those_of_a_search_without_a_cache(
    family: str, sampling: Sampling, shape: TreeShape
) -> None:
    """Ragged rows of different lengths to go; a sliding window shorter than the texts; the target's noise."""
    engine = _engine(sampling, family=family)
    oracle = disturbed_lm(family=family)
    drafter = _Kept(disturbed_lm(family=family), engine.view(), tree=shape, num_tokens=3, num_shared=64)
    requests = requests_for([PROMPTS[0], PROMPTS[2], PROMPTS[3]], max_new_tokens=8)
    ends = [len(request.prompt) + request.max_new_tokens for request in requests]
    accepted = [step.num_accepted for each in engine.generate(drafter, requests).generations for step in each.steps]
    assert len(drafter.seen) == len(accepted) and any(accepted), "committed paths are read back"
    for (text, drafted), noise in zip(drafter.seen, drafter.noise, strict=True):
        row = next(row for row, each in enumerate(requests) if tuple(text[: len(each.prompt)]) == each.prompt)
        depth = min(3, ends[row] - len(text) - 1)
        expected = _searched(oracle, text, sampling, noise, shape=shape, depth=depth)
        assert set(drafted) == set(expected)
        for path, logq in drafted.items():
            # transformers' own norms and softmax compute in float32.
            assert logq == pytest.approx(expected[path], abs=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_the_nodes_are_the_best_of_all_paths(temperature: float) -> None:
    """A vocabulary of four, beams enough for every path: the budget's nodes are those of the largest sums of all 84."""
    sampling = Sampling(temperature=temperature)
    draft = CachedLM(tiny_model(seed=9, vocab_size=4, eos_token_id=None, scale=1.5), name="draft")
    oracle = CachedLM(tiny_model(seed=9, vocab_size=4, eos_token_id=None, scale=1.5), name="draft")
    lm = tiny_lm(vocab_size=4, eos_token_id=None, scale=1.5)
    engine = Engine(lm, sampling=sampling, max_len=40, max_nodes=20)
    shape = TreeShape(beam_width=64, max_nodes=11)
    drafter = _Kept(draft, engine.view(), tree=shape, num_tokens=3, num_shared=4)
    engine.generate(drafter, [Request(key=5, prompt=(1, 2, 0), max_new_tokens=12)])
    num_seen = 0
    for (text, drafted), noise in zip(drafter.seen, drafter.noise, strict=True):
        if len(text) > 3 + 12 - 4:
            continue
        sums: dict[Path_, float] = {(): 0.0}
        for length in (1, 2, 3):
            for path in itertools.product(range(4), repeat=length):
                term_V = _law(oracle, [*text, *path[:-1]], sampling)
                if noise:
                    term_V = term_V + noise[length - 1]
                    term_V = term_V - term_V.max()
                sums[path] = sums[path[:-1]] + float(term_V[path[-1]])
        del sums[()]
        assert set(drafted) == set(sorted(sums, key=lambda path: (-sums[path], len(path)))[:11])
        num_seen += 1
    assert num_seen > 1


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("shape", [TreeShape(beam_width=1), TreeShape(beam_width=5, branch=1)], ids=str)
def test_one_branch_is_the_chain_token_by_token(sampling: Sampling, shape: TreeShape) -> None:
    engine = _engine(sampling)
    requests = requests_for(max_new_tokens=20)
    drafted: list[list[list[list[int]]]] = []
    for kind, own in ((ChainDrafter, {}), (TreeDrafter, {"tree": shape})):
        drafter: ChainDrafter = kind(disturbed_lm(), engine.view(), num_tokens=4, num_shared=64, **own)  # type: ignore[arg-type]
        drafts: list[list[list[int]]] = []
        draft = drafter.draft

        def kept(noise: DraftNoise | None, draft: Any = draft, drafts: Any = drafts) -> DraftTree:
            tree: DraftTree = draft(noise)
            is_valid = torch.ones_like(tree.tokens_BN).bool() if tree.valid_BN is None else tree.valid_BN
            drafts.append(torch.where(is_valid, tree.tokens_BN, -1).tolist())
            return tree

        drafter.draft = kept  # type: ignore[method-assign]
        for rows in (requests, requests[:1]):
            engine.generate(drafter, rows)
        drafted.append(drafts)
    assert drafted[0] == drafted[1]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("picks", ["shared-noise", "greedy"])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_the_text_is_the_autoregressive_one_alone_and_in_a_ragged_batch(
    sampling: Sampling, picks: str, shape: TreeShape
) -> None:
    engine = _engine(sampling)
    requests = requests_for(max_new_tokens=30)
    expected = [engine.generate(NoDrafter(), [request]).generations[0].tokens for request in requests]
    drafter = TreeDrafter(disturbed_lm(), engine.view(), tree=shape, num_tokens=4, num_shared=64, picks=picks)
    alone = [engine.generate(drafter, [request]).generations[0] for request in requests]
    together = engine.generate(drafter, requests).generations
    assert [answer.tokens for answer in alone] == [answer.tokens for answer in together] == expected
    # A slip in the draft's ragged cache never changes the text; it shows in what is accepted.
    accepted = [[[step.num_accepted for step in each.steps] for each in group] for group in (alone, together)]
    assert accepted[0] == accepted[1]


@pytest.mark.parametrize("num_rows", [1, 4])
def test_after_a_step_the_cache_holds_the_text_and_nothing_else(num_rows: int) -> None:
    """Keys and values of every slot that counts are those of one plain reading of the text."""
    engine = _engine(Sampling())
    lm, fresh = disturbed_lm(), disturbed_lm()
    fresh.allocate(max_batch=1, max_len=100, max_nodes=1)
    num_read = 0

    class Looked(_Kept):
        def commit(self, commit: Commit) -> None:
            nonlocal num_read
            super().commit(commit)
            for row, text in enumerate(self.texts):
                if commit.finished[row]:
                    continue
                length = lm.lengths[row]
                assert length in (len(text) - 1, len(text) - 2), "all but the root, or it and a node never read"
                fresh.begin(1)
                fresh.prefill(0, torch.tensor(text[:length]))
                for mine, wanted in zip(lm.cache._buffers(), fresh.cache._buffers(), strict=True):
                    torch.testing.assert_close(mine[row, :, :length], wanted[0, :, :length], rtol=0, atol=1e-6)
                num_read += 1

    drafter = Looked(lm, engine.view(), tree=TreeShape(beam_width=4, max_nodes=5), num_tokens=3, num_shared=64)
    steps = engine.generate(drafter, requests_for(max_new_tokens=24)[:num_rows]).generations[0].steps
    assert num_read > 3 and {0, 2} <= {step.num_accepted for step in steps}, "none, and paths to be moved"


def test_a_step_costs_one_forward_a_depth_and_no_more() -> None:
    engine = _engine(Sampling())
    drafter = _Kept(disturbed_lm(), engine.view(), tree=TreeShape(beam_width=4), num_tokens=3, num_shared=64)
    answer = engine.generate(drafter, requests_for(PROMPTS[:1], max_new_tokens=40)).generations[0]
    assert {step.num_accepted for step in answer.steps} >= {3}, "whole paths were accepted, too"
    assert drafter.num_forwards == sum(step.depth for step in answer.steps)


@pytest.mark.parametrize("graphs", [None, RecordedGraphs()], ids=["plain", "captured"])
def test_past_the_draft_models_context_nothing_is_drafted_and_the_text_stays(graphs: RecordedGraphs | None) -> None:
    engine = _engine(Sampling(), graphs=graphs)
    requests = requests_for(max_new_tokens=30)
    expected = [engine.generate(NoDrafter(), [request]).generations[0].tokens for request in requests]
    lm = disturbed_lm(max_position_embeddings=18)
    drafter = TreeDrafter(lm, engine.view(), tree=TreeShape(beam_width=3), num_tokens=4, num_shared=64)
    for places in ([0], [3], range(4)):
        answers = engine.generate(drafter, [requests[place] for place in places]).generations
        assert [each.tokens for each in answers] == [expected[place] for place in places]
        for place, answer in zip(places, answers, strict=True):
            length = len(requests[place].prompt) + 1
            assert any(step.depth for step in answer.steps) == (length <= 18)
            for step in answer.steps:
                assert step.depth <= max(18 + 1 - length, 0)
                length += step.num_committed


@pytest.mark.parametrize(("draft_size", "num_shared"), [(48, 48), (80, 64), (64, 50)])
def test_a_padded_vocabulary_never_proposes_an_id_that_is_not_shared(draft_size: int, num_shared: int) -> None:
    for sampling in (Sampling(), Sampling(temperature=1.0, repetition_penalty=1.2)):
        engine = _engine(sampling)
        lm, shape = (
            CachedLM(tiny_model(seed=3, vocab_size=draft_size), name="draft"),
            TreeShape(beam_width=4, max_nodes=10),
        )
        drafter = _Kept(lm, engine.view(), tree=shape, num_tokens=4, num_shared=num_shared)
        requests = requests_for([(1, 2, 63, 62), (60, 61, 5)], max_new_tokens=30)
        expected = [engine.generate(NoDrafter(), [request]).generations[0].tokens for request in requests]
        assert [answer.tokens for answer in engine.generate(drafter, requests).generations] == expected
        assert max(token for _, drafted in drafter.seen for path in drafted for token in path) < num_shared


@pytest.mark.parametrize("rule", ["coupled", "rejection"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_captured_steps_accept_what_single_steps_accept(family: str, rule: Rule) -> None:
    """A budget that leaves read nodes out of the tree, and a window: slots the engine's span knows nothing of."""
    # Picked nodes are accepted as often as they are probable.
    sampling = Sampling(temperature=1.0 if rule == "coupled" else 0.2, repetition_penalty=1.2)
    found = []
    for graphs in (None, RecordedGraphs()):
        engine = _engine(sampling, family=family, rule=rule, graphs=graphs)
        shape = TreeShape(beam_width=5, max_nodes=6)
        drafter = TreeDrafter(disturbed_lm(family=family), engine.view(), tree=shape, num_tokens=4, num_shared=64)
        generations = [*engine.generate(drafter, requests_for()).generations, *engine.generate(
            drafter, requests_for()[:1]).generations]  # fmt: skip
        found.append([[step.num_committed - step.num_truncated for step in each.steps] for each in generations])
    assert found[0] == found[1] and max(count for steps in found[0] for count in steps) >= 3


def test_a_captured_draft_reads_more_nodes_than_the_engine_has_room_for() -> None:
    """The span ends where the drafted nodes do: those that were read and not drafted stand behind it."""
    request, read = requests_for(PROMPTS[:1])[0], []
    for span in (None, len(PROMPTS[0]) + 1 + 6):
        engine = _engine(Sampling())
        shape = TreeShape(beam_width=5, max_nodes=6)
        drafter = TreeDrafter(disturbed_lm(), engine.view(), tree=shape, num_tokens=4, num_shared=64)
        drafter.begin([request])
        drafter.prefill(0, torch.tensor(request.prompt), None, 0)
        drafter.start([len(request.prompt) + 1], torch.tensor([4]))
        drafter.hold(span)
        read.append(list[Tensor]())
        drafter._tell = read[-1].append
        drafter.draft(None)
    assert len(read[0]) == 4
    for mine, wanted in zip(*read, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-6)


def test_captured_rows_that_move_up_take_all_of_the_draft_s_cache_along() -> None:
    """The target as its own draft, across growing spans: a slot left behind would be a rejection more."""
    prompts = [tokens_of(seed, 236) for seed in range(3)]
    requests = [Request(key=row, prompt=tuple(p), max_new_tokens=30 + 30 * row) for row, p in enumerate(prompts)]
    found = []
    for graphs in (None, RecordedGraphs()):
        lm, draft = (tiny_lm(max_position_embeddings=600) for _ in range(2))
        engine = Engine(lm, sampling=Sampling(), max_batch=4, max_len=560, max_nodes=8, graphs=graphs)
        shape = TreeShape(beam_width=4, max_nodes=8)
        drafter = TreeDrafter(draft, engine.view(), tree=shape, num_tokens=3, num_shared=64)
        for _ in range(2):
            generations = engine.generate(drafter, requests).generations
            found.append([[step.num_committed - step.num_truncated for step in each.steps] for each in generations])
    assert found[0] == found[1] == found[2] == found[3]


@pytest.mark.parametrize("name", [attention.PLAIN, attention.TRITON])
def test_a_level_is_read_alike_by_every_attention(name: str) -> None:
    """The kernel has no ancestors of a level: it goes another way, never a wrong one."""
    logits = []
    for each in (attention.SDPA, name):
        lm = tiny_lm(attention_name=each, dtype=torch.float32)
        lm.allocate(max_batch=1, max_len=20, max_nodes=8)
        lm.begin(1)
        lm.prefill(0, torch.tensor([5, 6, 7]))
        eye = torch.eye(2, dtype=torch.bool)[None]
        lm.read_level(torch.tensor([[8, 9]]), Topology(depth_BM=torch.zeros(1, 2).long(), sees_BMM=eye), max_depth=0)
        both = Topology(depth_BM=torch.tensor([[0, 0, 1]]), sees_BMM=torch.tensor([[[False, True, True]]]))
        logits.append(lm.read_level(torch.tensor([[4]]), both, max_depth=1)[0, 0])
        torch.testing.assert_close(logits[-1], plain_logits(lm, [5, 6, 7, 9, 4])[-1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)
