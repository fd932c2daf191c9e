"""Where methods lie, and their cards read without importing them. No torch.

In specbench's sibling package `methods`, behind an installed package's entry point in the group `specbench.methods`, or
in a folder given by `--methods-dir`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.machinery import ModuleSpec
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import yaml
from pydantic import ValidationError

from specbench import paths
from specbench.card import Card
from specbench.errors import UsageError

ENTRY_POINT_GROUP = "specbench.methods"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One method as found: its card, or what is wrong with it."""

    name: str
    source: str
    """'specbench', an installed package's name, or the folder given by --methods-dir."""
    folder: Path | None
    """Where method.yaml and drafter.py lie."""
    package: str
    """The package to import `drafter` from; empty for a folder, which is loaded by its path."""
    card: Card | None
    error: str = ""
    """Why the method cannot be used; empty exactly when `card` is set."""


def discover(methods_dirs: Sequence[Path]) -> Iterator[Entry]:
    """Every method found, in that order. Raises UsageError for a `--methods-dir` that holds none."""
    yield from _in_tree()
    for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name):
        yield _installed(point)
    for folder in methods_dirs:
        yield from _in_folder(folder)


def _in_tree() -> Iterator[Entry]:
    """The sibling package; another package of its name in front of it would be imported instead, so it is refused."""
    home = paths.PACKAGE.parent / "methods"
    spec = importlib.util.find_spec("methods")
    places = [Path(place).resolve() for place in (spec.submodule_search_locations or [])] if spec else []
    if spec is not None and not places:
        places = [Path(str(spec.origin)).resolve()]
    stranger = places[0] if places and places[0] != home.resolve() else None
    for folder in _method_folders(home):
        found = _read(folder.name, folder, source="specbench", package=f"methods.{folder.name}")
        if stranger is not None:
            found = broken(found, f"another package named 'methods' hides specbench's: {stranger}; move or rename it")
        yield found


def _in_folder(folder: Path) -> Iterator[Entry]:
    folders = _method_folders(folder)
    if not folders:
        raise UsageError(
            f"no method in {folder}: no folder there holds a method.yaml",
            where="--methods-dir",
            try_="--methods-dir DIR where DIR/NAME/method.yaml and DIR/NAME/drafter.py exist",
        )
    for each in folders:
        yield _read(each.name, each, source=str(folder), package="")


def _installed(point: EntryPoint) -> Entry:
    source = point.dist.name if point.dist is not None else point.value
    try:
        folder, package = _locate(point.module)
    except LookupError as error:
        broken = f"entry point {point.value!r}: {error}"
        return Entry(name=point.name, source=source, folder=None, package="", card=None, error=broken)
    return _read(point.name, folder, source=source, package=package)


def _locate(module: str) -> tuple[Path, str]:
    """(folder, package) of a dotted module without importing it: find_spec on a dotted name would run its parents."""
    top, *rest = module.split(".")
    try:
        spec: ModuleSpec | None = importlib.util.find_spec(top)
    except ValueError as error:
        raise LookupError(str(error)) from error
    if spec is None:
        raise LookupError(f"no module named {top!r}")
    if not spec.submodule_search_locations:
        raise LookupError(f"{top!r} is a single file; a method lies in a package's folder")
    folder = Path(next(iter(spec.submodule_search_locations)))
    package = top
    for depth, part in enumerate(rest):
        if (folder / part).is_dir():
            folder, package = folder / part, f"{package}.{part}"
        elif (folder / f"{part}.py").is_file() and depth == len(rest) - 1:
            break
        else:
            raise LookupError(f"{folder} holds no {part!r}")
    return folder, package


def _method_folders(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("*/method.yaml"))


@lru_cache(maxsize=256)
def _card_of(text: str) -> Card:
    """Reading YAML takes 5 ms a card, and every look-up of a method reads all of them."""
    return Card.model_validate(yaml.safe_load(text))


def _read(name: str, folder: Path, *, source: str, package: str) -> Entry:
    path = folder / "method.yaml"
    error = ""
    card: Card | None = None
    try:
        card = _card_of(path.read_text(encoding="utf-8"))
        if card.name != name:
            error = f"the card's name is {card.name!r}, it is found as {name!r}"
        elif not (folder / "drafter.py").is_file():
            error = "drafter.py is missing beside method.yaml"
    except FileNotFoundError:
        error = f"{path} is missing"
    except (OSError, UnicodeDecodeError) as problem:
        error = f"{path} cannot be read: {problem}"
    except yaml.YAMLError as problem:
        error = f"{path} is not YAML: {' '.join(str(problem).split())}"
    except ValidationError as problem:
        error = f"{path}: " + "; ".join(
            f"{'.'.join(str(part) for part in each['loc']) or 'card'}: {each['msg']}" for each in problem.errors()
        )
    return Entry(name=name, source=source, folder=folder, package=package, card=None if error else card, error=error)


def broken(found: Entry, error: str) -> Entry:
    """A method that cannot be used, and why."""
    return replace(found, card=None, error=error)
