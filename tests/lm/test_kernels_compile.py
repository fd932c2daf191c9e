"""The kernels compile for a GPU, on a machine without one: the interpreter accepts what the compiler refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed: pip install triton (Linux)")

REPOSITORY = Path(__file__).resolve().parents[2]
_MOST_SHARED = 232_448
"""Bytes a block may have on the card that is compiled for (compute capability 9.0)."""


def test_every_kernel_compiles_for_a_gpu() -> None:
    """Every dtype, head sizes from 64 to 256, one slot and 129, windows, caps and sinks."""
    # A process of its own: these tests have Triton's interpreter on, and there nothing is compiled.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), environment.get("PYTHONPATH")]))
    ran = subprocess.run(
        [sys.executable, "tests/lm/compile_kernels.py"], cwd=REPOSITORY, env=environment, capture_output=True,
        text=True, timeout=240, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    assert {line["what"].split()[0] for line in found} == {"stamp", "attend", "merge"}
    assert {line["what"]: line["why"] for line in found if line["why"]} == {}
    assert max(line["shared"] for line in found) <= _MOST_SHARED
