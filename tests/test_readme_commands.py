"""What the pages tell to type can be typed: commands, their options, what they demand, and the options of methods."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer import BadParameter, TyperException

from specbench import registry
from specbench.bench.request import parse_grid, parse_setting, parse_variant
from specbench.cli.app import root_command
from specbench.errors import SpecbenchError

REPOSITORY = Path(__file__).resolve().parent.parent
_FOLDERS = ("", "benchmarks/", "methods/*/", "results/", "results/*/", "specbench/demo/", "suites/")
_PATTERNS = ("CONTRIBUTING.md", *(f"{folder}README.md" for folder in _FOLDERS))
PAGES = sorted(page.relative_to(REPOSITORY) for pattern in _PATTERNS for page in REPOSITORY.glob(pattern))

_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^ {4}.+\n?)+", re.MULTILINE)
_PLACEHOLDER = re.compile(r"[A-Z]+|…")
"""`N`, `DIR`, `…`: to be filled in by the reader."""


class Told(NamedTuple):
    """Words behind `specbench`. is_whole: stands in a block, to be typed as it is; else in a sentence."""

    words: list[str]
    is_whole: bool


def told(text: str) -> Iterator[Told]:
    """Every command of a page, those that a sentence names by the way included."""
    blocks = [*_FENCE.findall(text), *_INDENTED.findall(_FENCE.sub("", text))]
    for block in blocks:
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            yield from (Told(words, is_whole=True) for words in commands(line))
    sentences = " ".join(_INDENTED.sub("", _FENCE.sub("", text)).split())
    for span in re.findall(r"`([^`]+)`", sentences):
        yield from (Told(words, is_whole=False) for words in commands(span))


def commands(line: str) -> Iterator[list[str]]:
    """The commands of a line: several stand apart by ` · `, subcommands by ` | `; two spaces or a # begin a remark."""
    found = re.search(r"(?:^|\S )specbench ((?:-|[a-z]).*)", line.strip())
    if found is None:
        return
    for part in re.split(r"  |  *#", found[1])[0].split(" · "):
        first, *others = part.removeprefix("specbench ").split(" | ")
        yield shlex.split(first)
        yield from (shlex.split(f"{first.split()[0]} {other}") for other in others)


def resolved(words: list[str]) -> tuple[Any, Any, list[str]]:
    """The command itself, its group's context (None: it is `specbench`), the words behind its name. Raises what the
    program raises."""
    command: Any = root_command()
    name, context, rest = "specbench", None, words
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        context = command.make_context(name, [], parent=context, resilient_parsing=True)
        context.resilient_parsing = False  # only the group itself is not run here
        name, command, rest = command.resolve_command(context, rest)
    return command, context, rest


def check(words: list[str], *, is_whole: bool) -> None:
    """Raises what the program raises. In a sentence `specbench train --set` may name a command or an option alone; what
    has an argument is a command to be typed."""
    command, context, rest = resolved(words)
    known = {spelling for param in command.params for spelling in param.opts} | {"--help"}
    if not rest or (not is_whole and known.issuperset(rest)):
        return
    rest = [word for word in rest if word != "…"]
    while True:
        try:
            command.make_context(command.name, list(rest), parent=context)
            return
        except BadParameter as error:
            # `--limit N`: a number, whichever it will be.
            spellings = error.param.opts if error.param is not None else ()
            place = next((place for place, word in enumerate(rest) if word in spellings), len(rest)) + 1
            if place >= len(rest) or not _PLACEHOLDER.fullmatch(rest[place]):
                raise
            rest[place] = "1"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_command_that_a_page_tells_is_one(page: Path) -> None:
    """`weights export DIR -o OUT` and `results export RUN` ended in a usage error as they were written."""
    for words, is_whole in told((REPOSITORY / page).read_text(encoding="utf-8")):
        try:
            check(words, is_whole=is_whole)
        except (TyperException, SpecbenchError) as error:
            pytest.fail(f"{page}: specbench {' '.join(words)}: {error}")


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_weights_are_exported_and_imported_in_a_layout_that_is_named(page: Path) -> None:
    """Every trained method knows several; without one both commands are refused."""
    for words, _ in told((REPOSITORY / page).read_text(encoding="utf-8")):
        if words[:2] in (["weights", "export"], ["weights", "import"]) and words[2:]:
            assert "--layout" in words, f"{page}: specbench {' '.join(words)}"


def settings(text: str) -> Iterator[tuple[str, str, str]]:
    """(method, option, value) of every --set, --grid and --variant that a page's code gives a value."""
    spans = [*_FENCE.findall(text), *_INDENTED.findall(text), *re.findall(r"`([^`]+)`", text)]
    for kind, value in re.findall(r"--(set|grid|variant) ([\w.=:]+[.:]\w+=[^\s`]+)", "\n".join(spans)):
        if kind == "set":
            yield parse_setting(value)
        elif kind == "grid":
            axis = parse_grid(value)
            yield from ((axis.method, axis.option, each) for each in axis.values)
        else:
            variant = parse_variant(value)
            yield from ((variant.method, option, each) for option, each in variant.options)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_option_of_a_method_that_a_page_sets_takes_what_it_is_set_to(page: Path) -> None:
    """`--set redrafter.beam_width=1,2,4` was called a grid."""
    for method, option, value in settings((REPOSITORY / page).read_text(encoding="utf-8")):
        if _PLACEHOLDER.fullmatch(method):
            continue
        card = registry.card(method)
        assert option in {**card.options, **card.training}, f"{page}: {method}.{option}"
        if not _PLACEHOLDER.fullmatch(value):
            {**card.options, **card.training}[option].read(value)


def test_commands_are_found_as_they_are_written() -> None:
    lines = [
        "Run `specbench", "run S` or `specbench run --json`.", "", "```", "specbench a \\", "   --b C   what · it does",
        "specbench c | d E · f", "```", "", "    for B in 1 2: specbench g --h B  # eight",
    ]  # fmt: skip
    assert list(told("\n".join(lines))) == [
        (["a", "--b", "C"], True), (["c"], True), (["c", "d", "E"], True), (["f"], True), (["g", "--h", "B"], True),
        (["run", "S"], False), (["run", "--json"], False),
    ]  # fmt: skip


WRONG = (
    "weights export DIR -o OUT --frmat x",
    "results export RUN",
    "weights import DIR -o OUT",
    "rnu demo",
    "suites shw",
)


@pytest.mark.parametrize("words", WRONG)
@pytest.mark.parametrize("is_whole", [True, False])
def test_what_cannot_be_typed_is_found(words: str, is_whole: bool) -> None:
    with pytest.raises(TyperException, match=r"No such|Missing"):
        check(words.split(), is_whole=is_whole)
