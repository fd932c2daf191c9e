"""The 8B target that most parts of `gpu.py` share: drawn once, compiled once, timed both ways.

`--compile auto`, the default on CUDA, takes the faster of the forward that is compiled layer by layer and the one as it
is. So do the figures that are held against a limit; the other way's stand beside them.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from benchmarks.gpu_attention import WatchedLM
from benchmarks.gpu_models import BIG, Bench, free, let_go, make_decisive, make_model
from benchmarks.gpu_timing import row
from specbench.tree import empty

COMPILED, AS_IT_IS = "compiled", "as it is"
T = TypeVar("T")


class Shared:
    """The target with its two forwards. Its texts are decided by no rounding (`make_decisive`), which changes no work:
    what is forced to be accepted must be written again by forwards of other shapes."""

    def __init__(self, bench: Bench) -> None:
        model = make_model(bench, BIG)
        make_decisive(model)
        self.bench = bench
        self.lm = WatchedLM(model, name=BIG)
        self.why_plain = ""
        """Why there is no compiled forward; '' where there is one."""
        # As it is comes first: the cached model then learns whether decoder and head are all there is of it.
        self._probe()
        self.compile_s = self.compile(is_whole=False)

    def compile(self, *, is_whole: bool) -> float:
        """COMPILED is layer by layer, or whole, from now on -> seconds that one slot and several took. A rehearsal
        traces only: inductor takes minutes on a CPU; tests hold what it makes against plain forwards."""
        self.lm.run_uncompiled()
        self.why_plain = ""
        self.lm.compile(is_whole=is_whole, backend="eager" if self.bench.is_small else "inductor")
        self.each_way(lambda way: self._probe())
        return self.lm.compile_s

    def forget(self) -> None:
        """The next part gets a target of its own."""
        let_go(self.bench)

    @torch.inference_mode()  # as the engine's own tokens are made: others would be a forward to compile of their own
    def _probe(self) -> None:
        """One slot, then several: from the second number of slots on one compiled forward serves all numbers."""
        lm = self.lm
        lm.allocate(max_batch=1, max_len=64, max_nodes=8)
        lm.begin(1)
        lm.prefill(0, torch.arange(1, device=lm.device))
        lm.prefill(0, torch.arange(16, device=lm.device))
        lm.verify(torch.tensor([1], device=lm.device), empty(1, lm.device))
        self.bench.finish()
        lm.release()

    def each_way(self, measure: Callable[[str], T]) -> dict[str, T]:
        """What `measure` returns for COMPILED and AS_IT_IS. A compiled forward that raises is not tried again
        (`why_plain`): its figures are missing then, those of the other way are not."""
        found = {}
        for way in (COMPILED, AS_IT_IS):
            if way == COMPILED and self.why_plain:
                continue
            try:
                with self.lm.uncompiled() if way == AS_IT_IS else nullcontext():
                    found[way] = measure(way)
            except Exception as error:
                if way != COMPILED:
                    raise
                # Compilers raise whatever they like, and the traceback says where.
                traceback.print_exc()
                self.why_plain = (f"{type(error).__name__}: {error}".strip().splitlines() or ["no message"])[0]
            finally:
                self.lm.release()
                free(self.bench)
        return found

    def is_first(self, way: str) -> bool:
        """Whether this way is timed in full; the other one only where that has a limit to meet."""
        return way == COMPILED or bool(self.why_plain)

    def options(self, way: str) -> dict[str, Any]:
        """For `engine_for`. What records steps on a CPU watches every operator, and under such eyes torch compiles
        nothing."""
        return {"graphs": None} if self.bench.is_small and way == COMPILED else {}

    def rows(self) -> list[dict[str, str]]:
        """For the table: nothing, or why a way is missing."""
        return [row("compiled forward", f"none: {self.why_plain}")] if self.why_plain else []

    @contextmanager
    def as_published(self) -> Iterator[PreTrainedModel]:
        """The model with transformers' own attention, for transformers' own loops; as it was behind the block."""
        model = self.lm.model
        model.set_attn_implementation("sdpa")
        try:
            with self.lm.uncompiled():
                yield model
        finally:
            model.set_attn_implementation(self.bench.attention_for(self.lm.dtype))


def shared_target(bench: Bench) -> Shared:
    """The one that earlier parts made, without their caches, or a new one. It stays until `make_model` is called."""
    if not bench.kept:
        shared = Shared(bench)
        bench.kept.append(shared)
    found: Shared = bench.kept[0]
    found.lm.release()
    free(bench)
    return found


def faster(seconds: dict[str, float]) -> str:
    """The way that `--compile auto` takes."""
    return min(seconds, key=lambda way: seconds[way])
