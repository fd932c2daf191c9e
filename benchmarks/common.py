"""What the benchmark scripts share: prompts, interleaving, tables with their conditions."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from specbench import provenance, suite
from specbench.lm.cached_lm import CachedLM


def parser(description: str, *, with_models: bool = True) -> argparse.ArgumentParser:
    """--out, --threads and, where models are measured, --target, --draft, --suite, --data, --limit."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--out", type=Path, default=None, help="folder for the Markdown table and the JSON")
    made.add_argument("--threads", type=int, default=1)
    if with_models:
        made.add_argument("--target", default="demo")
        made.add_argument("--draft", default="demo-draft")
        made.add_argument("--suite", default="demo", help="prompts: first turns of this suite")
        made.add_argument("--data", type=Path, action="append", default=[])
        made.add_argument("--limit", type=int, default=6)
        made.add_argument("--max-new-tokens", type=int, default=100)
        made.add_argument("--rounds", type=int, default=5)
    return made


def prompts(lm: CachedLM, args: argparse.Namespace) -> list[tuple[int, ...]]:
    """First turns of the suite, rendered by the target's chat template."""
    loaded = suite.load_suite(args.suite, data_dirs=args.data, limit=args.limit)
    assert lm.tokenizer is not None
    out = []
    for question in loaded.questions:
        out.append(tuple(suite.render(lm.tokenizer, [{"role": "user", "content": question.turns[0]}])))
    return out


def interleave(sides: Mapping[str, Callable[[], float]], *, rounds: int) -> dict[str, list[float]]:
    """Run every side once per round, each round starting with another side -> samples per side. One warm-up round."""
    names = list(sides)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds + 1):
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            value = sides[name]()
            if index > 0:
                samples[name].append(value)
    return samples


def spread(values: Sequence[float]) -> str:
    """median [min, max], three significant digits."""
    return f"{statistics.median(values):.3g} [{min(values):.3g}, {max(values):.3g}]"


def ratio(top: Sequence[float], bottom: Sequence[float]) -> str:
    """Median and range of the round-by-round ratio."""
    return spread([a / b for a, b in zip(top, bottom, strict=True)])


def note(text: str) -> None:
    """Narration: stdout is the table."""
    print(text, file=sys.stderr, flush=True)


def write(
    name: str, args: argparse.Namespace, columns: Sequence[str], rows: Sequence[Sequence[Any]], **facts: Any
) -> None:
    """Print the table; with --out also write NAME.md and NAME.json."""
    conditions = {
        # Folders by name: where somebody keeps models is nobody's business on a published page.
        "command": " ".join(["python", *(Path(word).name if Path(word).is_absolute() else word for word in sys.argv)]),
        "cpu": provenance.cpu_model(),
        "threads": torch.get_num_threads(),
        "load_average": provenance.load_average(),
        "versions": {
            k: v for k, v in provenance.versions().items() if k in ("torch", "transformers", "duckdb", "specbench")
        },
        **facts,
    }
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    lines += [
        "",
        "Conditions: " + ", ".join(f"{key} {value}" for key, value in conditions.items() if key != "command") + ".",
    ]
    print("\n".join(lines))
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        table = [dict(zip(columns, row, strict=True)) for row in rows]
        body = json.dumps({"conditions": conditions, "rows": table}, indent=1, default=str)
        (args.out / f"{name}.json").write_text(body + "\n", encoding="utf-8")
