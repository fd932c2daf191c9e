"""A figure of the Triton kernel is one of the kernel: of every verification, not of some. In Triton's interpreter."""

from __future__ import annotations

import pytest

from benchmarks.gpu_attention import WatchedLM, WrongAttention
from benchmarks.gpu_models import Guess
from benchmarks.gpu_timing import engine_for, requests, timed
from specbench.lm import attention
from tests.e2e.gpu_fakes import bench_on, tiny_target
from tests.helpers import CPU

pytest.importorskip("triton", reason="Triton is not installed: pip install triton (Linux)")

from specbench.lm import tree_kernel


def _verify(lm: WatchedLM, *, prompt: int, num_nodes: int) -> None:
    bench = bench_on(attention_name=attention.TRITON)
    asked = requests(bench, num=1, prompt=prompt, new=2, vocab_size=lm.vocab_size)
    engine = engine_for(bench, lm, prompt=prompt, new=2, nodes=num_nodes, graphs=None)
    timed(engine, Guess(CPU, num=num_nodes), asked, rounds=1)


def test_a_figure_of_large_trees_is_refused_where_another_attention_verified_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prompts and large drafts through SDPA, as by a kernel that takes no more than 32 slots: both attentions ran, as
    they do where a prompt alone is read by SDPA."""
    monkeypatch.setattr(tree_kernel, "MOST_SLOTS", 32)
    lm = tiny_target(attention.TRITON)
    _verify(lm, prompt=40, num_nodes=4)
    assert lm.attention_used == {"sdpa", "triton"} and lm.used_in_steps == {5: {"triton"}}
    with pytest.raises(WrongAttention, match=r"specbench_triton was asked for, and what ran was sdpa .*: 41\)"):
        _verify(lm, prompt=40, num_nodes=40)


def test_one_verification_by_another_attention_is_not_hidden_by_those_of_its_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm = tiny_target(attention.TRITON)
    _verify(lm, prompt=3, num_nodes=4)
    monkeypatch.setattr(tree_kernel, "MOST_SLOTS", 4)
    with pytest.raises(WrongAttention, match=r"what ran was sdpa and triton .*: 5\)"):
        _verify(lm, prompt=3, num_nodes=4)
