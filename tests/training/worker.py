"""`python worker.py TARGET STORE CHANGED`: trainings of the in-memory corpus in a process of its own, or of several.

CHANGED: a JSON list of changes to the request, each a training, one behind the other. `resume` continues a run, or the
`last` one, `interrupt_at` presses Ctrl-C in the first process behind that step, `fsdp` shards the drafter. Behind the
runs' ids it prints which of the packages that are none of a training's business were loaded before them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from training.small import METHODS, Quiet, make_corpus, make_request

from specbench.training import TrainRequest, measure, runner, train  # noqa: F401 - measure: what it loads is asked for


class _Pressing(Quiet):
    def __init__(self, at: int) -> None:
        super().__init__()
        self._at = at

    def step(self, *, step: int, share: float, loss: float, tokens_per_s: float, eta_s: float | None) -> None:
        if step == self._at:
            os.kill(os.getpid(), signal.SIGINT)


def _sharded(accelerator: Accelerator) -> Accelerator:
    """accelerate lets --use_fsdp count on accelerators only, though torch's own FSDP (2) runs on CPUs over gloo."""
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="no_wrap")
    accelerator.state.distributed_type = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    prepare = accelerator.prepare

    def checked(*parts: Any) -> Any:
        found = prepare(*parts)
        assert all(isinstance(each, DTensor) for each in found[0].parameters()), "the weights lie in pieces"
        return found

    accelerator.prepare = checked
    return accelerator


def _train(target: Path, store: Path, changed: dict[str, Any]) -> str:
    progress = _Pressing(changed.pop("interrupt_at", 0))
    make, kind = runner.make_accelerator, PartialState._shared_state.get("distributed_type")
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
        if kind is not None:
            PartialState._shared_state["distributed_type"] = kind


if __name__ == "__main__":
    strangers = sorted({"textual", "duckdb", "plotly", "typer"} & set(sys.modules))
    run_id = ""
    for each in json.loads(sys.argv[3]):
        if each.get("resume") == "last":
            each["resume"] = run_id
        run_id = _train(Path(sys.argv[1]), Path(sys.argv[2]), each)
        print(run_id)
    print("loaded:", *strangers)
