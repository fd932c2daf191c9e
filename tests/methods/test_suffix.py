"""Suffix decoding counts every substring exactly, drafts by the paper's rule and forgets what it must."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import VOCAB, NoDrafter, requests_for, tiny_lm
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.suffix.drafter import SuffixDrafter, build
from specbench import registry
from specbench.engine.decode import Engine
from specbench.engine.stop import Stop
from specbench.errors import EnvironmentFailed, UsageError
from specbench.sampling import Sampling
from specbench.suffix import Proposal, Settings, SuffixMemory, SuffixTrie, load_answers, save_answers

OPTIONS: dict[str, Any] = registry.check_options(registry.card("suffix"), {})

# --- the trie against brute force ------------------------------------------------------------------------------------


def counted(texts: Sequence[Sequence[int]], max_depth: int) -> Counter[tuple[int, ...]]:
    """The oracle: every substring of at most max_depth tokens, one by one."""
    return Counter(
        tuple(text[start:end])
        for text in texts
        for start in range(len(text))
        for end in range(start + 1, min(start + max_depth, len(text)) + 1)
    )


def shape(trie: SuffixTrie) -> dict[tuple[int, ...], tuple[int, int | None]]:
    """String at the end of each edge -> (count, the child it would go on with)."""
    found: dict[tuple[int, ...], tuple[int, int | None]] = {}
    stack = [(node, ()) for node in trie.root.children.values()]
    while stack:
        node, above = stack.pop()
        string = (*above, *node.text.tokens[node.start : node.start + node.length])
        best = None if node.best is None else node.best.text.tokens[node.best.start]
        found[string] = (node.count, best)
        stack += [(child, string) for child in node.children.values()]
    return found


TEXTS = st.lists(st.lists(st.integers(0, 2), max_size=14), max_size=5)


@settings(max_examples=300, deadline=None)
@given(texts=TEXTS, max_depth=st.integers(1, 6))
def test_counts_of_all_substrings_are_exact_after_every_token(texts: list[list[int]], max_depth: int) -> None:
    trie = SuffixTrie(max_depth=max_depth)
    for place, text in enumerate(texts):
        trie.open()
        for end, token in enumerate(text, start=1):
            trie.append(token)
            expected = counted([*texts[:place], text[:end]], max_depth)
            assert all(trie.count(string) == count for string, count in expected.items())
            matched = [m for m in range(min(max_depth - 1, end), 0, -1) if expected[tuple(text[end - m : end])] > 1]
            assert [at.depth for at in trie.live] == matched
        trie.close()
    assert trie.count([7]) == 0 and (not texts or trie.count([0, 7]) == 0)


@settings(max_examples=300, deadline=None)
@given(texts=TEXTS, max_depth=st.integers(1, 6), num_removed=st.integers(0, 5))
def test_after_removals_the_trie_is_that_of_the_texts_left(
    texts: list[list[int]], max_depth: int, num_removed: int
) -> None:
    """Counts, nodes, merged edges, ties and labels: nothing of a removed text is kept, memory included."""
    trie = SuffixTrie(max_depth=max_depth)
    for text in texts:
        trie.add(text)
    num_removed = min(num_removed, len(texts))
    for _ in range(num_removed):
        trie.remove_oldest()
    left = texts[num_removed:]
    fresh = SuffixTrie(max_depth=max_depth)
    for text in left:
        fresh.add(text)
    assert shape(trie) == shape(fresh)
    assert all(trie.count(string) == count for string, count in counted(left, max_depth).items())
    assert all(any(node.text is text for text in trie.texts) and node.length > 0 for node in trie.nodes())


@settings(max_examples=200, deadline=None)
@given(texts=TEXTS, other=st.lists(st.integers(0, 2), max_size=10), max_depth=st.integers(2, 6))
def test_another_texts_matches_are_found_at_every_length(
    texts: list[list[int]], other: list[int], max_depth: int
) -> None:
    trie = SuffixTrie(max_depth=max_depth)
    for text in texts:
        trie.add(text)
    expected, places = counted(texts, max_depth), []
    for end, token in enumerate(other, start=1):
        places = trie.advance(places, token)
        matched = [m for m in range(min(max_depth - 1, end), 0, -1) if expected[tuple(other[end - m : end])]]
        assert [at.depth for at in places] == matched


def test_a_text_that_never_repeats_costs_one_node_a_token() -> None:
    trie = SuffixTrie(max_depth=64)
    trie.add(range(500))
    assert sum(1 for _ in trie.nodes()) == 500


@settings(max_examples=50, deadline=None)
@given(text=st.lists(st.integers(0, 1), max_size=60))
def test_no_text_makes_more_than_two_nodes_a_token(text: list[int]) -> None:
    trie = SuffixTrie(max_depth=16)
    trie.add(text)
    assert sum(1 for _ in trie.nodes()) <= 2 * len(text)


# --- the draft against the rule read plainly -------------------------------------------------------------------------


def plain_path(
    text: Sequence[int], chosen: Settings, *, room: int, stop_ids: frozenset[int] = frozenset()
) -> tuple[list[int], float] | None:
    """The published rule by brute force over a sequence's own text: all match lengths, counts by scanning."""
    counts = counted([text], chosen.max_depth)
    best: tuple[list[int], float] | None = None
    for matched in range(1, min(len(text), chosen.max_depth - 1) + 1):
        string = tuple(text[len(text) - matched :])
        if counts[string] < 2:
            break
        cap = min(chosen.max_tokens, int(chosen.max_spec_factor * matched + chosen.max_spec_offset), room)
        tokens: list[int] = []
        prob, score = 1.0, 0.0
        while len(tokens) < cap and len(string) < chosen.max_depth:
            latest = {
                text[end]: end
                for end in range(len(string), len(text))
                if tuple(text[end - len(string) : end]) == string
            }
            if not latest:
                break
            token = max(latest, key=lambda each: (counts[*string, each], latest[each]))
            prob *= counts[*string, token] / counts[string]
            if prob < chosen.min_token_prob:
                break
            string = (*string, token)
            tokens.append(token)
            score += prob
            if token in stop_ids:
                break
        if tokens and (best is None or score >= best[1]):
            best = tokens, score
    return best


@settings(max_examples=300, deadline=None)
@given(
    text=st.lists(st.integers(0, 3), min_size=1, max_size=30),
    factor=st.sampled_from([0.5, 1.0, 2.0]),
    offset=st.sampled_from([-1.0, 0.0, 2.0]),
    min_prob=st.sampled_from([0.0, 0.1, 0.4]),
    room=st.integers(1, 12),
    max_depth=st.integers(2, 12),
)
def test_the_path_is_that_of_the_rule(
    text: list[int], factor: float, offset: float, min_prob: float, room: int, max_depth: int
) -> None:
    chosen = Settings(
        max_depth=max_depth,
        max_tokens=8,
        max_spec_factor=factor,
        max_spec_offset=max(offset, 0.0),
        min_token_prob=min_prob,
    )
    memory = SuffixMemory(chosen, stop_ids=(3,))
    memory.begin([text])
    found = memory.propose(0, room=room)
    expected = plain_path(text, chosen, room=room, stop_ids=frozenset({3}))
    if expected is None:
        assert found is None
        return
    assert found is not None
    assert found.score == pytest.approx(expected[1])
    assert found.tokens == expected[0]


def _proposal(prompt: Sequence[int], room: int = 100, **changed: Any) -> Proposal | None:
    memory = SuffixMemory(Settings(**changed))
    memory.begin([prompt])
    return memory.propose(0, room=room)


def test_what_followed_once_is_worth_a_half_and_the_longest_match_counts() -> None:
    found = _proposal([1, 2, 3, 4, 5, 9, 1, 2, 3])
    assert found == Proposal(tokens=[4, 5, 9], parents=[-1, 0, 1], score=1.5, num_matched=3)


def test_a_tree_takes_the_most_probable_nodes_of_all_ways_on() -> None:
    # After 1: three times 2 (then 4), once 3; the live 1 itself makes five.
    prompt = [1, 2, 4, 1, 2, 4, 1, 2, 4, 1, 3, 1]
    found = _proposal(prompt, shape="tree", max_spec_offset=2.0)
    assert found is not None
    assert (found.tokens, found.parents) == ([2, 4, 1], [-1, 0, 1])
    assert found.score == pytest.approx(3 / 5 + 3 / 5 + 3 / 5)
    wide = _proposal(prompt, shape="tree", max_spec_offset=9.0, max_depth=3)
    assert wide is not None
    assert (wide.tokens, wide.parents) == ([2, 4, 3, 1], [-1, 0, -1, 2])
    assert wide.score == pytest.approx(3 / 5 + 3 / 5 + 1 / 5 + 1 / 5)


def test_nothing_follows_a_stop_and_nothing_passes_the_room() -> None:
    memory = SuffixMemory(Settings(), stop_ids=(5,))
    memory.begin([[1, 2, 3, 4, 5, 9, 1, 2, 3]])
    found, cut = memory.propose(0, room=9), memory.propose(0, room=1)
    assert found is not None and found.tokens == [4, 5]
    assert cut is not None and cut.tokens == [4]
    assert memory.propose(0, room=0) is None


# --- what is remembered ----------------------------------------------------------------------------------------------


def _finish(memory: SuffixMemory, prompt: Sequence[int], answer: Sequence[int]) -> None:
    memory.begin([prompt])
    memory.extend(0, answer)
    memory.finish(0)


def test_a_finished_answer_is_found_by_the_next_group_and_a_prompt_is_not() -> None:
    memory = SuffixMemory(Settings())
    _finish(memory, [40, 41, 42], [1, 2, 3, 4])
    memory.begin([[7, 1, 2], [7, 40, 41]])
    found = memory.propose(0, room=9)
    # Counted once there, and nothing of this row stands in that trie: certain.
    assert found == Proposal(tokens=[3, 4], parents=[-1, 0], score=2.0, num_matched=2)
    assert memory.propose(1, room=9) is None


@pytest.mark.parametrize(("limit", "kept"), [(0, []), (2, [1, 2]), (-1, [0, 1, 2])])
def test_the_oldest_answers_go_first(limit: int, kept: list[int]) -> None:
    memory = SuffixMemory(Settings(max_requests=limit))
    for each in range(3):
        _finish(memory, [9], [each, 50 + each])
    memory.begin([[9]])
    assert memory.answers == tuple((each, 50 + each) for each in kept)


def test_a_snapshot_is_gone_back_to_exactly_before_and_after_the_next_group() -> None:
    memory = SuffixMemory(Settings(max_requests=2))
    _finish(memory, [9], [1, 2, 3])
    _finish(memory, [9], [1, 2, 4])
    memory.begin([[9]])
    before = memory.snapshot()

    def drafts() -> list[Proposal | None]:
        memory.begin([[1, 2], [2], [3]])
        return [memory.propose(row, room=9) for row in range(3)]

    first = drafts()
    memory.restore(before)
    _finish(memory, [9], [1, 2, 5])
    memory.restore(before)
    assert drafts() == first, "what waits is dropped"
    memory.restore(before)
    _finish(memory, [9], [1, 2, 5])
    assert drafts() != first, "what was learnt goes on to matter"
    memory.restore(before)
    assert memory.snapshot() == before
    assert drafts() == first, "what was learnt, and what it pushed out, is undone"


def test_saved_answers_are_read_again_and_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    save_answers(path, [(1, 2, 3), (4,)])
    assert load_answers(path, vocab_size=64) == [[1, 2, 3], [4]]
    engine = Engine(tiny_lm(), sampling=Sampling(), max_len=64)
    drafter = build(OPTIONS | {"cache": str(path)}, engine.view())
    assert isinstance(drafter, SuffixDrafter)
    drafter.save(tmp_path / "again.jsonl")
    assert (tmp_path / "again.jsonl").read_text() == path.read_text()
    for broken in ('{"a": 1}', "[1, 64]", "[1, true]", "[1"):
        path.write_text("[1]\n" + broken)
        with pytest.raises(UsageError, match="not a list of token ids below 64") as caught:
            build(OPTIONS | {"cache": str(path)}, engine.view())
        assert caught.value.where.endswith(":2")
    with pytest.raises(UsageError, match="no saved answers"):
        build(OPTIONS | {"cache": str(tmp_path / "none")}, engine.view())
    with pytest.raises(EnvironmentFailed, match="cannot be saved"):
        save_answers(tmp_path / "no" / "folder", [])


# --- in the engine ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changed", [{}, {"shape": "tree", "max_spec_offset": 2.0}, {"draft": "plain"}], ids=str)
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.3), Sampling(repetition_penalty=1.2)], ids=str)
def test_the_text_is_the_autoregressive_one_in_every_batch(sampling: Sampling, changed: dict[str, Any]) -> None:
    engine = Engine(tiny_lm(), sampling=sampling, max_batch=4, max_len=100, max_nodes=16, stop=Stop(ids=frozenset({3})))
    requests = requests_for(max_new_tokens=32)
    expected = [engine.generate(NoDrafter(), [request]).generations[0].tokens for request in requests]
    drafter = build(OPTIONS | changed, engine.view())
    alone = [engine.generate(drafter, [request]).generations[0] for request in requests]
    assert [answer.tokens for answer in alone] == expected
    assert [answer.tokens for answer in engine.generate(drafter, requests).generations] == expected
    assert sum(step.num_accepted for answer in alone for step in answer.steps) > 0


def test_a_row_drafts_in_a_batch_what_it_drafts_alone() -> None:
    engine = Engine(tiny_lm(), sampling=Sampling(temperature=0.5), max_batch=4, max_len=100, max_nodes=16)
    requests = requests_for(max_new_tokens=32)
    drafter = build(OPTIONS, engine.view())
    empty = drafter.snapshot()
    together = engine.generate(drafter, requests).generations
    for place, request in enumerate(requests):
        drafter.restore(empty)
        [alone] = engine.generate(drafter, [request]).generations
        assert [step.num_nodes for step in alone.steps] == [step.num_nodes for step in together[place].steps]


class _Noise:
    """Token 6 is pushed at depth 1, token 5 at depth 2."""

    def at_depth(self, depth: int) -> torch.Tensor:
        noise = torch.zeros(1, VOCAB)
        noise[0, 6 if depth == 1 else 5] = 9.0
        return noise


@pytest.mark.parametrize("shape_", ["path", "tree"])
def test_under_shared_noise_a_branch_follows_the_targets_own_noise(shape_: str) -> None:
    engine = Engine(tiny_lm(), sampling=Sampling(temperature=1.0), max_len=100)
    request = requests_for([(1, 5, 1, 5, 1, 6, 2)], max_new_tokens=20)[0]
    for draft, first in (("shared-noise", 6), ("plain", 5)):
        drafter = build(OPTIONS | {"shape": shape_, "draft": draft}, engine.view())
        drafter.begin([request])
        drafter.start([8], torch.tensor([1]))
        tree = drafter.draft(_Noise())
        assert tree.tokens_BN[0, 0] == first


def test_the_worst_text_is_asked_at_no_more_places_than_max_depth() -> None:
    """One token over and over: every suffix stood before. The work of a step stays bounded."""
    trie = SuffixTrie(max_depth=64)
    trie.add([5] * 300)
    places = []
    for _ in range(300):
        places = trie.advance(places, 5)
    assert [place.depth for place in places] == list(range(63, 0, -1))


def test_its_card_says_it_reads_the_host_and_carries_a_stream() -> None:
    engine = Engine(tiny_lm(), sampling=Sampling(), max_len=64)
    drafter = build(OPTIONS, engine.view())
    assert (drafter.capturable, drafter.carries, drafter.max_nodes) == (False, "stream", 16)
