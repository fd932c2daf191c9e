"""A figure of the Triton kernel is one of the kernel: of every verification, not of some. In Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import gpu_checks, gpu_timing
from benchmarks.gpu_attention import WatchedLM, WrongAttention
from benchmarks.gpu_models import Guess
from benchmarks.gpu_timing import engine_for, requests, timed
from specbench.lm import attention
from tests.e2e.gpu_fakes import bench_on, rows_of, tiny_target
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


def test_the_kernel_alone_is_held_against_the_bytes_of_its_keys_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """At toy size two key heads of 16, context and nine slots, in float32, as keys and as values; 1 MB a second."""
    calls: list[tuple[Tensor, Tensor]] = []
    plain = tree_kernel.tree_attention

    def watched(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        found = plain(query, key, value, **options)
        calls.append((key, found))
        return found

    monkeypatch.setattr(tree_kernel, "tree_attention", watched)
    # Operators of the interpreter are recorded as well, and cannot be replayed.
    monkeypatch.setattr(gpu_timing, "device_s", lambda bench, run: 0.004)
    monkeypatch.setattr(gpu_checks, "rotation", lambda set_bytes: (2, 2))
    bench = bench_on(attention_name=attention.TRITON)
    found = gpu_checks.kernel(bench, {"copy": {"bytes_per_s": 1e6}})
    assert rows_of(found) == [
        ("tree kernel, 32 tokens, us (bytes alone)", "2000 (10496)", ""),
        ("tree kernel, 256 tokens, us (bytes alone)", "2000 (67840)", ""),
        ("tree kernel, 1024 tokens, us (bytes alone)", "2000 (264448)", ""),
    ]
    assert [key.shape[2] for key, _ in calls] == [41, 41, 265, 265, 1033, 1033]
    for (one_key, one), (other_key, other) in zip(calls[::2], calls[1::2], strict=True):
        assert one_key.data_ptr() != other_key.data_ptr(), "in turn, so that nothing is read from a cache"
        assert one.shape == (1, 9, 4, 16) and bool(one.isfinite().all()) and not torch.equal(one, other)
    without = gpu_checks.kernel(bench_on(attention_name=attention.SDPA), {})
    assert rows_of(without) == [("tree kernel", "not run: attention is specbench_fused", "")]
