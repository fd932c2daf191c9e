"""What the scripts that replay adaptation along a stream share.

The target's answers, made once; what a draft model would have drafted along them and left to be learnt from; what the
scripts are told, and under which conditions a folder was begun.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from specbench import registry, suite
from specbench.adapt.collector import JUDGED_TOP_K, kept_law
from specbench.adapt.observed import Observed, is_held_out_prompt, prompt_digest
from specbench.adapt.replay import ReplayedStep, chain_steps, choices
from specbench.adapt.row_file import RowFile
from specbench.conformance.watch import PlainDrafter
from specbench.engine.decode import Engine
from specbench.engine.stop import Stop
from specbench.lm.cached_lm import CachedLM
from specbench.lm.packed import packed_logits
from specbench.lm.stops import stop_ids_of
from specbench.losses import Law, overlap, whole_law
from specbench.method import Request
from specbench.sampling import Sampling

K = 4
BATCH = 16
TOP_K = 32

# --- the target's answers, once --------------------------------------------------------------------------------------


def prompts_of(path: Path, lm: CachedLM, *, limit: int, most: int) -> list[tuple[int, ...]]:
    """First turns as the target's template renders them; those longer than `most` tokens are left out. path: JSONL,
    plain or gzipped, with `turns`, `prompt`, `question`, or `instruction` and `input`."""
    found = []
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    for line in content.decode("utf-8").splitlines():
        row = json.loads(line)
        if "turns" in row:
            text = row["turns"][0]
        elif "instruction" in row:
            text = "\n".join(part for part in (row["instruction"], row.get("input", "")) if part)
        else:
            text = row.get("prompt", row.get("question"))
        ids = tuple(suite.render(lm.tokenizer, [{"role": "user", "content": text}], "chat"))
        if len(ids) <= most:
            found.append(ids)
    random.Random(0).shuffle(found)
    return found[:limit]


def key_of(prompt: Sequence[int]) -> int:
    """Of its noise."""
    return int.from_bytes(prompt_digest(prompt)) >> 2


def answer_all(
    lm: CachedLM, prompts: Sequence[tuple[int, ...]], rows: RowFile, arguments: argparse.Namespace, *, say: str
) -> list[Observed]:
    """Answers with the target's law at every position; those that the file lacks are made."""
    known = {each.prompt_digest() for each in rows.read()}
    missing = sorted((prompt for prompt in prompts if prompt_digest(prompt) not in known), key=len)
    if not missing:
        return _asked_for(rows, prompts)
    engine = Engine(
        lm,
        sampling=Sampling(temperature=arguments.temperature),
        max_batch=BATCH,
        max_len=max(map(len, missing)) + arguments.max_new_tokens,
        stop=Stop(ids=frozenset(stop_ids_of(lm))),
    )
    began = time.monotonic()
    for start in range(0, len(missing), BATCH):
        group = missing[start : start + BATCH]
        requests = [
            Request(key=key_of(prompt), prompt=prompt, max_new_tokens=arguments.max_new_tokens) for prompt in group
        ]
        generations = engine.generate(PlainDrafter(engine.view()), requests).generations
        for prompt, generation in zip(group, generations, strict=True):
            if len(generation.tokens) > 2:
                rows.append(told(lm, prompt, generation.tokens))
        print(f"{say}: {start + len(group)} of {len(missing)}, {time.monotonic() - began:.0f} s", flush=True)
    return _asked_for(rows, prompts)


def _asked_for(rows: RowFile, prompts: Sequence[tuple[int, ...]]) -> list[Observed]:
    """A file may hold answers to more prompts than are asked for now."""
    wanted = {prompt_digest(prompt) for prompt in prompts}
    return [each for each in rows.read() if each.prompt_digest() in wanted]


@torch.no_grad()
def logits_of(lm: CachedLM, tokens: Sequence[int], first: int) -> Tensor:
    """(n, V): the laws of tokens[first:], given what stands before each."""
    text = torch.tensor([list(tokens[:-1])])
    return packed_logits(lm, text, torch.zeros_like(text), torch.arange(first - 1, len(tokens) - 1))


def told(lm: CachedLM, prompt: Sequence[int], answer: Sequence[int]) -> Observed:
    """The target's top-k law at every position of an answer but its first token."""
    tokens = [*prompt, *answer]
    first = len(prompt) + 1
    top_k = JUDGED_TOP_K if is_held_out_prompt(prompt) else TOP_K
    law = kept_law(whole_law(logits_of(lm, tokens, first)), top_k)
    num = len(tokens) - first
    return Observed(
        tokens_T=torch.tensor(tokens, dtype=torch.int32),
        num_prompt=len(prompt),
        position_N=torch.arange(first, len(tokens), dtype=torch.int32),
        depth_N=torch.ones(num, dtype=torch.uint8),
        drafted_N=torch.zeros(num, dtype=torch.int32),
        overlap_N=torch.zeros(num),
        target=law,
    )


# --- what a draft model makes of them --------------------------------------------------------------------------------


def steps_of(
    lm: CachedLM, answer: Observed, arguments: argparse.Namespace
) -> tuple[list[ReplayedStep], Tensor, Tensor]:
    """What the draft model, as it is now, would do along this answer -> steps, and its picks and
    logits at all positions."""
    tokens = answer.tokens_T.tolist()
    first = answer.num_prompt + 1
    logits = logits_of(lm, tokens, first)
    key = key_of(tokens[: answer.num_prompt])
    picked = choices(logits, temperature=arguments.temperature, key=key, first=first)
    agrees = [False] * first + [a == b for a, b in zip(picked.tolist(), tokens[first:], strict=True)]
    steps = chain_steps(agrees, num_prompt=answer.num_prompt, max_new_tokens=arguments.max_new_tokens, num_tokens=K)
    return steps, picked, logits


def observe(
    lm: CachedLM, answer: Observed, arguments: argparse.Namespace, *, per_answer: int
) -> tuple[Observed, list[ReplayedStep]]:
    """The verified positions of a replayed answer that decoding would have left to be learnt from, and all its steps.
    per_answer: the method's option; of which steps is as `Collector` chooses."""
    steps, picked, logits = steps_of(lm, answer, arguments)
    first = answer.num_prompt + 1
    places: list[int] = []
    depths: list[int] = []
    every, phase = max(1.0, arguments.max_new_tokens / per_answer), 0.0
    for step in steps:
        phase += 1.0
        if phase >= every:
            phase -= every
            num = min(step.num_verified, per_answer - len(places))
            places += range(step.first - first, step.first - first + num)
            depths += range(1, num + 1)
    seen = answer.only(torch.tensor(places, dtype=torch.long))
    here = logits[places]
    law = seen.target
    assert law.ids_RK is not None
    return (
        replace(
            seen,
            depth_N=torch.tensor(depths, dtype=torch.uint8),
            drafted_N=picked[places].to(torch.int32),
            # The bound from the kept entries: it only weighs positions against each other.
            overlap_N=overlap(
                here.float(), Law(seen.target.logp_RK, seen.target.ids_RK.long(), seen.target.log_tail_R)
            ),
        ),
        steps,
    )


# --- the command line and the folder ---------------------------------------------------------------------------------


def stream_parser(description: str | None) -> argparse.ArgumentParser:
    """What every script that replays adaptation along a stream is told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", required=True)
    parser.add_argument("--draft", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--answers", type=int, default=2000, help="of each stream")
    parser.add_argument("--num-held-out", type=int, default=80, help="of each set")
    parser.add_argument("--every", type=int, default=200, help="answers between two checkpoints")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--most-prompt", type=int, default=400)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--set", action="append", default=[], metavar="OPTION=VALUE", help="of adaptive_lora")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def begun(arguments: argparse.Namespace) -> dict[str, Any]:
    """The folder with the conditions in it -> the method's options. Ends the process where the folder holds answers and
    counts of other conditions: they would be mixed."""
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    given = dict(item.split("=", 1) for item in arguments.set)
    options = registry.check_options(registry.card("adaptive_lora"), {"model": arguments.draft, **given})
    said = {
        name: str(value) for name, value in vars(arguments).items() if name not in ("out", "seeds", "threads", "set")
    }
    conditions = {"arguments": said, "options": options}
    path = arguments.out / "conditions.json"
    if path.exists():
        before = json.loads(path.read_text())
        told = [
            f"{name} was {before[part].get(name)!r}, now {value!r}"
            for part, now in conditions.items()
            for name, value in now.items()
            if before[part].get(name) != value
        ]
        if told:
            raise SystemExit(f"{arguments.out} holds a curve of other conditions ({'; '.join(told)}): another --out")
    path.write_text(json.dumps(conditions, indent=1))
    return options
