"""How `gpu.py` asks and times: requests, engines, rounds without a capture, and what makes a figure no figure."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.gpu_attention import WatchedLM, WrongAttention, demand_attention
from benchmarks.gpu_models import Bench
from specbench.engine.answer import GroupResult
from specbench.engine.decode import Engine
from specbench.lm.cached_lm import CachedLM
from specbench.method import Drafter, Request
from specbench.metrics import expected_tokens
from specbench.sampling import Sampling, sequence_key

Found = dict[str, Any]


def row(what: str, measured: str, asked: str = "") -> dict[str, str]:
    """One line of the table."""
    return {"what": what, "measured": measured, "asked": asked}


def bandwidth(found: Found) -> float:
    """Bytes per second of this call's copy. Raises RuntimeError where there was none."""
    if "bytes_per_s" not in found.get("copy", {}):
        raise RuntimeError("no copy was measured, and bytes are held against its bandwidth")
    return float(found["copy"]["bytes_per_s"])


def requests(bench: Bench, *, num: int, prompt: int, new: int, vocab_size: int) -> list[Request]:
    """Random prompts of one length."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, vocab_size, (num, prompt), generator=generator).tolist()
    return [
        Request(key=sequence_key(seed=0, question_id=str(place), turn=0), prompt=tuple(each), max_new_tokens=new)
        for place, each in enumerate(ids)
    ]


def engine_for(
    bench: Bench, lm: WatchedLM, *, prompt: int, new: int, rows: int = 1, nodes: int = 0, **options: Any
) -> Engine:
    """Steps captured, unless graphs=None is among the options. Raises WrongAttention."""
    asked, found = bench.attention_for(lm.dtype), lm.model.config._attn_implementation
    if found != asked:
        raise WrongAttention(f"{lm.name} was made for {asked} and is set to {found}")
    options = {"graphs": bench.backend(), **options}
    return Engine(lm, sampling=Sampling(), max_batch=rows, max_len=prompt + new, max_nodes=nodes, **options)


class NotCaptured(RuntimeError):
    """Steps that were to be replayed from graphs ran operator by operator: their times are not what is asked for."""


def timed(engine: Engine, drafter: Drafter, asked: list[Request], *, rounds: int = 3) -> list[GroupResult]:
    """Once to capture, then `rounds` times in which nothing is captured. Raises NotCaptured where an engine with graphs
    could not capture the steps, or met a shape in the timed rounds that it had no graph of, and WrongAttention."""
    engine.reserve(drafter.max_nodes)
    engine.generate(drafter, asked, capturing="all")
    graphs = engine.graphs
    before = 0 if graphs is None else graphs.num_single(drafter)
    results = [engine.generate(drafter, asked, capturing="none") for _ in range(rounds)]
    assert isinstance(engine.lm, WatchedLM), "engine_for makes engines of no other"
    demand_attention(engine.lm, engine.lm.model.config._attn_implementation)
    if graphs is not None:
        if graphs.refusal(drafter):
            raise NotCaptured(f"{type(drafter).__name__}: its steps cannot be captured: {graphs.refusal(drafter)}")
        num_single = graphs.num_single(drafter) - before
        if num_single or not graphs.num_graphs(drafter):
            raise NotCaptured(f"{type(drafter).__name__}: {num_single} timed steps met no graph of their shape")
    return results


def repeated_s(bench: Bench, runs: Sequence[Callable[[], object]]) -> float:
    """Seconds of one of the `runs`, best of five replays of a graph that holds them all: launched one by one from the
    host, a kernel of microseconds would be measured by its launch. Raises NotCaptured."""
    _, graph, why = bench.backend().run_and_capture(lambda: [run() for run in runs])
    if graph is None:
        raise NotCaptured(why)
    return min(device_s(bench, graph.replay) for _ in range(5)) / len(runs)


UNCACHED_BYTES = 256 << 20
"""What is read in turn between two readings of the same: four times the last cache of an H200."""


def rotation(set_bytes: int, *, least: int = 20) -> tuple[int, int]:
    """How many sets of so many bytes are read in turn, so that none is still in a cache, and in how many runs."""
    num_sets = -(-UNCACHED_BYTES // set_bytes) + 1
    return num_sets, max(least, num_sets)


def step_s(results: list[GroupResult]) -> float:
    """Seconds of a decode step, median over rounds."""
    return statistics.median(result.decode_s / max(len(result.generations[0].steps), 1) for result in results)


def phase_s(results: list[GroupResult], name: str) -> float:
    """Median seconds of one phase of a step, over all steps."""
    return statistics.median(getattr(step, name) for result in results for step in result.generations[0].steps)


def outside(results: list[GroupResult], *forwards: str) -> float:
    """Share of the steps' time, from the end of the first step to the end of the last, that lies outside the phases
    named; median over rounds. A step that is thrown away behind the last one is no step."""
    shares = []
    for result in results:
        first, *rest = result.generations[0].steps
        inside = sum(getattr(step, name) for step in rest for name in forwards)
        shares.append(1 - inside / (rest[-1].end_s - first.end_s))
    return statistics.median(shares)


def fastest_steps(results: list[GroupResult]) -> list[float]:
    """Device seconds of every step, phases added up, each the fastest of the rounds: what the machine did meanwhile
    hits a step once, what is slow about a step itself hits it in every round."""
    rounds = [
        [step.draft_s + step.verify_s + step.accept_s + step.commit_s for step in result.generations[0].steps]
        for result in results
    ]
    return [min(times) for times in zip(*rounds, strict=True)]


def weight_bytes(lm: CachedLM) -> int:
    """Of all parameters, tied ones once."""
    return sum(each.numel() * each.element_size() for each in lm.model.parameters())


def held_bytes(lm: CachedLM, *cut_from_it: CachedLM) -> int:
    """Weights and cache, and the caches of models that have its weights."""
    return weight_bytes(lm) + sum(each.cache.num_bytes() for each in (lm, *cut_from_it))


def allocated_bytes(bench: Bench) -> int:
    """On the device at present; 0 where nothing counts it."""
    return torch.cuda.memory_allocated() if bench.device.type == "cuda" else 0


def peak_bytes(bench: Bench) -> int:
    """Most that was allocated since `reset_peak`; 0 where nothing counts it."""
    return torch.cuda.max_memory_allocated() if bench.device.type == "cuda" else 0


def reset_peak(bench: Bench) -> None:
    """`peak_bytes` begins anew."""
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def memory_share(peak: int, held: int) -> str:
    """Of peak over `held_bytes`, for the table. peak: less what lay there before the model and whatever it needs."""
    return f"{peak / held:.2f}" if peak > 0 else "no reading on a CPU"


def tau(results: list[GroupResult]) -> float:
    """Tokens committed per step, pooled."""
    steps = [step for result in results for step in result.generations[0].steps]
    return sum(step.num_committed - step.num_truncated for step in steps) / len(steps)


def token_s(results: list[GroupResult]) -> float:
    """Seconds of wall clock per token that the decode committed, all rows together, median over rounds. The prefill
    gave each row its first token."""
    return statistics.median(
        result.decode_s / sum(len(each.tokens) - 1 for each in result.generations) for result in results
    )


def demand_tau(results: list[GroupResult], *, rate: float, depth: int) -> float:
    """Tokens per step that forced acceptance must come to, (1 - rate^(depth + 1)) / (1 - rate).

    Raises RuntimeError where the measured ones are further from it than chance takes them: the target then did not
    write its own answer again (a tie, or a fault), and nothing was forced.
    """
    steps = [step for each in results[0].generations for step in each.steps if not step.num_truncated]
    committed = [step.num_committed for step in steps if step.num_nodes == depth]
    expected = expected_tokens(rate, depth)
    if not committed:
        raise RuntimeError(f"forced acceptance: no step drafted {depth} nodes")
    mean = statistics.fmean(committed)
    # The law's own spread, not that of the sample: a text that went astray commits one token a step, all alike.
    square = sum((2 * k + 1) * rate**k for k in range(depth + 1))
    allowed = 5 * ((square - expected**2) / len(committed)) ** 0.5
    if abs(mean - expected) > allowed:
        raise RuntimeError(f"forced acceptance: tau {mean:.2f} where {expected:.2f} +- {allowed:.2f} was forced")
    return expected


def seconds_of(bench: Bench, run: Callable[[], object]) -> float:
    """Of the wall, with nothing under way on the device before and after."""
    bench.finish()
    start = time.perf_counter()
    run()
    bench.finish()
    return time.perf_counter() - start


def device_s(bench: Bench, run: Callable[[], object], *, num: int = 1) -> float:
    """Seconds of one of `num` runs in a row, between two events of the device: the first launch and the way back to
    the host are not in them. On a CPU by the wall."""
    if bench.device.type != "cuda":
        return seconds_of(bench, lambda: [run() for _ in range(num)]) / num
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    bench.finish()
    start.record()
    for _ in range(num):
        run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e-3 / num
