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
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.adaptive_stream import answer_all, begun, observe, prompts_of, steps_of, stream_parser
from specbench.adapt.adaptation import Adaptation
from specbench.adapt.lora import LoraLayers, LoraShape
from specbench.adapt.observed import Observed
from specbench.adapt.plan import LearningPlan
from specbench.adapt.row_file import RowFile
from specbench.adapt.versions import AdapterStore
from specbench.lm.cached_lm import CachedLM
from specbench.lm.load import load_lm
from specbench.metrics import Bootstrap, percentile_interval
from specbench.training.rounds import between_requests


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


# --- one seed --------------------------------------------------------------------------------------------------------


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
        draft, layers, LearningPlan.from_options(options), num_shared=draft.vocab_size, num_ids=draft.vocab_size,
        temperature=arguments.temperature, rule="coupled", picks=options["draft"], collector=None,
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
        gain = percentile_interval(sums[:, 2] / sums[:, 3] - sums[:, 0] / sums[:, 1], columns.shape[0])
        off, on = (summed[side, 0].sum() / summed[side, 1].sum() for side in (0, 1))
        cells.append(f"{off:.4f} → {on:.4f}")
        cells.append("" if gain is None else f"{on - off:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]")
    return "| " + " | ".join(cells) + " |"


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
