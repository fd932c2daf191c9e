"""Beam search as a tree, held against plain enumeration of all paths."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from specbench.beams import DEAD, expand, grow
from specbench.conformance.watch import inspect_tree
from specbench.tree import DraftTree

SIZE, DEPTH = 4, 3


class _Language:
    """Random scores of the next token after every path of up to DEPTH tokens; some are -inf where `masked`."""

    def __init__(self, seed: int, *, masked: bool = False, noisy: bool = False) -> None:
        generator = torch.Generator().manual_seed(seed)
        paths = [path for depth in range(DEPTH) for path in itertools.product(range(SIZE), repeat=depth)]
        self.scores = {path: torch.randn(SIZE, generator=generator, dtype=torch.float64) for path in paths}
        if masked:
            for place, path in enumerate(paths):
                self.scores[path][place % SIZE] = DEAD
                if place % 3 == 0:
                    self.scores[path][1:] = DEAD
                    self.scores[path][0] = 1.0
        self.noise = torch.randn(DEPTH, SIZE, generator=generator, dtype=torch.float64) if noisy else None

    def priorities(self) -> dict[tuple[int, ...], float]:
        """Of every path, by the definition."""
        found: dict[tuple[int, ...], float] = {(): 0.0}
        for depth in range(1, DEPTH + 1):
            for path in itertools.product(range(SIZE), repeat=depth):
                scores = self.scores[path[:-1]]
                law = [math.exp(x) / sum(math.exp(y) for y in scores.tolist()) for x in scores.tolist()]
                gain = [math.log(p) if p else DEAD for p in law]
                if self.noise is not None:
                    gain = [g + float(n) for g, n in zip(gain, self.noise[depth - 1], strict=True)]
                    gain = [g - max(gain) for g in gain]
                found[path] = found[path[:-1]] + gain[path[-1]]
        del found[()]
        return found


def _search(
    language: _Language, *, width: int, max_nodes: int = 0, branch: int = 0, all_live: bool = False
) -> DraftTree:
    beams: list[tuple[int, ...]] = [()]
    priority = torch.zeros(1, 1, dtype=torch.float64)
    tokens, parents, priorities, logq = [], [], [], []
    for depth in range(DEPTH):
        scores: Tensor = torch.stack([language.scores[path] for path in beams])[None]
        noise = None if language.noise is None else language.noise[depth][None]
        grown = expand(priority, scores, noise, width=width, branch=branch)
        index, parent = grown.index_BW[0].tolist(), grown.parent_BW[0].tolist()
        beams = [(*beams[p], i) for p, i in zip(parent, index, strict=True)]
        priority = grown.priority_BW
        tokens.append(grown.index_BW)
        parents.append(grown.parent_BW)
        priorities.append(priority)
        logq.append(grown.logq_BW)
    return grow(tokens, parents, priorities, logq, max_nodes=max_nodes, all_live=all_live).tree


def _paths(tree: DraftTree) -> dict[tuple[int, ...], float]:
    """Valid node's path -> its score, after the tree was inspected."""
    (host,) = inspect_tree(tree, num_rows=1, max_nodes=tree.num_nodes, vocab_size=SIZE)
    valid = [True] * tree.num_nodes if tree.valid_BN is None else tree.valid_BN[0].tolist()
    assert tree.score_BN is not None
    scores = [score for score, is_valid in zip(tree.score_BN[0].tolist(), valid, strict=True) if is_valid]
    paths: list[tuple[int, ...]] = []
    for token, parent in zip(host.tokens, host.parents, strict=True):
        paths.append((*(paths[parent] if parent >= 0 else ()), token))
    assert len(set(paths)) == len(paths)
    return dict(zip(paths, scores, strict=True))


ALL = SIZE**DEPTH
KINDS = pytest.mark.parametrize(
    ("masked", "noisy"),
    [(False, False), (False, True), (True, False), (True, True)],
    ids=["plain", "noisy", "masked", "both"],
)


@KINDS
def test_beams_wide_enough_for_everything_find_every_path_that_lives(masked: bool, noisy: bool) -> None:
    for seed in range(3):
        language = _Language(seed, masked=masked, noisy=noisy)
        wanted = {path for path, priority in language.priorities().items() if priority > DEAD}
        assert set(_paths(_search(language, width=ALL))) == wanted


@KINDS
@pytest.mark.parametrize("max_nodes", [1, 3, 7, 20])
def test_the_node_budget_keeps_the_best_paths_and_their_ancestors(masked: bool, noisy: bool, max_nodes: int) -> None:
    for seed in range(3):
        language = _Language(seed, masked=masked, noisy=noisy)
        priorities = {path: value for path, value in language.priorities().items() if value > DEAD}
        kept = _paths(_search(language, width=ALL, max_nodes=max_nodes))
        assert len(kept) == min(max_nodes, len(priorities))
        assert all(len(path) == 1 or path[:-1] in kept for path in kept)
        worst_kept = min(priorities[path] for path in kept)
        best_lost = max((value for path, value in priorities.items() if path not in kept), default=DEAD)
        assert worst_kept >= best_lost - 1e-12


@KINDS
def test_narrow_beams_keep_the_best_children_of_the_kept_at_every_depth(masked: bool, noisy: bool) -> None:
    """The textbook search, in Python."""
    width = 3
    for seed in range(5):
        language = _Language(seed, masked=masked, noisy=noisy)
        priorities = language.priorities()
        beams, wanted = [()], set()
        for _ in range(DEPTH):
            children = [(*path, token) for path in beams for token in range(SIZE)]
            living = [path for path in children if priorities[path] > DEAD]
            beams = sorted(living, key=lambda path: -priorities[path])[:width]
            wanted |= set(beams)
        assert set(_paths(_search(language, width=width))) == wanted


def test_branch_bounds_the_children_of_one_beam() -> None:
    kept = _paths(_search(_Language(0), width=4, branch=2))
    for path in kept:
        assert sum(other[:-1] == path[:-1] for other in kept) <= 2
    assert len([path for path in kept if len(path) == 1]) == 2


def test_a_score_is_the_log_probability_of_the_token_after_its_parent_with_noise_too() -> None:
    language = _Language(1, noisy=True)
    for path, score in _paths(_search(language, width=5)).items():
        assert score == pytest.approx(float(language.scores[path[:-1]].log_softmax(-1)[path[-1]]))


def test_where_nothing_can_be_dead_nothing_is_marked_and_the_tree_is_the_same() -> None:
    for max_nodes in (0, 5):
        marked = _search(_Language(2), width=3, max_nodes=max_nodes)
        plain = _search(_Language(2), width=3, max_nodes=max_nodes, all_live=True)
        assert plain.valid_BN is None
        assert marked.valid_BN is not None and bool(marked.valid_BN.all())
        assert torch.equal(plain.tokens_BN, marked.tokens_BN)
        assert torch.equal(plain.parents_BN, marked.parents_BN)


def test_one_beam_is_a_chain() -> None:
    tree = _search(_Language(3), width=1)
    assert tree.is_chain
    assert tree.parents_BN.tolist() == [[-1, 0, 1]]


def test_rows_of_a_batch_search_alone() -> None:
    """Two rows with different languages: each gets the tree it gets alone."""
    scores = torch.randn(2, 1, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = torch.randn(2, SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    zero = torch.zeros(2, 1, dtype=torch.float64)
    both = expand(zero, scores, noise, width=3)
    second = scores[:, :, None].expand(2, 1, 3, SIZE)[:, 0] + torch.arange(3.0)[None, :, None] * scores[:, 0, :1, None]
    deeper = expand(both.priority_BW, second, noise, width=4)
    for row in range(2):
        alone = expand(zero[:1], scores[row : row + 1], noise[row : row + 1], width=3)
        assert torch.equal(alone.index_BW[0], both.index_BW[row])
        alone = expand(alone.priority_BW, second[row : row + 1], noise[row : row + 1], width=4)
        assert torch.equal(alone.parent_BW[0], deeper.parent_BW[row])
        assert torch.equal(alone.index_BW[0], deeper.index_BW[row])


def _packed_by_apple(beams: list[tuple[int, ...]]) -> tuple[list[int], list[list[int]]]:
    """Apple's packing: First, then the kept nodes row by row, then where each beam finds its own."""
    first = [
        [min(k for k in range(i + 1) if beams[k][: j + 1] == beams[i][: j + 1]) for j in range(len(beams[i]))]
        for i in range(len(beams))
    ]
    places: dict[tuple[int, int], int] = {}
    packed: list[int] = []
    for i, beam in enumerate(beams):
        for j, token in enumerate(beam):
            if first[i][j] == i:
                places[i, j] = len(packed)
                packed.append(token)
    return packed, [[places[first[i][j], j] for j in range(len(beam))] for i, beam in enumerate(beams)]


def test_the_references_worked_example_of_packing() -> None:
    packed, unpack = _packed_by_apple([(1, 2, 3, 4), (1, 2, 5, 6), (1, 2, 7, 4)])
    assert packed == [1, 2, 3, 4, 5, 6, 7, 4]
    assert unpack == [[0, 1, 2, 3], [0, 1, 4, 5], [0, 1, 6, 7]]


@pytest.mark.parametrize("seed", range(20))
def test_the_final_beams_ancestors_are_the_nodes_that_the_references_packing_finds(seed: int) -> None:
    """Parent pointers need no comparison of prefixes: the paths they spell are distinct already."""
    tree = _search(_Language(seed), width=4)
    kept = _paths(tree)
    final = [path for path in kept if len(path) == DEPTH]
    packed, unpack = _packed_by_apple(final)
    ancestors = {path[:depth] for path in final for depth in range(1, DEPTH + 1)}
    assert len(packed) == len(ancestors)
    assert ancestors <= set(kept)
    for path, places in zip(final, unpack, strict=True):
        assert tuple(packed[place] for place in places) == path
