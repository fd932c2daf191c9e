"""A real target on a real card: python benchmarks/real_target.py --data DIR --out DIR

A Llama of 294 M parameters is trained from nothing on public instruction data, it writes answers to the training
prompts, every trained method learns from those, a LoRA adapter for its draft model included, and all methods are
measured on MT-Bench, GSM8K and Alpaca. Everything but the target's own training is a specbench command, printed before
it is run. Why the target is wide, two layers deep and read in float32 stands in `real_sizes`.

DIR of --data holds suites/, text/ and a folder with a tokenizer that has a chat template (--tokenizer).
Each stage leaves a file in --out when it is done and is never made again. With --minutes the script stops in time by
itself (a training is saved, a run keeps its finished questions), and the same command goes on from there.
Needs what `specbench train` and `specbench run` need (accelerate, typer, rich, pydantic, psutil); without DuckDB and
plotly journals are kept, and the script says how to make table and page of them elsewhere.
`--small` rehearses all stages on a CPU with toy shapes: it shows that the script runs, never how good or fast anything
is.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    # Read once, by the first attention that torch runs; commands inherit it, and runs record it.
    os.environ.setdefault("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1")

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.fitting import Fit, fit, held_out_loss
from benchmarks.real_sizes import DRAFTERS, FULL, SMALL
from specbench.data.documents import Documents
from specbench.data.loading import load_documents
from specbench.lm import attention
from specbench.manifest import read_manifest

ROOT = Path(__file__).resolve().parents[1]
SUITES = ("mtbench", "gsm8k", "alpaca")
BATCHED = "gsm8k"
"""Whose questions are also asked several at a time."""
UNFINISHED = 3
"""Exit status: time was up, call again."""


def main() -> int:
    """Makes what is missing, in order -> 0, 1 where a command failed, 2 where --out is of another --dtype, UNFINISHED
    where time was up."""
    args = arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    begun = args.out / "dtype"
    if begun.exists() and begun.read_text(encoding="utf-8") != args.dtype:
        print(f"{args.out} was begun with --dtype {begun.read_text(encoding='utf-8')}: type that, or --out elsewhere")
        return 2
    begun.write_text(args.dtype, encoding="utf-8")
    work = Work(args)
    try:
        for name, stage in work.stages():
            done = args.out / f"{name}.done"
            if not done.exists():
                print(f"== {name}", flush=True)
                stage()
                done.touch()
    except TimeIsUp:
        print("time is up: the same command goes on from here", flush=True)
        return UNFINISHED
    except subprocess.CalledProcessError as error:
        print(f"failed with {error.returncode}: {' '.join(map(str, error.cmd))}", file=sys.stderr)
        return 1
    return 0


class TimeIsUp(Exception):
    """The minutes of this call are spent."""


class Work:
    """The stages and what they share."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.size = SMALL if args.small else FULL
        self.end = time.monotonic() + 60 * args.minutes
        self.device = torch.device(args.device)
        attention.leave_cudnn_out(self.device)  # batches of texts have a new shape in every step

    def stages(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Name and work, in order."""
        size = self.size
        target = size.hidden, size.layers, size.heads, size.kv_heads, size.inner
        draft = size.draft_hidden, size.draft_layers, 4, 2, 4 * size.draft_hidden
        yield "target", lambda: self.model("target", *target, size.fit)
        yield "draft", lambda: self.model("draft", *draft, replace(size.fit, rate=size.draft_rate))
        yield "answers", self.answers
        yield "adapter", self.adapter
        for name in self.args.drafters:
            yield f"drafter-{name}", lambda name=name: self.drafter(name)  # type: ignore[misc]
        for suite in self.args.suites:
            yield f"suite-{suite}", lambda suite=suite: self.suite(suite)  # type: ignore[misc]
        for batch_size in size.batches if BATCHED in self.args.suites else ():
            yield f"batch-{batch_size}", lambda num=batch_size: self.batch(num)  # type: ignore[misc]
        yield "board", self.board

    @property
    def store(self) -> Path:
        """Journals and results of everything."""
        return Path(self.args.out) / "store"

    @property
    def data(self) -> tuple[object, ...]:
        """Where every command looks for data sets and suites (also for those no answer may be learnt from)."""
        return "--data", self.args.data, "--data", self.args.data / "suites"

    @property
    def on(self) -> tuple[object, ...]:
        """Where every command runs its models, and in which dtype it reads the target."""
        return "--device", self.args.device, "--dtype", self.args.dtype

    def model(self, name: str, hidden: int, layers: int, heads: int, kv_heads: int, inner: int, how: Fit) -> None:
        """Train a Llama from nothing: bf16 arithmetic, fp32 weights, whole documents, cosine."""
        folder = self.args.out / name
        tokenizer = AutoTokenizer.from_pretrained(self.args.tokenizer)
        parts = [self._documents(spec, tokenizer) for spec in self.args.train_on]
        rows = [row for part in parts for row in rows_of(part)]
        rng = random.Random(0)
        rng.shuffle(rows)
        held, rows = rows[: len(rows) // 50], rows[len(rows) // 50 :]
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            intermediate_size=inner,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        model = LlamaForCausalLM(config).to(self.device)
        num_parameters = sum(p.numel() for p in model.parameters())
        print(f"{name}: {num_parameters / 1e6:.1f} M parameters, {len(rows):,} documents", flush=True)
        seen, loss = fit(model, rows, rng, how, look=self._look)
        facts = {
            "num_parameters": num_parameters,
            "documents": len(rows),
            "tokens_seen": seen,
            "train_loss": loss,
            "held_out_loss": held_out_loss(model, held, batch_tokens=how.batch_tokens),
            "sources": {part.name: {"source": Path(part.source).name, "licence": part.licence} for part in parts},
        }
        print(json.dumps(facts), flush=True)
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "training.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

    def _documents(self, spec: str, tokenizer: object) -> Documents:
        return load_documents(
            spec,
            tokenizer=tokenizer,
            max_len=512,
            seed=0,
            limit=self.size.rows,
            data_dirs=(self.args.data,),
            assistant_only=False,
            offline=True,
        )

    def _look(self) -> None:
        """Minutes of work, so not worth a state of its own: the next call begins it again."""
        if time.monotonic() > self.end:
            raise TimeIsUp

    def answers(self) -> None:
        """The target's own words for the training prompts, an equal share of each set."""
        share = max(1, self.size.answers // len(self.args.train_on))
        merged = self.args.out / "answers.jsonl"
        with merged.with_suffix(".part").open("w", encoding="utf-8") as out:
            for spec in self.args.train_on:
                folder = self.args.out / "answers" / spec
                self.command(
                    *("data", "generate", "--dataset", spec, "--target", self.args.out / "target", "--out", folder),
                    *("--limit", share, "--max-new-tokens", self.size.new_tokens, "--batch-size", 64),
                    *("--temperature", self.size.temperature),
                    *(*self.on, *self.data),
                )
                out.write((folder / "responses.jsonl").read_text(encoding="utf-8"))
        merged.with_suffix(".part").replace(merged)

    def adapter(self) -> None:
        """adaptive_lora's adapter: what verification shows of the draft model on training prompts, then rounds of
        learning. In the runs it stays as it is: learning there would make them streams, which remember, and 80
        questions hold too few of those that are held out for any new adapter to be judged. The target is read in the
        device's own dtype here, and no other can be asked for. Begun anew when cut off."""
        shutil.rmtree(self.adapters, ignore_errors=True)
        prompts = self.args.out / "adapter_prompts.jsonl"
        with (self.args.out / "answers.jsonl").open(encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        random.Random(0).shuffle(rows)
        asked = [
            {"question_id": row["prompt_id"], "prompt": row["messages"][0]["content"]}
            for row in rows[: self.size.adapter_prompts]
        ]
        prompts.write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
        shared = "--model", self.args.out / "draft", "--store", self.adapters, "--device", self.args.device
        self.command(
            *("adapt", "collect", prompts, "--target", self.args.out / "target", *shared, *self.data),
            *("--max-new-tokens", self.size.new_tokens),
        )
        for _ in range(self.size.adapter_rounds):
            self.command("adapt", "train", *shared)

    @property
    def adapters(self) -> Path:
        """Where adaptive_lora finds the version that held-out answers chose; none: the draft model as it is."""
        return Path(self.args.out) / "adapters"

    def drafter(self, name: str) -> None:
        """Train one; a training that was cut off is resumed."""
        method, rate, settings = DRAFTERS[name]
        folder = self.args.out / "drafters" / name
        begun = [run.parent.name for run in self.store.glob("runs/*/train.json") if str(folder) in run.read_text()]
        if begun:
            self.command("train", "--resume", max(begun), "--store", self.store)
            return
        self.command(
            *("train", "--method", method, "--target", self.args.out / "target", *self.on),
            *("--dataset", self.args.out / "answers.jsonl", "--max-tokens", self.size.drafter_tokens, "--lr", rate),
            *("--max-length", 512, "--batch-size", 16, "--micro-batch", 16, "--precision", "bf16", "--data-seed", 0),
            *("--eval-every", 400, "--eval-documents", 32 if not self.args.small else 4, "--eval-prompts", 16),
            *("--eval-new-tokens", min(128, self.size.new_tokens), "--save-every", 200),
            *("--out", folder, "--store", self.store, *self.data),
            *(word for setting in settings for word in ("--set", f"{method}.{setting}")),
        )

    def batch(self, batch_size: int) -> None:
        """Everything on more questions, once, so many at a time: the page draws these runs against the batch size."""
        self.bench(BATCHED, self.size.batch_limit, repeats=1, new_tokens=self.size.batch_tokens, batch_size=batch_size)

    def suite(self, name: str) -> None:
        """Everything on the questions of one suite, one at a time."""
        self.bench(name, self.size.limit, repeats=self.size.repeats, new_tokens=self.size.new_tokens, batch_size=1)

    def bench(self, suite: str, limit: int, *, repeats: int, new_tokens: int, batch_size: int) -> None:
        """One paired run of everything; a run that was cut off is resumed."""
        begun = []
        for path in sorted(self.store.glob(f"runs/*-{suite}-*/manifest.json")):
            found = read_manifest(path.parent)
            if (found.batch_size, len(found.questions)) == (batch_size, limit):
                begun.append(path.parent.name)
        if begun:
            self.command("run", "--resume", begun[-1], "--store", self.store)
            return
        forms = [name for name in self.args.drafters if DRAFTERS[name][0] == "ctc"]
        others = [name for name in self.args.drafters if name not in forms]
        methods = [
            "autoregressive",
            "draft_model",
            "adaptive_lora",
            "prompt_lookup",
            "suffix",
            *others,
            *(["ctc", "hybrid"] * bool(forms)),
        ]
        weights = [self.args.out / "drafters" / name for name in forms]
        chosen = [("--set", f"{name}.weights={self.args.out / 'drafters' / name}") for name in others]
        if len(forms) > 1:
            chosen.append(("--grid", "ctc.weights=" + ",".join(map(str, weights))))
        elif forms:
            chosen.append(("--set", f"ctc.weights={weights[0]}"))
        if forms:
            chosen.append(("--set", "hybrid.inner=ctc"))
        self.command(
            *("run", suite, "--target", self.args.out / "target", "--methods", ",".join(methods)),
            *("--set", f"draft_model.model={self.args.out / 'draft'}"),
            *("--set", f"adaptive_lora.model={self.args.out / 'draft'}"),
            *("--set", f"adaptive_lora.store={self.adapters}", *(word for pair in chosen for word in pair)),
            *("--limit", limit, "--repeats", repeats, "--max-new-tokens", new_tokens, "--batch-size", batch_size),
            *("--compile", "whole" if self.device.type == "cuda" else "auto"),
            *(*self.on, *self.data, "--store", self.store, *self.args.run_options.split()),
        )

    def board(self) -> None:
        """The page of all suites; where what makes it is missing, the words that make it elsewhere."""
        missing = [name for name in ("duckdb", "plotly") if importlib.util.find_spec(name) is None]
        if missing:
            print(
                f"no page here, {' and '.join(missing)} not installed. The journals are whole: copy {self.store} to a "
                "machine with specbench and type there:\n"
                f"specbench results ingest --store {self.store.name}\n"
                f"specbench leaderboard --store {self.store.name} -o board.html",
                flush=True,
            )
            return
        self.command("leaderboard", "--store", self.store, "-o", self.args.out / "board.html")

    def command(self, *words: object) -> None:
        """Run a specbench command to its end, or until time is up (it is then interrupted, and waited for).

        Raises TimeIsUp and subprocess.CalledProcessError.
        """
        line = [sys.executable, "-m", "specbench", *map(str, words)]
        print("specbench " + " ".join(line[3:]), flush=True)
        if time.monotonic() > self.end:
            raise TimeIsUp
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        # A script that a shell put into the background ignores Ctrl-C, and so would what it starts: it would never end.
        was = signal.signal(signal.SIGINT, signal.default_int_handler)
        process = subprocess.Popen(line, env={**os.environ, "PYTHONPATH": path})
        signal.signal(signal.SIGINT, was)
        try:
            code = process.wait(timeout=max(1.0, self.end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.wait()
            raise TimeIsUp from None
        if code:
            raise subprocess.CalledProcessError(code, ["specbench", *line[3:]])


def rows_of(documents: Documents) -> Iterator[list[int]]:
    """Each text as a list of ids."""
    for document in documents:
        yield list(document.ids)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with suites/ and text/")
    parser.add_argument("--tokenizer", type=Path, help="default: models/tiny-instruct of --data")
    parser.add_argument("--out", type=Path, required=True, help="folder for models, journals, page")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop in time; the same command goes on")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "bfloat16"], help="the target's; bfloat16: no ranks expected"
    )
    parser.add_argument("--train-on", nargs="+", default=["alpaca", "gsm8k", "dolly", "gpteacher"])
    parser.add_argument("--drafters", nargs="*", choices=list(DRAFTERS), default=list(DRAFTERS))
    parser.add_argument("--suites", nargs="+", default=list(SUITES))
    parser.add_argument("--run-options", default="", help="more words for `specbench run`")
    parser.add_argument("--small", action="store_true", help="toy shapes, for a rehearsal on a CPU")
    parser.add_argument("--fresh", action="store_true", help="forget what --out holds")
    args = parser.parse_args()
    args.tokenizer = args.tokenizer or args.data / "models" / "tiny-instruct"
    if not args.small and args.device == "cpu":
        parser.error("a target of 294 M parameters takes days on a CPU; rehearse with --small")
    if args.fresh:
        shutil.rmtree(args.out, ignore_errors=True)
    return args


if __name__ == "__main__":
    sys.exit(main())
