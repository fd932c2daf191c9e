"""What a front end asks of a training, what it hears meanwhile and what it gets back. No torch.

Every option of `specbench train` as one frozen, validated value. None means "not said": `specbench.training.defaults`
fills it by target. Ranges are checked here, names (target, method, data set) where they are resolved.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from specbench import paths
from specbench.bench.request import Dtype, Setting
from specbench.errors import UsageError, did_you_mean
from specbench.quantisation import check_quantisation
from specbench.suite import TEMPLATE_NAMES

Learn = Literal["gt", "kd", "seq"]
"""gt: the text's tokens. kd: the target's laws at the text's positions. seq: what the target itself would write after
every position."""
LossName = Literal["ce", "kd", "tv", "lk"]
Schedule = Literal["cosine", "linear", "constant"]
Precision = Literal["fp32", "bf16"]
State = Literal["finished", "interrupted", "failed", "planned"]

TRACKERS = ("tensorboard", "wandb", "comet_ml", "aim", "mlflow", "clearml", "dvclive", "swanlab", "trackio")
"""What accelerate can report to."""
_AT_LEAST_1 = (
    "documents",
    "batch_size",
    "micro_batch",
    "max_steps",
    "max_tokens",
    "eval_every",
    "eval_documents",
    "save_every",
    "threads",
)
_AT_LEAST_0 = ("eval_prompts", "patience", "teacher_top_k", "response_temperature", "weight_decay", "clip")
_ABOVE_0 = ("kd_temperature", "epochs", "max_minutes", "lr")
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """One training as asked for. Raises UsageError naming the option that is out of range or contradicts another."""

    method: str | None = None
    """None only with `resume`."""
    target: str | None = None
    dataset: str | None = None
    """A name, a hub id or a local file, see `specbench data ls`."""
    columns: str | None = None
    """`--columns`: which columns of the data set hold what."""
    documents: int | None = None
    """Most documents taken from the data set, a seeded subset; None = all."""
    template: str | None = None
    """What conversations are written in: `chat`, the target's own, or a plain one by name, as for `run`."""
    assistant_only: bool | None = None
    response_tokens: int | None = None
    """Longest answer where the target writes them itself (`--dataset self`, `self:NAME`)."""
    response_temperature: float | None = None
    learn: Learn | None = None
    loss: LossName | None = None
    """None: what `learn` implies (gt, seq: ce; kd: kd)."""
    kd_temperature: float | None = None
    kd_alpha: float | None = None
    depth_decay: float | None = None
    max_length: int | None = None
    """Tokens of a packed row; longer documents are cut."""
    batch_size: int | None = None
    """Rows of an optimiser step, all devices and micro-batches together."""
    micro_batch: int | None = None
    """Rows of one forward on one device. Changes memory and speed, never the result."""
    max_steps: int | None = None
    epochs: float | None = None
    max_tokens: int | None = None
    """Text tokens the target reads; padding is not counted."""
    max_minutes: float | None = None
    lr: float | None = None
    schedule: Schedule | None = None
    warmup: float | None = None
    """Share of the training over which the learning rate rises from 0."""
    weight_decay: float | None = None
    beta1: float | None = None
    beta2: float | None = None
    clip: float | None = None
    """Largest norm of the gradient; 0 = not clipped."""
    precision: Precision | None = None
    """Of the drafter's arithmetic; its parameters are float32 always. None: fp32 on a CPU and on the embedded target,
    bf16 elsewhere."""
    seed: int | None = None
    """Of the first weights, the order of the rows and everything drawn while learning."""
    data_seed: int | None = None
    """Of the documents drawn, those held out, and the packing; None = `seed`. Trainings that share it are judged by the
    same documents and share the states on disk."""
    eval_every: int | None = None
    """Steps between evaluations; one more is made at the end."""
    eval_documents: int | None = None
    """Documents kept out of training."""
    eval_prompts: int | None = None
    """Prompts of held-out documents on which acceptance is simulated; 0 = none (the best is then by loss)."""
    eval_new_tokens: int | None = None
    patience: int | None = None
    """Evaluations without a better one after which the training stops; 0 = never."""
    save_every: int | None = None
    """Steps between resumable states."""
    cache_states: bool = False
    teacher_top_k: int | None = None
    """Entries of a law kept on disk under `cache_states`, beside one for the tail; 0 = the final states are kept and
    laws recomputed. Refused where no law is kept: without `cache_states`, and under loss `ce`."""
    report_to: tuple[str, ...] = ()
    threads: int | None = None
    device: str | None = None
    dtype: Dtype | None = None
    """Of the target."""
    quantisation: str | None = None
    """Of the target."""
    attention: str | None = None
    settings: tuple[Setting, ...] = ()
    """`--set METHOD.OPTION=VALUE`: the card's `training:` options, and its drafting ones for simulated acceptance."""
    out: Path | None = None
    resume: str | None = None
    """The training to continue: everything above comes from its train.json and may not be said again."""
    dry_run: bool = False
    data: tuple[Path, ...] = ()
    store: Path | None = None
    methods_dirs: tuple[Path, ...] = ()
    trust_remote_code: bool = False
    command: tuple[str, ...] = ()
    """The command line as typed, for train.json."""

    def __post_init__(self) -> None:
        if self.resume is not None:
            self._refuse_beside_resume()
        elif self.method is None:
            raise UsageError("no method was named", where="--method", try_="specbench train --method redrafter")
        for name in _AT_LEAST_1:
            check_range(name, getattr(self, name), least=1)
        for name in _AT_LEAST_0:
            check_range(name, getattr(self, name), least=0)
        for name in _ABOVE_0:
            check_range(name, getattr(self, name), above=0)
        check_range("max_length", self.max_length, least=4)
        check_range("response_tokens", self.response_tokens, least=2)
        check_range("eval_new_tokens", self.eval_new_tokens, least=2)
        check_range("kd_alpha", self.kd_alpha, least=0, most=1)
        check_range("depth_decay", self.depth_decay, above=0, most=1)
        check_range("warmup", self.warmup, least=0, most=1)
        for name in ("beta1", "beta2"):
            check_range(name, getattr(self, name), least=0, below=1)
        check_range("seed", self.seed, least=0, most=2**63 - 1)
        check_range("data_seed", self.data_seed, least=0, most=2**63 - 1)
        check_choice("--learn", self.learn, get_args(Learn))
        check_choice("--loss", self.loss, get_args(LossName))
        check_choice("--schedule", self.schedule, get_args(Schedule))
        check_choice("--precision", self.precision, get_args(Precision))
        check_choice("--template", self.template, TEMPLATE_NAMES)
        check_choice("--dtype", self.dtype, get_args(Dtype))
        check_quantisation(self.quantisation)
        for name in self.report_to:
            check_choice("--report-to", name, TRACKERS)
        if self.device is not None and not _DEVICE.fullmatch(self.device):
            raise UsageError(
                f"{self.device!r} is not a device", where="--device", try_="--device auto, cpu, mps, cuda or cuda:1"
            )
        self._check_settings()

    def _refuse_beside_resume(self) -> None:
        allowed = {"resume", "dry_run", "data", "store", "methods_dirs", "trust_remote_code", "command"}
        for name, each in type(self).__dataclass_fields__.items():
            if name not in allowed and getattr(self, name) != each.default:
                option = {"settings": "--set"}.get(name, "--" + name.replace("_", "-"))
                raise UsageError(
                    f"{option} cannot be changed on a training that has begun: its train.json decides",
                    where="--resume",
                    try_=f"specbench train --resume {self.resume}",
                )

    def _check_settings(self) -> None:
        seen: set[str] = set()
        for item in self.settings:
            if item.method != self.method:
                raise UsageError(
                    f"{item.method}.{item.option} is set but {item.method!r} is not the method of this training",
                    where="--set",
                    try_=f"--set {self.method}.{item.option}={item.value}, or --method {item.method}",
                )
            if item.option in seen:
                raise UsageError(f"{item.method}.{item.option} is given twice", where="--set", try_="say it once")
            seen.add(item.option)


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """What a dry run prints, and what is said before the first step."""

    method: str
    target: str
    device: str
    precision: str
    processes: int
    parameters: Mapping[str, int]
    """By part of the drafter, and `total`."""
    parameter_bytes: int
    """Of the drafter as saved (float32)."""
    memory_bytes: int
    """An estimate: target, drafter, gradients, optimiser, one micro-batch of states and of a chunk of logits."""
    documents: int
    held_out: int
    rows: int
    row_tokens: int
    tokens_per_epoch: int
    learn_tokens_per_epoch: int
    steps: int | None
    """None where minutes or tokens decide."""
    tokens: int | None
    cache_bytes: int | None
    """Of `--cache-states`."""
    estimated_s: float | None
    notes: tuple[str, ...] = ()
    at_most: bool = False
    """The target has yet to write what is learnt: documents, rows, tokens, bytes and seconds are upper estimates."""

    def lines(self) -> list[str]:
        """The plan as text, for a dry run and for the log."""
        parts = ", ".join(f"{name} {count:,}" for name, count in self.parameters.items() if name != "total")
        most = "at most " if self.at_most else ""
        processes = "1 process" if self.processes == 1 else f"{self.processes} processes"
        lines = [
            f"method      {self.method}: {self.parameters['total']:,} parameters, "
            f"{self.parameter_bytes:,} bytes ({parts})",
            f"target      {self.target} on {self.device}, drafter in {self.precision}, {processes}",
            f"documents   {most}{self.documents:,} to learn from, {self.held_out:,} held out",
            f"rows        {most}{self.rows:,} of {self.row_tokens} tokens: {most}{self.tokens_per_epoch:,} tokens an "
            f"epoch, {self.learn_tokens_per_epoch:,} of them to be learnt",
            f"memory      about {self.memory_bytes / 1e9:.2f} GB on each device",
        ]
        if self.steps is not None:
            # Shorter rows need more steps for --max-tokens, and make fewer of --epochs.
            steps = f"about {self.steps:,}" if self.at_most else f"{self.steps:,}"
            lines.append(f"steps       {steps}, {most}about {self.tokens or 0:,} tokens")
        if self.estimated_s is not None:
            lines.append(f"time        {most}about {self.estimated_s:,.0f} s, judged by one row")
        return [*lines, *self.notes]


@dataclass(frozen=True, kw_only=True)
class TrainOutcome:
    """What a training came to."""

    run_id: str
    """Empty for a dry run."""
    state: State
    folder: Path | None = None
    """The drafter, where one was finished."""
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best: Mapping[str, Any] = field(default_factory=dict)
    """step, loss, tau, chain and top1 of the evaluation whose weights were kept."""
    why: str = ""
    """What ended it: `max_steps`, `epochs`, `max_tokens`, `max_minutes`, `patience`, `interrupted`."""
    command: str = ""
    """The `specbench run` line that uses the drafter."""
    plan: TrainPlan | None = None
    is_main: bool = True
    """False on every process of a distributed training but the first, which alone prints."""


class TrainProgress(Protocol):
    """Told between steps; an implementation starts no thread."""

    def plan(self, *, title: str, share_done: float) -> None:
        """Once, before the first step; share_done of the training was done by an earlier attempt."""
        ...

    def step(self, *, step: int, share: float, loss: float, tokens_per_s: float, eta_s: float | None) -> None:
        """One more optimiser step is over; share: how much of the training is done, 0 to 1."""
        ...

    def say(self, text: str) -> None:
        """A line of narration."""
        ...


def findable(text: str) -> str:
    """A path that exists from here becomes absolute; names of embedded models stay names."""
    is_path = text not in paths.DEMO_MODELS and ("/" in text or "." in text) and Path(text).exists()
    return str(Path(text).resolve()) if is_path else text


def check_range(
    name: str,
    value: float | None,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    most: float = math.inf,
    below: float = math.inf,
) -> None:
    """Raises UsageError where a field's value lies outside; None is fine."""
    if value is None:
        return
    if not (value >= least and value > above and value <= most and value < below and math.isfinite(value)):
        option = "--" + name.replace("_", "-")
        low = f"more than {above:g}" if above > -math.inf else f"at least {least:g}"
        high = f" and at most {most:g}" if most < math.inf else f" and less than {below:g}" if below < math.inf else ""
        raise UsageError(f"{option} {value:g} is out of range", where=option, try_=f"{option} must be {low}{high}")


def check_choice(option: str, value: str | None, known: tuple[str, ...]) -> None:
    """Raises UsageError naming the nearest choice; None is fine."""
    if value is not None and value not in known:
        raise UsageError(f"{value!r} is not a choice of {option}", where=option, try_=did_you_mean(value, known))
