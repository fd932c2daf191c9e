"""`specbench data generate`: the target answers the prompts of a dataset, in one process or several, resumably."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import IO, Any, Literal

from specbench import paths
from specbench.data.columns import Columns
from specbench.data.counts import Counts
from specbench.data.examples import Part
from specbench.data.job import REPORT_MARK, Folder, How, Settings
from specbench.data.prompts import Prompts, load_prompts
from specbench.data.responses import Statistics
from specbench.errors import EnvironmentFailed, SpecbenchError, UsageError
from specbench.quantisation import NONE, check_quantisation

Backend = Literal["specbench", "vllm"]
Progress = Callable[[int, int, int], None]
"""(answers done, answers wanted, tokens written by this command)."""


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """What `data generate` was asked for."""

    target: str
    dataset: str
    out: Path
    columns: Columns | None = None
    part: Part = "train"
    limit: int | None = None
    seed: int = 0
    template: str = "chat"
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 256
    backend: Backend = "specbench"
    dtype: str = "auto"
    quantisation: str = "none"
    device: str = "auto"
    device_groups: tuple[tuple[str, ...], ...] = ()
    """One worker a group; each sees its own devices only."""
    processes: int = 1
    batch_size: int = 8
    threads: int | None = None
    trust_remote_code: bool = False
    data_dirs: tuple[Path, ...] = ()
    offline: bool = False


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What came of it."""

    out: Path
    file: Path
    prompts: Counts
    notes: tuple[str, ...]
    statistics: Statistics
    num_resumed: int
    """Answers that an earlier command had written."""
    num_too_long: int
    """Prompts that do not fit the target's context with an answer."""


def parse_device_groups(text: str) -> tuple[tuple[str, ...], ...]:
    """`0,1:2,3` -> (("0", "1"), ("2", "3")). Raises UsageError, also for a device in two groups."""
    groups = tuple(tuple(part.strip() for part in group.split(",")) for group in text.split(":"))
    devices = [device for group in groups for device in group]
    if not all(device.isdigit() for device in devices) or len(set(devices)) != len(devices):
        raise UsageError(
            f"--device-groups {text!r} cannot be read",
            where="--device-groups",
            try_="0:1 is two workers with a device each, 0,1:2,3 two workers with two devices each",
        )
    return groups


def generate(request: GenerateRequest, *, progress: Progress | None = None) -> Generated:
    """Write what is missing, then merge. A killed command is resumed by the same command; nothing is written twice.

    Raises UsageError (settings, another dataset or target than the folder was begun with) or EnvironmentFailed.
    """
    _check(request)
    prompts = load_prompts(
        request.dataset,
        seed=request.seed,
        columns=request.columns,
        limit=request.limit,
        part=request.part,
        data_dirs=request.data_dirs,
        offline=request.offline,
    )
    settings = _settings(request, prompts)
    groups = _visible(request.device_groups)
    num_workers = len(request.device_groups) or request.processes
    how = How(
        device="cuda" if request.device_groups else request.device,
        batch_size=request.batch_size,
        threads=request.threads,
        trust_remote_code=request.trust_remote_code,
        num_workers=num_workers,
        num_devices=len(request.device_groups[0]) if request.device_groups else 1,
    )
    folder = Folder(request.out)
    with folder.locked():
        folder.begin(settings, prompts.prompts)
        num_resumed = num_done(request.out)
        count = _Count(num_resumed, len(prompts.prompts), progress)
        if num_workers == 1 and not request.device_groups:
            # 2 s of torch, and only where this process does the work itself.
            from specbench.data.worker import work

            num_too_long = work(folder, 0, how, count.add)
        else:
            num_too_long = _run_children(folder, how, groups, count)
        if num_too_long == len(prompts.prompts) > 0:
            from specbench.data.writing import none_fits  # 2 s of torch, only where it fails

            raise none_fits(request.max_new_tokens)
        statistics = folder.finish()
    return Generated(
        out=request.out,
        file=folder.merged_file,
        prompts=prompts.counts,
        notes=prompts.notes,
        statistics=statistics,
        num_resumed=num_resumed,
        num_too_long=num_too_long,
    )


def num_done(out: Path) -> int:
    """Answers that lie in the folder, finished or not."""
    return len({row.prompt_id for row in Folder(out).done()})


def _visible(groups: Sequence[Sequence[str]]) -> list[list[str]]:
    """The groups as a child's CUDA_VISIBLE_DEVICES must name them: their numbers count what this process may see, as
    torch's do. Raises UsageError for a number beyond that."""
    inherited = os.environ.get("CUDA_VISIBLE_DEVICES")
    if inherited is None or not groups:
        return [list(group) for group in groups]
    seen = [name.strip() for name in inherited.split(",") if name.strip()]
    beyond = next((number for group in groups for number in group if int(number) >= len(seen)), None)
    if beyond is not None:
        count = "no device is" if not seen else "1 device is" if len(seen) == 1 else f"{len(seen)} devices are"
        raise UsageError(
            f"--device-groups names device {beyond}, but CUDA_VISIBLE_DEVICES={inherited}: {count} visible, "
            "counted from 0",
            where="--device-groups",
            try_=f"--device-groups with numbers below {len(seen)}" if seen else "unset CUDA_VISIBLE_DEVICES",
        )
    return [[seen[int(number)] for number in group] for group in groups]


class _Count:
    """Adds up what the workers report."""

    def __init__(self, num_done: int, num_wanted: int, progress: Progress | None) -> None:
        self._num_done = num_done
        self._num_wanted = num_wanted
        self._num_tokens = 0
        self._progress = progress

    def add(self, rows: int, tokens: int) -> None:
        self._num_done += rows
        self._num_tokens += tokens
        if self._progress is not None:
            self._progress(self._num_done, self._num_wanted, self._num_tokens)


def _check(request: GenerateRequest) -> None:
    check_quantisation(request.quantisation)
    if request.backend == "vllm" and request.quantisation != NONE:
        raise UsageError(
            "vLLM quantises by its own means, so its target would be another one",
            where="--quantisation",
            try_="--backend specbench",
        )
    for name, value in (("--processes", request.processes), ("--batch-size", request.batch_size)):
        if value < 1:
            raise UsageError(f"{name} is at least 1, not {value}", where=name)
    if request.max_new_tokens < 1:
        raise UsageError(f"--max-new-tokens is at least 1, not {request.max_new_tokens}", where="--max-new-tokens")
    if request.device_groups and request.processes != 1:
        raise UsageError("--device-groups says how many processes there are; --processes says it too")
    widths = {len(group) for group in request.device_groups}
    if len(widths) > 1:
        raise UsageError("the groups of --device-groups have as many devices each", where="--device-groups")
    if request.backend == "vllm":
        if importlib.util.find_spec("vllm") is None:
            raise EnvironmentFailed(
                "vLLM is not installed", where="--backend vllm", try_="pip install vllm, or --backend specbench"
            )
    elif widths and max(widths) > 1:
        raise UsageError(
            "specbench's engine uses one device a process",
            where="--device-groups",
            try_=f"--device-groups {':'.join(device for group in request.device_groups for device in group)}, "
            "or --backend vllm, which splits a model over a group",
        )


def _settings(request: GenerateRequest, prompts: Prompts) -> Settings:
    from specbench.lm.load import resolve_folder  # 2 s of torch
    from specbench.provenance import hash_weights
    from specbench.sampling import Sampling

    # Checked here, so that a wrong number is refused before any worker starts.
    Sampling(
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
    )
    return Settings(
        target=request.target,
        weights=hash_weights(resolve_folder(request.target)),
        dtype=request.dtype,
        dataset=request.dataset,
        prompts=prompts.content_hash,
        template=request.template,
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        max_new_tokens=request.max_new_tokens,
        seed=request.seed,
        backend=request.backend,
        quantisation=request.quantisation,
    )


@dataclass(frozen=True)
class _Message:
    """A line of a child, or its end (facts None)."""

    worker: int
    facts: dict[str, Any] | None


def _run_children(folder: Folder, how: How, groups: Sequence[Sequence[str]], count: _Count) -> int:
    """One process a worker -> prompts that cannot be asked. The first failure ends the others; what is done is kept."""
    messages: Queue[_Message] = Queue()
    children: list[subprocess.Popen[str]] = []
    num_too_long = 0
    try:
        for worker in range(how.num_workers):
            environment = dict(os.environ)
            # The same specbench as here, however it was found.
            known = [str(paths.PACKAGE.parent), *environment.get("PYTHONPATH", "").split(os.pathsep)]
            environment["PYTHONPATH"] = os.pathsep.join(part for part in known if part)
            if groups:
                environment["CUDA_VISIBLE_DEVICES"] = ",".join(groups[worker])
            command = [sys.executable, "-m", "specbench.data.worker"]
            child = subprocess.Popen(
                [*command, str(folder.root), str(worker), json.dumps(dataclasses.asdict(how))],
                # Its stdin stays open as long as this process lives: the child ends when it closes.
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
                # Ctrl-C is this process's: it ends them, without a traceback from each.
                start_new_session=True,
            )
            children.append(child)
            threading.Thread(target=_listen, args=(worker, child.stdout, messages), daemon=True).start()
        running = len(children)
        while running:
            message = messages.get()
            if message.facts is None:
                running -= 1
                _check_ended(message.worker, children[message.worker].wait())
            elif "error" in message.facts:
                raise _error_of(message.facts["error"])
            elif "too_long" in message.facts:
                num_too_long += message.facts["too_long"]
            else:
                count.add(message.facts["rows"], message.facts["tokens"])
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
            child.wait()
    return num_too_long


def _listen(worker: int, stream: IO[str] | None, messages: Queue[_Message]) -> None:
    assert stream is not None, "stdout is a pipe"
    for line in stream:
        # Other libraries print to stdout too.
        if line.startswith(REPORT_MARK):
            messages.put(_Message(worker, json.loads(line.removeprefix(REPORT_MARK))))
    messages.put(_Message(worker, None))


def _check_ended(worker: int, code: int) -> None:
    if code:
        raise EnvironmentFailed(
            f"worker {worker} ended with exit code {code}",
            where="its messages stand above",
            try_="the same command again goes on where it was",
        )


def _error_of(facts: dict[str, Any]) -> SpecbenchError:
    kind = UsageError if facts["exit_code"] == UsageError.exit_code else EnvironmentFailed
    return kind(str(facts["what"]), where=str(facts["where"]), try_=str(facts["try"]))
