"""The form that starts a run: fields from the command's own schema, checked while typing, the command shown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Input, Label
from textual.worker import Worker, WorkerState

from specbench.errors import SpecbenchError
from specbench.tui import beside, form
from specbench.tui.lines import Line, Span, line, wrap
from specbench.tui.sanitise import visible
from specbench.tui.widgets.canvas import Canvas

if TYPE_CHECKING:
    from specbench.tui.app import SpecbenchApp
    from specbench.tui.workspace import Workspace


_HELP = (
    "ctrl+r starts the command on the right as a process of its own: it outlives this viewer, and Home shows it.",
    "Beside a live run of this machine ctrl+r says first what that would spoil, and starts when it is pressed again.",
    "enter, tab and the arrows go from field to field; what is typed is checked as the command line would check it.",
    "A field that is left empty takes the suite's own default, else specbench's; the command shows all of them.",
    "The YAML is what a suite's file would say instead; what no suite can say is listed below it as options.",
    "ctrl+y copies the command or the YAML, whichever is chosen, to the clipboard and to a file, whose path is shown.",
    "esc leaves; nothing is started by leaving.",
)
_PAUSE_S = 0.2
"""Without a letter, before what is typed is checked."""


class LaunchForm(ModalScreen[None]):
    """Enter goes to the next field, ctrl+r runs. Escape leaves; nothing is started by leaving."""

    DEFAULT_CSS = """
    LaunchForm { align: center middle; }
    LaunchForm > #form { width: 96%; height: 94%; border: heavy $accent; background: $background; }
    LaunchForm #fields { width: 1fr; padding: 0 1; }
    LaunchForm .field { height: 1; }
    LaunchForm .field Label { width: 20; }
    LaunchForm .field Input { height: 1; border: none; padding: 0; width: 1fr; background: $panel; }
    LaunchForm .field Input:focus { border: none; background: $panel; text-style: underline; }
    LaunchForm #becomes { width: 1fr; border-left: solid $secondary; padding: 0 1; }
    LaunchForm.-narrow > #form { layout: vertical; }
    LaunchForm.-narrow #fields { width: 100%; height: 1fr; }
    LaunchForm.-narrow #becomes { width: 100%; height: 9; border-left: none; border-top: solid $secondary; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "close", "Close"),
        Binding("ctrl+r", "start", "Run", priority=True),
        # y, as everywhere, would be a letter of a field.
        Binding("ctrl+y", "copy", "Copy", priority=True),
        Binding("f1", "help", "Help", priority=True),
        Binding("tab", "app.focus_next", "Next", show=False, priority=True),
        Binding("shift+tab", "app.focus_previous", "Previous", show=False, priority=True),
        Binding("down", "app.focus_next", "Next", show=False),
        Binding("up", "app.focus_previous", "Previous", show=False),
    ]

    def __init__(self, workspace: Workspace, values: dict[str, str] | None = None) -> None:
        super().__init__()
        self._workspace = workspace
        self._values = {"suite": "demo"} | (values or {})
        self.checked = form.check(self._values, store=workspace.store)
        self._due: Timer | None = None
        self.warned = ""
        """That a live run would be disturbed, as long as it stands there."""
        self.said = self._said_style = ""
        """Of what was copied."""

    @property
    def _main(self) -> SpecbenchApp:
        from specbench.tui.app import SpecbenchApp

        assert isinstance(self.app, SpecbenchApp)
        return self.app

    def compose(self) -> ComposeResult:
        box = Horizontal(id="form")
        box.border_title = Content("New run")
        box.border_subtitle = Content("ctrl+r runs · ctrl+y copies · enter next field · f1 help · esc leaves")
        with box:
            with VerticalScroll(id="fields", can_focus=False):
                for field in form.fields():
                    yield from self._field(field)
            yield Canvas(self._becomes, id="becomes")

    def _field(self, field: form.Field) -> Iterable[Widget]:
        with Horizontal(classes="field"):
            yield Label(Content(field.name.replace("_", " ")))
            yield Input(
                self._values.get(field.name, ""),
                placeholder=visible(field.hint),
                id=f"field-{field.name}",
                compact=True,
            )

    def on_mount(self) -> None:
        self.query_one("#field-suite", Input).focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        self._values[(event.input.id or "").removeprefix("field-")] = event.value
        self.warned = self.said = ""  # of another command
        # A check reads every method's card, a tenth of a second: done for each letter it would hold back the keys
        # behind it, and what is typed after a tab would land in the field before.
        if self._due is not None:
            self._due.stop()
        self._due = self.set_timer(_PAUSE_S, self._check)

    def _check(self) -> None:
        self._due = None
        values, store = dict(self._values), self._workspace.store
        self.run_worker(lambda: form.check(values, store=store), name="check", thread=True, exclusive=True)

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """What a check found; a later one replaces it."""
        if event.worker.name == "check" and event.state is WorkerState.SUCCESS:
            assert isinstance(event.worker.result, form.Checked)
            self.checked = event.worker.result
            self.query_one("#becomes", Canvas).redraw()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.focus_next(Input)

    def _becomes(self, width: int, height: int) -> Sequence[Line]:
        found: list[Line] = []
        if self.checked.problem:
            found.append(line(Span(f"✗ {self.checked.wrong_field.replace('_', ' ') or 'not yet'}", "bad")))
            found += wrap(self.checked.problem, width)
            return found
        found += wrap(f"⚠ {self.warned}", width, "warn") if self.warned else [line(Span("✓ ctrl+r runs", "good"))]
        found += wrap(self.said, width, self._said_style) if self.said else []
        found += wrap(self.checked.command, width)
        found += [(), line(Span("the same in a suite's YAML", "bold"))]
        found += [line(row) for row in self.checked.yaml.splitlines()]
        if self.checked.beside:
            found += [(), line(Span("with it on the command line, which no YAML says", "bold"))]
            found += wrap(self.checked.beside, width)
        if self.checked.notes:
            found += [(), line(Span("left out", "bold"))]
            for note in self.checked.notes:
                found += wrap(note, width, "dim")
        return found

    def action_help(self) -> None:
        """Of the field that has the focus, and of the form."""
        from specbench.tui.views.dialogs import Reading

        focused = (self.focused.id or "") if self.focused is not None else ""
        field = next((each for each in form.fields() if f"field-{each.name}" == focused), None)
        rows: list[Line] = []
        if field is not None:
            rows = [*(line(words) for words in form.help_of(field, self.checked)), ()]
        rows += [line(words) for words in _HELP]
        self.app.push_screen(Reading("New run", rows, topic="help-form"))

    def action_copy(self) -> None:
        """Asks which; what is wrong is shown and nothing is copied."""
        if not self._is_right():
            return
        from specbench.tui.views.dialogs import Choice, Option

        options = [Option("command", "The command"), Option("yaml", "The same in a suite's YAML")]
        self.app.push_screen(Choice("Copy", options), self._copy)

    def _copy(self, which: str | None) -> None:
        if not which:
            return
        words, suffix = (self.checked.command, ".txt") if which == "command" else (self._whole_yaml(), ".yaml")
        try:
            self.said, self._said_style = self._main.copy(f"copy-{which}", words, suffix=suffix), "good"
        except SpecbenchError as error:
            self.said, self._said_style = f"✗ {error.what}" + (f" · try: {error.try_}" if error.try_ else ""), "bad"
        self.query_one("#becomes", Canvas).redraw()

    def _whole_yaml(self) -> str:
        """What it does not say stands in it as a comment."""
        beside = self.checked.beside
        comment = f"\n# with it on the command line, which no YAML says:\n# {beside}" if beside else ""
        return self.checked.yaml + comment

    def _is_right(self) -> bool:
        """Checks what stands in the fields now, whether it was checked meanwhile or not; what is wrong is shown."""
        self.checked = form.check(self._values, store=self._workspace.store)
        if self.checked.problem:
            self.query_one("#becomes", Canvas).redraw()
            self.app.bell()
        return not self.checked.problem

    def action_close(self) -> None:
        self.dismiss()

    def action_start(self) -> None:
        """A process of its own; what is wrong is said and nothing is started."""
        if not self._is_right():
            return
        told = beside.warning(self._main.disturbed(), "starts it", key="ctrl+r")
        if told != self.warned:
            self.warned = told
            self.query_one("#becomes", Canvas).redraw()
            if told:
                self.app.bell()
                return
        beneath = self._main.shown_view
        try:
            child = self._main.launch(self.checked.words)
        except SpecbenchError as error:
            if beneath is not None:
                beneath.fail(error)
            self.dismiss()
            return
        self.dismiss()
        if beneath is not None:
            beneath.say(f"started process {child.process.pid}: {child.command}; log {child.log}")
