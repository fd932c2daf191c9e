"""Two domains alternating: one adapter for both against one per domain, paired, on held-out prompts of each.

    D=../shared/data; python benchmarks/adaptive_domains.py --temperature 1 --max-new-tokens 64 --out DIR \
        --target $D/models/tiny-instruct --draft $D/models/tiny-instruct-draft \
        --domain maths=$D/suites/gsm8k/train.jsonl,$D/suites/gsm8k/test.jsonl \
        --domain instructions=$D/text/alpaca/alpaca_subset.jsonl.gz,$D/suites/alpaca/question.jsonl

A domain is NAME=STREAM,HELD_OUT. Everything is as in adaptive_curve.py: the target answers
once, what a draft model would have drafted and learnt is replayed, there are no times. Answers of the domains take
turns; both arms see them in the same order and are judged on the same held-out answers, so a difference between them is
one of the arms. `one` has all answers to learn from, each adapter of `each` only those of its domain: that is the
trade, not a flaw of the comparison. A round is due by positions of its own domain, so `each` rounds are later.

Resumable by arm and seed. Held-out prompts take part in no round.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.adaptive_stream import answer_all, begun, observe, prompts_of, steps_of, stream_parser
from specbench.adapt.adaptation import Adaptation
from specbench.adapt.domains import Domains
from specbench.adapt.lora import LoraLayers, LoraShape
from specbench.adapt.observed import Observed
from specbench.adapt.plan import LearningPlan
from specbench.adapt.row_file import RowFile
from specbench.adapt.versions import AdapterStore
from specbench.lm.cached_lm import CachedLM
from specbench.lm.load import load_lm
from specbench.metrics import Bootstrap, percentile_interval
from specbench.training.rounds import between_requests

ARMS: dict[str, Domains] = {"one": "one", "each": "category"}
"""Of an arm, what its adapters are split by."""
"""One adapter for all, or each domain its own."""


def alternating(streams: dict[str, list[Observed]], *, seed: int) -> list[Observed]:
    """The domains' answers in turns, each domain's own in a seeded order; as many of each as the shortest has."""
    orders = []
    for name, answers in streams.items():
        order = [replace(answer, domain=name) for answer in answers]
        random.Random(f"domains {seed} {name}").shuffle(order)
        orders.append(order)
    return [answer for turn in zip(*orders, strict=False) for answer in turn]


def run_arm(
    arm: str,
    seed: int,
    draft: CachedLM,
    stream: Sequence[Observed],
    held_out: dict[str, list[Observed]],
    options: dict[str, Any],
    arguments: argparse.Namespace,
) -> list[dict[str, Any]]:
    """A stream along one arm -> counts per held-out answer at the beginning, every so often, and at the end."""
    layers = LoraLayers(draft.model, LoraShape.from_options(options), seed=seed)
    layers.attach()
    store = AdapterStore(arguments.out / f"{arm}-{seed}")
    adaptation = Adaptation(
        draft, layers, LearningPlan.from_options(options), num_shared=draft.vocab_size, num_ids=draft.vocab_size,
        temperature=arguments.temperature, rule="coupled", picks=options["draft"], collector=None,
        domains=ARMS[arm], capacity=options["capacity"],
        seed=seed, store=store,
    )  # fmt: skip
    found = []
    with store.writing():
        found += judged(arm, seed, 0, adaptation, held_out, arguments)
        for place, answer in enumerate(stream, start=1):
            name = adaptation.domain_of(category=answer.domain)
            # What this prompt is drafted with here.
            adaptation.use(name)
            seen, steps = observe(draft, answer, arguments, per_answer=options["per_answer"])
            adaptation.domain(name).memory.add(seen)
            adaptation.saw(
                name,
                tried=sum(step.num_verified for step in steps),
                accepted=sum(min(step.num_accepted, step.num_kept) for step in steps),
            )
            for made in between_requests(adaptation):
                told = f"{made.domain or 'all'}: {made.outcome}: {made.why} ({made.seconds:.0f} s)"
                print(f"{arm}, seed {seed}, {place} answers: {told}", flush=True)
            if place % arguments.every == 0 or place == len(stream):
                found += judged(arm, seed, place, adaptation, held_out, arguments)
    layers.detach()
    return found


def judged(
    arm: str,
    seed: int,
    place: int,
    adaptation: Adaptation,
    held_out: dict[str, list[Observed]],
    arguments: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Counts of every held-out set under what its prompts are drafted with now."""
    found = []
    for name, answers in held_out.items():
        own = adaptation.domain_of(category=name)
        adaptation.use(own)
        all_steps = [steps_of(adaptation.lm, answer, arguments)[0] for answer in answers]
        row = {
            "arm": arm,
            "seed": seed,
            "answers": place,
            "set": name,
            "version": adaptation.domain(own).in_use.number,
            "positions": adaptation.domain(own).memory.num_positions,
            "accepted": [sum(min(step.num_accepted, step.num_kept) for step in steps) for steps in all_steps],
            "tried": [sum(step.num_verified for step in steps) for steps in all_steps],
        }
        rate = sum(row["accepted"]) / sum(row["tried"])
        print(f"{arm}, seed {seed}, {place} answers, {name}: acceptance {rate:.4f}", flush=True)
        found.append(row)
    return found


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Last checkpoints, all seeds together: the draft model alone, both arms, and the arms' difference (95 %, held-out
    answers resampled: seeds share them)."""
    lines = [
        "| held-out set | seeds | draft model | one adapter | gain | an adapter each | gain | each - one |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["set"] for row in rows):
        mine = [row for row in rows if row["set"] == name]
        seeds = sorted({row["seed"] for row in mine if row["arm"] == "one"} & _seeds(mine, "each"))
        if not seeds:
            continue
        counts = [_counts(mine, seeds, arm, first=arm == "off") for arm in ("off", *ARMS)]
        sums = [Bootstrap(each.shape[0], seed=0).sums(each) for each in counts]
        rates = [each[:, 0].sum() / each[:, 1].sum() for each in counts]
        off, one, each = (side[:, 0] / side[:, 1] for side in sums)
        num = counts[0].shape[0]
        cells = [name, str(len(seeds)), f"{rates[0]:.4f}"]
        cells += [f"{rates[1]:.4f}", _gain(rates[1] - rates[0], one - off, num)]
        cells += [
            f"{rates[2]:.4f}",
            _gain(rates[2] - rates[0], each - off, num),
            _gain(rates[2] - rates[1], each - one, num),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _seeds(rows: Sequence[dict[str, Any]], arm: str) -> set[int]:
    return {row["seed"] for row in rows if row["arm"] == arm}


def _counts(
    rows: Sequence[dict[str, Any]], seeds: Sequence[int], arm: str, *, first: bool
) -> np.typing.NDArray[np.float64]:
    """Accepted and tried per held-out answer, seeds summed: (answers, 2). first: before anything was learnt."""
    found = []
    for seed in seeds:
        of_seed = [row for row in rows if row["seed"] == seed and row["arm"] == ("one" if first else arm)]
        chosen = (min if first else max)(of_seed, key=lambda row: int(row["answers"]))
        found.append([chosen["accepted"], chosen["tried"]])
    return np.array(found, dtype=np.float64).sum(0).T


def _gain(value: float, resampled: np.typing.NDArray[np.float64], num_units: int) -> str:
    interval = percentile_interval(resampled, num_units)
    return f"{value:+.4f}" + ("" if interval is None else f" [{interval.low:+.4f}, {interval.high:+.4f}]")


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = stream_parser(__doc__)
    parser.add_argument("--domain", action="append", required=True, metavar="NAME=STREAM,HELD_OUT")
    parser.set_defaults(answers=1000)
    arguments = parser.parse_args(words)
    if len(arguments.domain) < 2:
        parser.error("at least two --domain")
    return arguments


def main(words: Sequence[str] | None = None) -> None:
    """Answer, replay both arms for every seed, print the table."""
    arguments = parsed(words)
    options = begun(arguments)
    streams, held_out = answered(arguments)
    path = arguments.out / "domains.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for seed in map(int, arguments.seeds.split(",")):
        order = alternating(streams, seed=seed)
        for arm in ARMS:
            if any((row["arm"], row["seed"], row["answers"]) == (arm, seed, len(order)) for row in rows):
                continue
            # An adapted module keeps its layers: every arm begins from the files.
            draft = load_lm(arguments.draft, device=torch.device("cpu"), dtype=torch.float32)
            rows += run_arm(arm, seed, draft, order, held_out, options, arguments)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(table(rows))
    (arguments.out / "table.md").write_text(table(rows))


def answered(arguments: argparse.Namespace) -> tuple[dict[str, list[Observed]], dict[str, list[Observed]]]:
    """The target's answers with its laws, per domain: streams, held-out sets."""
    target = load_lm(arguments.target, device=torch.device("cpu"), dtype=torch.float32)
    prompts: dict[tuple[str, str], list[tuple[int, ...]]] = {}
    for item in arguments.domain:
        name, _, files = item.partition("=")
        stream, _, judged_by = files.partition(",")
        most = arguments.most_prompt
        prompts[name, "held-out"] = prompts_of(Path(judged_by), target, limit=arguments.num_held_out, most=most)
        prompts[name, "stream"] = prompts_of(Path(stream), target, limit=arguments.answers, most=most)
    taken = {prompt for (_, part), asked in prompts.items() if part == "held-out" for prompt in asked}
    found: dict[str, dict[str, list[Observed]]] = {"stream": {}, "held-out": {}}
    for (name, part), asked in prompts.items():
        wanted = asked if part == "held-out" else [prompt for prompt in asked if prompt not in taken]
        rows = RowFile(arguments.out / "answers" / f"{name}-{part}", max_bytes=8 << 30)
        rows.mend()
        found[part][name] = answer_all(target, wanted, rows, arguments, say=f"{name}, {part}")
    return found["stream"], found["held-out"]


if __name__ == "__main__":
    main()
