"""The parts of `gpu.py` that hold the engine against transformers' own loops: generate, eager and compiled, and
assisted generation."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import StaticCache
from transformers.generation.candidate_generator import AssistedCandidateGenerator

from benchmarks.gpu_attention import WatchedLM, demand_attention
from benchmarks.gpu_models import BIG, NEW, Bench, Plain, let_go, make_model
from benchmarks.gpu_pair import calibrate, cut_after, give_second_thoughts
from benchmarks.gpu_shared import COMPILED, Shared, faster, shared_target
from benchmarks.gpu_timing import (
    Found,
    allocated_bytes,
    bandwidth,
    engine_for,
    held_bytes,
    memory_share,
    outside,
    peak_bytes,
    repeated_s,
    requests,
    reset_peak,
    row,
    seconds_of,
    step_s,
    tau,
    timed,
)
from specbench.engine.answer import GroupResult
from specbench.lm.chain import ChainDrafter
from specbench.method import Request
from specbench.tree import empty

NUM_DRAFTED = 5


SAME = "attention of both without cuDNN"
"""Said on every comparison. With cuDNN's, transformers' loops would plan anew for every token of a growing cache."""


def transformers_generate(bench: Bench, found: Found) -> dict[str, Any]:
    """The same model through transformers' own generate, as it is."""
    prompt, new = bench.size(1024), bench.size(128)
    shared = shared_target(bench)
    ours = shared.each_way(lambda way: _total_s(bench, shared, way, prompt=prompt, new=new))
    best = faster(ours)
    ids = torch.tensor([_asked(bench, shared, prompt, new)[0].prompt], device=bench.device)
    with shared.as_published() as model:
        eager_s = _generate_s(bench, model, ids, new)
    rows = shared.rows()
    for way in sorted(ours, key=lambda way: way != best):
        what = f"against generate, eager (specbench {way}; {SAME})"
        rows.append(row(what, f"{eager_s / ours[way]:.2f}", ">= 4" if way == best else ""))
    return {"rows": rows, "specbench_s": ours, "eager_s": eager_s}


def compiled(bench: Bench, found: Found) -> dict[str, Any]:
    """The baseline at 1k tokens, compiled and as it is, against the bandwidth; and against transformers' generate,
    compiled with a static cache."""
    prompt, new, short = bench.size(1024), bench.size(NEW), bench.size(128)
    shared = shared_target(bench)

    def measure(way: str) -> dict[str, float]:
        asked = _asked(bench, shared, prompt, new)
        engine = engine_for(bench, shared.lm, prompt=prompt, new=new, **shared.options(way))
        results = timed(engine, Plain(bench.device), asked)
        num_bytes = shared.lm.weight_bytes_per_token() + shared.lm.cache_bytes_per_token() * (prompt + new // 2)
        return {
            "step_s": step_s(results),
            "share": num_bytes / step_s(results) / bandwidth(found),
            "outside": outside(results, "verify_s"),
            "total_s": _total_s(bench, shared, way, prompt=prompt, new=short),
        }

    ways = shared.each_way(measure)
    best = faster({way: each["step_s"] for way, each in ways.items()})
    rows = shared.rows()
    for way in sorted(ways, key=lambda way: way != best):
        each, is_best = ways[way], way == best
        rows += [
            row(f"8B, B = 1, 1k, {way}: tokens/s", f"{1 / each['step_s']:.1f}", "about 240" if is_best else ""),
            row(f"share of the copy's bandwidth, {way}", f"{each['share']:.1%}", ">= 85 %" if is_best else ""),
            row(f"step outside the target's forward, {way}", f"{each['outside']:.1%}", "<= 3 %" if is_best else ""),
        ]
    rows.append(row("compiling took, s", f"{shared.compile_s:.0f}"))
    ids = torch.tensor([_asked(bench, shared, prompt, short)[0].prompt], device=bench.device)
    with shared.as_published() as model:
        static_s = _static_s(bench, model, ids, short)
    ours = {way: each["total_s"] for way, each in ways.items()}
    best = faster(ours)
    what = f"against generate, compiled with a static cache (specbench {best}; {SAME})"
    rows.append(row(what, f"{static_s / ours[best]:.2f}", ">= 1.2"))
    return {"rows": rows, "raw": ways, "compile_s": shared.compile_s, "specbench_s": ours, "static_s": static_s}


def whole(bench: Bench, found: Found) -> dict[str, Any]:
    """One token's forward at 1k tokens, replayed alone: as it is, compiled layer by layer, and compiled whole, which
    `--compile whole` asks for. What a layer more or less of fusion is worth, and what compiling it takes."""
    shared, prompt = shared_target(bench), bench.size(1024)

    @torch.inference_mode()
    def measure(way: str) -> float:
        lm, root_B, tree = shared.lm, torch.tensor([1], device=bench.device), empty(1, bench.device)
        lm.allocate(max_batch=1, max_len=prompt + 8, max_nodes=0)
        lm.begin(1)
        lm.prefill(0, torch.arange(prompt, device=bench.device) % lm.vocab_size)
        length_B = torch.tensor([prompt], device=bench.device)

        def step() -> Tensor:
            return lm.verify_behind(root_B, tree, length_B, span=prompt + 8).logits_BMV

        if "graphs" in shared.options(way):  # a rehearsal
            return min(seconds_of(bench, step) for _ in range(5))
        return repeated_s(bench, [step])

    ways = shared.each_way(measure)
    compile_s = shared.compile(is_whole=True)
    ways |= {f"{way} whole": value for way, value in shared.each_way(measure).items() if way == COMPILED}
    demand_attention(shared.lm, bench.attention_for(shared.lm.dtype))
    what = "one token's forward alone, ms: "
    rows = [row(what + way, f"{seconds * 1e3:.3f}") for way, seconds in ways.items()]
    rows.append(row("compiling layer by layer, whole: s", f"{shared.compile_s:.0f}, {compile_s:.0f}"))
    shared.forget()
    return {"rows": [*shared.rows(), *rows], "raw": ways, "compile_s": compile_s}


def _asked(bench: Bench, shared: Shared, prompt: int, new: int) -> list[Request]:
    return requests(bench, num=1, prompt=prompt, new=new, vocab_size=shared.lm.vocab_size)


def _total_s(bench: Bench, shared: Shared, way: str, *, prompt: int, new: int) -> float:
    """Of a whole answer of the engine's, the prompt included."""
    engine = engine_for(bench, shared.lm, prompt=prompt, new=new, **shared.options(way))
    results = timed(engine, Plain(bench.device), _asked(bench, shared, prompt, new))
    return statistics.median(each.total_s for each in results)


def _generate(model: Any, ids: Tensor, new: int, **options: Any) -> Tensor:
    """Exactly `new` tokens: nothing stops a text here, as nothing does in the engine's."""
    for each in (model, options.get("assistant_model", model)):
        each.generation_config.eos_token_id = None
    found: Tensor = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0, **options
    )
    assert found.shape[1] == ids.shape[1] + new, "it stopped early"
    return found


def _generate_s(bench: Bench, model: Any, ids: Tensor, new: int, *, is_warm: bool = False, **options: Any) -> float:
    if not is_warm:
        _generate(model, ids, new, **options)
    return statistics.median(seconds_of(bench, lambda: _generate(model, ids, new, **options)) for _ in range(3))


def _static_s(bench: Bench, model: Any, ids: Tensor, new: int) -> float:
    """With one static cache for all calls: asked for by name, transformers makes a new one in every call, and graphs
    that were recorded over the old one may be recorded again inside the timed ones."""
    cache = StaticCache(config=model.config, max_cache_len=ids.shape[1] + new)

    def answer() -> Tensor:
        cache.reset()
        return _generate(model, ids, new, past_key_values=cache)

    for _ in range(2):  # compiled in the first; what is recorded late is recorded in the second
        answer()
    return statistics.median(seconds_of(bench, answer) for _ in range(3))


# --- assisted generation ---------------------------------------------------------------------------------------------


class _Round(NamedTuple):
    """length: tokens of the text, the prompt included, when it began."""

    length: int
    num_drafted: int


def assisted(bench: Bench, found: Found) -> dict[str, Any]:
    """A draft of the target's first layers and its head, in the engine and in transformers, five tokens at a time.

    transformers is given the prompt and the engine's first token, which the engine's prefill comes to, so that the
    rounds of both begin at the same places: where they write one text, they accept the same.
    """
    prompt, new = bench.size(512), max(bench.size(NEW), 96)
    let_go(bench)
    left_over = allocated_bytes(bench)
    model, num_layers = make_model(bench, BIG), 2 if bench.is_small else 4
    give_second_thoughts(model, num_layers=num_layers)
    draft = cut_after(model, num_layers)
    lm, small = WatchedLM(model, name=BIG), WatchedLM(draft, name="first layers")
    asked = requests(bench, num=1, prompt=prompt, new=new, vocab_size=lm.vocab_size)
    engine = engine_for(bench, lm, prompt=prompt, new=new, nodes=NUM_DRAFTED)
    drafter = ChainDrafter(small, engine.view(), num_tokens=NUM_DRAFTED, num_shared=lm.vocab_size)
    reset_peak(bench)
    scale = calibrate(model, num_layers, acceptance=lambda: our_acceptance(engine.generate(drafter, asked)))
    ours = timed(engine, drafter, asked)
    demand_attention(small, bench.attention_for(small.dtype))
    peak, held = peak_bytes(bench) - left_over, held_bytes(lm, small)
    tokens = ours[0].generations[0].tokens

    for each in (model, draft):
        each.set_attn_implementation("sdpa")
    draft.generation_config.num_assistant_tokens = NUM_DRAFTED
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0
    ids = torch.tensor([(*asked[0].prompt, tokens[0])], device=bench.device)
    with _watched_rounds() as rounds:
        text = _generate(model, ids, new - 1, assistant_model=draft)[0, prompt:].tolist()
    theirs_s = _generate_s(bench, model, ids, new - 1, is_warm=True, assistant_model=draft)
    figures = _assisted_figures(
        ours, text=text, rounds=rounds, theirs_s=theirs_s, num_prompt=prompt, peak=peak, held=held
    )
    return {**figures, "scale": scale, "left_over_bytes": left_over}


def _assisted_figures(
    ours: list[GroupResult], *, text: list[int], rounds: list[_Round], theirs_s: float, num_prompt: int, peak: int,
    held: int,
) -> dict[str, Any]:  # fmt: skip
    """ours: the engine's rounds. text: what transformers wrote behind the prompt, and its rounds and seconds."""
    tokens, new = ours[0].generations[0].tokens, len(text)
    total_s = statistics.median(result.total_s for result in ours)
    accepted = (our_acceptance(ours[0]), _their_acceptance(rounds, length=num_prompt + new))
    num_same = next((place for place, pair in enumerate(zip(tokens, text, strict=True)) if pair[0] != pair[1]), new)
    rest = outside(ours, "draft_s", "verify_s")
    return {
        "rows": [
            row("acceptance per drafted token, here and in transformers", f"{accepted[0]:.3f}, {accepted[1]:.3f}",
                "0.6 to 0.9, within 0.02"),
            row("common prefix of their texts", f"{num_same} of {new}", str(new)),
            row(f"against assisted generation (both as it is; {SAME})", f"{theirs_s / total_s:.2f}", ">= 3"),
            row("step outside both forwards, chain of 5", f"{rest:.1%}", "<= 3 %"),
            row("peak memory / (weights + cache + drafter)", memory_share(peak, held), "<= 1.10"),
        ],
        "specbench_s": total_s, "assisted_s": theirs_s, "tau": tau(ours), "acceptance": accepted,
        "num_same": num_same, "peak_bytes": peak, "held_bytes": held,
    }  # fmt: skip


def our_acceptance(result: GroupResult) -> float:
    """Accepted of drafted tokens, over the steps that had room for all of theirs and the bonus token."""
    [generation] = result.generations
    left, num_accepted, num_drafted = len(generation.tokens) - 1, 0, 0
    for step in generation.steps:
        if left > NUM_DRAFTED:
            num_accepted, num_drafted = num_accepted + step.num_accepted, num_drafted + step.num_nodes
        left -= step.num_committed - step.num_truncated
    return num_accepted / num_drafted


@contextmanager
def _watched_rounds() -> Iterator[list[_Round]]:
    rounds: list[_Round] = []
    plain = AssistedCandidateGenerator.get_candidates

    def watched(self: Any, input_ids: Tensor, *rest: Any, **options: Any) -> Any:
        found = plain(self, input_ids, *rest, **options)
        rounds.append(_Round(input_ids.shape[1], found[0].shape[1] - input_ids.shape[1]))
        return found

    AssistedCandidateGenerator.get_candidates = watched
    try:
        yield rounds
    finally:
        AssistedCandidateGenerator.get_candidates = plain


def _their_acceptance(rounds: list[_Round], *, length: int) -> float:
    """The same of transformers' rounds. length: of the whole text at the end."""
    ends = [each.length for each in rounds[1:]] + [length]
    full = [
        (end - each.length - 1, each.num_drafted)
        for each, end in zip(rounds, ends, strict=True)
        if length - each.length > NUM_DRAFTED
    ]
    return sum(accepted for accepted, _ in full) / sum(drafted for _, drafted in full)
