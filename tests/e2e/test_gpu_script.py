"""The script for GPUs runs from end to end on a CPU with toy shapes, so that borrowed time on a card is not lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def _run(*arguments: str, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/gpu.py", "--out", str(out), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=400, check=False
    )


def test_every_part_of_the_script_runs_with_toy_shapes(tmp_path: Path) -> None:
    ran = _run("--small", out=tmp_path)
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = json.loads((tmp_path / "rehearsal.json").read_text(encoding="utf-8"))
    assert found["conditions"]["is_rehearsal"] and not (tmp_path / "gpu.json").exists()
    assert not [name for name, part in found.items() if "failed" in part or "left_out" in part]
    assert all(prefix == [32, 32] for name, prefix in found["parity"]["same"].items() if "refused" not in name)
    assert not any(why for name, why in found["parity"]["same"].items() if "refused" in name)
    taus = {name: each["tau"] for name, each in found["oracle"]["raw"].items()}
    assert taus["8, 0.6"] < taus["8, 0.9"], "forced acceptance decides how many tokens a step commits"
    assert "no measurement" in (tmp_path / "rehearsal.md").read_text(encoding="utf-8")


def test_without_a_gpu_the_script_says_how_to_rehearse(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    ran = _run(out=tmp_path)
    assert ran.returncode == 1
    assert "--small" in ran.stderr
