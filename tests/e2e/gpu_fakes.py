"""Measurements made by hand for the parts of `gpu.py`: what they make of them is arithmetic, and takes no model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, cast

import torch

from benchmarks.gpu_attention import WatchedLM
from benchmarks.gpu_models import Bench
from benchmarks.gpu_shared import Shared
from specbench.engine.answer import Generation, GroupResult
from specbench.engine.recorded import RecordedGraphs
from specbench.events import StepRow
from specbench.lm import attention
from tests.helpers import CPU, tiny_model

Row = tuple[str, str, str]


def bench_on(device: torch.device = CPU, *, attention_name: str = "", backend: Any = RecordedGraphs) -> Bench:
    """Toy sizes: a 32nd of the published ones, no fewer than 8."""
    return Bench(
        device=device, dtype=torch.float32, is_small=True, attention_name=attention_name, backend=backend
    )  # fmt: skip


def tiny_target(attention_name: str = attention.SDPA) -> WatchedLM:
    """A real one, of two layers."""
    return WatchedLM(tiny_model("llama", attention_name=attention_name), name="tiny-llama")


def step(
    end_s: float = 0.0, *, draft_s: float = 0.0, verify_s: float = 0.0, accept_s: float = 0.0, commit_s: float = 0.0,
    num_nodes: int = 0, num_accepted: int = 0, num_truncated: int = 0,
) -> StepRow:  # fmt: skip
    """What a step took and came to."""
    num_committed = num_accepted + 1
    return StepRow(
        row=0, step=0, end_s=end_s, num_nodes=num_nodes, depth=num_nodes, num_accepted=num_accepted,
        num_committed=num_committed, num_truncated=num_truncated, ranks=(0,) * num_accepted,
        tokens=(7,) * (num_committed - num_truncated), draft_s=draft_s, verify_s=verify_s, accept_s=accept_s,
        commit_s=commit_s,
    )  # fmt: skip


def answers(steps: Sequence[StepRow], *, decode_s: float = 1.0, total_s: float = 1e6, num_rows: int = 1) -> GroupResult:
    """Rows that all took these steps, behind one token each of the prefill. Nothing may take total_s for a step."""
    tokens = (5, *(token for each in steps for token in each.tokens))
    each = Generation(tokens=tokens, finish_reason="length", steps=tuple(steps))
    return GroupResult(
        generations=(each,) * num_rows, prefill_s=0.0, decode_s=decode_s, total_s=total_s, draft_s=0.0, verify_s=0.0,
        accept_s=0.0, commit_s=0.0, journal_s=0.0,
    )  # fmt: skip


class FakeTarget:
    """1000 bytes of weights, 10 of cache a token, 500 of cache in all."""

    def __init__(self) -> None:
        weights = torch.zeros(250)
        self.device, self.dtype, self.vocab_size, self.name = CPU, torch.float32, 64, "by hand"
        self.model = SimpleNamespace(parameters=lambda: iter([weights]))
        self.cache = SimpleNamespace(num_bytes=lambda: 500)

    def weight_bytes_per_token(self) -> int:
        return 1000

    def cache_bytes_per_token(self) -> int:
        return 10

    def uncompiled(self) -> AbstractContextManager[None]:
        return nullcontext()

    def release(self) -> None:
        pass


class FakeShared(Shared):
    """Both forwards of a FakeTarget; an engine's `way` says which one it is of."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.lm, self.why_plain, self.compile_s = bench, cast(Any, FakeTarget()), "", 7.0

    def options(self, way: str) -> dict[str, Any]:
        return {"way": way}

    @contextmanager
    def as_published(self) -> Iterator[Any]:
        yield self.lm.model


def fake_engine(bench: Bench, lm: Any, **options: Any) -> Any:
    """`engine_for`: what it was asked for."""
    return SimpleNamespace(**{"nodes": 0, "rows": 1, "view": lambda: None, **options})


@contextmanager
def fake_target(*args: Any, **options: Any) -> Iterator[Any]:
    """`gpu_models.target`."""
    yield FakeTarget()


def rows_of(part: dict[str, Any]) -> list[Row]:
    """What a part adds to the table: what, measured, asked for."""
    return [(row["what"], row["measured"], row["asked"]) for row in part["rows"]]
