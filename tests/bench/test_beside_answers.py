"""Rounds of learning in a process beside the answers."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from helpers import requests_for, tokens_of

from specbench import registry
from specbench.adapt.adaptation import Adaptation
from specbench.adapt.versions import AdapterStore
from specbench.api import Silent
from specbench.bench.request import RunRequest, Setting
from specbench.bench.round_process import Learner, RoundProcess
from specbench.bench.runner import run
from specbench.errors import EnvironmentFailed
from specbench.training.learner import Job
from tests.adapt.adapted import engine, learning_drafter, save_draft
from tests.bench.learning_runs import learning_request


def test_a_round_beside_the_answers_is_promoted_by_the_run_alone(tmp_path: Path) -> None:
    """Stopped until its method answers; its candidate becomes a version of the run's store, and is drafted with."""

    draft = save_draft(tmp_path / "draft")
    given = {
        "steps": 30,
        "visits": 0,
        "lr_rise": 0,
        "lr": 3e-3,
        "rank": 8,
        "loss": "kl",
        "pull": 0.0,
        "round_s": 0.0,
    }
    on = engine(temperature=1.0)
    drafter = learning_drafter(draft, on, store=str(tmp_path / "store"), **given)
    on.reserve(drafter.max_nodes)
    adaptation = drafter.adaptation
    assert adaptation is not None and adaptation.store is not None
    requests = requests_for([tokens_of(seed, 4 + seed % 5) for seed in range(40)], max_new_tokens=10)
    for start in range(0, 40, 4):
        on.generate(drafter, requests[start : start + 4])
        adaptation.gather()
    card = registry.card("adaptive_lora")
    options = registry.check_options(card, {"model": str(draft), "rank": 8, "min_held_out": 2, "top_k": 8, **given})
    with adaptation.store.writing():
        learner = Learner()
        process = RoundProcess(adaptation, "", options, learner)
        assert psutil.Process(learner.pid).status() == psutil.STATUS_STOPPED and not process.is_over
        ran_s = process._ran_s
        process.pause()
        assert process._ran_s == ran_s, "what it stood still is no part of its seconds"
        process.go_on()
        _wait(lambda: process.is_over)
        assert adaptation.store.numbers() == [], "the process writes elsewhere"
        process.pause()
        found = process.finish()
    assert found.outcome == "promoted" and found.version == 1, found
    assert found.gain is not None and found.gain.low > 0 and 0 < found.seconds <= process._ran_s
    assert adaptation.store.active() == adaptation.loaded.number == 1
    again = RoundProcess(adaptation, "", options, learner)
    again.go_on()
    _wait(lambda: again.is_over)
    assert not learner.is_dead and again.finish().outcome != "dropped", "one process learns round after round"
    dying = RoundProcess(adaptation, "", options, learner)
    learner._process.kill()
    learner._process.wait()
    assert dying.is_over and not psutil.pid_exists(learner.pid)
    lost = dying.finish()
    assert lost.outcome == "dropped" and "its process ended" in lost.why and adaptation.loaded.number == lost.version
    learner.kill()


def test_a_learner_is_told_what_the_run_itself_computes_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = save_draft(tmp_path / "draft")
    on = engine(temperature=1.0)
    drafter = learning_drafter(draft, on, store=str(tmp_path / "store"))
    assert drafter.adaptation is not None
    options = registry.check_options(registry.card("adaptive_lora"), {"model": str(draft)})
    told: list[Job] = []
    process: Any = SimpleNamespace(begin=told.append)
    RoundProcess(drafter.adaptation, "", options, process)
    (job,) = told
    assert (job.threads, job.device, job.num_shared) == (torch.get_num_threads(), "cpu", 64), "on the run's cores alone"
    assert job.options["dtype"] == "float64" != options["dtype"] and job.temperature == 1.0
    assert Job.from_json(json.loads(json.dumps(job.as_json()))) == job


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a stopped process outlives a run that was killed")
def test_a_stopped_learner_dies_with_a_run_that_was_killed() -> None:

    words = (
        "import time; from specbench.bench.round_process import Learner; learner = Learner(); learner.go_on()\n"
        "def ignored(): return int(open(f'/proc/{learner.pid}/status').read().split('SigIgn:')[1].split()[0], 16)\n"
        # The last that it does before it waits for a job.
        "while not ignored() & 1 << 1: time.sleep(0.01)\n"
        "learner.pause(); print(learner.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", words], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as run:
        assert run.stdout is not None
        learner = psutil.Process(int(run.stdout.readline()))
        assert learner.status() == psutil.STATUS_STOPPED
        run.kill()
    learner.wait(timeout=30)
    assert not learner.is_running()


def _wait(is_so: Callable[[], bool]) -> None:
    ends = time.monotonic() + 200
    while not is_so():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_a_concurrent_round_ends_with_its_run_and_learns_from_its_own_repeat_alone(
    many: Path, tiny_target: Path, tiny_draft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    given: list[set[str]] = []
    seen: list[set[str]] = []
    hand_over = RoundProcess._given

    def watch(process: RoundProcess, adaptation: Adaptation, domain: str) -> Path:
        folder = hand_over(process, adaptation, domain)
        given.append({each.prompt_digest() for each in AdapterStore(folder).rows.read()})
        assert adaptation.store is not None
        seen.append({each.prompt_digest() for each in adaptation.store.rows.read()})
        return folder

    monkeypatch.setattr(RoundProcess, "_given", watch)
    request = learning_request(many, tiny_target, tiny_draft, tmp_path / "store", adapt="on", repeats=2, limit=6)
    settings = (*request.settings, Setting("adaptive_lora", "learning", "concurrent"))
    outcome = run(RunRequest(**{**vars(request), "settings": settings}), Silent())
    assert outcome.summary is not None and outcome.failed_checks == ()
    row = next(row for row in outcome.summary.rows if row.name == "adaptive_lora")
    assert any("beside its answers, on the same cores" in note for note in row.notes)
    assert not any("adapt" in child.cmdline() for child in psutil.Process().children(recursive=True))
    assert given, "a round began"
    assert any(mine < all_repeats for mine, all_repeats in zip(given, seen, strict=True)), (
        "in the second repeat the file knows every question of the first, the round does not"
    )


def test_a_disk_that_has_no_room_for_a_concurrent_round_ends_the_round_and_not_the_run(
    many: Path, tiny_target: Path, tiny_draft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(process: RoundProcess, adaptation: Adaptation, domain: str) -> Path:
        raise EnvironmentFailed("the disk is full", where="there")

    monkeypatch.setattr(RoundProcess, "_given", full)
    request = learning_request(many, tiny_target, tiny_draft, tmp_path / "store", adapt="on", repeats=1, limit=4)
    settings = (*request.settings, Setting("adaptive_lora", "learning", "concurrent"))
    told: list[str] = []

    class Listening(Silent):
        def say(self, text: str) -> None:
            told.append(text)

    outcome = run(RunRequest(**{**vars(request), "settings": settings}), Listening())
    assert outcome.state == "finished" and outcome.failed_checks == ()
    assert any("dropped" in text and "the disk is full" in text for text in told)
