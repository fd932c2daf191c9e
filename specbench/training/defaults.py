"""What a training takes for the options nobody typed, by target. No torch.

The embedded target is trained in minutes on one CPU core; any other takes the usual figures of published drafters.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from specbench import registry
from specbench.bench.defaults import DEMO_TARGETS, DEMO_THREADS
from specbench.bench.request import Dtype, Setting
from specbench.errors import UsageError
from specbench.suite import CHAT
from specbench.training.request import Learn, LossName, Precision, Schedule, TrainRequest

_COMMON: Final[dict[str, Any]] = {
    "target": "demo",
    "template": CHAT,
    "assistant_only": True,
    "learn": "kd",
    "kd_temperature": 1.0,
    "kd_alpha": 1.0,
    "depth_decay": 1.0,
    "schedule": "cosine",
    "warmup": 0.05,
    "weight_decay": 0.0,
    "beta1": 0.9,
    "beta2": 0.95,
    "clip": 1.0,
    "lr": 1e-3,
    "seed": 0,
    "patience": 0,
    "response_temperature": 0.0,
    "teacher_top_k": 0,
    "device": "auto",
    "dtype": "auto",
    "quantisation": "none",
    "attention": "auto",
}
_DEMO: Final[dict[str, Any]] = {
    "dataset": "demo",
    "documents": 1200,
    "response_tokens": 96,
    "max_length": 256,
    "batch_size": 4,
    "micro_batch": 4,
    "eval_every": 75,
    "eval_documents": 32,
    "eval_prompts": 12,
    "eval_new_tokens": 64,
    "save_every": 75,
    "threads": DEMO_THREADS,
}
_OTHER: Final[dict[str, Any]] = {
    "max_length": 2048,
    "response_tokens": 256,
    "batch_size": 64,
    "micro_batch": 2,
    "eval_every": 200,
    "eval_documents": 128,
    "eval_prompts": 32,
    "eval_new_tokens": 128,
    "save_every": 200,
}
_DEMO_STEPS: Final = 300
_OTHER_EPOCHS: Final = 2.0
_LOSS_OF: Final = {"gt": "ce", "kd": "kd", "seq": "ce"}
BUDGETS: Final = ("max_steps", "epochs", "max_tokens", "max_minutes")
"""What may end a training; the first one reached does."""


@dataclass(frozen=True, kw_only=True)
class Settled:
    """A request with nothing left open but what None means by itself. Fields are those of TrainRequest."""

    request: TrainRequest
    """The same, filled, for train.json."""
    method: str
    target: str
    dataset: str
    columns: str | None
    documents: int | None
    template: str
    assistant_only: bool
    response_tokens: int
    response_temperature: float
    learn: Learn
    loss: LossName
    kd_temperature: float
    kd_alpha: float
    depth_decay: float
    max_length: int
    batch_size: int
    micro_batch: int
    max_steps: int | None
    epochs: float | None
    max_tokens: int | None
    max_minutes: float | None
    lr: float
    schedule: Schedule
    warmup: float
    weight_decay: float
    beta1: float
    beta2: float
    clip: float
    precision: Precision | None
    """None: as the device is best at, which only torch knows (`setup.with_precision`)."""
    seed: int
    data_seed: int
    eval_every: int
    eval_documents: int
    eval_prompts: int
    eval_new_tokens: int
    patience: int
    save_every: int
    cache_states: bool
    teacher_top_k: int
    report_to: tuple[str, ...]
    threads: int | None
    device: str
    dtype: Dtype
    quantisation: str
    attention: str
    settings: tuple[Setting, ...]
    out: Path | None
    dry_run: bool
    data: tuple[Path, ...]
    store: Path | None
    methods_dirs: tuple[Path, ...]
    trust_remote_code: bool


def settle(request: TrainRequest, *, is_resumed: bool = False) -> Settled:
    """Fill what the request leaves open. is_resumed: it was settled before, under what was refused by then.

    Raises UsageError where no data set is named for a target that has none of its own, for laws to be kept where none
    are, and for options of a loss that is not the training's.
    """
    filled = with_defaults(request)
    if not is_resumed:
        _refuse_unread_laws(filled)
        _refuse_unread_distillation(filled)
    return Settled(
        request=filled, **{each.name: getattr(filled, each.name) for each in fields(Settled) if each.name != "request"}
    )


def with_defaults(request: TrainRequest) -> TrainRequest:
    """The request with the defaults in it. Filling twice changes nothing. Raises as `settle` does."""
    target = request.target or "demo"
    is_demo = target in DEMO_TARGETS
    own = _DEMO if is_demo else _OTHER
    filled = {name: value for name, value in {**_COMMON, **own}.items() if getattr(request, name) is None}
    if is_demo and request.lr is None and request.method is not None:
        card = registry.card(request.method, methods_dirs=request.methods_dirs, named_by="--method")
        filled["lr"] = card.demo_lr or _COMMON["lr"]
    if all(getattr(request, name) is None for name in BUDGETS):
        filled |= {"max_steps": _DEMO_STEPS} if is_demo else {"epochs": _OTHER_EPOCHS}
    if request.loss is None:
        filled["loss"] = _LOSS_OF[request.learn or _COMMON["learn"]]
    request = replace(request, **filled)
    if request.data_seed is None:
        request = replace(request, data_seed=request.seed)
    if request.precision is None and is_demo:
        request = replace(request, precision="fp32")
    if request.dataset is None:
        raise UsageError(
            f"no data set was named for target {target!r}",
            where="--dataset",
            try_="--dataset sharegpt (specbench data ls), or a JSONL of your own",
        )
    assert request.batch_size is not None and request.micro_batch is not None
    if request.micro_batch > request.batch_size:
        request = replace(request, micro_batch=request.batch_size)
    return request


def _refuse_unread_laws(filled: TrainRequest) -> None:
    """Raises UsageError where `--teacher-top-k` would change nothing."""
    if not filled.teacher_top_k:
        return
    if not filled.cache_states:
        raise UsageError(
            "--teacher-top-k says how much of a law --cache-states keeps on disk; without it laws are made whole",
            where="--teacher-top-k",
            try_=f"--cache-states --teacher-top-k {filled.teacher_top_k}, or leave it out",
        )
    if filled.loss == "ce":
        raise UsageError(
            f"--teacher-top-k says how much of the target's laws is kept, and --learn {filled.learn} with --loss ce "
            "reads none",
            where="--teacher-top-k",
            try_="--learn kd, or leave it out",
        )


def _refuse_unread_distillation(filled: TrainRequest) -> None:
    """Raises UsageError where `--kd-temperature` or `--kd-alpha` would change nothing."""
    if filled.loss == "kd":
        return
    for option, value, says in (
        ("--kd-temperature", filled.kd_temperature, "the temperature at which both laws are compared"),
        ("--kd-alpha", filled.kd_alpha, "how much of the loss is cross-entropy with the label"),
    ):
        if value != 1.0:
            raise UsageError(
                f"{option} says {says} under --loss kd; --learn {filled.learn} with --loss {filled.loss} reads it "
                "nowhere",
                where=option,
                try_="--learn kd --loss kd, or leave it out",
            )
