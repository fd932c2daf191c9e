"""The curve of adaptive_lora: acceptance against positions seen, adaptation on against off, on its domain and off it.

    python benchmarks/adaptive_curve.py --target T --draft D --stream gsm8k/train.jsonl \
        --held-out gsm8k=gsm8k/test.jsonl --held-out mtbench=... --held-out alpaca=... --out DIR

The stream is answered by the target, once; answers and the target's laws are kept in DIR. What a draft model with an
adapter would have drafted (with the target's noise, where there is any) and learnt along it is then replayed, which is
exact but for rounding (a test holds it against decoding) and the overlap that weighs positions, a bound from the kept
entries. Nothing here is a time but `learn_s`: seconds are measured by
`specbench run ... --grid adaptive_lora.adapt=off,on --carry stream`.

Resumable: answers that are there are kept, a seed whose last checkpoint is there is not run again. Held-out prompts
take no part in any round; a prompt that occurs in both is left out of the stream.
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
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from specbench import registry, suite
from specbench.adapt.adaptation import Adaptation
from specbench.adapt.collector import JUDGED_TOP_K, kept_law
from specbench.adapt.lora import LoraLayers, LoraShape
from specbench.adapt.observed import Observed, is_held_out_prompt, prompt_digest
from specbench.adapt.plan import LearningPlan
from specbench.adapt.replay import ReplayedStep, chain_steps, choices
from specbench.adapt.row_file import RowFile
from specbench.adapt.versions import AdapterStore
from specbench.conformance.watch import PlainDrafter
from specbench.engine.decode import Engine
from specbench.engine.stop import Stop
from specbench.lm.cached_lm import CachedLM
from specbench.lm.load import load_lm
from specbench.lm.packed import packed_logits
from specbench.lm.stops import stop_ids_of
from specbench.losses import Law, overlap, whole_law
from specbench.method import Request
from specbench.metrics import Bootstrap, percentile_interval
from specbench.sampling import Sampling
from specbench.training.rounds import between_requests

K = 4
BATCH = 16
TOP_K = 32


class Checkpoint(NamedTuple):
    """Counts of one set at one place of one seed's stream. accepted, tried: per answer."""

    seed: int
    answers: int
    positions: int
    version: int
    set: str
    accepted: list[int]
    tried: list[int]
    kept: list[int]
    steps: list[int]
    learn_s: float


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


# --- one seed --------------------------------------------------------------------------------------------------------


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


def run_seed(
    seed: int,
    draft: CachedLM,
    stream: Sequence[Observed],
    held_out: dict[str, list[Observed]],
    options: dict[str, Any],
    arguments: argparse.Namespace,
) -> None:
    folder = arguments.out / f"seed-{seed}"
    layers = LoraLayers(
        draft.model,
        LoraShape.from_options(options),
        seed=seed,
    )
    layers.attach()
    adaptation = Adaptation(
        draft, layers, LearningPlan.from_options(options), num_shared=draft.vocab_size,
        temperature=arguments.temperature, collector=None,
        capacity=options["capacity"], seed=seed, store=AdapterStore(folder),
    )  # fmt: skip
    order = list(stream)
    random.Random(f"curve {seed}").shuffle(order)
    learn_s, domain = 0.0, adaptation.domain("")
    with AdapterStore(folder).writing():
        check(arguments, seed, 0, adaptation, held_out, learn_s)
        for place, answer in enumerate(order, start=1):
            seen, steps = observe(draft, answer, arguments, per_answer=options["per_answer"])
            domain.memory.add(seen)
            adaptation.saw(
                "",
                tried=sum(step.num_verified for step in steps),
                accepted=sum(min(step.num_accepted, step.num_kept) for step in steps),
            )
            began = time.monotonic()
            for found in between_requests(adaptation):
                print(f"seed {seed}, {place} answers: {found.outcome}: {found.why} ({found.seconds:.0f} s)", flush=True)
            learn_s += time.monotonic() - began
            if place % arguments.every == 0 or place == len(order):
                check(arguments, seed, place, adaptation, held_out, learn_s)
    layers.detach()


def check(
    arguments: argparse.Namespace,
    seed: int,
    place: int,
    adaptation: Adaptation,
    held_out: dict[str, list[Observed]],
    learn_s: float,
) -> None:
    """Counts of every held-out set with the adapter in use, appended to the curve."""
    domain = adaptation.domain("")
    with (arguments.out / "curve.jsonl").open("a", encoding="utf-8") as file:
        for name, answers in held_out.items():
            all_steps = [steps_of(adaptation.lm, a, arguments)[0] for a in answers]
            found = Checkpoint(
                seed=seed,
                answers=place,
                positions=domain.memory.num_positions,
                version=domain.in_use.number,
                set=name,
                accepted=[sum(min(step.num_accepted, step.num_kept) for step in steps) for steps in all_steps],
                tried=[sum(step.num_verified for step in steps) for steps in all_steps],
                kept=[sum(step.num_kept for step in steps) for steps in all_steps],
                steps=[len(steps) for steps in all_steps],
                learn_s=round(learn_s, 2),
            )
            file.write(json.dumps(found._asdict()) + "\n")
            rate, tau = sum(found.accepted) / sum(found.tried), sum(found.kept) / sum(found.steps)
            print(f"seed {seed}, {place} answers, {name}: acceptance {rate:.4f}, tau {tau:.4f}", flush=True)


# --- the table -------------------------------------------------------------------------------------------------------


def table(path: Path) -> str:
    """First against last checkpoint of each set: all seeds, answers resampled within them (95 %)."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    lines = [
        "| set | seed | positions | acceptance off → on | gain | τ off → on | gain |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["set"] for row in rows):
        ends = []
        for seed in sorted({row["seed"] for row in rows}):
            mine = sorted((r for r in rows if (r["set"], r["seed"]) == (name, seed)), key=lambda row: row["answers"])
            ends.append((mine[0], mine[-1]))
            lines.append(_line(name, str(seed), [ends[-1]]))
        if len(ends) > 1:
            lines.append(_line(name, "all", ends))
    return "\n".join(lines) + "\n"


def _line(name: str, seed: str, ends: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    cells = [name, seed, str(round(np.mean([last["positions"] for _, last in ends])))]
    for top, bottom in (("accepted", "tried"), ("kept", "steps")):
        counts = np.array(
            [[[row[top], row[bottom]] for row in pair] for pair in ends], dtype=np.float64
        )  # seeds, off/on, top/bottom, answers
        summed = counts.sum(0)  # seeds share their held-out answers: the answer is the unit
        columns = summed.reshape(4, -1).T
        sums = Bootstrap(columns.shape[0], seed=0).sums(columns)
        gain = percentile_interval(sums[:, 2] / sums[:, 3] - sums[:, 0] / sums[:, 1])
        off, on = (summed[side, 0].sum() / summed[side, 1].sum() for side in (0, 1))
        cells.append(f"{off:.4f} → {on:.4f}")
        cells.append("" if gain is None else f"{on - off:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]")
    return "| " + " | ".join(cells) + " |"


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


def main() -> None:
    parser = stream_parser(__doc__)
    parser.add_argument("--stream", type=Path, required=True)
    parser.add_argument("--held-out", action="append", required=True, metavar="NAME=FILE")
    arguments = parser.parse_args()
    options = begun(arguments)
    cpu = torch.device("cpu")
    target = load_lm(arguments.target, device=cpu, dtype=torch.float32)
    sets: dict[str, list[tuple[int, ...]]] = {}
    for item in arguments.held_out:
        name, _, file = item.partition("=")
        sets[name] = prompts_of(Path(file), target, limit=arguments.num_held_out, most=arguments.most_prompt)
    taken = {prompt for prompts in sets.values() for prompt in prompts}
    wanted = prompts_of(arguments.stream, target, limit=arguments.answers, most=arguments.most_prompt)
    sets["stream"] = [prompt for prompt in wanted if prompt not in taken]
    answers: dict[str, list[Observed]] = {}
    for name, prompts in sets.items():
        rows = RowFile(arguments.out / name, max_bytes=8 << 30)
        rows.mend()
        answers[name] = answer_all(target, prompts, rows, arguments, say=name)
    stream = answers.pop("stream")
    curve = arguments.out / "curve.jsonl"
    done = [json.loads(line) for line in curve.read_text().splitlines()] if curve.exists() else []
    for seed in map(int, arguments.seeds.split(",")):
        if any(row["seed"] == seed and row["answers"] == len(stream) for row in done):
            continue
        # A seed that was broken off begins anew: what it had counted is forgotten.
        done = [row for row in done if row["seed"] != seed]
        curve.write_text("".join(json.dumps(row) + "\n" for row in done))
        draft = load_lm(arguments.draft, device=cpu, dtype=torch.float32)
        run_seed(seed, draft, stream, answers, options, arguments)
        done = [json.loads(line) for line in curve.read_text().splitlines()]
    print(table(curve))
    (arguments.out / "table.md").write_text(table(curve))


if __name__ == "__main__":
    main()
