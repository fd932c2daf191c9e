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
    """Six shapes of tree attention: bfloat16 with heads of 128 and 256, float16 with 64 and 80, float32 with 256; one
    slot to 129, windows, caps and sinks. `compile_kernels.py all` compiles every type with every size from 64 to 256,
    which takes many minutes.

    float32 is multiplied as it is: on tensor cores its products would keep 10 bits of 23 and pass for the reference's.
    """
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
    of_type = {"bf16": ".f32.bf16.bf16", "fp16": ".f32.f16.f16"}
    for line in found:
        if line["what"].startswith("attend") and "fp32" not in line["what"]:
            [taken] = [each for name, each in of_type.items() if name in line["what"]]
            assert line["products"] and all(taken in each for each in line["products"])
        else:
            assert line["products"] == []
