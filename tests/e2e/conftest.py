"""The program as a user starts it: a process of its own, in an empty folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_inside

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "100", "NO_COLOR": "1"}


@pytest.fixture
def inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Finished]:
    """As `specbench`, in the test's own process, which has loaded torch already: for what a second process of its own
    would not show."""
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    monkeypatch.chdir(home)
    monkeypatch.delenv("SPECBENCH_RESULTS", raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")

    return lambda *words: Finished(*run_inside(capsys, words))


@pytest.fixture
def specbench(tmp_path: Path) -> Callable[..., Finished]:
    """specbench(*words, cwd=None) -> exit code, stdout, stderr. Runs in an empty folder; results go to ./results
    there."""
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)

    def call(*words: str, cwd: Path | None = None, stdin: str = "") -> Finished:
        env = environment()
        env.pop("SPECBENCH_RESULTS", None)
        done = subprocess.run(
            [sys.executable, "-m", "specbench", *words],
            cwd=cwd or home,
            env=env,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    return call
