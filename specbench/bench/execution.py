"""How a target's steps are run: operator by operator or as graphs, compiled or not. Chosen once per command, said on
every row, never changed silently.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from specbench.engine import stamps
from specbench.engine.graphs import Backend, Graphs, cuda_graphs, why_not
from specbench.engine.pinned_run import span_of
from specbench.errors import EnvironmentFailed, UsageError
from specbench.events import Measured
from specbench.lm.cached_lm import CachedLM
from specbench.method import Drafter
from specbench.store.journal import Journal
from specbench.tree import empty

_NUM_TRIALS = 30
_NUM_STAMPS = 256


def pick_graphs(switch: str, lm: CachedLM) -> Backend | None:
    """What captures the steps of this target; None runs them operator by operator. auto: wherever it can be done.

    Raises EnvironmentFailed or UsageError where `on` cannot be done.
    """
    if switch == "off":
        return None
    missing = why_not(lm.device)
    if not missing and lm.num_processes > 1:
        missing = "a target that is split over processes runs step by step"
    if not missing and not lm.is_capturable:
        missing = f"weights quantised as {lm.quantisation} run eagerly"
    if not missing:
        return cuda_graphs(lm.device)
    if switch == "on":
        raise EnvironmentFailed(f"steps cannot be captured: {missing}", where="--graphs on", try_="--graphs auto")
    return None


def compile_target(
    switch: str,
    lm: CachedLM,
    *,
    say: Callable[[str], None],
    max_len: int,
    graphs: Backend | None = None,
) -> None:
    """Compile the target where asked to. auto: on CUDA, layer by layer, and only where a step of one token, run as the
    run will run it, is then faster. on: layer by layer; on a CPU whole, where every layer's weights are packed for
    products of their own.

    graphs: what will capture the run's steps.

    On a CPU auto means no: one token took 0.97, five took 1.25 of the time on an 8 M Llama (one thread of an AMD EPYC,
    torch 2.13, float32), because the products laid out here are faster than what the compiler makes of them.
    Raises EnvironmentFailed where `on` fails.
    """
    if switch == "off" or (switch == "auto" and (not _is_cuda(lm) or lm.num_processes > 1)):
        return
    if lm.num_processes > 1:
        raise UsageError(
            "a target that is split over processes is not compiled", where="--compile", try_="--compile off"
        )
    why_not = _compile(switch, lm, max_len=max_len, graphs=graphs)
    if why_not:
        say(f"the target runs as it is: {why_not}")
    else:
        how = "whole" if lm.is_compiled_whole else "layer by layer"
        say(f"the target is compiled {how} ({lm.compile_s:.0f} s for one token; other shapes take theirs later)")


def compile_models(
    switch: str, lm: CachedLM, drafter: Drafter, *, max_len: int, graphs: Backend | None = None
) -> list[str]:
    """Models that draft on CUDA for a compiled target, `lm`, are compiled like it; under auto where that is faster.

    Returns what the method's row must say: of models that run as they are, why. A draft model has a smaller product
    behind every launch than its target, so it gains more; left as it is, its method would be charged for that.
    Raises EnvironmentFailed where `on` fails.
    """
    notes: list[str] = []
    if not lm.is_compiled:
        return notes
    for model in drafter.models:
        if not _is_cuda(model):
            continue
        why_not = _compile(switch, model, max_len=max_len, graphs=graphs)
        if why_not:
            notes.append(f"its draft model runs as it is, beside a compiled target: {why_not}")
    return notes


def _is_cuda(lm: CachedLM) -> bool:
    return lm.device.type == "cuda"


def _compile(switch: str, lm: CachedLM, *, max_len: int, graphs: Backend | None) -> str:
    """Compile it, for good or, under auto, where a step is faster then -> why it is not compiled; '' where it is."""
    before = _step_s(lm, max_len, graphs) if switch == "auto" else 0.0
    try:
        lm.compile(is_whole=switch == "whole" or not _is_cuda(lm))
        after = _step_s(lm, max_len, graphs)
        if not lm.compile_s:
            raise RuntimeError("its forwards went past the compiler")
    except Exception as error:
        lm.run_uncompiled()
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        if switch != "auto":
            raise EnvironmentFailed(
                f"{lm.name} cannot be compiled: {why}", where=f"--compile {switch}", try_="--compile auto"
            ) from error
        return f"it cannot be compiled ({why})"
    if switch == "auto" and after >= before:
        lm.run_uncompiled()
        return f"compiled, a step takes {after * 1e3:.2f} ms instead of {before * 1e3:.2f}"
    return ""


@torch.inference_mode()
def _step_s(lm: CachedLM, max_len: int, graphs: Backend | None) -> float:
    """Seconds of one decode step behind a short text, median: captured and replayed where the run's steps will be, so
    that what is compared is not what its launches cost the host."""
    lm.allocate(max_batch=1, max_len=max_len, max_nodes=0)
    root_B = torch.tensor([1], device=lm.device)
    lm.begin(1)
    num_tokens = min(16, lm.vocab_size)
    lm.prefill(0, torch.arange(num_tokens, device=lm.device))
    tree = empty(1, lm.device)
    if graphs is None:
        return _median_s(lambda: lm.verify(root_B, tree), lm.device)
    length_B = torch.tensor([num_tokens], device=lm.device)
    span = span_of(num_tokens + 1, lm.cache.num_slots)

    def step() -> Tensor:
        return lm.verify_behind(root_B, tree, length_B, span=span).logits_BMV

    _, graph, _ = graphs.run_and_capture(step)
    try:
        # What cannot be captured here will not be in the run either.
        return _median_s(step if graph is None else graph.replay, lm.device)
    finally:
        graphs.forget()


def _median_s(step: Callable[[], object], device: torch.device) -> float:
    seconds = []
    for _ in range(_NUM_TRIALS):
        start = _now(device)
        step()
        seconds.append(_now(device) - start)
    return statistics.median(seconds)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def tell_of_timer(
    journal: Journal, backend: Backend | None, device: torch.device, *, say: Callable[[str], None]
) -> None:
    """Before steps are captured: what the device's timer is worth, which takes the times of their phases, or why it is
    not what takes them."""
    if backend is None:
        return
    if backend.why_phased:
        say(f"a step is one graph per phase, timed by events: {backend.why_phased}")
        return
    why_single = ""

    def replayed(stamp_all: Callable[[], None]) -> None:
        nonlocal why_single
        _, graph, why_single = backend.run_and_capture(stamp_all)
        if graph is not None:
            graph.replay()

    try:
        found = stamps.resolution_ns(device, num=_NUM_STAMPS, repeated=replayed)
    finally:
        backend.forget()
    for name, value in (("timer_resolution_ns", found["smallest_ns"]), ("timer_stamp_ns", found["mean_ns"])):
        journal.write(Measured(name=name, value=value, unit="ns", detail=why_single))


def tell_of_graphs(
    journal: Journal, label: str, drafter: Drafter, graphs: Graphs, *, say: Callable[[str], None]
) -> None:
    """After a method's warm-up: how many steps it has as graphs, or why it has none."""
    refusal = graphs.refusal(drafter)
    num_graphs = graphs.num_graphs(drafter)
    journal.write(Measured(name="num_graphs", value=num_graphs, unit="graphs", method=label, detail=refusal))
    if refusal:
        say(f"{label}: its steps run one by one, they cannot be captured: {refusal}")


def describe(lm: CachedLM, backend: Backend | None) -> str:
    """For the manifest: rows are compared with rows that were run alike."""
    steps = "operators" if backend is None else "graphs, one per phase" if backend.why_phased else "graphs"
    if not lm.is_compiled:
        return steps
    return f"{steps}, compiled" if lm.is_compiled_whole else f"{steps}, compiled by layers"
