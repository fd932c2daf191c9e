"""Methods without importing them: find their cards, check options against a card, import exactly one drafter. No torch.

A method is a folder with `method.yaml` (the card) and `drafter.py`; where folders lie says `specbench.discovery`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from specbench.card import Card
from specbench.discovery import Entry, broken, discover
from specbench.errors import EnvironmentFailed, SpecbenchError, UsageError, did_you_mean

if TYPE_CHECKING:
    from specbench.layouts import Layout
    from specbench.method import Build, Drafter, TargetView
    from specbench.recipe import BuildRecipe


def cards(*, methods_dirs: Sequence[Path] = ()) -> tuple[Entry, ...]:
    """Every method that can be found, by name; a broken one is an entry with its error. Imports none of them.

    Raises UsageError for a `--methods-dir` that holds no method.
    """
    taken: dict[str, Entry] = {}
    clashes: list[Entry] = []
    for entry in discover(methods_dirs):
        first = taken.setdefault(entry.name, entry)
        if first is not entry:
            error = f"the name is taken by the method from {first.source} ({first.folder}); rename this one"
            clashes.append(broken(entry, error))
    return tuple(sorted([*taken.values(), *clashes], key=lambda entry: (entry.name, bool(entry.error))))


def entry(name: str, *, methods_dirs: Sequence[Path] = (), named_by: str = "--method(s)") -> Entry:
    """The method of this name, its card readable. named_by: what named it, for the error.

    Raises UsageError: unknown (nearest named) or broken (why).
    """
    found = cards(methods_dirs=methods_dirs)
    match = next((each for each in found if each.name == name), None)
    if match is None:
        nearest = did_you_mean(name, {each.name for each in found})
        raise UsageError(f"unknown method {name!r}", where=named_by, try_=f"{nearest}  (specbench methods)")
    if match.card is None:
        raise UsageError(f"method {name!r} cannot be used: {match.error}", where=str(match.folder or match.source))
    return match


def card(name: str, *, methods_dirs: Sequence[Path] = (), named_by: str = "--method(s)") -> Card:
    """The card of one method; raises as `entry` does."""
    found = entry(name, methods_dirs=methods_dirs, named_by=named_by).card
    assert found is not None, "entry() returns readable cards only"
    return found


def check_options(card: Card, given: Mapping[str, Any], *, target_is_demo: bool = False) -> dict[str, Any]:
    """Every option of the card with its value: given, else the embedded target's (`demo`), else the default.

    Text (from `--set`) is read as the option's type. A value of None means it was never said: see `is_ready`.
    Raises UsageError for an unknown option (nearest named), a wrong type, a value out of range or not a choice.
    """
    unknown = next((name for name in given if name not in card.options), None)
    if unknown == "quantisation":
        reason = (
            "its weights are laid out when it is built and partly the target's own head, which stays as it is"
            if card.training
            else "it has no weights of its own"
        )
        raise UsageError(
            f"the drafter of {card.name!r} is not quantised: {reason}",
            where=f"{card.name}.quantisation",
            try_="--quantisation, for the target; draft_model.quantisation, for a draft model",
        )
    if unknown is not None:
        nearest = did_you_mean(unknown, card.options) or f"{card.name} has no options"
        raise UsageError(
            f"unknown option {unknown!r} of method {card.name!r}",
            where=f"{card.name}.{unknown}",
            try_=f"{nearest}  (specbench methods show {card.name})",
        )
    values: dict[str, Any] = {}
    for name, option in card.options.items():
        fallback = card.demo.get(name, option.default) if target_is_demo else option.default
        try:
            value = given.get(name, fallback)
            values[name] = None if value is None else option.read(value)
        except ValueError as error:
            raise UsageError(
                f"{card.name}.{name}: {error}",
                where=f"--set {card.name}.{name}={given[name]}",
                try_=f"specbench methods show {card.name}",
            ) from error
    return values


class TrainingOptions(NamedTuple):
    """A method's options by who reads them."""

    training: dict[str, Any]
    """The card's `training:` section, for `build` in train.py."""
    drafting: dict[str, Any]
    """The card's `options:`, for the simulated acceptance. `weights` is what training starts from."""


def check_training_options(card: Card, given: Mapping[str, Any]) -> TrainingOptions:
    """What a training of the method was given, split by the card and with every default.

    Raises UsageError for an option of neither section (nearest named), and what `check_options` raises.
    """
    known = {*card.training, *card.options}
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        raise UsageError(
            f"unknown option {unknown!r} of method {card.name!r}",
            where=f"--set {card.name}.{unknown}",
            try_=f"{did_you_mean(unknown, known) or 'it has none'}  (specbench methods show {card.name})",
        )
    # The card of the training's options, so that one function reads text, ranges and choices of both.
    of_training = card.model_copy(update={"options": card.training, "demo": {}})
    return TrainingOptions(
        check_options(of_training, {name: value for name, value in given.items() if name in card.training}),
        check_options(card, {name: value for name, value in given.items() if name in card.options}),
    )


def is_ready(card: Card, *, target_is_demo: bool, options: Mapping[str, Any] | None = None) -> str | None:
    """None when the method can run with these options, else what it still needs and how to say it.

    options: as given by the user, before or after `check_options`.
    """
    values = check_options(card, options or {}, target_is_demo=target_is_demo)
    missing = [name for name, value in values.items() if value is None]
    if not missing:
        return None
    wanted = " ".join(f"--set {card.name}.{name}=…" for name in missing)
    return f"needs {wanted} ({card.options[missing[0]].help})"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A method with the options it will be built with, and the one it wraps where it wraps one."""

    card: Card
    options: dict[str, Any]
    inner: Choice | None = None

    @property
    def name(self) -> str:
        """`hybrid(draft_model)`, or the method's name alone."""
        return self.card.name if self.inner is None else f"{self.card.name}({self.inner.name})"

    @property
    def members(self) -> tuple[str, ...]:
        """The method's name and that of the one it wraps: whose options take part."""
        return (self.card.name,) if self.inner is None else (self.card.name, *self.inner.members)

    @property
    def requires(self) -> frozenset[str]:
        """What either needs: see `Card.requires`."""
        own = frozenset(self.card.requires)
        return own if self.inner is None else own | self.inner.requires

    @property
    def recorded_options(self) -> dict[str, Any]:
        """All options, the wrapped method's under `NAME.OPTION`."""
        if self.inner is None:
            return self.options
        wrapped = {f"{self.inner.card.name}.{key}": value for key, value in self.inner.options.items()}
        return {**self.options, **wrapped}


def choose(
    name: str,
    said: Mapping[str, Mapping[str, Any]],
    *,
    target_is_demo: bool,
    methods_dirs: Sequence[Path] = (),
) -> Choice:
    """A method and its options, ready to be built. said: what was given, per method.

    Raises UsageError: unknown method or option, something the method still needs, or a method that cannot be wrapped.
    """
    found = card(name, methods_dirs=methods_dirs)
    given = said.get(name, {})
    options = check_options(found, given, target_is_demo=target_is_demo)
    missing = is_ready(found, target_is_demo=target_is_demo, options=given)
    if missing is not None:
        raise UsageError(
            f"method {name!r} is not ready for this target: {missing}",
            where="--method(s)",
            try_=f"specbench methods show {name}",
        )
    if not found.wraps:
        return Choice(card=found, options=options)
    wrapped = cast("str", options["inner"])
    _refuse_inner(found, wrapped, methods_dirs)
    try:
        inner = choose(wrapped, said, target_is_demo=target_is_demo, methods_dirs=methods_dirs)
    except UsageError as error:
        raise UsageError(
            f"method {name!r} wraps {wrapped!r}: {error.what}",
            where=error.where,
            try_=f"{error.try_}; or --set {name}.inner=METHOD to wrap another",
        ) from error
    return Choice(card=found, options=options, inner=inner)


def why_not_ready(
    found: Card, said: Mapping[str, Mapping[str, Any]], *, target_is_demo: bool, methods_dirs: Sequence[Path] = ()
) -> str | None:
    """`is_ready`, with what the method wraps. said: what was given, per method."""
    reason = is_ready(found, target_is_demo=target_is_demo, options=said.get(found.name))
    if reason is not None or not found.wraps:
        return reason
    try:
        choose(found.name, said, target_is_demo=target_is_demo, methods_dirs=methods_dirs)
    except UsageError as error:
        return error.what
    return None


def by_method(method: str, options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Options of a method and, as `NAME.OPTION`, of what it wraps -> those of each method, for `choose`."""
    said: dict[str, dict[str, Any]] = {method: {}}
    for key, value in options.items():
        owner, dot, option = key.partition(".")
        said.setdefault(owner if dot else method, {})[option if dot else key] = value
    return said


def _refuse_inner(outer: Card, wrapped: str, methods_dirs: Sequence[Path]) -> None:
    readable = [each.card for each in cards(methods_dirs=methods_dirs) if each.card is not None]
    fitting = [each.name for each in readable if not _why_no_inner(each)]
    found = next((each for each in readable if each.name == wrapped), None)
    reason = f"there is no method {wrapped!r}" if found is None else _why_no_inner(found)
    if reason:
        raise UsageError(
            f"method {outer.name!r} cannot wrap {wrapped!r}: {reason}",
            where=f"{outer.name}.inner",
            try_=did_you_mean(wrapped, fitting),
        )


def _why_no_inner(found: Card) -> str:
    if found.wraps:
        return "it wraps another method itself"
    if found.kind == "baseline":
        return "the baseline drafts nothing"
    if "reference" in found.requires:
        return "it replays the known answer, so nothing could be said of what it is wrapped in"
    return ""


def build(choice: Choice, target: TargetView, *, methods_dirs: Sequence[Path] = ()) -> Drafter:
    """The choice's drafter, what it wraps built first. Raises what `load` and the methods' own `build` raise."""
    inner = None if choice.inner is None else build(choice.inner, target, methods_dirs=methods_dirs)
    return load(choice.card.name, methods_dirs=methods_dirs)(choice.options, target, inner)


def load(name: str, *, methods_dirs: Sequence[Path] = ()) -> Build:
    """Import one method's drafter.py and return its `build`.

    Raises UsageError for an unknown or broken method and EnvironmentFailed when the import fails or defines no `build`.
    """
    module = _import(name, "drafter", methods_dirs)
    build = getattr(module, "build", None)
    if not callable(build):
        raise EnvironmentFailed(
            f"method {name!r} defines no build()",
            where=str(module.__file__),
            try_="define build(options, target, inner=None) -> Drafter, see specbench/method.py",
        )
    return cast("Build", build)


def load_recipe(name: str, *, methods_dirs: Sequence[Path] = ()) -> BuildRecipe:
    """Import one method's train.py and return its `build`. Raises UsageError for a method that is not trained."""
    folder = entry(name, methods_dirs=methods_dirs).folder
    assert folder is not None, "a readable card lies in a folder"
    if not (folder / "train.py").is_file():
        trained = [each.name for each in cards(methods_dirs=methods_dirs) if _has(each, "train.py")]
        raise UsageError(
            f"method {name!r} is not trained: its folder holds no train.py",
            where="--method",
            try_=f"--method {' | '.join(trained)}" if trained else "specbench methods",
        )
    module = _import(name, "train", methods_dirs)
    build = getattr(module, "build", None)
    if not callable(build):
        raise EnvironmentFailed(
            f"method {name!r} defines no build() in train.py",
            where=str(module.__file__),
            try_="define build(options, target) -> Recipe, see specbench/recipe.py",
        )
    return cast("BuildRecipe", build)


def load_layouts(name: str, *, methods_dirs: Sequence[Path] = ()) -> Mapping[str, Layout]:
    """Other programs' checkpoint layouts of a method (`LAYOUTS` in its layouts.py) by name; empty: it has none."""
    if not _has(entry(name, methods_dirs=methods_dirs), "layouts.py"):
        return {}
    return cast("Mapping[str, Layout]", _import(name, "layouts", methods_dirs).LAYOUTS)


def _has(found: Entry, file: str) -> bool:
    return found.folder is not None and (found.folder / file).is_file()


def _import(name: str, file: str, methods_dirs: Sequence[Path]) -> ModuleType:
    found = entry(name, methods_dirs=methods_dirs)
    assert found.folder is not None, "a readable card lies in a folder"
    source = found.folder / f"{file}.py"
    try:
        return importlib.import_module(f"{found.package or _package_of(found.folder)}.{file}")
    except SpecbenchError:
        raise
    # Somebody else's code runs here for the first time: whatever it raises is a method that cannot be used.
    except Exception as error:
        raise EnvironmentFailed(
            f"method {name!r} cannot be imported: {type(error).__name__}: {error}",
            where=str(source),
            try_=f"specbench --debug methods check {name}",
        ) from error


def _package_of(folder: Path) -> str:
    """A package of its own for a folder outside sys.path, so that drafter.py may import its neighbours relatively."""
    where = folder.resolve()
    name = f"_specbench_method_{where.name}_{sha256(str(where).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        module = ModuleType(name)
        module.__path__ = [str(where)]
        sys.modules[name] = module
    return name
