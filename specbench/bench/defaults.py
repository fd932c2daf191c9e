"""What a run takes for the options nobody typed: the suite's `defaults:` first, then the fallbacks here. No torch.

The filled request says everything, and `command` is the line that would have said it: a default is never silent.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from specbench import paths, registry
from specbench.bench.request import READY, RunRequest, Setting
from specbench.card import Option
from specbench.discovery import Entry
from specbench.errors import UsageError
from specbench.suite.schema import Defaults

DEMO_TARGETS: Final = frozenset(paths.DEMO_MODELS)
"""Names whose drafters are embedded: a card's `demo:` values apply."""

DEMO_THREADS: Final = 1
"""CPU threads for the embedded models: too small for a second thread to help, and on a machine whose other core is busy
one that waits for it made a run 20 times slower (measured)."""

_FALLBACKS: Final[dict[str, Any]] = {
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "rule": "coupled",
    "seed": 0,
    "batch_size": 1,
    "carry": "none",
    "dtype": "auto",
    "quantisation": "none",
    "device": "auto",
    "attention": "auto",
    "graphs": "auto",
    "compile": "auto",
}
_NOT_ON_THE_LINE: Final = frozenset(
    {"suite", "command", "settings", "grid", "variants", "methods", "data", "methods_dirs", "stop"}
)


@dataclass(frozen=True, kw_only=True)
class Filled:
    """A request with nothing left open but what None means by itself (`limit`: all; `threads`: the machine's)."""

    request: RunRequest
    taken: tuple[str, ...]
    """Options that came from the suite's `defaults:`."""
    command: str
    """The command in full, as it could have been typed."""
    left_out: tuple[str, ...]
    """`NAME: why`, for every method that `methods: ready` passed over."""


def with_defaults(request: RunRequest, defaults: Defaults) -> Filled:
    """Fill what the request leaves open. Filling twice changes nothing.

    Raises UsageError when an option is wrong for its method, or no method is ready for the target.
    """
    taken: dict[str, Any] = {}
    for name in ("target", "max_new_tokens", "limit", "temperature", "repeats"):
        value = getattr(defaults, name)
        if getattr(request, name) is None and value is not None:
            taken[name] = value
    if request.threads is None and (request.target or defaults.target) in DEMO_TARGETS:
        taken["threads"] = DEMO_THREADS
    left_out: tuple[str, ...] = ()
    if request.methods in (None, READY):
        target = request.target or defaults.target
        if request.methods == READY or defaults.methods == "ready":
            taken["methods"], left_out = ready_methods(request, target=target)
        else:
            taken["methods"] = defaults.methods
    taken |= _adapting(replace(request, **taken))
    left_open = [name for name in _FALLBACKS if getattr(request, name) is None and name not in taken]
    fallbacks = {name: _FALLBACKS[name] for name in left_open}
    command = full_command(replace(request, **taken))
    return Filled(
        request=replace(request, **taken, **fallbacks), taken=tuple(taken), command=command, left_out=left_out
    )


def without_fallbacks(request: RunRequest) -> RunRequest:
    """A filled request with that left open which would be filled the same again: its command says what matters."""
    same: dict[str, Any] = {name: None for name, value in _FALLBACKS.items() if getattr(request, name) == value}
    return replace(request, **same)


def _adapting(request: RunRequest) -> dict[str, Any]:
    """What `--adapt` stands for: the option of every method that has it, and `on` a stream.

    Raises UsageError where no method of the run can learn, or one is told otherwise.
    """
    if request.adapt is None:
        return {}
    methods = request.methods or ()
    able = [name for name in methods if "adapt" in registry.card(name, methods_dirs=request.methods_dirs).options]
    if not able:
        cards = [entry.card for entry in registry.cards(methods_dirs=request.methods_dirs) if entry.card is not None]
        knows = [card.name for card in cards if "adapt" in card.options]
        raise UsageError(
            "no method of this run learns between requests", where="--adapt", try_=f"--methods {','.join(knows)}"
        )
    settings = list(request.settings)
    for name in able:
        said = [item.value for item in settings if (item.method, item.option) == (name, "adapt")]
        if said and {_is_on(word) for word in said} != {request.adapt == "on"}:
            raise UsageError(
                f"--adapt {request.adapt} and --set {name}.adapt={said[0]} contradict each other",
                where="--adapt",
                try_="say it once",
            )
        if not said:
            settings.append(Setting(name, "adapt", request.adapt))
    stream = {"carry": "stream"} if request.adapt == "on" and request.carry is None else {}
    return {"settings": tuple(settings), **stream}


def _is_on(word: Any) -> bool:
    try:
        return bool(Option(type="bool", help="").read(word))
    except ValueError as error:
        raise UsageError(str(error), where="--set", try_="adapt=true or adapt=false") from error


class Readiness(NamedTuple):
    """Which methods can run as they are, the baseline first, and `NAME: why not` for the others."""

    names: tuple[str, ...]
    left_out: tuple[str, ...]


def ready_methods(request: RunRequest, *, target: str) -> Readiness:
    """What `methods: ready` means for this target with the request's --set and --grid."""
    is_demo = target in DEMO_TARGETS
    ready: list[Entry] = []
    left_out: list[str] = []
    given: dict[str, dict[str, str]] = {}
    for item in request.settings:
        given.setdefault(item.method, {})[item.option] = item.value
    for axis in request.grid:
        given.setdefault(axis.method, {})[axis.option] = axis.values[0]
    for variant in reversed(request.variants):
        given.setdefault(variant.method, {}).update(variant.options)
    for entry in registry.cards(methods_dirs=request.methods_dirs):
        if entry.card is None:
            left_out.append(f"{entry.name}: {entry.error}")
            continue
        reason = registry.why_not_ready(entry.card, given, target_is_demo=is_demo, methods_dirs=request.methods_dirs)
        if reason is None:
            ready.append(entry)
        else:
            left_out.append(f"{entry.name}: {reason}")
    if not ready:
        raise UsageError(f"no method is ready for target {target!r}", where="--methods", try_="; ".join(left_out))
    ready.sort(key=lambda entry: (entry.card is None or entry.card.kind != "baseline", entry.name))
    return Readiness(tuple(entry.name for entry in ready), tuple(left_out))


def full_command(request: RunRequest) -> str:
    """The `specbench run` line that says all of the request, quoted for a shell."""
    words = ["specbench", "run"]
    if request.suite is not None:
        words.append(request.suite)
    if request.methods is not None:
        words += ["--methods", ",".join(request.methods)]
    for field in fields(request):
        value = getattr(request, field.name)
        if field.name in _NOT_ON_THE_LINE or value is None or value is False:
            continue
        words.append("--" + field.name.replace("_", "-"))
        if value is not True:
            words.append(_spelt(value))
    for item in request.settings:
        words += ["--set", f"{item.method}.{item.option}={item.value}"]
    for axis in request.grid:
        words += ["--grid", f"{axis.method}.{axis.option}={','.join(axis.values)}"]
    words += [word for variant in request.variants for word in ("--variant", str(variant))]
    words += _folders("--data", request.data) + _folders("--methods-dir", request.methods_dirs)
    words += [word for text in request.stop for word in ("--stop", text)]
    return shlex.join(words)


def _folders(option: str, folders: Sequence[Path]) -> list[str]:
    return [word for folder in folders for word in (option, str(folder))]


def _spelt(value: object) -> str:
    # repr keeps every digit; 0.0 is typed as 0.
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
