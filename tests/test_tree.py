"""Trees: shapes derived from parents, held against a plain reading of the same lists."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specbench import tree as trees
from tests.helpers import CPU

_SEQUENCES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), max_size=6)


@st.composite
def _host_trees(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Any tree of up to ten nodes whose parents come first."""
    num = draw(st.integers(0, 10))
    parents = [draw(st.integers(-1, node - 1)) for node in range(num)]
    return [draw(st.integers(0, 50)) for _ in range(num)], parents


def _ancestors(parents: list[int], node: int) -> list[int]:
    return [] if node < 0 else [*_ancestors(parents, parents[node]), node]


@settings(max_examples=60, deadline=None)
@given(st.lists(_host_trees(), min_size=1, max_size=3))
def test_depth_and_sight_are_those_of_the_parents(rows: list[tuple[list[int], list[int]]]) -> None:
    """A slot sees itself and its ancestors, the root always; padding sees only itself and the root."""
    tree = trees.from_lists([tokens for tokens, _ in rows], [parents for _, parents in rows], device=CPU)
    shape = trees.topology(tree)
    assert tree.num_nodes == max(len(tokens) for tokens, _ in rows)
    for row, (tokens, parents) in enumerate(rows):
        assert tree.tokens_BN[row, : len(tokens)].tolist() == tokens
        for node in range(tree.num_nodes):
            # A chain's padding continues the chain, a tree's hangs under the root: either way nobody accepts it.
            line = _ancestors(parents, node) if node < len(parents) else None
            if line is None:
                assert tree.valid_BN is not None and not tree.valid_BN[row, node]
                assert shape.sees_BMM[row, node + 1, node + 1]
                continue
            assert shape.depth_BM[row, node + 1] == len(line) <= tree.max_depth
            seen = shape.sees_BMM[row, node + 1].nonzero().flatten().tolist()
            assert seen == [0, *(each + 1 for each in line)]
            assert tree.valid_BN is None or tree.valid_BN[row, node]
        assert shape.sees_BMM[row, 0].nonzero().flatten().tolist() == [0]


@settings(max_examples=60, deadline=None)
@given(st.lists(_host_trees(), min_size=1, max_size=3))
def test_ranks_count_earlier_siblings(rows: list[tuple[list[int], list[int]]]) -> None:
    tree = trees.from_lists([tokens for tokens, _ in rows], [parents for _, parents in rows], device=CPU)
    ranks = trees.sibling_ranks(tree)
    for row, (_, parents) in enumerate(rows):
        assert ranks[row, : len(parents)].tolist() == [
            parents[:node].count(parents[node]) for node in range(len(parents))
        ]


@settings(max_examples=100, deadline=None)
@given(_SEQUENCES, st.integers(1, 12))
def test_merging_keeps_prefixes_once_and_in_order_of_preference(sequences: list[list[int]], max_nodes: int) -> None:
    """Every node's path is a prefix of a given sequence, no two nodes share a path, and a budget drops the last
    wanted."""
    tokens, parents = trees.merge(sequences, max_nodes=max_nodes)
    paths = [tuple(path) for path in trees.paths(tokens, parents)]
    wanted = list(dict.fromkeys(tuple(sequence[: end + 1]) for sequence in sequences for end in range(len(sequence))))
    assert len(tokens) <= max_nodes
    assert len(set(paths)) == len(paths)
    assert set(paths) <= set(wanted)
    assert all(path[:-1] in paths or len(path) == 1 for path in paths), "prefix-closed"
    if len(wanted) <= max_nodes:
        assert paths == wanted
    else:
        assert len(paths) == max_nodes
        assert paths[: len(sequences[0])] == wanted[: min(len(sequences[0]), max_nodes)]


def test_siblings_from_one_merge_are_distinct() -> None:
    tokens, parents = trees.merge([[1, 2], [1, 3], [2, 2], [1, 2, 4]], max_nodes=9)
    assert (tokens, parents) == ([1, 2, 3, 2, 2, 4], [-1, 0, 0, -1, 3, 1])


def test_a_chain_is_the_tree_whose_parents_count_up() -> None:
    chain = trees.chain(torch.tensor([[4, 5, 6], [7, 8, 9]]))
    plain = trees.dense_topology(chain.parents_BN, max_depth=3)
    assert chain.is_chain and chain.max_depth == 3
    assert trees.from_lists([[4, 5, 6], [7, 8]], [[-1, 0, 1], [-1, 0]], device=CPU).is_chain
    assert not trees.from_lists([[4, 5, 6]], [[-1, 0, 0]], device=CPU).is_chain
    torch.testing.assert_close(trees.topology(chain).depth_BM, plain.depth_BM)
    torch.testing.assert_close(trees.topology(chain).sees_BMM, plain.sees_BMM)


def test_no_proposal_is_a_chain_of_nothing() -> None:
    for tree in (trees.empty(3, CPU), trees.from_lists([[], [], []], [[], [], []], device=CPU)):
        assert tree.num_nodes == 0 and tree.max_depth == 0 and tree.is_chain
        assert trees.topology(tree).depth_BM.tolist() == [[0], [0], [0]]


@pytest.mark.parametrize("parents", [[0], [-1, 1], [-1, -2], [1, -1]])
def test_a_parent_behind_its_child_is_refused(parents: list[int]) -> None:
    with pytest.raises(AssertionError, match="parents must come first"):
        trees.from_lists([[1] * len(parents)], [parents], device=CPU)


def test_a_padded_row_says_which_nodes_are_real() -> None:
    tree = trees.from_lists([[1, 2, 3], [4]], [[-1, -1, 0], [-1]], device=CPU)
    assert tree.valid_BN is not None
    assert tree.valid_BN.tolist() == [[True, True, True], [True, False, False]]
    assert tree.max_depth == 2


def test_what_a_captured_step_may_have_read_is_never_let_go() -> None:
    """It holds addresses: memory that is let go is another tensor's soon."""
    draft = torch.zeros(2, 5, dtype=torch.long)
    shape, parents = trees.topology(trees.chain(draft)), trees.chain(draft).parents_BN
    for num in range(1, 600):
        prompt = trees.chain(torch.zeros(1, num, dtype=torch.long))
        trees.topology(prompt)
    again = trees.chain(draft)
    assert trees.topology(again) is shape and again.parents_BN is parents
    one_row = trees.topology(trees.chain(draft[:1]))
    assert one_row.sees_BMM.data_ptr() == shape.sees_BMM.data_ptr(), "however many rows, one chain's memory"


def test_long_prompts_are_not_kept_for_good() -> None:
    for num in range(600, 700):
        trees.topology(trees.chain(torch.zeros(1, num, dtype=torch.long)))
    for passing in (trees._passing_chain, trees._passing_parents):
        assert 0 < passing.cache_info().currsize <= 64
    assert trees._one_chain.cache_info().currsize <= trees.KEPT_SLOTS
