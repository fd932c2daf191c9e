"""The launch form without the screen: its fields come from RunRequest, its checks from the command's own. No Textual.

A field of RunRequest is a field of the form, so a new option appears by itself. What is typed is checked by the very
code that checks the command line, and the command shown is the one that is started.
"""

from __future__ import annotations

import dataclasses
import shlex
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import yaml

from specbench import paths, registry
from specbench.bench.defaults import DEMO_TARGETS, full_command, with_defaults
from specbench.bench.request import RunRequest, parse_grid, parse_setting, parse_variant
from specbench.errors import SpecbenchError, UsageError
from specbench.quantisation import CHOICES
from specbench.suite.reading import packaged_names, read_suite_file, resolve_spec
from specbench.suite.schema import Defaults

_NOT_ASKED = frozenset({"resume", "dry_run", "store", "command", "fail_under"})
"""Of the command alone: the store is the viewer's own."""
_FIRST = ("suite", "target", "methods", "limit", "repeats", "max_new_tokens", "temperature", "rule", "batch_size")
_LISTS: dict[str, tuple[Callable[[str], object], str]] = {
    "settings": (parse_setting, "M.K=V M.K=V"),
    "grid": (parse_grid, "M.K=1,2,4"),
    "variants": (parse_variant, "M:K=V,K=V"),
}
_SAID = {
    "adapt": "on | off",
    "device": "auto, cpu, mps, cuda, cuda:N",
    "attention": "auto, sdpa, plain, triton",
    "graphs": "auto | on | off",
    "compile": "auto | on | whole | off",
    "quantisation": ", ".join(CHOICES),
    "dtype": "auto, or float32, bfloat16, …",
    "template": "chat, or a plain one by name",
}
"""Of options whose type does not say it."""


class Field(NamedTuple):
    """One line of the form."""

    name: str
    choices: tuple[str, ...]
    """Closed lists only; empty where anything may be typed."""
    hint: str
    """What may be typed, or what is taken when nothing is."""


def fields() -> list[Field]:
    """Every option of a run, the common ones first."""
    hints = get_type_hints(RunRequest)
    names = [field.name for field in dataclasses.fields(RunRequest) if field.name not in _NOT_ASKED]
    ordered = [*_FIRST, *(name for name in names if name not in _FIRST)]
    assert set(ordered) == set(names), "the form's first fields are fields of the request"
    return [Field(name, _choices(hints[name]), _hint(name, hints[name])) for name in ordered]


def _choices(kind: Any) -> tuple[str, ...]:
    for part in get_args(kind) or (kind,):
        if get_origin(part) is Literal:
            return tuple(map(str, get_args(part)))
    return ("no", "yes") if kind is bool else ()


def _hint(name: str, kind: Any) -> str:
    if name == "suite":
        return ", ".join(packaged_names()) + ", a YAML or a JSONL"
    if name == "target":
        return "a hub id, a folder, or demo"
    if name in _LISTS:
        return _LISTS[name][1]
    if name in _SAID:
        return _SAID[name]
    if name in ("methods",):
        return "a,b,…; empty: all that are ready"
    if name in ("data", "methods_dirs"):
        return "folders, one a word"
    if name == "stop":
        return "one string that ends an answer"
    choices = _choices(kind)
    if choices:
        return " | ".join(choices)
    kinds = {int: "a whole number", float: "a number", str: "text"}
    parts = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return next((kinds[part] for part in parts if part in kinds), "")


class Checked(NamedTuple):
    """What the typed values come to."""

    words: tuple[str, ...]
    """The command's words behind `specbench`; empty while something is wrong."""
    command: str
    """The same in full, defaults said."""
    yaml: str
    """The suite's `defaults:` that would say it, as far as a suite can."""
    beside: str
    """What was typed and no suite can say: the command that goes with that YAML. Empty where the YAML says it all."""
    filled: Mapping[str, str]
    """By field, what is taken as things stand, typed or not; without those where that is nothing."""
    notes: tuple[str, ...]
    """Methods that are left out, and why."""
    wrong_field: str
    problem: str
    """What is wrong and what to do; empty where nothing is."""


def check(values: Mapping[str, str], *, store: Path | None) -> Checked:
    """Read, validate, fill in. Never raises for what a user typed."""
    try:
        request = _request(values, store)
        assert request.suite is not None, "RunRequest refuses a run without a suite"
        suite = read_suite_file(resolve_spec(request.suite))
        filled = with_defaults(request, suite.defaults)
        _check_methods(filled.request)
    except SpecbenchError as error:
        words = f"{error.what}" + (f" · try: {error.try_}" if error.try_ else "")
        return Checked((), "", "", "", {}, (), _field_of(error.where), words)
    return Checked(
        words=tuple(shlex.split(full_command(request))[1:]),
        command=filled.command,
        yaml=as_defaults(filled.request),
        beside=beside_yaml(request),
        filled=_as_text(filled.request),
        notes=filled.left_out,
        wrong_field="",
        problem="",
    )


def _check_methods(request: RunRequest) -> None:
    """Names and options, by the registry: the command would find them out after loading the target."""
    said: dict[str, dict[str, str]] = {}
    for item in request.settings:
        said.setdefault(item.method, {})[item.option] = item.value
    for axis in request.grid:
        said.setdefault(axis.method, {})[axis.option] = axis.values[0]
    for variant in request.variants:
        said.setdefault(variant.method, {}).update(variant.options)
    for name in request.methods or ():
        registry.choose(name, said, target_is_demo=request.target in DEMO_TARGETS, methods_dirs=request.methods_dirs)


def _field_of(where: str) -> str:
    """The field that an error's place names; empty where it names none."""
    option = where.split(" ")[0].removeprefix("--").removesuffix("(s)").replace("-", "_")
    names = {"method": "methods", "set": "settings", "variant": "variants", "SUITE": "suite"}
    return names.get(option, option)


def _request(values: Mapping[str, str], store: Path | None) -> RunRequest:
    hints = get_type_hints(RunRequest)
    found: dict[str, Any] = {"store": store}
    for name, typed in values.items():
        if typed.strip():
            found[name] = _read(name, hints[name], typed.strip())
    return RunRequest(**found)


def _read(name: str, kind: Any, typed: str) -> Any:
    option = "--" + name.replace("_", "-")
    if name in _LISTS:
        return tuple(_LISTS[name][0](word) for word in _words(typed, option))
    if name == "methods":
        return tuple(word.strip() for word in typed.split(",") if word.strip())
    if name in ("data", "methods_dirs"):
        return tuple(paths.expanded(word, where=option) for word in _words(typed, option))
    if name == "stop":
        return (typed,)
    if kind is bool:
        if typed not in ("yes", "no"):
            raise UsageError(f"{typed!r} is neither yes nor no", where=option)
        return typed == "yes"
    for wanted, noun in ((int, "a whole number"), (float, "a number")):
        if wanted in get_args(kind):
            try:
                return wanted(typed)
            except ValueError as error:
                raise UsageError(f"{typed!r} is not {noun}", where=option, try_=f"{option} takes {noun}") from error
    return typed


def _words(typed: str, option: str) -> Sequence[str]:
    try:
        return shlex.split(typed)
    except ValueError as error:
        raise UsageError(f"{typed!r}: {error}", where=option, try_="close the quotation") from error


def as_defaults(request: RunRequest) -> str:
    """A suite's `defaults:` block; what a suite cannot say stays on the command line (`beside_yaml`)."""
    said = {name: getattr(request, name) for name in Defaults.model_fields if getattr(request, name) is not None}
    if "methods" in said:
        said["methods"] = list(said["methods"])
    return yaml.safe_dump({"defaults": said}, sort_keys=False).rstrip()


def beside_yaml(request: RunRequest) -> str:
    """The command with those typed options alone that no suite can say; empty without one."""
    in_yaml: dict[str, Any] = dict.fromkeys(Defaults.model_fields)
    rest = dataclasses.replace(request, store=None, **in_yaml)
    return "" if rest == RunRequest(suite=request.suite) else full_command(rest)


def _as_text(request: RunRequest) -> dict[str, str]:
    values = {field.name: getattr(request, field.name) for field in fields() if field.name not in _LISTS}
    return {
        name: ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        for name, value in values.items()
        if value is not None and value != ()
    }


def help_of(field: Field, checked: Checked) -> list[str]:
    """What may be typed into a field, and what is taken as things stand. Sentences for its help."""
    option = {"suite": "SUITE", "settings": "--set", "variants": "--variant", "methods_dirs": "--methods-dir"}.get(
        field.name, "--" + field.name.replace("_", "-")
    )
    found = [f"{field.name.replace('_', ' ')}: {option} of specbench run, whose --help says more"]
    if field.hint:
        found.append(f"takes {field.hint}")
    if field.name in checked.filled:
        found.append(f"as things stand: {checked.filled[field.name]}")
    return found
