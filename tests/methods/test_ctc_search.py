"""The tensor prefix search is the plain one, and with enough beams the enumeration of all alignments; the tree it grows
holds each prefix once, and no blank."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from methods.ctc import plain
from methods.ctc.prefix_search import Levels, frames_of, independent, search
from methods.ctc.transform import collapse_tree
from specbench.beams import grow
from specbench.conformance.watch import inspect_tree
from specbench.method import DraftTree
from specbench.tree import from_lists, merge, paths, topology


def _logits(seed: int, *, frames: int, vocab: int, rows: int = 1, sharp: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return sharp * torch.randn(rows, frames, vocab + 1, generator=generator, dtype=torch.float64)


def _tree(levels: Levels, max_nodes: int = 0) -> DraftTree:
    grown = levels.grown
    return grow(
        levels.ids,
        [each.parent_BW for each in grown],
        [each.priority_BW for each in grown],
        [each.logq_BW for each in grown],
        max_nodes=max_nodes,
    ).tree


def _prefixes(levels: Levels, row: int = 0) -> dict[tuple[int, ...], float]:
    """Every prefix found, with its log marginal."""
    found: dict[tuple[int, ...], float] = {}
    above: list[tuple[int, ...]] = [()]
    for index, grown in zip(levels.ids, levels.grown, strict=True):
        level = [
            (*above[parent], token)
            for parent, token in zip(grown.parent_BW[row].tolist(), index[row].tolist(), strict=True)
        ]
        logs = grown.priority_BW[row].tolist()
        # A dead beam may repeat a living one.
        found |= {prefix: log for prefix, log in zip(level, logs, strict=True) if log > float("-inf")}
        above = level
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("width", "top_k"), [(1, 0), (3, 0), (3, 2), (5, 1)])
def test_tensors_find_what_the_plain_search_finds(seed: int, width: int, top_k: int) -> None:
    logits = _logits(seed, frames=6, vocab=5, rows=2)
    levels = search(frames_of(logits, has_blank=True, top_k=top_k), depth=4, width=width)
    for row in range(2):
        wanted = plain.prefix_search(logits[row].softmax(-1).tolist(), depth=4, width=width, top_k=top_k)
        found = _prefixes(levels, row)
        alive = {prefix: chance for prefix, chance in wanted if chance > 0}
        assert set(found) == set(alive)
        for prefix, log in found.items():
            assert math.exp(log) == pytest.approx(alive[prefix], rel=1e-9)


def test_with_enough_beams_every_prefix_has_the_mass_of_all_its_alignments() -> None:
    """Repeated tokens included: (0, 0) needs a blank between its two."""
    logits = _logits(7, frames=4, vocab=2)
    law = plain.outputs(logits[0].softmax(-1).tolist())
    found = _prefixes(search(frames_of(logits, has_blank=True, top_k=0), depth=3, width=8))
    assert {prefix for prefix in found if len(prefix) == 2} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    for prefix, log in found.items():
        assert math.exp(log) == pytest.approx(plain.begins_with(law, prefix), abs=1e-12)


def test_plain_recursion_is_the_enumeration() -> None:
    frames = _logits(8, frames=5, vocab=3)[0].softmax(-1).tolist()
    law = plain.outputs(frames)
    assert sum(law.values()) == pytest.approx(1.0)
    for prefix in [(0,), (1, 1), (2, 0, 2), (2, 2, 2)]:
        assert plain.marginal(frames, prefix) == pytest.approx(plain.begins_with(law, prefix), abs=1e-12)


def test_a_blank_between_equal_frames_makes_a_double_token_and_none_merges_them() -> None:
    said = torch.full((1, 3, 3), -50.0)
    said[0, 0, 1] = said[0, 1, 2] = said[0, 2, 1] = 50.0  # 1, blank, 1
    assert search(frames_of(said, has_blank=True, top_k=0), depth=2, width=1).ids[1].tolist() == [[1]]
    said[0, 1] = said[0, 0]  # 1, 1, 1
    found = _prefixes(search(frames_of(said, has_blank=True, top_k=0), depth=2, width=2))
    assert max(found, key=lambda prefix: (found[prefix], len(prefix))) == (1,)
    assert found[1, 1] < -40


def test_noise_decides_by_the_depth_of_a_prefix_not_by_its_frame() -> None:
    """Frames blank, 2, 2, blank, 0: the second token stands at depth 2 though frame 5 says it."""
    said = torch.zeros(1, 5, 4)
    for frame, token in enumerate((3, 2, 2, 3, 0)):
        said[0, frame, token] = 12.0
    asked = []

    def noise(depth: int) -> Tensor:
        asked.append(depth)
        wanted = torch.zeros(1, 3)
        if depth == 2:
            wanted[0, 1] = 100.0
        return wanted

    frames = frames_of(said, has_blank=True, top_k=0)
    levels = search(frames, depth=2, width=1, process=lambda scores: scores, noise=noise)
    assert asked == [1, 2]
    assert [index.tolist() for index in levels.ids] == [[[2]], [[1]]]


def test_processed_search_without_noise_orders_by_the_same_laws() -> None:
    logits = _logits(9, frames=6, vocab=4)
    frames = frames_of(logits, has_blank=True, top_k=0)
    bare = search(frames, depth=2, width=20)
    drawn = search(frames, depth=2, width=20, process=lambda scores: scores)
    law = _prefixes(bare)
    for prefix, log in _prefixes(drawn).items():
        if len(prefix) == 1:
            rest = math.log(sum(math.exp(law[token,]) for token in range(4)))
            assert log == pytest.approx(law[prefix] - rest, abs=1e-9)


def test_frames_taken_as_they_are_give_one_depth_a_frame() -> None:
    logits = _logits(10, frames=3, vocab=4)[..., :-1]
    levels = independent(logits, depth=3, width=1, process=lambda scores: scores)
    assert [index.item() for index in levels.ids] == logits.argmax(-1)[0].tolist()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    frames=st.integers(1, 6),
    vocab=st.integers(1, 5),
    depth=st.integers(1, 4),
    width=st.integers(1, 5),
    top_k=st.integers(0, 3),
    max_nodes=st.integers(0, 9),
    is_drawn=st.booleans(),
)
def test_every_tree_holds_each_prefix_once_parents_first_and_no_blank(
    seed: int, frames: int, vocab: int, depth: int, width: int, top_k: int, max_nodes: int, is_drawn: bool
) -> None:
    levels = search(
        frames_of(_logits(seed, frames=frames, vocab=vocab, rows=2, sharp=4.0), has_blank=True, top_k=top_k),
        depth=min(depth, frames),
        width=width,
        process=(lambda scores: scores) if is_drawn else None,
    )
    tree = _tree(levels, max_nodes)
    rows = inspect_tree(tree, num_rows=2, max_nodes=tree.num_nodes, vocab_size=vocab)
    depths = topology(tree).depth_BM
    for row, host in enumerate(rows):
        found = paths(host.tokens, host.parents)
        assert len({tuple(path) for path in found}) == len(found)
        valid = [True] * tree.num_nodes if tree.valid_BN is None else tree.valid_BN[row].tolist()
        kept = [node for node in range(tree.num_nodes) if valid[node]]
        assert [len(path) for path in found] == [int(depths[row, node + 1]) for node in kept]


@pytest.mark.parametrize("branch", [0, 2])
def test_a_prefix_all_but_certain_to_go_on_is_never_kept_without_its_own_beginning(branch: int) -> None:
    """In float32 the marginal of a child rounds past its parent's; of the best nodes the child alone would then be
    kept, hung on the root: a text that no frame says."""
    num_rounded = 0
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        logits = 0.3 * torch.randn(1, 8, 41, generator=generator)
        said = torch.randint(0, 40, (8,), generator=generator)
        logits[0, torch.arange(8), said] += 18
        levels = search(frames_of(logits, has_blank=True, top_k=0), depth=5, width=3, branch=branch)
        for above, level in itertools.pairwise(levels.grown):
            assert bool((level.priority_BW <= above.priority_BW.gather(1, level.parent_BW)).all())
            num_rounded += int((level.logq_BW == 0).sum())
        every, kept = (
            {tuple(path) for path in paths(tree.tokens_BN[0].tolist(), tree.parents_BN[0].tolist())}
            for tree in (_tree(levels), _tree(levels, max_nodes=3))
        )
        assert kept <= every
    assert num_rounded > 10, "some masses are 1"


@pytest.mark.parametrize("seed", range(6))
def test_collapsing_a_tree_merges_repeats_and_twins(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    strings = torch.randint(0, 2, (5, 4), generator=generator).tolist()
    tokens, parents = merge(strings, max_nodes=20)
    # Siblings differ, parents come first; now say 'a a b' as 'a b'.
    tree = collapse_tree(from_lists([tokens], [parents], device=torch.device("cpu")))
    host = inspect_tree(tree, num_rows=1, max_nodes=20, vocab_size=2)[0]
    found = {tuple(path) for path in paths(host.tokens, host.parents)}
    wanted = {plain.collapse(path, blank=-1) for path in paths(tokens, parents)}
    assert found == wanted
    assert len(host.tokens) == len(wanted)
