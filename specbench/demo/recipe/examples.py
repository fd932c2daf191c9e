"""The three sources as questions with answers, and which of them are held out."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

KINDS = ("gsm8k", "roleplay", "codegen")


@dataclass(frozen=True)
class Example:
    """One question with its answer, and which of the three sources it comes from."""

    kind: str
    prompt: str
    answer: str


def read_lines(path: Path) -> Iterator[dict[str, str]]:
    """Records of a JSON-lines file, compressed or not."""
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    for line in text.split("\n"):
        if line.strip():
            yield json.loads(line)


def gsm8k_example(record: dict[str, str]) -> Example:
    """A word problem; the ``<<48/2=24>>`` calculator notes are no text a reader should see."""
    answer = re.sub(r"<<[^>]*>>", "", record["answer"])
    return Example("gsm8k", record["question"].strip(), answer.strip())


def gpteacher_example(kind: str, record: dict[str, str]) -> Example:
    """An instruction; an input that says nothing ("", "N/A", "None") is left out."""
    extra = record["input"].strip()
    prompt = record["instruction"].strip()
    if extra.lower().strip(".") not in {"", "n/a", "na", "none", "null"}:
        prompt = f"{prompt}\n{extra}"
    return Example(kind, prompt, record["output"].strip())


def load_examples(data: Path) -> list[Example]:
    """All three sources, without empty answers and without a prompt seen twice.

    A repeated prompt would leak from the training part into the held-out part.
    """
    found = [gsm8k_example(r) for r in read_lines(data / "suites/gsm8k/train.jsonl")]
    for kind in ("roleplay", "codegen"):
        lines = read_lines(data / f"text/gpteacher/{kind}.jsonl.gz")
        found += [gpteacher_example(kind, r) for r in lines]
    unique: dict[str, Example] = {}
    for example in found:
        if example.prompt and example.answer:
            unique.setdefault(example.prompt, example)
    return list(unique.values())


def is_held_out(example: Example) -> bool:
    """About 2 % of the prompts, chosen by hash so that the choice never depends on order."""
    return int(hashlib.sha256(example.prompt.encode()).hexdigest()[:8], 16) % 50 == 0


def split(examples: Iterable[Example]) -> tuple[list[Example], list[Example]]:
    """Training part and held-out part."""
    train: list[Example] = []
    held: list[Example] = []
    for example in examples:
        (held if is_held_out(example) else train).append(example)
    return train, held
