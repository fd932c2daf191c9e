"""Make `prompts.jsonl.gz`: questions a drafter of the embedded target learns from, and questions it is judged on.

Prompts alone, because the target writes the answers itself. They come from the three MIT-licensed files that the target
was trained on (see specbench.demo.recipe); `held_out` ones are those the target never saw. Left out: whatever a suite
asks, and prompts too long for the demo. The same files give the same bytes::

    python -m specbench.demo.prompts --data DATA --suites DATA/suites
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
from collections.abc import Iterable
from pathlib import Path

from specbench.data.contamination import KnownQuestions, known_questions
from specbench.data.conversations import Example as Asked
from specbench.demo.recipe.examples import Example, load_examples, split
from specbench.paths import DEMO

NUM_TRAIN = 2650
MAX_CHARACTERS = 600
"""About 200 tokens: a fifth of the embedded target's context."""


def choose(examples: Iterable[Example], known: KnownQuestions, *, number: int | None) -> list[Example]:
    """Short, clean prompts, drawn by hash: the same whatever their order."""
    clean = [
        example
        for example in examples
        if len(example.prompt) <= MAX_CHARACTERS
        and known.asked_by(Asked(where="", messages=({"role": "user", "content": example.prompt},))) is None
    ]
    clean.sort(key=lambda example: hashlib.sha256(example.prompt.encode()).digest())
    return clean[:number]


def packed(train: Iterable[Example], held_out: Iterable[Example]) -> bytes:
    """The file: one `{prompt, kind, part}` a line, gzipped without a date."""
    rows = [
        {"prompt": example.prompt, "kind": example.kind, "part": part}
        for part, examples in (("train", train), ("held_out", held_out))
        # By kind and text: like lines next to each other make a smaller file.
        for example in sorted(examples, key=lambda example: (example.kind, example.prompt))
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0, compresslevel=9) as file:
        file.write(text.encode())
    return buffer.getvalue()


def main() -> None:
    """Write the file beside this one and print what is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that specbench.demo.recipe reads")
    parser.add_argument("--suites", type=Path, required=True, help="folder with the suites' files: all must be there")
    arguments = parser.parse_args()
    known = known_questions([arguments.suites])
    if known.unread:
        parser.error(f"these suites cannot be compared with: {', '.join(known.unread)}")
    train, held_out = split(load_examples(arguments.data))
    chosen, judged = choose(train, known, number=NUM_TRAIN), choose(held_out, known, number=None)
    content = packed(chosen, judged)
    (DEMO / "prompts.jsonl.gz").write_bytes(content)
    print(f"{len(chosen)} to learn from, {len(judged)} held out, {len(content)} bytes")


if __name__ == "__main__":
    main()
