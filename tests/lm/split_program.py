"""`python split_program.py OUT run ...`: specbench in every process that torchrun starts; then, in the first one, calls
of the split target that no run makes, and what they gave as JSON in OUT."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specbench.cli import main
from specbench.lm import parallel
from specbench.lm.cached_lm import CachedLM

POISON = 255
"""Texts of this token alone are not numbers, in every process."""


def calls(lm: CachedLM) -> list[list[float]]:
    """Logits behind a text that was cut, and behind texts that follow one of NaN. `spoil` is in force."""
    lm.allocate(max_batch=2, max_len=40, max_nodes=0)
    lm.begin(1)
    lm.prefill(0, torch.arange(1, 13))
    lm.truncate(0, 5)
    found = [lm.append(torch.tensor([[30, 31]]), [2])[0].tolist()]
    lm.begin(2)
    for row in range(2):
        logits_V, _ = lm.prefill(row, torch.tensor([POISON] * 20))
        assert not logits_V.isfinite().any()
    lm.erase()
    # Ragged: behind the shorter row there are slots that are masked, and read.
    lm.begin(2)
    for row, length in enumerate((9, 2)):
        lm.prefill(row, torch.arange(1, 1 + length))
    return found + lm.append(torch.tensor([[40], [41]]), [1, 1]).tolist()


def spoil(module: nn.Module, inputs: Any, output: Any) -> Any:
    """A hook of every module."""
    if isinstance(module, nn.Embedding) and isinstance(inputs[0], Tensor) and bool((inputs[0] == POISON).all()):
        return output * float("nan")
    return output


def _program(out: Path) -> None:
    lead_or_follow, led = parallel.lead_or_follow, []

    def keep(*args: Any, **facts: Any) -> CachedLM:
        led.append(lead_or_follow(*args, **facts))  # the others end in here
        return led[0]

    parallel.lead_or_follow = keep  # type: ignore[assignment]
    nn.modules.module.register_module_forward_hook(spoil)
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
    if led:
        out.write_text(json.dumps(calls(led[0])))


if __name__ == "__main__":
    out = Path(sys.argv.pop(1))
    _program(out)
