"""What a front end asks of a run, what it hears meanwhile and what it gets back. No torch.

Every option of `specbench run` as one frozen, validated value. None means "not said": the suite's `defaults:` fill it,
then the fallbacks of `specbench.bench.defaults`. Ranges are checked here, names (suite, target, method) where they are
resolved.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, get_args

from specbench import registry
from specbench.errors import UsageError, did_you_mean
from specbench.quantisation import check_quantisation

if TYPE_CHECKING:
    from specbench.store.records import RunSummary

Rule = Literal["coupled", "rejection", "typical"]
Carry = Literal["none", "stream"]
Dtype = Literal["auto", "float64", "float32", "float16", "bfloat16"]

READY = ("ready",)
"""As `methods`: all that can run as they are, whatever the suite's own default."""
_SWITCHES = ("auto", "on", "off")
_COMPILE = ("auto", "on", "whole", "off")
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Setting(NamedTuple):
    """`--set METHOD.OPTION=VALUE`; the value is still text, the method's card gives it its type."""

    method: str
    option: str
    value: str


class GridAxis(NamedTuple):
    """`--grid METHOD.OPTION=V1,V2,...`: the method competes once per combination of its axes' values."""

    method: str
    option: str
    values: tuple[str, ...]


def parse_setting(text: str, *, where: str = "--set") -> Setting:
    """`draft_model.model=org/name` -> its three parts. The value may hold `=`, `.` and commas."""
    key, equals, value = text.partition("=")
    method, dot, option = key.strip().partition(".")
    if not (equals and dot and _NAME.fullmatch(method) and _NAME.fullmatch(option)):
        raise UsageError(f"{text!r} is not METHOD.OPTION=VALUE", where=where, try_=f"{where} draft_model.num_tokens=4")
    if not value.strip():
        raise UsageError(f"{text!r} has no value", where=where, try_=f"{where} {key}=VALUE")
    return Setting(method, option, value.strip())


def parse_grid(text: str) -> GridAxis:
    """`redrafter.beam_width=1,2,4` -> the axis; a value may not stand twice."""
    method, option, listed = parse_setting(text, where="--grid")
    values = tuple(value.strip() for value in listed.split(","))
    if "" in values or len(set(values)) != len(values):
        raise UsageError(
            f"{text!r} has an empty or repeated value",
            where="--grid",
            try_=f"--grid {method}.{option}=" + ",".join(dict.fromkeys(value for value in values if value)),
        )
    return GridAxis(method, option, values)


class Variant(NamedTuple):
    """`--variant [NAME=]METHOD:OPTION=V,OPTION=V,...`: the method competes once with these options together."""

    method: str
    options: tuple[tuple[str, str], ...]
    name: str = ""
    """What its rows are called, behind the method's name: METHOD:NAME. Empty: they are called by their options."""

    def __str__(self) -> str:
        listed = ",".join(f"{option}={value}" for option, value in self.options)
        return f"{self.name}={self.method}:{listed}" if self.name else f"{self.method}:{listed}"


_NAMED_VARIANT = re.compile(r"\s*(?:([^=:,]*)=)?\s*([^=:,]+?)\s*:(.*)", re.DOTALL)
_VARIANT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")


def parse_variant(text: str) -> Variant:
    """`redrafter:beam_width=2,num_tokens=6`, or `wide=redrafter:beam_width=4` -> the variant. Values hold no comma."""
    where = "--variant"
    found = _NAMED_VARIANT.fullmatch(text)
    if found is None or not found[3].strip():
        raise UsageError(
            f"{text!r} is not METHOD:OPTION=VALUE,...", where=where, try_=f"{where} redrafter:beam_width=2,num_tokens=4"
        )
    name, method, listed = found[1], found[2], found[3]
    if name is not None and not _VARIANT_NAME.fullmatch(name.strip()):
        raise UsageError(
            f"{name.strip()!r} cannot name a variant: letters, digits, '.', '_' and '-', at most 32",
            where=where,
            try_=f"{where} wide={method}:{listed.strip()}",
        )
    parts = [parse_setting(f"{method}.{part.strip()}", where=where) for part in listed.split(",")]
    return Variant(method, tuple((part.option, part.value) for part in parts), (name or "").strip())


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """One run as asked for. Raises UsageError naming the option that is out of range or contradicts another."""

    suite: str | None = None
    """A suite's name, a YAML or a JSONL; None only with `resume`."""
    target: str | None = None
    methods: tuple[str, ...] | None = None
    limit: int | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    """0 = off."""
    top_p: float | None = None
    """1 = off."""
    min_p: float | None = None
    """0 = off."""
    repetition_penalty: float | None = None
    """1 = off."""
    rule: Rule | None = None
    seed: int | None = None
    batch_size: int | None = None
    repeats: int | None = None
    carry: Carry | None = None
    adapt: str | None = None
    """Whether methods that can learn between requests do: on or off; on is `carry: stream`."""
    dtype: Dtype | None = None
    quantisation: str | None = None
    """Of the target's weights while they are loaded; one of `specbench.quantisation`."""
    device: str | None = None
    threads: int | None = None
    attention: str | None = None
    graphs: str | None = None
    """Whether steps are captured: auto, on or off."""
    compile: str | None = None
    """Whether the target is compiled, on CUDA draft models as well: auto, on (layer by layer; on a CPU whole), whole or
    off."""
    max_len: int | None = None
    """Most tokens of cache per sequence; None = what the suite needs, bounded by the target's context."""
    stop: tuple[str, ...] = ()
    """Strings that end an answer, beside the target's own stop ids."""
    settings: tuple[Setting, ...] = ()
    grid: tuple[GridAxis, ...] = ()
    variants: tuple[Variant, ...] = ()
    resume: str | None = None
    """The run to continue: everything above comes from its manifest and may not be said again."""
    fail_under: float | None = None
    """Least speed-up every method but the baseline must reach, by a number; otherwise the command exits 1."""
    dry_run: bool = False
    data: tuple[Path, ...] = ()
    """Extra folders of the suites' search path, first one first."""
    store: Path | None = None
    methods_dirs: tuple[Path, ...] = ()
    template: str | None = None
    trust_remote_code: bool = False
    command: tuple[str, ...] = ()
    """The command line as typed, for the manifest."""

    def __post_init__(self) -> None:
        if (self.suite is None) == (self.resume is None):
            if self.suite is None:
                raise UsageError("no suite was named", where="SUITE", try_="specbench run demo  (see specbench suites)")
            raise UsageError(
                "--resume takes everything from the run's manifest, the suite included",
                where="--resume",
                try_=f"specbench run --resume {self.resume}",
            )
        if self.resume is not None:
            self._refuse_beside_resume()
        _check_range("--limit", self.limit, least=1)
        _check_range("--max-new-tokens", self.max_new_tokens, least=1)
        _check_range("--temperature", self.temperature, least=0)
        _check_range("--top-k", self.top_k, least=0)
        _check_range("--top-p", self.top_p, above=0, most=1)
        _check_range("--min-p", self.min_p, least=0, most=1)
        _check_range("--repetition-penalty", self.repetition_penalty, above=0)
        _check_range("--seed", self.seed, least=0, most=2**63 - 1)
        _check_range("--batch-size", self.batch_size, least=1)
        _check_range("--repeats", self.repeats, least=1)
        _check_range("--threads", self.threads, least=1)
        _check_range("--max-len", self.max_len, least=2)
        if "" in self.stop:
            raise UsageError("an empty stop string would end every answer", where="--stop", try_="--stop 'Question:'")
        _check_range("--fail-under", self.fail_under, above=0)
        _check_choice("--rule", self.rule, get_args(Rule))
        _check_choice("--carry", self.carry, get_args(Carry))
        _check_choice("--adapt", self.adapt, ("on", "off"))
        if self.adapt == "on" and self.carry == "none":
            raise UsageError(
                "--adapt on learns from one question for the next, which --carry none forgets",
                where="--carry",
                try_="--carry stream, or leave it out",
            )
        _check_choice("--dtype", self.dtype, get_args(Dtype))
        check_quantisation(self.quantisation)
        _check_choice("--graphs", self.graphs, _SWITCHES)
        _check_choice("--compile", self.compile, _COMPILE)
        if self.device is not None and not _DEVICE.fullmatch(self.device):
            raise UsageError(
                f"{self.device!r} is not a device", where="--device", try_="--device auto, cpu, mps, cuda or cuda:1"
            )
        if self.methods is not None:
            self._check_methods(self.methods)
        self._check_settings()

    def _refuse_beside_resume(self) -> None:
        allowed = {"resume", "fail_under", "dry_run", "data", "store", "methods_dirs", "trust_remote_code", "command"}
        for name, field in type(self).__dataclass_fields__.items():
            if name not in allowed and getattr(self, name) != field.default:
                option = {"settings": "--set", "variants": "--variant"}.get(name, "--" + name.replace("_", "-"))
                raise UsageError(
                    f"{option} cannot be changed on a run that has begun: its manifest decides",
                    where="--resume",
                    try_=f"specbench run --resume {self.resume}",
                )

    def _check_methods(self, methods: tuple[str, ...]) -> None:
        if not methods:
            raise UsageError("no method was named", where="--methods", try_="specbench methods")
        repeated = next((name for name in methods if methods.count(name) > 1), None)
        if repeated is not None:
            raise UsageError(
                f"method {repeated!r} is named twice",
                where="--methods",
                try_="name it once; the A/A control is added by itself, several settings go into --grid",
            )

    def _check_settings(self) -> None:
        seen: set[tuple[str, str]] = set()
        varied = {(item.method, name): None for item in self.variants for name, _ in item.options}
        alike = [(item.method, item.options) for item in self.variants]
        named = [(item.method, item.name) for item in self.variants if item.name]
        if len(set(alike)) != len(alike):
            raise UsageError("the same variant is given twice", where="--variant", try_="say it once")
        if len(set(named)) != len(named):
            raise UsageError("two variants have one name", where="--variant", try_="another name for one of them")
        for option, method, name in [
            *(("--set", item.method, item.option) for item in self.settings),
            *(("--grid", item.method, item.option) for item in self.grid),
            *(("--variant", method, name) for method, name in varied),
        ]:
            if (method, name) in seen:
                raise UsageError(
                    f"{method}.{name} is given twice",
                    where=option,
                    try_="say it once, by --set, --grid or --variant",
                )
            seen.add((method, name))
            if self.methods in (None, READY):
                continue
            if method not in self.methods and method not in self._wrapped(self.methods):
                raise UsageError(
                    f"{method}.{name} is set but {method!r} is not among the methods of this run",
                    where=option,
                    try_=f"{did_you_mean(method, self.methods)}; or add {method} to --methods",
                )

    def _wrapped(self, methods: tuple[str, ...]) -> set[str]:
        """Methods that run inside others: their options may be set, too."""
        found: set[str] = set()
        known = {each.name: each.card for each in registry.cards(methods_dirs=self.methods_dirs)}
        for name in methods:
            card = known.get(name)
            if card is not None and card.wraps:
                said = {item.value for item in self.settings if (item.method, item.option) == (name, "inner")}
                for axis in self.grid:
                    said |= set(axis.values) if (axis.method, axis.option) == (name, "inner") else set()
                for variant in self.variants:
                    said |= {value for option, value in variant.options if (variant.method, option) == (name, "inner")}
                found |= said or {str(card.demo.get("inner", card.options["inner"].default))}
        return found


@dataclass(frozen=True, kw_only=True)
class PlanSummary:
    """What a dry run prints: what would be measured, and for about how long."""

    suite: str
    target: str
    device: str
    dtype: str
    quantisation: str
    methods: tuple[str, ...]
    """Labels, the A/A control included."""
    num_questions: int
    num_repeats: int
    num_groups: int
    """Timed generations, all methods, turns and repeats."""
    max_new_tokens: int
    estimated_s: float | None
    """None where nothing was known to estimate it from."""
    estimate_basis: str
    """What the estimate rests on, in a few words."""


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """What a run came to."""

    run_id: str
    """Empty for a dry run."""
    state: Literal["finished", "interrupted", "planned"]
    summary: RunSummary | None = None
    """What `run --json` prints; None for a dry run, for a run interrupted before its first answer, and where DuckDB is
    not installed."""
    plan: PlanSummary | None = None
    """Of a dry run."""
    failed_checks: tuple[str, ...] = ()
    """Sentences; any of them makes the command exit 1 (a `bug` verdict, a method all of whose generations failed,
    --fail-under)."""
    undecided: tuple[str, ...] = ()
    """Sentences on methods that pass --fail-under for their noise alone; they change no exit code."""


class Progress(Protocol):
    """Told between groups only, never inside a timed region; an implementation starts no thread."""

    def plan(self, *, num_groups: int, num_done: int, title: str) -> None:
        """Once, before the first group: num_done of num_groups were finished by an earlier attempt."""
        ...

    def group_done(self, *, method: str, question: str, seconds: float, num_tokens: int, failed: bool) -> None:
        """One more timed generation is over; `question` is its id (or `id +3` for a batch)."""
        ...

    def say(self, text: str) -> None:
        """A line of narration: warm-up, the reference pass, a failed question."""
        ...


def _check_range(
    option: str, value: float | None, *, least: float = -math.inf, above: float = -math.inf, most: float = math.inf
) -> None:
    if value is None:
        return
    if not (value >= least and value > above and value <= most and math.isfinite(value)):
        low = f"more than {above:g}" if above > -math.inf else f"at least {least:g}"
        high = f" and at most {most:g}" if most < math.inf else ""
        raise UsageError(f"{option} {value:g} is out of range", where=option, try_=f"{option} must be {low}{high}")


def _check_choice(option: str, value: str | None, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise UsageError(f"{value!r} is not a choice of {option}", where=option, try_=did_you_mean(value, known))
