"""Small screens on top of another: something to read, a choice, a line to type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input

from specbench.errors import SpecbenchError
from specbench.tui import sharing
from specbench.tui.lines import Line, Span, fit, line, plain_text, wrap, wrap_last
from specbench.tui.sanitise import visible
from specbench.tui.widgets.canvas import Canvas, Rows

if TYPE_CHECKING:
    from specbench.tui.app import SpecbenchApp

_CSS = """
$NAME { align: center middle; }
$NAME > Vertical { width: 90%; max-width: 100; height: auto; max-height: 90%; border: heavy $accent; padding: 0 1;
    background: $panel; }
$NAME Canvas { height: auto; max-height: 30; }
"""


class Reading(ModalScreen[None]):
    """Lines to read; any of escape, q, ? or enter closes it. topic: begins the names of the files it is written to."""

    DEFAULT_CSS = _CSS.replace("$NAME", "Reading")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,f1,enter,L", "close", "Close"),
        Binding("y", "copy", "Copy"),
        Binding("e", "export", "Export"),
    ]
    _KEYS = "y copies · e exports · esc closes"

    def __init__(self, title: str, lines: Sequence[Line], *, topic: str) -> None:
        super().__init__()
        self._title, self._lines, self._topic = title, lines, topic
        self.said = ""
        """Where it was written to."""

    def compose(self) -> ComposeResult:
        box = Vertical()
        box.border_title = Content(visible(self._title))
        box.border_subtitle = Content(self._KEYS)
        with box:
            yield Canvas(self._laid_out)

    def _laid_out(self, width: int, height: int) -> Sequence[Line]:
        found: list[Line] = [*wrap(self.said, width, "good"), ()] if self.said else []
        for row in self._lines:
            found += wrap_last(row, width)
        return found

    def on_mount(self) -> None:
        self.query_one(Canvas).focus()

    def text(self) -> str:
        """What is read, for tests and copying."""
        return self.query_one(Canvas).text()

    def _words(self) -> str:
        """Whole rows, however narrow the window is."""
        return f"{self._title}\n\n{plain_text(self._lines)}"

    def _say(self, words: str) -> None:
        self.said = words
        canvas = self.query_one(Canvas)
        # Above the text, where it wraps: a path that is cut at a border is of no use.
        canvas.redraw()
        canvas.refresh(layout=True)
        canvas.scroll_home(animate=False)

    def _share(self, carry_out: Callable[[SpecbenchApp], str]) -> None:
        from specbench.tui.app import SpecbenchApp

        assert isinstance(self.app, SpecbenchApp)
        try:
            self._say(carry_out(self.app))
        except SpecbenchError as error:
            self._say(f"✗ {error.what}")

    def action_copy(self) -> None:
        """To the clipboard and a file."""
        self._share(lambda app: app.copy(f"copy-{self._topic}", self._words()))

    def action_export(self) -> None:
        """A file, and its path said."""
        self._share(
            lambda app: f"written: {sharing.write_text(app.workspace.store, self._topic, '.txt', self._words())}"
        )

    def action_close(self) -> None:
        self.dismiss()


class Option:
    """A line of a choice."""

    def __init__(self, key: str, words: str, *, help: str = "") -> None:
        self.key, self.words, self.help = key, words, help


class Choice(ModalScreen[str]):
    """One of several; escape gives the empty string. The first is the harmless one."""

    DEFAULT_CSS = _CSS.replace("$NAME", "Choice")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "refuse", "Back"),
        Binding("enter", "take", "Take"),
    ]

    def __init__(self, title: str, options: Sequence[Option], *, intro: Sequence[Line] = ()) -> None:
        super().__init__()
        self._title, self._options, self._intro = title, options, intro

    def compose(self) -> ComposeResult:
        box = Vertical()
        box.border_title = Content(visible(self._title))
        box.border_subtitle = Content("↑ ↓ enter · esc back")
        with box:
            yield Rows(self._rows)

    def _rows(self, width: int, height: int) -> tuple[Sequence[Line], Sequence[tuple[str, Line]]]:
        intro: list[Line] = []
        for row in self._intro:
            intro += wrap_last(row, width)
        rows = [
            (option.key, fit(line(Span(option.words, "bold"), Span(f"  {option.help}", "dim")), width))
            for option in self._options
        ]
        return [*intro, ()] if intro else [], rows

    def on_mount(self) -> None:
        self.query_one(Rows).focus()

    def action_refuse(self) -> None:
        self.dismiss("")

    def action_take(self) -> None:
        self.dismiss(self.query_one(Rows).key)


class Picking(ModalScreen[list[str] | None]):
    """Several of a list, in the order picked; escape gives None. Of at most one, picking another replaces it."""

    DEFAULT_CSS = _CSS.replace("$NAME", "Picking")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "refuse", "Back"),
        Binding("space", "pick", "Pick"),
        Binding("enter", "take", "Take"),
    ]

    def __init__(self, title: str, names: Sequence[str], picked: Sequence[str], *, most: int) -> None:
        super().__init__()
        self._title, self._names, self._most = title, names, most
        self.picked = [name for name in picked if name in names]

    def compose(self) -> ComposeResult:
        box = Vertical()
        box.border_title = Content(visible(self._title))
        box.border_subtitle = Content(self._keys())
        with box:
            yield Rows(self._rows)

    def _keys(self) -> str:
        if self._most == 1:
            return "space picks · enter takes it"
        return f"space picks, at most {self._most} · enter takes them"

    def _rows(self, width: int, height: int) -> tuple[Sequence[Line], Sequence[tuple[str, Line]]]:
        rows = []
        for name in self._names:
            place = str(self.picked.index(name) + 1) if name in self.picked else " "
            rows.append((name, fit(line(f"[{place}] ", Span(name, "bold" if place != " " else "")), width)))
        return [], rows

    def on_mount(self) -> None:
        self.query_one(Rows).focus()

    def action_pick(self) -> None:
        rows = self.query_one(Rows)
        told = self._keys()
        if rows.key in self.picked:
            self.picked.remove(rows.key)
        elif self._most == 1:
            self.picked = [rows.key]
        elif len(self.picked) < self._most:
            self.picked.append(rows.key)
        else:
            told = f"{self._most} are picked: space on one of them takes it out"
        self.query_one(Vertical).border_subtitle = Content(told)
        rows.redraw()

    def action_refuse(self) -> None:
        self.dismiss(None)

    def action_take(self) -> None:
        self.dismiss(self.picked or None)


class Typing(ModalScreen[str | None]):
    """A line to type; escape gives None."""

    DEFAULT_CSS = _CSS.replace("$NAME", "Typing")
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "refuse", "Back")]

    def __init__(self, title: str, value: str) -> None:
        super().__init__()
        self._title, self._value = title, value

    def compose(self) -> ComposeResult:
        box = Vertical()
        box.border_title = Content(visible(self._title))
        box.border_subtitle = Content("enter takes it · esc back")
        with box:
            yield Input(self._value, id="typed")

    def on_mount(self) -> None:
        self.query_one(Input).focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value)

    def action_refuse(self) -> None:
        self.dismiss(None)
