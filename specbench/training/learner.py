"""A process that learns an adapter's rounds, one after another, for a run that answers meanwhile.

A job a line on its standard input; what came of each is written into the file that the job names, whole or not at all.
The run stops it and lets it go on (`bench.round_process`); it ends with its input, and with its parent.
"""

from __future__ import annotations

import ctypes
import gc
import json
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from specbench.method import Rule

_PR_SET_PDEATHSIG = 1
"""prctl(2)."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One round: `adapter_jobs.train_store`'s words."""

    store: Path
    into: Path
    options: Mapping[str, Any]
    temperature: float
    rule: str
    domain: str
    version: int
    num_new: int
    device: str
    threads: int
    num_shared: int
    num_ids: int
    answer: Path
    """The round as JSON, or `error` and why there is none."""

    def as_json(self) -> dict[str, Any]:
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Job:
        paths = {field.name: Path(body[field.name]) for field in fields(cls) if field.type == "Path"}
        return cls(**{**body, **paths})


def main() -> None:
    """Learn until the input ends."""
    if sys.platform == "linux":
        # A stopped process does not see its input end: the kernel ends it with the run, even one that was killed.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Ctrl-C is for the run, which then ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        carry_out(Job.from_json(json.loads(line)))
        # What a round held is not held until the next one.
        gc.collect()
        cuda = sys.modules["torch"].cuda
        if cuda.is_initialized():
            cuda.empty_cache()


def carry_out(job: Job) -> None:
    """One round, told in the job's file. Raises what is no word for a user."""
    # Late: the process is told to stop before it is worth loading anything.
    from specbench.adapt.versions import AdapterStore
    from specbench.errors import SpecbenchError
    from specbench.training.adapter_jobs import train_store

    try:
        found = train_store(
            AdapterStore(job.store),
            job.options,
            temperature=job.temperature,
            rule=cast("Rule", job.rule),
            domain=job.domain,
            device=job.device,
            threads=job.threads,
            into=job.into,
            version=job.version,
            num_new=job.num_new,
            num_shared=job.num_shared,
            num_ids=job.num_ids,
        )
        body = asdict(found)
    except (SpecbenchError, OSError) as error:
        body = {"error": error.what if isinstance(error, SpecbenchError) else str(error)}
    part = job.answer.with_suffix(".part")
    part.write_text(json.dumps(body), encoding="utf-8")
    part.replace(job.answer)


if __name__ == "__main__":
    main()
