"""The parts of `gpu.py` that hold the engine against transformers' own loops: generate, eager and compiled, and
assisted generation."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.generation.candidate_generator import AssistedCandidateGenerator

from benchmarks.gpu_models import BIG, NEW, Bench, Plain, make_model, target
from benchmarks.gpu_pair import calibrate, cut_after, give_second_thoughts
from benchmarks.gpu_timing import (
    Found,
    engine_for,
    held_bytes,
    memory_share,
    outside,
    peak_bytes,
    requests,
    row,
    seconds_of,
    step_s,
    tau,
    timed,
)
from specbench.engine.answer import GroupResult
from specbench.lm.cached_lm import CachedLM
from specbench.lm.chain import ChainDrafter

NUM_DRAFTED = 5


def transformers_generate(bench: Bench, found: Found) -> dict[str, Any]:
    """The same model through transformers' own generate, as it is."""
    prompt, new = bench.size(1024), bench.size(128)
    with target(bench, BIG) as lm:
        asked = requests(bench, num=1, prompt=prompt, new=new, vocab_size=lm.vocab_size)
        ours = timed(engine_for(bench, lm, prompt=prompt, new=new), Plain(bench.device), asked)
        out = {"specbench_s": statistics.median(result.total_s for result in ours)}
        lm.model.set_attn_implementation("sdpa")
        ids = torch.tensor([asked[0].prompt], device=bench.device)
        out["eager_s"] = _generate_s(bench, lm.model, ids, new)
    return {"rows": [row("against generate, eager", f"{out['eager_s'] / out['specbench_s']:.2f}", ">= 4")], **out}


def compiled(bench: Bench, found: Found) -> dict[str, Any]:
    """Compiled on both sides: the engine's forward inside its graphs, transformers' with a static cache. The engine is
    the faster one of compiled and as it is."""
    prompt, new, out = bench.size(1024), bench.size(NEW), {}
    # What records steps on a CPU watches every operator, and under such eyes torch compiles nothing.
    options: dict[str, Any] = {"graphs": None} if bench.is_small else {}
    with target(bench, BIG, is_compiled=True) as lm:
        asked = requests(bench, num=1, prompt=prompt, new=new, vocab_size=lm.vocab_size)
        steps = timed(engine_for(bench, lm, prompt=prompt, new=new, **options), Plain(bench.device), asked)
        out["step_s"], out["outside"] = step_s(steps), outside(steps, "verify_s")
        num_bytes = lm.weight_bytes_per_token() + lm.cache_bytes_per_token() * (prompt + new // 2)
        share = num_bytes / out["step_s"] / found["copy"]["bytes_per_s"]
        new = bench.size(128)
        asked = requests(bench, num=1, prompt=prompt, new=new, vocab_size=lm.vocab_size)
        totals = {
            "compiled": timed(engine_for(bench, lm, prompt=prompt, new=new, **options), Plain(bench.device), asked)
        }
        out["compile_s"] = lm.compile_s
        lm.run_uncompiled()
        totals["as it is"] = timed(engine_for(bench, lm, prompt=prompt, new=new, **options), Plain(bench.device), asked)
        ours = {name: statistics.median(each.total_s for each in results) for name, results in totals.items()}
        faster = min(ours, key=lambda name: ours[name])
        rows = [
            row("8B, B = 1, 1k, compiled: tokens/s", f"{1 / out['step_s']:.1f}", "about 240"),
            row("share of the copy's bandwidth, compiled", f"{share:.1%}", ">= 85 %"),
            row("step outside the target's forward, compiled", f"{out['outside']:.1%}", "<= 3 %"),
            row("compiling took, s", f"{out['compile_s']:.0f}"),
        ]
        lm.model.set_attn_implementation("sdpa")
        ids = torch.tensor([asked[0].prompt], device=bench.device)
        static_s = _generate_s(bench, lm.model, ids, new, cache_implementation="static")
    ratio = f"{static_s / ours[faster]:.2f} (specbench {faster})"
    rows.append(row("against generate, compiled with a static cache", ratio, ">= 1.2"))
    return {"rows": rows, **out, "specbench_s": ours, "static_s": static_s}


def _generate(model: Any, ids: Tensor, new: int, **options: Any) -> Tensor:
    """Exactly `new` tokens: nothing stops a text here, as nothing does in the engine's."""
    for each in (model, options.get("assistant_model", model)):
        each.generation_config.eos_token_id = None
    found: Tensor = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0, **options
    )
    assert found.shape[1] == ids.shape[1] + new, "it stopped early"
    return found


def _generate_s(bench: Bench, model: Any, ids: Tensor, new: int, **options: Any) -> float:
    _generate(model, ids, new, **options)
    return statistics.median(seconds_of(bench, lambda: _generate(model, ids, new, **options)) for _ in range(3))


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
    model, num_layers = make_model(bench, BIG), 2 if bench.is_small else 4
    give_second_thoughts(model, num_layers=num_layers)
    draft = cut_after(model, num_layers)
    lm, small = CachedLM(model, name=BIG), CachedLM(draft, name="first layers")
    asked = requests(bench, num=1, prompt=prompt, new=new, vocab_size=lm.vocab_size)
    engine = engine_for(bench, lm, prompt=prompt, new=new, nodes=NUM_DRAFTED)
    drafter = ChainDrafter(small, engine.view(), num_tokens=NUM_DRAFTED, num_shared=lm.vocab_size)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    scale = calibrate(model, num_layers, acceptance=lambda: our_acceptance(engine.generate(drafter, asked)))
    ours = timed(engine, drafter, asked)
    peak, held = peak_bytes(bench), held_bytes(lm) + small.cache.num_bytes()
    rest = outside(ours, "draft_s", "verify_s")
    tokens = ours[0].generations[0].tokens

    for each in (model, draft):
        each.set_attn_implementation("sdpa")
    draft.generation_config.num_assistant_tokens = NUM_DRAFTED
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0
    ids = torch.tensor([(*asked[0].prompt, tokens[0])], device=bench.device)
    with _watched_rounds() as rounds:
        text = _generate(model, ids, new - 1, assistant_model=draft)[0, prompt:].tolist()
    theirs_s = _generate_s(bench, model, ids, new - 1, assistant_model=draft)
    total_s = statistics.median(result.total_s for result in ours)
    accepted = (our_acceptance(ours[0]), _their_acceptance(rounds, length=prompt + new))
    num_same = next((place for place, pair in enumerate(zip(tokens, text, strict=True)) if pair[0] != pair[1]), new)
    return {
        "rows": [
            row("acceptance per drafted token, here and in transformers", f"{accepted[0]:.3f}, {accepted[1]:.3f}",
                "0.6 to 0.9, within 0.02"),
            row("common prefix of their texts", f"{num_same} of {new}", str(new)),
            row("against assisted generation", f"{theirs_s / total_s:.2f}", ">= 3"),
            row("step outside both forwards, chain of 5", f"{rest:.1%}", "<= 3 %"),
            row("peak memory / (weights + cache + drafter)", memory_share(peak, held), "<= 1.10"),
        ],
        "specbench_s": total_s, "assisted_s": theirs_s, "tau": tau(ours), "acceptance": accepted, "scale": scale,
        "num_same": num_same,
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
