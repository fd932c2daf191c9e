"""Make the trained drafters of the embedded target: the same texts, tokens and steps for each method.

The target answers prompts of its own training set (GSM8K and GPTeacher, both MIT; see specbench.demo.recipe),
greedily, and every drafter learns from the same answers. None of the prompts that the target never saw, and nothing a
suite asks, is among them. Everything goes through the ordinary commands' functions::

    python -m specbench.demo.drafters --data DATA --out OUT

writes OUT/answers (what the target wrote), OUT/trainings (the runs' journals), OUT/METHOD (float16, as shipped) and
OUT/drafters.json (figures).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from specbench import checkpoint, paths
from specbench.bench.request import parse_setting
from specbench.cli.train_progress import open_train_progress
from specbench.data.contamination import known_questions
from specbench.data.generating import GenerateRequest, generate
from specbench.demo.prompts import MAX_CHARACTERS, choose
from specbench.demo.recipe.examples import load_examples, split
from specbench.training import TrainRequest, train

SETTINGS: dict[str, tuple[str, ...]] = {
    "redrafter": ("depth=4", "head=target", "vocabulary=2048"),
    "lstm": ("num_heads=4", "embedding=target", "head=target", "vocabulary=2048"),
    "ctc": ("form=eagle", "lambda_soft=1", "intermediate=384", "vocabulary=2048"),
}
"""What keeps each under 1.5 MB: the target's embedding and head are borrowed, not copied."""
RATES = {"redrafter": 5e-3, "lstm": 7e-3, "ctc": 1e-3}
"""Highest learning rate; a transformer layer takes less than a recurrence."""


def write_answers(data: Path, out: Path, *, number: int, new_tokens: int, processes: int) -> Path:
    """The target's greedy answers to `number` of its own training prompts -> the JSONL that trainings read."""
    out.mkdir(parents=True, exist_ok=True)
    asked, _ = split(load_examples(data))
    known = known_questions([data / "suites"])
    rows = choose(asked, known, number=number)
    file = out / "prompts.jsonl"
    text = "".join(json.dumps({"prompt": row.prompt}) + "\n" for row in rows)
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        file.write_text(text, encoding="utf-8")
    made = generate(
        GenerateRequest(
            target="demo",
            dataset=str(file),
            out=out / "answers",
            max_new_tokens=new_tokens,
            batch_size=16,
            threads=1,
            processes=processes,
            data_dirs=(data,),
        ),
        progress=lambda done, wanted, tokens: None,
    )
    print("\n".join(made.statistics.lines()))
    return made.file


def train_one(method: str, answers: Path, out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Train one method, ship it in float16 -> its figures."""
    request = TrainRequest(
        method=method,
        target="demo",
        dataset=str(answers),
        documents=args.prompts,
        settings=tuple(parse_setting(f"{method}.{text}") for text in SETTINGS[method]),
        max_tokens=args.tokens,
        max_length=256,
        batch_size=args.batch_size,
        micro_batch=args.batch_size,
        lr=RATES[method],
        precision=args.precision,
        cache_states=True,
        eval_every=200,
        eval_documents=64,
        eval_prompts=24,
        eval_new_tokens=96,
        threads=args.threads,
        out=out / "trainings" / method,
        store=out,
        data=(args.data, args.data / "suites"),
        seed=args.seed,
    )
    with open_train_progress() as progress:
        done = train(request, progress)
    assert done.folder is not None and done.state == "finished", f"{method}: {done.state}"
    trained = checkpoint.load(done.folder, method=method)
    state = {name: tensor.half() if tensor.dtype == torch.float32 else tensor for name, tensor in trained.state.items()}
    # Where it was made is nobody's business; what it was made of stays.
    training = {key: value for key, value in trained.training.items() if key not in ("command", "out", "store", "data")}
    checkpoint.save(out / method, replace(trained, state=state, training=training))
    size = (out / method / checkpoint.WEIGHTS).stat().st_size
    return {
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "bytes": size,
        "steps": done.steps,
        "tokens": done.tokens,
        "seconds": round(done.seconds),
        **dict(done.best),
    }


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with suites/ and text/")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--methods", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--prompts", type=int, default=6000, help=f"at most {MAX_CHARACTERS} characters each")
    parser.add_argument("--new-tokens", type=int, default=112)
    parser.add_argument("--tokens", type=int, default=2_000_000, help="text tokens each method reads")
    parser.add_argument("--batch-size", type=int, default=8, help="rows of 256 tokens")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16", help="of the drafters' arithmetic")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1, help="for the answers")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Answers, then one training after the other; figures are kept as they come."""
    args = arguments(argv)
    assert paths.DEMO_MODELS["demo"].is_dir(), "the embedded target comes first: specbench.demo.recipe"
    answers = write_answers(
        args.data, args.out, number=args.prompts, new_tokens=args.new_tokens, processes=args.processes
    )
    file = args.out / "drafters.json"
    figures: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    for method in args.methods:
        figures[method] = train_one(method, answers, args.out, args)
        file.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
