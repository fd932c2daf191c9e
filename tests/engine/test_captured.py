"""Steps that are captured give the text, the steps and the counts of steps that are not.

On a CPU a graph is recorded operator by operator and replayed on the same memory (`engine.recorded`): what a step kept
in Python would be as stale there as in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import pytest
import torch
from torch import Tensor

from specbench.engine.answer import Generation, NotFinite
from specbench.engine.captured import smaller_batch
from specbench.engine.decode import Engine
from specbench.engine.graphs import MOST_GRAPHS, Capturing
from specbench.engine.pinned_run import span_of
from specbench.engine.recorded import RecordedGraphs
from specbench.engine.stamps import resolution_ns
from specbench.engine.stop import Stop
from specbench.events import StepRow
from specbench.lm.cached_lm import CachedLM
from specbench.lm.chain import ChainDrafter
from specbench.method import Commit, Drafter, DraftNoise, DraftTree, Request, Rule
from specbench.sampling import Sampling, top_children
from specbench.tree import chain
from tests.helpers import CPU, FAMILIES, NoDrafter, RefDrafter, requests_for, tiny_lm, tokens_of

SAMPLINGS = {
    "greedy": Sampling(),
    "T=1": Sampling(temperature=1.0),
    "all processors": Sampling(temperature=0.8, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.3),
}
STOP = Stop(ids=frozenset({3, 17, 31, 40}))


class Plain(NoDrafter):
    """Autoregression whose steps may be captured."""

    capturable = True


class Bigrams(Drafter):
    """Drafts chains from a fixed table of followers with the engine's noise: enough to be right now and then. What it
    carries is replaced in one half and written into in the other."""

    capturable = True
    carried = ("root_B", "count_B")
    max_nodes = 3

    def __init__(self, table_VV: Tensor) -> None:
        self._table_VV = table_VV
        self.root_B = torch.empty(0, dtype=torch.long)
        self.count_B = torch.empty(0, dtype=torch.long)

    def start(self, len_B: list[int], root_B: Tensor) -> None:
        self.root_B, self.count_B = root_B, torch.zeros_like(root_B)

    def draft(self, noise: DraftNoise | None) -> DraftTree:
        tokens = [self.root_B[:, None]]
        for depth in range(1, self.max_nodes + 1):
            scores = self._table_VV[tokens[-1][:, 0]]
            # The number of tokens it has seen moves its draft: what is carried must be right, not only its shape.
            scores = scores + (self.count_B[:, None] % 3) * 0.5 * scores.roll(1, -1)
            tokens.append(top_children(scores, None if noise is None else noise.at_depth(depth), 1))
        return chain(torch.cat(tokens[1:], 1))

    def commit(self, commit: Commit) -> None:
        self.root_B = commit.tokens_BC.gather(1, commit.num_accepted_B[:, None])[:, 0]
        self.count_B += commit.num_accepted_B + 1

    def keep(self, rows: list[int]) -> None:
        self.root_B, self.count_B = self.root_B[rows], self.count_B[rows]


class Reader(Bigrams):
    """Says it is capturable and reads a value on the host."""

    def draft(self, noise: DraftNoise | None) -> DraftTree:
        assert int(self.root_B[0].item()) >= 0
        return super().draft(noise)


@cache
def _lm(family: str) -> CachedLM:
    return tiny_lm(family)


@cache
def _followers(family: str) -> Tensor:
    """What the target itself says after each single token."""
    lm = _lm(family)
    tokens = torch.arange(lm.vocab_size)[:, None]
    with torch.inference_mode():
        lm.model.set_attn_implementation("eager")
        logits: Tensor = lm.model(input_ids=tokens, use_cache=False).logits[:, -1]
        lm.model.set_attn_implementation("specbench_fused")
    return logits.double()


def _engine(
    lm: CachedLM, sampling: Sampling, *, is_captured: bool, rule: Rule = "coupled", max_len: int = 64, stop: Stop = STOP
) -> Engine:
    return Engine(
        lm, sampling=sampling, rule=rule, max_batch=4, max_len=max_len, max_nodes=12, stop=stop, prefill_chunk=8,
        graphs=RecordedGraphs() if is_captured else None,
    )  # fmt: skip


def _counts(generation: Generation) -> list[tuple[int, ...]]:
    return [(s.num_nodes, s.depth, s.num_accepted, s.num_committed, s.num_truncated) for s in generation.steps]


def _demand_same(found: Sequence[Generation], wanted: Sequence[Generation]) -> None:
    for mine, theirs in zip(found, wanted, strict=True):
        assert (mine.tokens, mine.finish_reason) == (theirs.tokens, theirs.finish_reason)
        assert _counts(mine) == _counts(theirs)
        assert [step.ranks for step in mine.steps] == [step.ranks for step in theirs.steps]


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_captured_steps_are_the_steps_of_the_plain_loop(family: str, name: str) -> None:
    """Rows that end one after the other, several generations on the same graphs, a batch and each row alone."""
    lm, requests = _lm(family), requests_for()
    plain, captured = (_engine(lm, SAMPLINGS[name], is_captured=is_captured) for is_captured in (False, True))
    num_accepted = 0
    for plain_drafter, drafter in ((Plain(), Plain()), (Bigrams(_followers(family)), Bigrams(_followers(family)))):
        for places in (range(4), [2], [0, 3], range(4)):
            asked = [requests[place] for place in places]
            found = captured.generate(drafter, asked).generations
            _demand_same(found, plain.generate(plain_drafter, asked).generations)
            num_accepted += sum(step.num_accepted for each in found for step in each.steps)
        assert captured.graphs is not None
        assert captured.graphs.num_graphs(drafter) == 3, "batches of 4, 2 and 1"
        assert not captured.graphs.refusal(drafter)
    assert num_accepted > 0, "no draft was ever right: nothing was compared"


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("sampling", [Sampling(repetition_penalty=3.0), SAMPLINGS["all processors"]], ids=str)
def test_steps_that_are_replayed_to_be_captured_leave_the_generation_s_text_alone(
    sampling: Sampling, rows: int
) -> None:
    """A warm-up replays every span before it goes on: what those steps commit is no token that a penalty may count."""
    lm, requests = tiny_lm("llama", max_position_embeddings=600), requests_for()[:rows]
    plain, captured = (_engine(lm, sampling, max_len=560, is_captured=is_captured) for is_captured in (False, True))
    for plain_drafter, drafter in ((Plain(), Plain()), (Bigrams(_followers("llama")), Bigrams(_followers("llama")))):
        wanted = plain.generate(plain_drafter, requests).generations
        for capturing in ("all", "none"):
            _demand_same(captured.generate(drafter, requests, capturing=capturing).generations, wanted)


@pytest.mark.parametrize("rule", ["coupled", "rejection", "typical"])
@pytest.mark.parametrize("kind", ["chain", "tree"])
def test_drafts_from_the_host_go_through_a_captured_verification(kind: str, rule: Rule) -> None:
    lm, requests = _lm("llama"), requests_for()
    sampling = SAMPLINGS["all processors"]
    plain, captured = (_engine(lm, sampling, rule=rule, is_captured=is_captured) for is_captured in (False, True))
    answers = [each.tokens for each in plain.generate(NoDrafter(), requests).generations]
    for seed in range(3):
        wanted = plain.generate(RefDrafter(answers, kind=kind, seed=seed), requests).generations
        found = captured.generate(RefDrafter(answers, kind=kind, seed=seed), requests).generations
        _demand_same(found, wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_verifies_trees_behind_lengths_that_only_the_device_knows(family: str) -> None:
    """Windows shorter than the context, soft caps, sinks, learned positions up to the last one."""
    lm, requests = _lm(family), requests_for()
    plain, captured = (_engine(lm, SAMPLINGS["T=1"], is_captured=is_captured) for is_captured in (False, True))
    answers = plain.generate(NoDrafter(), requests).generations
    tokens = [each.tokens for each in answers]
    found = captured.generate(RefDrafter(tokens, kind="tree", seed=1), requests).generations
    assert [each.tokens for each in found] == tokens


def test_a_text_that_outgrows_what_is_read_goes_on_in_the_next_graph() -> None:
    lm = tiny_lm("llama", max_position_embeddings=600)
    requests = requests_for([tokens_of(0, 220), tokens_of(1, 240)], max_new_tokens=40)
    plain, captured = (_engine(lm, Sampling(), max_len=600, is_captured=i, stop=Stop()) for i in (False, True))
    drafter = Bigrams(_followers("llama"))
    wanted = plain.generate(Bigrams(_followers("llama")), requests).generations
    for _ in range(2):
        _demand_same(captured.generate(drafter, requests).generations, wanted)
    assert captured.graphs is not None
    assert captured.graphs.num_graphs(drafter) >= 2, "256 and 512 slots"


def test_nothing_is_captured_where_time_is_taken() -> None:
    lm, requests = _lm("llama"), requests_for()
    plain, captured = (_engine(lm, Sampling(), is_captured=is_captured) for is_captured in (False, True))
    drafter = Plain()
    wanted = plain.generate(NoDrafter(), requests).generations
    _demand_same(captured.generate(drafter, requests, capturing="none").generations, wanted)
    assert captured.graphs is not None
    assert captured.graphs.num_graphs(drafter) == 0


def test_a_step_that_cannot_be_captured_runs_as_it_is_and_says_why() -> None:
    lm, requests = _lm("llama"), requests_for()
    plain, captured = (_engine(lm, Sampling(), is_captured=is_captured) for is_captured in (False, True))
    drafter = Reader(_followers("llama"))
    wanted = plain.generate(Bigrams(_followers("llama")), requests).generations
    for _ in range(2):
        _demand_same(captured.generate(drafter, requests).generations, wanted)
    assert captured.graphs is not None
    assert "reads a value on the host" in captured.graphs.refusal(drafter)
    assert captured.graphs.num_graphs(drafter) == 0


def test_a_drafter_that_forgets_to_say_what_it_carries_drafts_from_the_past() -> None:
    """The test above would not notice a graph that is no graph: here a stale root must show."""

    class Forgetful(Bigrams):
        carried = ("count_B",)

    lm, requests = _lm("llama"), requests_for()
    plain, captured = (_engine(lm, Sampling(), is_captured=is_captured) for is_captured in (False, True))
    wanted = plain.generate(Bigrams(_followers("llama")), requests).generations
    drafter = Forgetful(_followers("llama"))
    captured.generate(drafter, requests)
    found = captured.generate(drafter, requests).generations
    assert [each.tokens for each in found] == [each.tokens for each in wanted], "the text is the target's all the same"
    assert [_counts(each) for each in found] != [_counts(each) for each in wanted]


def test_a_warm_up_of_a_drafter_with_many_shapes_stays_inside_the_cache() -> None:
    """Each shape is tried at each length; their tokens must not pile up behind one another."""
    lm = tiny_lm("llama", max_position_embeddings=600)
    captured = _engine(lm, Sampling(), max_len=262, is_captured=True, stop=Stop())
    [request] = requests_for([tokens_of(3, 200)], max_new_tokens=60)
    plain = _engine(lm, Sampling(), max_len=262, is_captured=False, stop=Stop())
    answer = plain.generate(NoDrafter(), [request]).generations[0].tokens
    for seed in range(3):
        drafter = RefDrafter([answer], kind="tree", seed=seed, hit=0.95)
        captured.generate(drafter, [request], capturing="all")
        assert captured.graphs is not None
        assert captured.graphs.num_graphs(drafter) >= 10
        assert int(captured._pins.length_R.max()) < 262 if captured._pins is not None else False


def test_a_grown_cache_makes_old_graphs_void() -> None:
    lm, requests = _lm("llama"), requests_for()
    plain, captured = (_engine(lm, Sampling(), is_captured=is_captured) for is_captured in (False, True))
    wanted = plain.generate(NoDrafter(), requests).generations
    drafter = Plain()
    captured.generate(drafter, requests)
    captured.reserve(40)
    _demand_same(captured.generate(drafter, requests).generations, wanted)


def test_phases_of_captured_steps_have_their_times() -> None:
    captured = _engine(_lm("llama"), Sampling(), is_captured=True)
    seen: list[StepRow] = []
    result = captured.generate(Bigrams(_followers("llama")), requests_for()[:1], sink=seen.extend)
    [generation] = result.generations
    assert tuple(seen) == generation.steps
    for step in generation.steps:
        assert step.draft_s > 0 and step.verify_s > 0 and step.accept_s > 0 and step.commit_s > 0
    phases = result.draft_s + result.verify_s + result.accept_s + result.commit_s
    assert 0 < phases < result.decode_s
    ends = [step.end_s for step in generation.steps]
    assert ends == sorted(ends) and ends[-1] < result.total_s
    host_drafted = captured.generate(RefDrafter([()], kind="chain"), requests_for()[:1])
    assert all(step.commit_s > 0 for step in host_drafted.generations[0].steps)


def test_a_nan_is_found_one_step_late_and_forgotten_afterwards() -> None:
    lm = tiny_lm("llama", seed=1)
    captured = _engine(lm, Sampling(), is_captured=True)
    request = requests_for()[:1]
    wanted = captured.generate(Plain(), request).generations
    head = lm.lm_head.weight
    assert isinstance(head, Tensor)
    kept = head.clone()

    class Spoils(Plain):
        capturable = True

        def commit(self, commit: Commit) -> None:
            head.fill_(float("nan"))

    with pytest.raises(NotFinite, match="at step"):
        captured.generate(Spoils(), request)
    head.copy_(kept)
    _demand_same(captured.generate(Plain(), request).generations, wanted)


def test_spans_and_batches_come_in_few_sizes() -> None:
    assert [span_of(num, 3000) for num in (1, 256, 257, 2048, 2049)] == [256, 256, 512, 2048, 3000]
    assert [smaller_batch(num) for num in (1, 2, 3, 4, 5, 64)] == [0, 1, 2, 2, 4, 32]


def test_the_timer_goes_forward() -> None:
    found = resolution_ns(CPU, num=50)
    assert 0 < found["smallest_ns"] <= found["mean_ns"]


def test_a_request_of_one_token_needs_no_step() -> None:
    captured = _engine(_lm("llama"), Sampling(), is_captured=True)
    for new in (1, 2):
        request = Request(key=1, prompt=(4, 5), max_new_tokens=new)
        [found] = captured.generate(Plain(), [request]).generations
        assert len(found.tokens) <= new and len(found.steps) == new - 1


def test_a_batch_may_end_with_the_step_under_way_when_it_would_shrink() -> None:
    """Two rows end, the batch is about to shrink, and the step that is still in flight ends the other two."""
    lm = _lm("llama")
    requests = [Request(key=9 + row, prompt=(4, 5, 6), max_new_tokens=6 + row // 2) for row in range(4)]
    plain, captured = (_engine(lm, Sampling(), is_captured=i, stop=Stop()) for i in (False, True))
    wanted = plain.generate(NoDrafter(), requests).generations
    for capturing in ("all", "none"):
        _demand_same(captured.generate(Plain(), requests, capturing=capturing).generations, wanted)


@pytest.mark.parametrize("capturing", ["met", "none"])
def test_rows_that_move_up_after_growing_take_all_of_the_draft_s_cache_along(capturing: Capturing) -> None:
    """Steps were replayed since the drafter last heard how far it is read; the target as its own draft is then right
    at every position, or it reads slots that stayed behind."""
    lm = tiny_lm("llama", max_position_embeddings=600)
    prompts = [tokens_of(seed, 236) for seed in range(3)]
    requests = [
        Request(key=seed, prompt=tuple(prompt), max_new_tokens=40 + 40 * seed) for seed, prompt in enumerate(prompts)
    ]
    captured = _engine(lm, Sampling(), max_len=560, is_captured=True, stop=Stop())
    drafter = ChainDrafter(
        tiny_lm("llama", max_position_embeddings=600), captured.view(), num_tokens=3, num_shared=lm.vocab_size
    )
    captured.generate(drafter, requests)
    # Everything is replayed in the second generation.
    found = captured.generate(drafter, requests, capturing=capturing).generations
    assert captured.graphs is not None and captured.graphs.num_graphs(drafter) >= 4
    for each in found:
        assert all(step.num_accepted == 3 for step in each.steps[:-1]), [step.num_accepted for step in each.steps]


def test_a_warm_up_captures_every_length_and_batch_that_can_come() -> None:
    """So that no shape is met for the first time where time is taken."""
    lm = tiny_lm("llama", max_position_embeddings=600)
    captured = _engine(lm, Sampling(), max_len=560, is_captured=True, stop=Stop())
    short = requests_for(max_new_tokens=6)
    long = requests_for([tokens_of(seed, 200 + 20 * seed) for seed in range(4)], max_new_tokens=40)
    wanted = (
        _engine(lm, Sampling(), max_len=560, is_captured=False, stop=Stop()).generate(NoDrafter(), long).generations
    )
    assert captured.graphs is not None
    answers = [each.tokens for each in wanted]
    for drafter, num in ((Bigrams(_followers("llama")), 9), (RefDrafter(answers, kind="tree"), 0)):
        captured.generate(drafter, short, capturing="all")
        before = captured.graphs.num_graphs(drafter)
        assert before == num or (not num and before > 10), "batches of 4, 2 and 1 at 256, 512 and 599 slots"
        found = captured.generate(drafter, long, capturing="none").generations
        assert [each.tokens for each in found] == answers
        assert captured.graphs.num_graphs(drafter) == before


@pytest.mark.parametrize("kind", ["chain", "tree"])
def test_a_warm_up_captures_the_drafts_of_texts_to_come(kind: str) -> None:
    """One short text shows few of the shapes that a drafter on the host comes to in others."""
    lm = tiny_lm("llama", max_position_embeddings=600)
    captured, plain = (
        _engine(lm, Sampling(), max_len=300, is_captured=is_captured, stop=Stop()) for is_captured in (True, False)
    )
    first, *others = requests_for([tokens_of(seed, 20) for seed in range(5)], max_new_tokens=40)
    answers = [plain.generate(NoDrafter(), [each]).generations[0].tokens for each in (first, *others)]
    drafter = RefDrafter(answers, kind=kind, seed=1, hit=0.95)
    captured.generate(drafter, [Request(key=0, prompt=first.prompt, max_new_tokens=6)], capturing="all")
    assert captured.graphs is not None
    before, num = captured.graphs.num_single(drafter), captured.graphs.num_graphs(drafter)
    assert 0 < num < MOST_GRAPHS
    for request, answer in zip(others, answers[1:], strict=True):
        drafter._answers = [list(answer)]
        assert captured.generate(drafter, [request], capturing="none").generations[0].tokens == answer
    assert captured.graphs.num_single(drafter) == before, "no step had to go by itself"
