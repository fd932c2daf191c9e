"""`data generate`'s folder: what is to be written, what is written, and that one command at a time works in it.

    OUT/job.json         the settings; a resumed command must have the same
    OUT/prompts.jsonl    every question with its id
    OUT/shards/*.jsonl   one file a worker, appended to; all of them together are what is done
    OUT/responses.jsonl  merged, when all are done; `--dataset OUT` reads it
    OUT/statistics.json
No torch.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specbench.data.prompts import Prompt
from specbench.data.responses import Response, Statistics, merged, read_responses
from specbench.errors import UsageError, cannot_write
from specbench.store.files import write_whole

REPORT_MARK = "@specbench "
"""Begins the lines that a worker's process sends to its parent."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything an answer depends on."""

    target: str
    weights: str
    dtype: str
    dataset: str
    prompts: str
    """Their hash."""
    template: str
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    max_new_tokens: int
    seed: int
    backend: str
    quantisation: str = "none"


@dataclass(frozen=True, kw_only=True)
class How:
    """How the work is done; changes nothing of the answers but rounding."""

    device: str
    batch_size: int
    threads: int | None
    trust_remote_code: bool
    num_workers: int
    num_devices: int
    """Of each worker."""


@dataclass(frozen=True)
class Folder:
    """OUT."""

    root: Path

    def shard(self, worker: int) -> Path:
        return self.root / "shards" / f"worker-{worker:04d}.jsonl"

    @property
    def merged_file(self) -> Path:
        return self.root / "responses.jsonl"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Raises UsageError where another command is at work in the folder, EnvironmentFailed where the disk refuses; a
        killed one leaves no lock."""
        try:
            (self.root / "shards").mkdir(parents=True, exist_ok=True)
            file = (self.root / "lock").open("w")
        except OSError as error:
            raise cannot_write(self.root, error, try_="--out DIR, one that you may write to") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(
                    "another command writes into this folder", where=str(self.root), try_="--out with another one"
                ) from error
            yield

    def begin(self, settings: Settings, prompts: Sequence[Prompt]) -> None:
        """Write the settings, or check them against those of the begun work. Raises UsageError naming what differs."""
        path = self.root / "job.json"
        if path.is_file():
            begun = _read_settings(path)
            for field in dataclasses.fields(Settings):
                before, now = getattr(begun, field.name), getattr(settings, field.name)
                if before != now:
                    raise UsageError(
                        f"{self.root} was begun with {field.name.replace('_', ' ')} {before!r}, not {now!r}",
                        where=str(path),
                        try_="the same settings to go on; to begin anew delete the folder, or --out with another one",
                    )
            return
        lines = [
            json.dumps({"prompt_id": each.prompt_id, "messages": [dict(turn) for turn in each.messages]}) + "\n"
            for each in prompts
        ]
        write_whole(self.root / "prompts.jsonl", "".join(lines))
        # Last: its presence says that the folder is whole.
        write_whole(path, json.dumps(dataclasses.asdict(settings), indent=1) + "\n")

    def settings(self) -> Settings:
        return _read_settings(self.root / "job.json")

    def prompts(self) -> list[Prompt]:
        """In their order."""
        lines = (self.root / "prompts.jsonl").read_text(encoding="ascii").splitlines()
        rows = [json.loads(line) for line in lines]
        return [Prompt(prompt_id=row["prompt_id"], messages=tuple(row["messages"])) for row in rows]

    def done(self) -> list[Response]:
        """All whole rows of all workers, those of earlier commands too."""
        return [row for path in sorted((self.root / "shards").glob("*.jsonl")) for row in read_responses(path)]

    def finish(self) -> Statistics:
        """Merge the workers' rows."""
        rows, statistics = merged(self.done())
        write_whole(self.merged_file, "".join(row.line() for row in rows))
        facts = dataclasses.asdict(statistics)
        write_whole(self.root / "statistics.json", json.dumps(facts, indent=1) + "\n")
        return statistics


def _read_settings(path: Path) -> Settings:
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return Settings(**raw)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"not the settings of `data generate`: {error}", where=str(path)) from error
