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
from torch import nn

from specbench import paths
from specbench.errors import UsageError
from specbench.events import GenerationFinished, GenerationStarted, Steps
from specbench.lm.load import load_lm
from specbench.lm.packed import packed_states
from specbench.manifest import read_manifest
from specbench.store.journal import read_events
from tests.bench.conftest import save_tiny_target
from tests.conftest import Ran
from tests.helpers import CPU, tiny_lm
from tests.lm.split_program import calls, spoil

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


def call(folder: Path, *words: str, out: Path, processes: int) -> subprocess.CompletedProcess[str]:
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [sys.executable, *launch, str(REPOSITORY / "tests" / "lm" / "split_program.py"), str(out), *words],
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


def ranks(store: Path, run_id: str, method: str) -> set[int]:
    """Of the nodes that were accepted: 0 is a parent's first child."""
    events = [line.event for line in read_events(paths.run_dir(store, run_id))]
    groups = {each.group for each in events if isinstance(each, GenerationStarted) and each.method == method}
    rows = [row for each in events if isinstance(each, Steps) and each.group in groups for row in each.rows]
    return {rank for row in rows for rank in row.ranks}


def test_two_processes_write_what_one_does(
    folder: Path, tmp_path: Path, specbench: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chains, trees of a draft model and the plain step; ragged rows that leave; sampled with one seed; then a text
    that is cut, and a cache that is emptied of NaN."""
    words = (
        *("run", "q.jsonl", "--target", "target", "--methods", "autoregressive,prompt_lookup,draft_model"),
        *("--set", "prompt_lookup.continuations=2", "--set", "draft_model.model=draft", "--max-new-tokens", "10"),
        *("--set", "draft_model.beam_width=4", "--set", "draft_model.num_tokens=3"),
        *("--repeats", "1", "--threads", "1", "--dtype", "float64", "--device", "cpu", "--json"),
        *("--temperature", "1", "--batch-size", "3"),
    )
    ran = call(folder, *words, "--store", str(tmp_path / "two"), out=tmp_path / "calls.json", processes=2)
    assert ran.returncode == 0, ran.stderr[-3000:]
    # Only the first process speaks: one JSON object.
    split = json.loads(ran.stdout)
    monkeypatch.chdir(folder)
    alone = specbench(*words, "--store", str(tmp_path / "one"))
    assert alone.code == 0, alone.err
    found, cache_bytes = [], []
    for run, store in ((json.loads(alone.out), tmp_path / "one"), (split, tmp_path / "two")):
        assert all(row["equality"]["identical"] == len(PROMPTS) for row in run["rows"])
        found.append(answers(store, run["run_id"]))
        assert ("2 × " in run["device"]) == (run is split)
        assert max(ranks(store, run["run_id"], "draft_model")) > 0, "no accepted node was moved: a chain would do"
        cache_bytes.append(read_manifest(paths.run_dir(store, run["run_id"])).target.cache_bytes_per_token)
    assert found[0] == found[1] and len(found[0]) == 4 * len(PROMPTS)
    # 2 layers of keys and values, 2 heads of 8 each, float64: half of them in each process.
    assert cache_bytes == [2 * 2 * 2 * 8 * 8] * 2
    hook = nn.modules.module.register_module_forward_hook(spoil)
    try:
        wanted = calls(load_lm(str(folder / "target"), device=CPU, dtype=torch.float64))
    finally:
        hook.remove()
    assert len(wanted) == 3
    torch.testing.assert_close(
        torch.tensor(json.loads((tmp_path / "calls.json").read_text()), dtype=torch.float64),
        torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-9,
    )  # fmt: skip


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
