"""The parts of `gpu.py` that ask how fast the engine is: every part gets the results so far, returns numbers and table
rows. What has a limit is timed with both forwards (`gpu_shared`)."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

from benchmarks.gpu_models import BIG, NEW, Bench, Guess, Plain, target
from benchmarks.gpu_shared import Shared, faster, shared_target
from benchmarks.gpu_timing import (
    Found,
    allocated_bytes,
    bandwidth,
    demand_tau,
    engine_for,
    fastest_steps,
    held_bytes,
    memory_share,
    outside,
    peak_bytes,
    phase_s,
    requests,
    reset_peak,
    row,
    step_s,
    tau,
    timed,
    token_s,
    weight_bytes,
)
from methods.oracle.drafter import OracleDrafter
from specbench.engine.answer import GroupResult
from specbench.method import Request


def verify(bench: Bench, found: Found) -> dict[str, Any]:
    """What verifying 16 and 64 nodes costs against decoding one token."""
    prompt, new = bench.size(1024), bench.size(64)
    shared = shared_target(bench)
    asked = requests(bench, num=1, prompt=prompt, new=new, vocab_size=shared.lm.vocab_size)

    def measure(way: str) -> dict[int, dict[str, float]]:
        seconds = {}
        for num in (0, 4, 8, 16, 32, 64) if shared.is_first(way) else (0, 16, 64):
            drafter = Guess(bench.device, num=num) if num else Plain(bench.device)
            engine = engine_for(bench, shared.lm, prompt=prompt, new=new, nodes=num, **shared.options(way))
            results = timed(engine, drafter, asked)
            seconds[num] = {"verify_s": phase_s(results, "verify_s"), "outside": outside(results, "verify_s")}
        return seconds

    ways = shared.each_way(measure)
    best = faster({way: each[0]["verify_s"] for way, each in ways.items()})
    asked_for = {16: "<= 1.05", 64: "<= 1.15"}
    rows = shared.rows()
    for way in sorted(ways, key=lambda way: way != best):
        is_best, of = way == best, ways[way]
        rows += [
            row(
                f"verify {num} nodes / decode 1, {way}",
                f"{each['verify_s'] / of[0]['verify_s']:.3f}",
                asked_for.get(num, "") if is_best else "",
            )
            for num, each in of.items()
            if num
        ]
        share = f"{of[16]['outside']:.1%}"
        rows.append(row(f"step outside the forward, 16 nodes, {way}", share, "<= 3 %" if is_best else ""))
    return {"rows": rows, "raw": ways}


def oracle(bench: Bench, found: Found) -> dict[str, Any]:
    """How much of forced acceptance becomes speed: speed-up / (tau * T_ar / (T_draft + T_verify))."""
    # Long: the one step behind the last that is thrown away is a hundredth of what the fastest of these take.
    prompt, new = bench.size(512), max(bench.size(2 * NEW), 64)
    shared = shared_target(bench)
    asked = requests(bench, num=1, prompt=prompt, new=new, vocab_size=shared.lm.vocab_size)

    def plain(way: str) -> list[GroupResult]:
        engine = engine_for(bench, shared.lm, prompt=prompt, new=new, **shared.options(way))
        return timed(engine, Plain(bench.device), asked)

    bases = shared.each_way(plain)
    best = faster({way: step_s(base) for way, base in bases.items()})

    def measure(way: str) -> dict[str, Any]:
        base, options = bases[way], shared.options(way)
        reference = base[0].generations[0].tokens
        told = [Request(key=1, prompt=asked[0].prompt, max_new_tokens=new, reference=reference)]
        cells: dict[str, Any] = {"step_s": step_s(base)}
        for depth in (4, 8):
            engine = engine_for(bench, shared.lm, prompt=prompt, new=new, nodes=depth, **options)
            for rate in (0.6, 0.75, 0.9) if way == best else (0.75,):
                drafter = OracleDrafter(engine.view(), rate=rate, depth=depth)
                results = timed(engine, drafter, told)
                expected = demand_tau(results, rate=rate, depth=depth)
                speedup = token_s(base) / token_s(results)
                parts = phase_s(results, "draft_s") + phase_s(results, "verify_s")
                bound = tau(results) * step_s(base) / parts
                cells[f"{depth}, {rate}"] = {
                    "tau": tau(results), "expected_tau": expected, "speedup": speedup, "bound": bound
                }  # fmt: skip
        return cells

    ways = shared.each_way(measure)
    rows = shared.rows()
    for way in sorted(ways, key=lambda way: way != best):
        for name, cell in ways[way].items():
            if name == "step_s":
                continue
            depth, rate = name.split(", ")
            what = f"depth {depth}, rate {rate}: tau {cell['tau']:.2f}, speed-up {cell['speedup']:.2f}, {way}, "
            share = f"{cell['speedup'] / cell['bound']:.3f}"
            rows.append(row(what + "of what it allows", share, ">= 0.95" if way == best else ""))
    return {"rows": rows, "raw": ways}


def long_context(bench: Bench, found: Found) -> dict[str, Any]:
    """32k tokens at batch 1 and 4k at batch 16: every step against the bytes it must read; and the memory it takes."""
    shared, raw = shared_target(bench), {}
    rows = []
    for tokens, num_rows in ((32768, 1), (4096, 16)):
        prompt, what = bench.size(tokens), f"{bench.size(tokens)} tokens, B = {num_rows}"
        ways = shared.each_way(partial(_long, bench, shared, found, prompt=prompt, num_rows=num_rows))
        raw[what] = ways
        best = faster({way: each["median"] for way, each in ways.items()})
        for way in sorted(ways, key=lambda way: way != best):
            each, is_best = ways[way], way == best
            slowest = f"{max(each['shares']):.2f} (median {each['median']:.2f}, once {each['once']:.2f})"
            repeats = f"each the fastest of {each['rounds']}" if each["rounds"] > 1 else "read once"
            name = f"{what}: slowest step / (bytes / bandwidth), {repeats}, {way}"
            rows.append(row(name, slowest, "<= 1.3" if is_best else ""))
            share = memory_share(each["peak_bytes"], each["held_bytes"])
            rows.append(row(f"{what}: peak memory / (weights + cache), {way}", share, "<= 1.10" if is_best else ""))
    return {"rows": [*shared.rows(), *rows], "raw": raw}


def _long(bench: Bench, shared: Shared, found: Found, way: str, *, prompt: int, num_rows: int) -> dict[str, Any]:
    """Steps and memory of one way. What other parts left on the device is counted before, and taken off."""
    lm, new = shared.lm, bench.size(64)
    left_over = allocated_bytes(bench) - weight_bytes(lm) if bench.device.type == "cuda" else 0
    reset_peak(bench)
    asked = requests(bench, num=num_rows, prompt=prompt, new=new, vocab_size=lm.vocab_size)
    engine = engine_for(
        bench, lm, prompt=prompt, new=new, rows=num_rows, prefill_chunk=2048, **shared.options(way)
    )  # fmt: skip
    # A prompt of this length takes seconds to read, and is read again in every round.
    rounds = 2 if shared.is_first(way) else 1
    results = timed(engine, Plain(bench.device), asked, rounds=rounds)
    per_token, weights = lm.cache_bytes_per_token() * num_rows, lm.weight_bytes_per_token()

    def shares_of(steps: list[float]) -> list[float]:
        return [
            seconds * bandwidth(found) / (weights + per_token * (prompt + 1 + place))
            for place, seconds in enumerate(steps)
        ]

    shares = shares_of(fastest_steps(results))
    once = max(max(shares_of(fastest_steps([each]))) for each in results)
    return {
        "shares": shares, "median": statistics.median(shares), "once": once, "rounds": rounds,
        "peak_bytes": peak_bytes(bench) - left_over,
        "held_bytes": held_bytes(lm), "left_over_bytes": left_over,
    }  # fmt: skip


def batch(bench: Bench, found: Found) -> dict[str, Any]:
    """Throughput against batch size, plain and with forced acceptance of 0.75: where drafting stops paying. With the
    forward as it is: every batch size would have torch compile once more."""
    prompt, new, out, rows = bench.size(512), max(bench.size(96), 32), {}, []
    sizes = (1, 2, 4) if bench.is_small else (1, 4, 16, 64)
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
            rows.append(row(f"B = {num_rows}: tokens/s plain, drafted, as it is", f"{rate[0]:.0f}, {rate[1]:.0f}"))
    pays = [num for num, each in out.items() if each["oracle_per_s"] > each["autoregressive_per_s"]]
    stops = next((num for num in sizes if num not in pays), None)
    where = f"at B = {stops}" if stops is not None else f"nowhere up to B = {max(sizes)}"
    rows.append(row("drafting 4 tokens, 0.75 of them right, stops paying", where))
    return {"rows": rows, "raw": out}


def small_targets(bench: Bench, found: Found) -> dict[str, Any]:
    """Targets where launches, not bytes, are the time: the graphs' own worth, against steps run one by one."""
    prompt, new, few, out, rows = bench.size(512), bench.size(NEW), bench.size(64), {}, []
    for name in ("qwen2.5-0.5b", "qwen2.5-7b"):
        with target(bench, name) as lm:
            steps = {
                kind: step_s(
                    timed(
                        engine_for(bench, lm, prompt=prompt, new=num, **options), Plain(bench.device),
                        requests(bench, num=1, prompt=prompt, new=num, vocab_size=lm.vocab_size), rounds=rounds,
                    )
                )
                for kind, num, rounds, options in (("captured", new, 3, {}), ("one by one", few, 1, {"graphs": None}))
            }  # fmt: skip
            num_bytes = lm.weight_bytes_per_token() + lm.cache_bytes_per_token() * (prompt + new // 2)
            share = num_bytes / steps["captured"] / bandwidth(found)
        out[name] = {**steps, "share": share}
        gain = steps["one by one"] / steps["captured"]
        rows.append(row(f"{name}: captured against one by one, as it is", f"{gain:.2f}"))
        rows.append(row(f"{name}: share of the copy's bandwidth, as it is", f"{share:.1%}"))
    return {"rows": rows, "raw": out}
