"""`kill -9` in the middle of a run, then `--resume`: nothing lost, nothing measured twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from specbench.api import Silent
from specbench.bench.request import RunRequest
from specbench.bench.runner import run
from specbench.events import GenerationFinished
from specbench.store.device import metrics_file, read_device
from specbench.store.journal import read_events
from specbench.store.summary import to_json

REPOSITORY = Path(__file__).resolve().parents[2]


def finished_in(folder: Path) -> list[GenerationFinished]:
    return [line.event for line in read_events(folder) if isinstance(line.event, GenerationFinished)]


def is_sampler_of(folder: Path) -> bool:
    """True while the process that wrote the record's first line is there (and is what it was)."""
    first = json.loads(metrics_file(folder).read_text().splitlines()[0])
    try:
        return any("device_sampler.py" in word for word in psutil.Process(first["pid"]).cmdline())
    except psutil.NoSuchProcess:
        return False


def test_a_killed_run_resumed_equals_one_that_was_not_killed(tiny_suite, tiny_target, tmp_path):
    store = tmp_path / "results"
    words = ["run", str(tiny_suite), "--target", str(tiny_target), "--methods", "autoregressive,prompt_lookup"]
    words += ["--max-new-tokens", "24", "--repeats", "3", "--threads", "1", "--store", str(store)]
    process = subprocess.Popen(
        [sys.executable, "-m", "specbench", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    folder = None
    while time.monotonic() < deadline:
        folders = list((store / "runs").glob("*/events.jsonl"))
        if folders and folders[0].read_bytes().count(b'"e":"generation_finished"') >= 5:
            folder = folders[0].parent
            break
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    assert folder is not None, "no answer within two minutes"
    process.send_signal(signal.SIGKILL)
    process.wait()
    [sampler] = read_device(folder).samplers
    deadline = time.monotonic() + 20  # it is nice, and the machine may be loaded
    while is_sampler_of(folder) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_sampler_of(folder), "the process that watched the machine outlived its run"
    # A kill can also tear the last line; one torn by hand makes sure that this is what is survived.
    with (folder / "events.jsonl").open("a") as file:
        file.write('{"e":"steps","group":99,"ro')
    before = finished_in(folder)
    assert 5 <= len(before) < 45

    resumed = run(RunRequest(resume=folder.name, store=store), Silent())
    assert [later["at_s"] > sampler["at_s"] for later in read_device(folder).samplers] == [False, True]
    after = finished_in(folder)
    assert after[: len(before)] == before
    assert sorted(e.group for e in after) == list(range(45))  # 5 turns x 3 methods x 3 repeats, each once
    whole = run(
        RunRequest(
            suite=str(tiny_suite),
            target=str(tiny_target),
            methods=("autoregressive", "prompt_lookup"),
            max_new_tokens=24,
            repeats=3,
            threads=1,
            store=tmp_path / "other",
        ),
        Silent(),
    )
    facts = (
        "method",
        "num_questions",
        "num_repeats",
        "num_failed",
        "num_new_tokens",
        "num_steps",
        "acceptance_length",
        "equality",
    )
    table = lambda outcome: [{fact: row[fact] for fact in facts} for row in to_json(outcome.summary)["rows"]]  # noqa: E731
    assert table(resumed) == table(whole)
    key = lambda e: (e.method, e.question_id, e.turn, e.repeat)  # noqa: E731
    other = finished_in(tmp_path / "other" / "runs" / whole.run_id)
    assert {key(e): e.tokens for e in after} == {key(e): e.tokens for e in other}
