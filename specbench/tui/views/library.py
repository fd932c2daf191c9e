"""Library: suites, methods (a broken one is a row with its error), targets and drafters at hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from textual.widget import Widget

from specbench import paths, registry
from specbench.errors import SpecbenchError
from specbench.store.words import count
from specbench.suite import survey
from specbench.tui import sharing
from specbench.tui.detokenise import hub_cache
from specbench.tui.lines import Column, Line, Span, line, table, wrap
from specbench.tui.views.base import View
from specbench.tui.views.dialogs import Reading, Typing
from specbench.tui.widgets.canvas import Rows


class Item(NamedTuple):
    """A row, and what enter shows of it."""

    kind: str
    name: str
    state: str
    style: str
    about: str
    details: tuple[str, ...]


def items(store: Path | None) -> list[Item]:
    """Everything there is; what cannot be read is an item that says so."""
    found = [*_suites(), *_methods(), *_targets(), *_from_the_hub(), *_from_runs(store)]
    return [*found, *_drafters(paths.drafters_dir(store), "drafter")]


def _suites() -> Iterable[Item]:
    try:
        statuses = survey()
    except SpecbenchError as error:
        yield Item("suite", "?", "unreadable", "bad", error.what, (error.what, error.where, error.try_))
        return
    here = ("inline", "local", "downloaded")
    for each in statuses:
        number = "? questions" if each.num_questions is None else f"{each.num_questions} questions"
        details = (each.title, f"licence: {each.licence}", f"where: {each.where}", each.help)
        style = "good" if each.state in here else "bad" if each.state == "unreadable" else "dim"
        yield Item("suite", each.name, each.state, style, f"{number}, {each.title}", details)


def _methods() -> Iterable[Item]:
    for entry in registry.cards():
        if entry.card is None:
            yield Item("method", entry.name, "broken", "bad", entry.error, (entry.error, str(entry.folder or "")))
            continue
        card = entry.card
        needs = registry.is_ready(card, target_is_demo=False)
        options = [f"{name} = {option.default}: {option.help}" for name, option in card.options.items()]
        details = (card.summary, card.paper, f"kind: {card.kind}", needs or "ready for any target", *options)
        state, style = ("ready", "good") if needs is None else ("needs weights", "dim")
        yield Item("method", card.name, state, style, card.summary, details)


def _targets() -> Iterable[Item]:
    for name, folder in paths.DEMO_MODELS.items():
        yield Item("target", name, "embedded", "good", "ships with specbench", (str(folder), "--target demo"))


def _from_the_hub() -> Iterable[Item]:
    """What lies in the hub's cache with weights and a tokenizer; nothing is asked of the network."""
    for folder in sorted(hub_cache().glob("models--*")):
        name = folder.name.removeprefix("models--").replace("--", "/")
        snapshots = [each.parent for each in folder.glob("snapshots/*/config.json")]
        if not snapshots:
            continue
        newest = max(snapshots, key=lambda each: each.stat().st_mtime)
        try:
            config = json.loads((newest / "config.json").read_text(encoding="utf-8"))
            kind = str(config.get("model_type", "unknown type"))
        except (OSError, ValueError, AttributeError) as error:
            yield Item("target", name, "unreadable", "bad", f"config.json: {error}", (str(newest), str(error)))
            continue
        weights = sum(path.stat().st_size for path in newest.glob("*.safetensors"))
        if not weights:
            yield Item("target", name, "no weights", "dim", f"{kind}, no safetensors here", (str(newest),))
            continue
        about = f"{kind}, {weights / 1e9:.1f} GB, in the hub's cache"
        yield Item("target", name, "downloaded", "good", about, (str(newest), f"--target {name}"))


def _from_runs(store: Path | None) -> Iterable[Item]:
    """Folders that runs of this store had as targets, as long as they are there."""
    found: dict[str, int] = {}
    for manifest in sorted(paths.run_dir(store, "").glob("*/manifest.json")):
        try:
            # Not validated: a thousand runs of ten thousand planned groups would take pydantic seconds.
            target = json.loads(manifest.read_text(encoding="utf-8"))["provenance"]["request"]["target"]
        except (OSError, ValueError, KeyError, TypeError):
            # Home shows a damaged run as one; it says nothing about targets.
            continue
        if isinstance(target, str) and Path(target).is_absolute():
            found[target] = found.get(target, 0) + 1
    for target, number in sorted(found.items()):
        is_here = (Path(target) / "config.json").exists()
        state, style = ("here", "good") if is_here else ("gone", "dim")
        about = f"the target of {number} {'run' if number == 1 else 'runs'} here, {target}"
        yield Item("target", Path(target).name, state, style, about, (target, f"--target {target}"))


def _drafters(folder: Path, kind: str) -> Iterable[Item]:
    for demo in sorted((paths.DEMO / "drafters").glob("*/config.json")):
        name = demo.parent.name
        yield Item(kind, f"demo/{name}", "embedded", "good", "trained for the demo target", (str(demo.parent),))
    for config in sorted(folder.glob("*/config.json")):
        where = config.parent
        hint = f"--set METHOD.weights={where}"
        yield Item(kind, where.name, "here", "good", f"trained here, {where}", (str(where), hint))


class LibraryView(View):
    """One list; `/` narrows it, enter shows all of a row."""

    view: ClassVar[str] = "library"

    DEFAULT_CSS = "LibraryView #rows { height: 1fr; }"

    def __init__(self) -> None:
        super().__init__()
        self.items: list[Item] | None = None
        self.words = ""

    def body(self) -> Iterable[Widget]:
        yield (rows := Rows(self._rows, title="Library", id="rows"))
        rows.add_class("pane")

    def on_mount(self) -> None:
        self.query_one("#rows").focus()

    def entered(self) -> None:
        self.in_background("library", lambda: items(self.workspace.store), self._read)

    def _read(self, found: list[Item]) -> None:
        self.items = found
        self.query_one("#rows", Rows).redraw()
        self.refresh_words()

    def headline(self) -> str:
        if self.items is None:
            return "reading …"
        counts = {
            kind: sum(item.kind == kind for item in self.items) for kind in ("suite", "method", "target", "drafter")
        }
        parts = [count(number, kind) for kind, number in counts.items()]
        return " · ".join([*parts, *([f"filter: {self.words}"] if self.words else [])])

    def shown(self) -> list[Item]:
        """Rows that contain all of the words."""
        words = self.words.lower().split()
        return [
            item
            for item in self.items or ()
            if all(word in f"{item.kind} {item.name} {item.state} {item.about}".lower() for word in words)
        ]

    def _rows(self, width: int, height: int) -> tuple[Sequence[Line], Sequence[tuple[str, Line]]]:
        shown = self.shown()
        columns = [Column("kind"), Column("name"), Column("state"), Column("", grows=True)]
        cells = [
            [Span(item.kind, "dim"), Span(item.name, "bold"), Span(item.state, item.style), Span(item.about)]
            for item in shown
        ]
        head, body = table(columns, cells, width)
        keys = [f"{item.kind}\n{item.name}" for item in shown]
        return [head], list(zip(keys, body, strict=True))

    def action_open(self) -> None:
        key = self.query_one("#rows", Rows).key
        item = next((item for item in self.items or () if f"{item.kind}\n{item.name}" == key), None)
        if item is None:
            return
        lines: list[Line] = []
        for words in item.details:
            lines += [*wrap(words, 90), ()] if words else []
        title = f"{item.kind} {item.name}"
        self.main.push_screen(Reading(title, lines or [line(item.about)], topic="library"))

    def action_filter(self) -> None:
        self.main.push_screen(Typing("Show rows that contain", self.words), self._filtered)

    def _filtered(self, words: str | None) -> None:
        if words is not None:
            self.words = words
            self.query_one("#rows", Rows).redraw()
            self.refresh_words()

    def key_escape(self) -> None:
        super().key_escape()
        self._filtered("")

    def exports(self) -> list[Path]:
        words = self.query_one("#rows", Rows).text()
        return [*super().exports(), sharing.write_text(self.workspace.store, "library", ".txt", words)]
