"""Command line of the recipe: `python -m specbench.demo.recipe`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from specbench.demo import recipe
from specbench.demo.recipe.evaluation import evaluate, pick
from specbench.demo.recipe.examples import load_examples, split
from specbench.demo.recipe.rows import Parts, long_rows, short_rows, train_tokenizer
from specbench.demo.recipe.settings import Settings
from specbench.demo.recipe.training import log, train_draft, train_target

STAGES = ("tokenizer", "target", "draft", "evaluate")


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; defaults are what made the shipped files."""
    defaults = Settings()
    parser = argparse.ArgumentParser(description=recipe.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with suites/ and text/")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=defaults.epochs)
    parser.add_argument("--long-epochs", type=int, default=defaults.long_epochs)
    parser.add_argument("--draft-epochs", type=int, default=defaults.draft_epochs)
    parser.add_argument("--written", type=int, default=defaults.written)
    parser.add_argument("--stop-after", type=int, default=defaults.stop_after, help="steps of each training")
    parser.add_argument("--minutes", type=float, default=defaults.minutes, help="limit of each training")
    parser.add_argument("--resume", action="store_true", help="continue from the weights in OUT")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the chosen stages and keep their figures in ``metrics.json``."""
    args = arguments(argv)
    torch.set_num_threads(args.threads)
    given = {name: value for name, value in vars(args).items() if name in Settings.__dataclass_fields__}
    settings = Settings(**given)
    out: Path = args.out
    out.mkdir(parents=True, exist_ok=True)
    train, held = split(load_examples(args.data))
    if "tokenizer" in args.stages:
        train_tokenizer((f"{e.prompt}\n{e.answer}" for e in train), out)
    tokenizer: Any = AutoTokenizer.from_pretrained(out / "target")
    parts = Parts(
        long_rows(tokenizer, train, settings),
        short_rows(tokenizer, train, settings),
        short_rows(tokenizer, held, settings),
    )
    path = out / "metrics.json"
    figures: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if "target" in args.stages:
        figures.setdefault("target_training", []).append(train_target(parts, out, settings))
    if "draft" in args.stages:
        figures.setdefault("draft_training", []).append(train_draft(parts, out, settings))
    if "evaluate" in args.stages:
        prompts = pick(long_rows(tokenizer, held, settings), 50)
        figures["evaluation"] = evaluate(parts, prompts, tokenizer, out, settings)
    path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    log(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
