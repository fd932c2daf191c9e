"""The parts of `gpu.py` that come first: is it right, what do the timer, a copy and the kernel alone take. Every part
gets the results so far and returns numbers and table rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_attention import WatchedLM, demand_attention
from benchmarks.gpu_models import NEW, Bench, Guess, Plain, make_model, target
from benchmarks.gpu_timing import (
    Found,
    NotCaptured,
    bandwidth,
    device_s,
    engine_for,
    phase_s,
    repeated_s,
    requests,
    rotation,
    row,
    timed,
)
from specbench.engine import stamps
from specbench.lm import attention
from specbench.tree import chain, from_lists, topology


def parity(bench: Bench, found: Found) -> dict[str, Any]:
    """Captured steps write the tokens of steps run one by one, in float32: in 16 bits the near ties of a random model
    are decided by rounding, which differs between one slot and nine. In the run's own dtype logits are compared, of a
    tree, with those of the readable attention in float32."""
    prompt, new = bench.size(256), bench.size(64) * 4
    with target(bench, "qwen2.5-0.5b", dtype=torch.float32) as lm:
        asked = requests(bench, num=2, prompt=prompt, new=new, vocab_size=lm.vocab_size)
        plain = engine_for(bench, lm, prompt=prompt, new=new, rows=2, nodes=8, graphs=None)
        wanted = [each.tokens for each in plain.generate(Plain(bench.device), asked).generations]
        same = {}
        for name, drafter in (
            ("autoregressive", Plain(bench.device)),
            ("chain of 8", Guess(bench.device, num=8)),
            ("tree of 8", Guess(bench.device, num=8, is_tree=True)),
        ):
            captured = engine_for(bench, lm, prompt=prompt, new=new, rows=2, nodes=8)
            result = timed(captured, drafter, asked, rounds=1)[0]
            pairs = zip(result.generations, wanted, strict=True)
            same[name] = [_common(each.tokens, tokens) for each, tokens in pairs]
    with target(bench, "qwen2.5-0.5b") as lm:
        logits = _tree_logits(bench, lm)
        used = " and ".join(sorted(lm.attention_used))
    rows = [
        row(f"common prefix with steps run one by one, float32, {name}", f"{each} of {new}", str(new))
        for name, each in same.items()
    ]
    what = f"largest difference of tree logits, by {used}, to the readable attention in fp32"
    rows.append(row(what, f"{logits:.2g}", "< 0.1"))
    return {"rows": rows, "same": same, "logits": logits, "attention_used": used}


def _common(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    pairs = zip(left, right, strict=False)
    return next((place for place, pair in enumerate(pairs) if pair[0] != pair[1]), min(len(left), len(right)))


def _tree_logits(bench: Bench, lm: WatchedLM) -> float:
    """A tree behind a prompt, in the run's dtype and attention, and in float32 in the readable one."""
    tree = from_lists([[3, 5, 7, 9, 4]], [[-1, 0, 1, 2, -1]], device=bench.device)
    prompt_T = torch.arange(10, 10 + bench.size(512), device=bench.device) % lm.vocab_size
    wide = WatchedLM(make_model(bench, "qwen2.5-0.5b", dtype=torch.float32), name="readable")
    wide.model.load_state_dict({key: value.float() for key, value in lm.model.state_dict().items()})
    wide.model.set_attn_implementation(attention.PLAIN)
    logits = []
    for each in (lm, wide):
        each.allocate(max_batch=1, max_len=len(prompt_T) + 8, max_nodes=8)
        each.begin(1)
        each.prefill(0, prompt_T)
        logits.append(each.verify(torch.tensor([6], device=bench.device), tree).logits_BMV.float())
    demand_attention(lm, bench.attention_for(lm.dtype))
    demand_attention(wide, attention.PLAIN)
    return float((logits[0] - logits[1]).abs().max())


def timer(bench: Bench, found: Found) -> dict[str, Any]:
    """The device's timer, and what taking times costs: whole generations without times, with stamps inside one graph,
    and with events between one graph per phase, which is what is done where the timer is missing."""
    prompt, new = bench.size(512), bench.size(NEW)
    kinds: dict[str, dict[str, Any]] = {
        "none": {"has_stamps": False},
        "events": {"graphs": bench.backend(why_phased="asked for, to see what it costs")},
    }
    resolution, rows = {"smallest_ns": 0.0, "mean_ns": 0.0}, []
    if bench.why_no_timer:
        rows.append(row("the device's timer", f"not read: {bench.why_no_timer}"))
    else:
        kinds["stamps"] = {}
        resolution = stamps.resolution_ns(bench.device, repeated=lambda run: _replayed(bench, run))
        rows.append(row("smallest step of the timer, ns", f"{resolution['smallest_ns']:.0f}"))
        rows.append(row("one stamp inside a graph, ns", f"{resolution['mean_ns']:.0f}"))
    walls: dict[str, list[float]] = {kind: [] for kind in kinds}
    texts, verify_s = {}, {}
    with target(bench, "qwen2.5-0.5b") as lm:
        asked = requests(bench, num=1, prompt=prompt, new=new, vocab_size=lm.vocab_size)
        engines = {kind: engine_for(bench, lm, prompt=prompt, new=new, **options) for kind, options in kinds.items()}
        drafter = Plain(bench.device)
        for kind, engine in engines.items():
            results = timed(engine, drafter, asked, rounds=1)
            texts[kind], verify_s[kind] = results[0].generations[0].tokens, phase_s(results, "verify_s")
        for _ in range(5):
            for kind, engine in engines.items():
                walls[kind].append(engine.generate(drafter, asked, capturing="none").decode_s)
    rows += _timer_rows(walls, verify_s, texts, has_timer=not bench.why_no_timer)
    return {"rows": rows, "resolution": resolution, "walls_s": walls}


def _timer_rows(
    walls: dict[str, list[float]], verify_s: dict[str, float], texts: dict[str, tuple[int, ...]], *, has_timer: bool
) -> list[dict[str, str]]:
    """What taking times costs. walls: seconds of generations without times ("none"), and with times by a kind."""
    rows, median = [], {kind: statistics.median(times) for kind, times in walls.items()}
    for kind, asked_for in (("stamps", "<= 1 %"), ("events", "" if has_timer else "<= 1 %")):
        if kind in median:
            cost = median[kind] / median["none"] - 1
            rows.append(row(f"whole generation, times taken by {kind} against not", f"{cost:+.2%}", asked_for))
    if "stamps" in median:
        ratio = verify_s["events"] / verify_s["stamps"]
        rows.append(row("a verification by events / by stamps", f"{ratio:.3f}", "about 1"))
    same = "the same" if len(set(texts.values())) == 1 else "NOT the same"
    rows.append(row("texts with times and without", same, "the same"))
    return rows


def _replayed(bench: Bench, run: Callable[[], None]) -> None:
    _, graph, why = bench.backend().run_and_capture(run)
    if graph is None:
        raise NotCaptured(why)
    graph.replay()
    bench.finish()


def copy_bandwidth(bench: Bench, found: Found) -> dict[str, Any]:
    """Bytes per second of a large copy, read and written: what "memory bandwidth" means below."""
    num = 1 << (22 if bench.is_small else 31)
    source = torch.empty(num, dtype=torch.uint8, device=bench.device).random_(0, 255)
    into = torch.empty_like(source)
    best = min(device_s(bench, lambda: into.copy_(source), num=4) for _ in range(6))
    return {"rows": [row("copy, GB/s", f"{2 * num / best / 1e9:.0f}")], "bytes_per_s": 2 * num / best}


def kernel(bench: Bench, found: Found) -> dict[str, Any]:
    """The tree kernel alone: one layer of the 8B shape, B = 1, 64 nodes, growing contexts. Keys and values are others
    in every run, as they are in every layer: those of one layer would stay in the card's cache."""
    if bench.attention_name != attention.TRITON:
        return {"rows": [row("tree kernel", f"not run: attention is {bench.attention_name}")]}
    from specbench.lm.tree_kernel import ancestor_bits, tree_attention

    rows, raw = [], {}
    num_heads, num_kv, width = (4, 2, 16) if bench.is_small else (32, 8, 128)
    shape = topology(chain(torch.arange(bench.size(64), device=bench.device)[None]))
    slots = shape.depth_BM.shape[1]
    bits_BMW, depth_BM = ancestor_bits(shape.sees_BMM), shape.depth_BM.to(torch.int32).contiguous()
    for context in map(bench.size, (1024, 8192, 32768)):
        size = 1, num_kv, context + slots, width
        set_bytes = 2 * math.prod(size) * bench.dtype.itemsize
        num_sets, num_runs = rotation(set_bytes)
        query = torch.randn(1, num_heads, slots, width, dtype=bench.dtype, device=bench.device)
        sets = [
            tuple(torch.randn(size, dtype=bench.dtype, device=bench.device) for _ in range(2)) for _ in range(num_sets)
        ]
        length_B = torch.tensor([context], dtype=torch.int32, device=bench.device)
        runs = [
            partial(
                tree_attention, query, *sets[place % num_sets],
                length_B=length_B, depth_BM=depth_BM, bits_BMW=bits_BMW, scale=width**-0.5,
            )
            for place in range(num_runs)
        ]  # fmt: skip
        best = repeated_s(bench, runs)
        floor = set_bytes / bandwidth(found)
        raw[context] = {"seconds": best, "floor_s": floor, "num_sets": num_sets}
        rows.append(row(f"tree kernel, {context} tokens, us (bytes alone)", f"{best * 1e6:.0f} ({floor * 1e6:.0f})"))
    return {"rows": rows, "raw": raw}
