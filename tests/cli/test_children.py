"""A command of ours in a process of its own: Ctrl-C lets it save itself, a second one does not wait."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from specbench.cli.children import run_specbench
from specbench.training.command import Ran


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """In Python's place, this shell script: $PPID is us."""
    file = folder / "python"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(file))


def test_a_command_that_is_saving_itself_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "kill -INT $PPID; sleep 0.8; echo saved; exit 130")
    assert run_specbench(["train"], captured=True) == Ran(130, "saved\n", was_interrupted=True)


def test_the_second_ctrl_c_is_passed_on_and_leaves_no_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("specbench.cli.children._BREAKING_OFF_S", 0.2)
    script = f"echo $$ > {tmp_path}/pid; kill -INT $PPID; sleep 0.2; kill -INT $PPID; exec sleep 60"
    stand_in(tmp_path, monkeypatch, script)
    with pytest.raises(KeyboardInterrupt):
        run_specbench(["train"])
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


def test_what_a_command_prints_and_how_it_ends_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, "echo $*; exit 3")
    found = run_specbench(["run", "demo"], captured=True)
    assert found == Ran(3, "-m specbench run demo\n", was_interrupted=False)
