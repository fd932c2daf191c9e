"""A method that calls itself capturable is caught when it reads on the host, though a CPU would let it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from specbench.conformance.broken import BrokenPromise
from specbench.conformance.capture import NoHostReads
from specbench.conformance.watch import Guarded
from specbench.method import Commit, Drafter, DraftNoise, DraftTree
from specbench.tree import chain

VALUES = torch.tensor([3, 0, 2])

READS: dict[str, Callable[[Tensor], object]] = {
    "item": lambda t: t[0].item(),
    "tolist": lambda t: t.tolist(),
    "int": lambda t: int(t[0]),
    "branch": lambda t: "yes" if t[0] > 2 else "no",
    "numpy": lambda t: t.numpy(),
    "mask": lambda t: t[t > 0],
    "nonzero": lambda t: t.nonzero(),
    "upload": lambda t: torch.tensor([1, 2]),
    "masked write": lambda t: t.clone().__setitem__(t > 0, 1),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_reading_a_value_or_making_a_shape_of_values_is_caught(read: Callable[[Tensor], object]) -> None:
    read(VALUES)
    with pytest.raises(BrokenPromise, match=r"capturable, but in its draft\(\)"), NoHostReads("draft()"):
        read(VALUES)


def test_static_tensor_work_is_allowed() -> None:
    with NoHostReads("draft()"):
        best = VALUES.topk(2)
        moved = torch.where(VALUES > 1, VALUES, 0).gather(0, best.indices) + torch.arange(2)
        VALUES.new_zeros(2).index_copy_(0, torch.arange(2), moved)
    assert moved.tolist() == [3, 3]


class _ReadsLists(Drafter):
    capturable = True
    max_nodes = 1

    def draft(self, noise: DraftNoise | None) -> DraftTree:
        return chain(VALUES[None, :1])

    def commit(self, commit: Commit) -> None:
        self.last = commit.tokens[0][-1]


def test_a_capturable_method_is_kept_from_the_host_lists_of_a_commit() -> None:
    one = torch.ones(1, 1, dtype=torch.long)
    commit = Commit(num_accepted_B=one[0], path_BP=one, tokens_BC=one, hidden_BCKD=None, tokens=[[1]], finished=[False])
    with pytest.raises(BrokenPromise, match="lists on the host"):
        Guarded(_ReadsLists()).commit(commit)
