"""Drafters for a target whose law is a table, thousands of rows at once, and scipy's chi-square over the answers."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from specbench.conformance.targets import TableLM
from specbench.engine.decode import Engine
from specbench.engine.graphs import Backend
from specbench.method import Commit, Drafter, DraftNoise, DraftTree, Request, Rule
from specbench.sampling import Sampling, log_probs, process, sequence_key, top_children
from specbench.tree import chain


def random_tables(size: int, *, seed: int, closeness: float = 0.5) -> tuple[Tensor, Tensor]:
    """(target, draft) logits (V, V): the draft's are the target's, disturbed."""
    generator = torch.Generator().manual_seed(seed)
    target = 1.5 * torch.randn(size, size, generator=generator, dtype=torch.float64)
    other = 1.5 * torch.randn(size, size, generator=generator, dtype=torch.float64)
    return target, closeness * target + (1 - closeness) * other


class _TableDrafter(Drafter):
    """Knows each live row's root; its own law is logits_VV, processed as the target's. Steps may be captured."""

    capturable = True
    carried = ("_root_B",)

    def __init__(self, logits_VV: Tensor, sampling: Sampling) -> None:
        self._logq_VV = log_probs(process(logits_VV, sampling))

    def start(self, len_B: list[int], root_B: Tensor) -> None:
        self._root_B = root_B

    def commit(self, commit: Commit) -> None:
        self._root_B = commit.tokens_BC.gather(1, commit.num_accepted_B[:, None])[:, 0]

    def keep(self, rows: list[int]) -> None:
        self._root_B = self._root_B[rows]


class SampledChain(_TableDrafter):
    """A chain of draws from the draft's law, which it records."""

    max_nodes = 3

    def draft(self, noise: DraftNoise | None) -> DraftTree:
        assert noise is not None
        parents, laws = self._root_B, []
        tokens = []
        for depth in range(1, self.max_nodes + 1):
            laws.append(self._logq_VV[parents])
            parents = top_children(laws[-1], noise.at_depth(depth), 1)[:, 0]
            tokens.append(parents)
        laws.append(self._logq_VV[parents])
        return chain(torch.stack(tokens, 1), logq_BMV=torch.stack(laws, 1))


class SiblingTree(_TableDrafter):
    """`width` children of the root and of each child. is_drawn: without replacement from the draft's law, which is
    recorded; otherwise the most probable ones, a beam (`lies`: recorded as if they had been drawn)."""

    def __init__(
        self, logits_VV: Tensor, sampling: Sampling, *, width: int, is_drawn: bool, lies: bool = False
    ) -> None:
        super().__init__(logits_VV, sampling)
        self._width = width
        self._is_drawn = is_drawn
        self._records = is_drawn or lies
        self.max_nodes = width + width * width

    def draft(self, noise: DraftNoise | None) -> DraftTree:
        assert noise is not None
        width, num_rows = self._width, self._root_B.shape[0]
        root_law = self._logq_VV[self._root_B]
        first = top_children(root_law, noise.at_depth(1) if self._is_drawn else None, width)
        child_laws = self._logq_VV[first]
        second = top_children(child_laws, noise.at_depth(2)[:, None] if self._is_drawn else None, width)
        tokens = torch.cat([first, second.flatten(1)], 1)
        parents = torch.tensor([-1] * width + [node for node in range(width) for _ in range(width)]).expand(
            num_rows, -1
        )
        laws = torch.cat([root_law[:, None], self._logq_VV[tokens]], 1) if self._records else None
        return DraftTree(tokens_BN=tokens, parents_BN=parents, max_depth=2, logq_BMV=laws)


def draw(
    lm: TableLM,
    drafter: Drafter,
    sampling: Sampling,
    *,
    rule: Rule,
    num: int,
    length: int,
    first: int = 0,
    seed: int = 0,
    graphs: Backend | None = None,
) -> list[tuple[int, ...]]:
    """`num` independent answers of `length` tokens to the prompt (0, first), all rows in one batch."""
    engine = Engine(
        lm, sampling=sampling, rule=rule, max_batch=num, max_len=2 + length, max_nodes=drafter.max_nodes, graphs=graphs
    )
    requests = [
        Request(key=sequence_key(seed=seed, question_id=str(row), turn=0), prompt=(0, first), max_new_tokens=length)
        for row in range(num)
    ]
    if engine.graphs is not None:
        # What a model finds out in its first forward it would find out in a capture: the table's prompts run none.
        engine.generate(drafter, requests[:1], capturing="none")
    found = [generation.tokens for generation in engine.generate(drafter, requests).generations]
    if engine.graphs is not None:
        assert engine.graphs.num_graphs(drafter) and not engine.graphs.refusal(drafter), "no step was captured"
    return found


def chi_square(answers: list[tuple[int, ...]], law: dict[tuple[int, ...], float]) -> float:
    """p-value of the answers under the law. Cells of fewer than five expected draws are pooled; an impossible answer
    gives 0."""
    counts = dict.fromkeys(law, 0)
    for answer in answers:
        counts[answer] += 1
    if any(counts[answer] and probability == 0 for answer, probability in law.items()):
        return 0.0
    expected = np.array([probability * len(answers) for probability in law.values()])
    seen = np.array([counts[answer] for answer in law], dtype=float)
    rare = expected < 5
    if rare.any() and expected[rare].sum() > 0:
        expected = np.append(expected[~rare], expected[rare].sum())
        seen = np.append(seen[~rare], seen[rare].sum())
    else:
        expected, seen = expected[~rare], seen[~rare]
    return float(stats.chisquare(seen, expected * seen.sum() / expected.sum()).pvalue)
