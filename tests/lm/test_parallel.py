"""A target split over two processes on a CPU: the same tokens as in one, for every kind of draft."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from specbench import paths
from specbench.errors import UsageError
from specbench.events import GenerationFinished
from specbench.lm.load import load_lm
from specbench.lm.packed import packed_states
from specbench.store.journal import read_events
from tests.bench.conftest import save_tiny_target
from tests.conftest import Ran
from tests.helpers import CPU, tiny_lm

REPOSITORY = Path(__file__).resolve().parents[2]
PROMPTS = ["abc abc abc abc", "0 1 0 1 0 1", "zz", "hello hello"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target in float64, a draft model that differs, and questions."""
    root = tmp_path_factory.mktemp("split")
    save_tiny_target(root / "target", dtype=torch.float64)
    save_tiny_target(root / "draft", seed=1, dtype=torch.float64)
    (root / "q.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    return root


def call(folder: Path, *words: str, processes: int) -> subprocess.CompletedProcess[str]:
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [sys.executable, *launch, "-m", "specbench", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def answers(store: Path, run_id: str) -> dict[tuple[str, str], tuple[int, ...]]:
    events = [line.event for line in read_events(paths.run_dir(store, run_id))]
    return {(e.method, e.question_id): e.tokens for e in events if isinstance(e, GenerationFinished)}


def test_two_processes_write_what_one_does(
    folder: Path, tmp_path: Path, specbench: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trees, a draft model and the plain step; ragged rows that leave; sampled with one seed."""
    words = (
        *("run", "q.jsonl", "--target", "target", "--methods", "autoregressive,prompt_lookup,draft_model"),
        *("--set", "prompt_lookup.continuations=2", "--set", "draft_model.model=draft", "--max-new-tokens", "10"),
        *("--repeats", "1", "--threads", "1", "--dtype", "float64", "--device", "cpu", "--json"),
        *("--temperature", "1", "--batch-size", "3"),
    )
    ran = call(folder, *words, "--store", str(tmp_path / "two"), processes=2)
    assert ran.returncode == 0, ran.stderr[-3000:]
    # Only the first process speaks: one JSON object.
    split = json.loads(ran.stdout)
    monkeypatch.chdir(folder)
    alone = specbench(*words, "--store", str(tmp_path / "one"))
    assert alone.code == 0, alone.err
    found = []
    for run, store in ((json.loads(alone.out), tmp_path / "one"), (split, tmp_path / "two")):
        assert all(row["equality"]["identical"] == len(PROMPTS) for row in run["rows"])
        found.append(answers(store, run["run_id"]))
        assert ("2 × " in run["device"]) == (run is split)
    assert found[0] == found[1] and len(found[0]) == 4 * len(PROMPTS)


def test_what_reads_whole_texts_says_that_one_process_is_wanted() -> None:
    lm = tiny_lm()
    lm.num_processes = 2
    ids = torch.tensor([[1, 2, 3]])
    with pytest.raises(UsageError, match="not by one that is split over several") as caught:
        packed_states(lm, ids, torch.zeros_like(ids), ("final",))
    assert "without torchrun" in caught.value.try_


def test_a_second_split_target_is_refused_before_it_waits_for_processes_that_mirror_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    with pytest.raises(UsageError, match="one target that is split"):
        load_lm("demo", device=CPU, dtype=torch.float32, is_split=True)
