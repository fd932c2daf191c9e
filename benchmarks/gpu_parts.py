"""What `gpu.py` checks and times, part by part: every part gets the results so far, returns numbers and table rows."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_models import BIG, NEW, Bench, Guess, Plain, make_model, target
from benchmarks.gpu_timing import (
    Found,
    NotCaptured,
    demand_tau,
    engine_for,
    fastest_steps,
    held_bytes,
    memory_share,
    outside,
    peak_bytes,
    phase_s,
    repeated_s,
    requests,
    row,
    seconds_of,
    step_s,
    tau,
    timed,
    token_s,
)
from methods.oracle.drafter import OracleDrafter
from specbench.engine import stamps
from specbench.lm import attention
from specbench.lm.cached_lm import CachedLM
from specbench.method import Request
from specbench.tree import chain, from_lists, topology

# --- is it right -----------------------------------------------------------------------------------------------------


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
    rows = [
        row(f"common prefix with steps run one by one, float32, {name}", f"{each} of {new}", str(new))
        for name, each in same.items()
    ]
    rows.append(row("largest difference of tree logits to the readable attention in fp32", f"{logits:.2g}", "< 0.1"))
    return {"rows": rows, "same": same, "logits": logits}


def _common(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    pairs = zip(left, right, strict=False)
    return next((place for place, pair in enumerate(pairs) if pair[0] != pair[1]), min(len(left), len(right)))


def _tree_logits(bench: Bench, lm: CachedLM) -> float:
    """A tree behind a prompt, in the run's dtype and attention, and in float32 in the readable one."""
    tree = from_lists([[3, 5, 7, 9, 4]], [[-1, 0, 1, 2, -1]], device=bench.device)
    prompt_T = torch.arange(10, 10 + bench.size(512), device=bench.device) % lm.vocab_size
    wide = CachedLM(make_model(bench, "qwen2.5-0.5b", dtype=torch.float32), name="readable")
    wide.model.load_state_dict({key: value.float() for key, value in lm.model.state_dict().items()})
    wide.model.set_attn_implementation(attention.PLAIN)
    logits = []
    for each in (lm, wide):
        each.allocate(max_batch=1, max_len=len(prompt_T) + 8, max_nodes=8)
        each.begin(1)
        each.prefill(0, prompt_T)
        logits.append(each.verify(torch.tensor([6], device=bench.device), tree).logits_BMV.float())
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
    median = {kind: statistics.median(times) for kind, times in walls.items()}
    for kind, asked_for in (("stamps", "<= 1 %"), ("events", "<= 1 %" if bench.why_no_timer else "")):
        if kind in median:
            cost = median[kind] / median["none"] - 1
            rows.append(row(f"whole generation, times taken by {kind} against not", f"{cost:+.2%}", asked_for))
    if "stamps" in median:
        ratio = verify_s["events"] / verify_s["stamps"]
        rows.append(row("a verification by events / by stamps", f"{ratio:.3f}", "about 1"))
    same = "the same" if len(set(texts.values())) == 1 else "NOT the same"
    rows.append(row("texts with times and without", same, "the same"))
    return {"rows": rows, "resolution": resolution, "walls_s": walls}


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
    into.copy_(source)
    best = min(seconds_of(bench, lambda: into.copy_(source)) for _ in range(10))
    return {"rows": [row("copy, GB/s", f"{2 * num / best / 1e9:.0f}")], "bytes_per_s": 2 * num / best}


def kernel(bench: Bench, found: Found) -> dict[str, Any]:
    """The tree kernel alone: one layer of the 8B shape, B = 1, 64 nodes, growing contexts."""
    if bench.attention_name != attention.TRITON:
        return {"rows": [row("tree kernel", "not there: SDPA was asked for")]}
    from specbench.lm.tree_kernel import ancestor_bits, tree_attention

    rows, raw = [], {}
    shape = topology(chain(torch.arange(64, device=bench.device)[None]))
    slots = shape.depth_BM.shape[1]
    bits_BMW, depth_BM = ancestor_bits(shape.sees_BMM), shape.depth_BM.to(torch.int32).contiguous()
    for context in (1024, 8192, 32768):
        query = torch.randn(1, 32, slots, 128, dtype=bench.dtype, device=bench.device)
        key, value = (torch.randn(1, 8, context + slots, 128, dtype=bench.dtype, device=bench.device) for _ in range(2))
        length_B = torch.tensor([context], dtype=torch.int32, device=bench.device)

        def run(query: Tensor = query, key: Tensor = key, value: Tensor = value, length_B: Tensor = length_B) -> Tensor:
            return tree_attention(
                query, key, value, length_B=length_B, depth_BM=depth_BM, bits_BMW=bits_BMW, scale=128**-0.5
            )

        best = repeated_s(bench, run, num=20)
        floor = 2 * key.numel() * key.element_size() / found["copy"]["bytes_per_s"]
        raw[context] = {"seconds": best, "floor_s": floor}
        rows.append(row(f"tree kernel, {context} tokens, us (bytes alone)", f"{best * 1e6:.0f} ({floor * 1e6:.0f})"))
    return {"rows": rows, "raw": raw}


# --- how fast is it --------------------------------------------------------------------------------------------------


def autoregressive(bench: Bench, found: Found) -> dict[str, Any]:
    """The baseline at 1k tokens, with torch's forward as it is (`gpu_peers.compiled` has it compiled)."""
    prompt, new = bench.size(1024), bench.size(NEW)
    with target(bench, BIG) as lm:
        asked = requests(bench, num=1, prompt=prompt, new=new, vocab_size=lm.vocab_size)
        results = timed(engine_for(bench, lm, prompt=prompt, new=new), Plain(bench.device), asked)
        seconds, rest = step_s(results), outside(results, "verify_s")
        num_bytes = lm.weight_bytes_per_token() + lm.cache_bytes_per_token() * (prompt + new // 2)
        share = num_bytes / seconds / found["copy"]["bytes_per_s"]
    rows = [
        row("8B, B = 1, 1k: tokens/s", f"{1 / seconds:.1f}", "about 240"),
        row("share of the copy's bandwidth", f"{share:.1%}", ">= 85 %"),
        row("step outside the target's forward", f"{rest:.1%}", "<= 3 %"),
    ]
    return {"rows": rows, "step_s": seconds, "share": share, "outside": rest}


def verify(bench: Bench, found: Found) -> dict[str, Any]:
    """What verifying 16 and 64 nodes costs against decoding one token."""
    prompt, new = bench.size(1024), bench.size(64)
    seconds = {}
    with target(bench, BIG) as lm:
        asked = requests(bench, num=1, prompt=prompt, new=new, vocab_size=lm.vocab_size)
        for num in (0, 4, 8, 16, 32, 64):
            drafter = Guess(bench.device, num=num) if num else Plain(bench.device)
            results = timed(engine_for(bench, lm, prompt=prompt, new=new, nodes=num), drafter, asked)
            seconds[num] = {"verify_s": phase_s(results, "verify_s"), "outside": outside(results, "verify_s")}
    asked_for = {16: "<= 1.05", 64: "<= 1.15"}
    rows = [
        row(
            f"verify {num} nodes / decode 1", f"{each['verify_s'] / seconds[0]['verify_s']:.3f}", asked_for.get(num, "")
        )
        for num, each in seconds.items()
        if num
    ]
    rows.append(row("step outside the forward, 16 nodes", f"{seconds[16]['outside']:.1%}", "<= 3 %"))
    return {"rows": rows, "raw": seconds}


def oracle(bench: Bench, found: Found) -> dict[str, Any]:
    """How much of forced acceptance becomes speed: speed-up / (tau * T_ar / (T_draft + T_verify))."""
    prompt, new, out, rows = bench.size(512), max(bench.size(NEW), 64), {}, []
    with target(bench, BIG, is_decisive=True) as lm:
        asked = requests(bench, num=1, prompt=prompt, new=new, vocab_size=lm.vocab_size)
        base = timed(engine_for(bench, lm, prompt=prompt, new=new), Plain(bench.device), asked)
        reference = base[0].generations[0].tokens
        told = [Request(key=1, prompt=asked[0].prompt, max_new_tokens=new, reference=reference)]
        for depth in (4, 8):
            engine = engine_for(bench, lm, prompt=prompt, new=new, nodes=depth)
            for rate in (0.6, 0.75, 0.9):
                drafter = OracleDrafter(engine.view(), rate=rate, depth=depth)
                results = timed(engine, drafter, told)
                expected = demand_tau(results, rate=rate, depth=depth)
                speedup = token_s(base) / token_s(results)
                parts = phase_s(results, "draft_s") + phase_s(results, "verify_s")
                bound = tau(results) * step_s(base) / parts
                out[f"{depth}, {rate}"] = {
                    "tau": tau(results), "expected_tau": expected, "speedup": speedup, "bound": bound
                }  # fmt: skip
                what = f"depth {depth}, rate {rate}: tau {tau(results):.2f}, speed-up {speedup:.2f}, of what it allows"
                rows.append(row(what, f"{speedup / bound:.3f}", ">= 0.95"))
    return {"rows": rows, "raw": out}


def long_context(bench: Bench, found: Found) -> dict[str, Any]:
    """32k tokens at batch 1 and 4k at batch 16: every step against the bytes it must read; and the memory it takes."""
    rows, out = [], {}
    for prompt, num_rows in ((32768, 1), (4096, 16)):
        prompt, new = bench.size(prompt), bench.size(64)
        with target(bench, BIG) as lm:
            asked = requests(bench, num=num_rows, prompt=prompt, new=new, vocab_size=lm.vocab_size)
            if bench.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            engine = engine_for(bench, lm, prompt=prompt, new=new, rows=num_rows, prefill_chunk=2048)
            results = timed(engine, Plain(bench.device), asked, rounds=3)
            per_token, weights = lm.cache_bytes_per_token() * num_rows, lm.weight_bytes_per_token()
            shares = [
                seconds * found["copy"]["bytes_per_s"] / (weights + per_token * (prompt + 1 + place))
                for place, seconds in enumerate(fastest_steps(results))
            ]
            peak, held = peak_bytes(bench), held_bytes(lm)
        what = f"{prompt} tokens, B = {num_rows}"
        out[what] = {"shares": shares, "peak_bytes": peak, "held_bytes": held}
        slowest = f"{max(shares):.2f} (median {statistics.median(shares):.2f})"
        rows.append(row(f"{what}: slowest step / (bytes / bandwidth)", slowest, "<= 1.3"))
        rows.append(row(f"{what}: peak memory / (weights + cache)", memory_share(peak, held), "<= 1.10"))
    return {"rows": rows, "raw": out}


def batch(bench: Bench, found: Found) -> dict[str, Any]:
    """Throughput against batch size, plain and with forced acceptance of 0.75: where drafting stops paying."""
    prompt, new, out, rows = bench.size(512), max(bench.size(96), 32), {}, []
    sizes = (1, 2, 4) if bench.is_small else (1, 4, 16, 32, 64)
    with target(bench, BIG, is_decisive=True) as lm:
        for num_rows in sizes:
            asked = requests(bench, num=num_rows, prompt=prompt, new=new, vocab_size=lm.vocab_size)
            engine = engine_for(bench, lm, prompt=prompt, new=new, rows=num_rows, nodes=4)
            base = timed(engine, Plain(bench.device), asked, rounds=1)[0]
            told = [
                Request(key=ask.key, prompt=ask.prompt, max_new_tokens=new, reference=each.tokens)
                for ask, each in zip(asked, base.generations, strict=True)
            ]
            drafted = timed(engine, OracleDrafter(engine.view(), rate=0.75, depth=4), told, rounds=1)[0]
            demand_tau([drafted], rate=0.75, depth=4)
            rate = [1 / token_s([each]) for each in (base, drafted)]
            out[num_rows] = {"autoregressive_per_s": rate[0], "oracle_per_s": rate[1]}
            rows.append(row(f"B = {num_rows}: tokens/s plain, drafted", f"{rate[0]:.0f}, {rate[1]:.0f}"))
    pays = [num for num, each in out.items() if each["oracle_per_s"] > each["autoregressive_per_s"]]
    stops = next((num for num in sizes if num not in pays), None)
    where = f"at B = {stops}" if stops is not None else f"nowhere up to B = {max(sizes)}"
    rows.append(row("drafting 4 tokens, 0.75 of them right, stops paying", where))
    return {"rows": rows, "raw": out}


def small_targets(bench: Bench, found: Found) -> dict[str, Any]:
    """Targets where launches, not bytes, are the time: the graphs' own worth, against steps run one by one."""
    prompt, new, out, rows = bench.size(512), bench.size(NEW), {}, []
    for name in ("qwen2.5-0.5b", "qwen2.5-7b"):
        with target(bench, name) as lm:
            asked = requests(bench, num=1, prompt=prompt, new=new, vocab_size=lm.vocab_size)
            steps = {
                kind: step_s(
                    timed(engine_for(bench, lm, prompt=prompt, new=new, **options), Plain(bench.device), asked)
                )
                for kind, options in (("captured", {}), ("one by one", {"graphs": None}))
            }
            num_bytes = lm.weight_bytes_per_token() + lm.cache_bytes_per_token() * (prompt + new // 2)
            share = num_bytes / steps["captured"] / found["copy"]["bytes_per_s"]
        out[name] = {**steps, "share": share}
        gain = steps["one by one"] / steps["captured"]
        rows.append(row(f"{name}: captured against one by one", f"{gain:.2f}"))
        rows.append(row(f"{name}: share of the copy's bandwidth", f"{share:.1%}"))
    return {"rows": rows, "raw": out}
