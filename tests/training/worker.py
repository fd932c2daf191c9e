"""`python worker.py TARGET STORE CHANGED`: trainings of the in-memory corpus in a process of its own, or of several.

CHANGED: one JSON object of changes to the request, or a list of them, each a training. `resume` continues a run,
`interrupt_at` presses Ctrl-C in the first process behind that step, `fsdp` shards the drafter over the processes.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType
from training.small import METHODS, Quiet, make_corpus, make_request

from specbench.training import TrainRequest, runner, train


class _Pressing(Quiet):
    def __init__(self, at: int) -> None:
        super().__init__()
        self._at = at

    def step(self, *, step: int, share: float, loss: float, tokens_per_s: float, eta_s: float | None) -> None:
        if step == self._at:
            os.kill(os.getpid(), signal.SIGINT)


def _sharded(accelerator: Accelerator) -> Accelerator:
    """accelerate offers FSDP on accelerators only; torch's own has a CPU's as well."""
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="no_wrap")
    accelerator.state.distributed_type = DistributedType.FSDP
    return accelerator


def _train(target: Path, store: Path, changed: dict[str, Any]) -> str:
    progress = _Pressing(changed.pop("interrupt_at", 0))
    make = runner.make_accelerator
    if changed.pop("fsdp", False):
        runner.make_accelerator = lambda request: _sharded(make(request))
    resume = changed.pop("resume", None)
    if resume is None:
        changed["report_to"] = tuple(changed.get("report_to", ()))
        request = make_request(target, store, **changed)
    else:
        request = TrainRequest(resume=resume, store=store, methods_dirs=(METHODS,))
    try:
        return train(request, progress, corpus=make_corpus()).run_id
    finally:
        runner.make_accelerator = make


if __name__ == "__main__":
    asked = json.loads(sys.argv[3])
    for each in asked if isinstance(asked, list) else [asked]:
        print(_train(Path(sys.argv[1]), Path(sys.argv[2]), each))
