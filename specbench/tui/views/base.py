"""What every screen has: the bar of screens, a line of words, the keys; and the actions that all share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar, cast

from textual.app import ComposeResult
from textual.screen import Screen
from textual.timer import Timer
from textual.widget import Widget
from textual.worker import Worker, WorkerState

from specbench.errors import SpecbenchError
from specbench.tui import actions, sharing
from specbench.tui.lines import Line, Span, fit, line, wrap
from specbench.tui.panes import PANES
from specbench.tui.widgets.canvas import LineView, Strap
from specbench.tui.widgets.compositor import SparingCompositor

if TYPE_CHECKING:
    from specbench.tui.app import SpecbenchApp
    from specbench.tui.workspace import Workspace

T = TypeVar("T")
_Failed = Callable[[SpecbenchError], None] | None


_MOST_SAID = 3


def _written(files: Sequence[Path]) -> str:
    """The folder once, then the names."""
    return f"written to {files[0].parent}: {', '.join(path.name for path in files)}"


class View(Screen[None]):
    """A screen of the interface. Subclasses: `view`, `body`, and the methods of their actions."""

    view: ClassVar[str] = ""
    TITLE_WIDTH: ClassVar[int] = 11
    AUTO_FOCUS: ClassVar[str | None] = None

    DEFAULT_CSS = """
    View { background: $background; }
    View #body { height: 1fr; }
    View .pane { border: round $secondary; padding: 0 1; }
    View .pane:focus { border: heavy $accent; }
    View #says { color: $foreground; }
    """

    def __init_subclass__(cls, **attributes: object) -> None:
        # Before Textual's own hook: it merges BINDINGS when the class is made.
        if cls.view:
            cls.BINDINGS = [*actions.bindings_of(cls.view)]
        super().__init_subclass__()

    def __init__(self) -> None:
        super().__init__()
        self._compositor = SparingCompositor()
        self.said = ""
        self.said_style = ""
        self._waiting: dict[Worker[object], tuple[Callable[[object], None], _Failed]] = {}
        self._polls: list[Timer] = []

    @property
    def main(self) -> SpecbenchApp:
        """The app, by its own type."""
        from specbench.tui.app import SpecbenchApp

        assert isinstance(self.app, SpecbenchApp)
        return self.app

    @property
    def workspace(self) -> Workspace:
        """The store and what is known of it."""
        return self.main.workspace

    def compose(self) -> ComposeResult:
        yield Strap(self._tabs, id="tabs")
        yield Strap(self._says, id="says")
        yield from self.body()
        yield Strap(lambda width, _: [actions.footer(self.view, width)], id="keys")

    def body(self) -> Iterable[Widget]:
        """Between the two lines above and the keys."""
        raise NotImplementedError

    # --- the lines above ----------------------------------------------------------------------------------------------

    def _tabs(self, width: int, height: int) -> Sequence[Line]:
        parts: list[Span] = [Span(" specbench ", "bold")]
        for action in actions.SCREENS:
            words = f"{action.keys[0]} {action.label}"
            # Brackets, not colour alone, say where one is.
            here = action.name == f"go_{self.view}"
            parts.append(Span(f"[{words}]" if here else f" {words} ", "tab" if here else "dim"))
        # Where not all fit, the others keep their digits: they are what is pressed.
        if sum(len(part.text) for part in parts) > width:
            parts = [Span(" specbench ", "bold")]
            for action in actions.SCREENS:
                here = action.name == f"go_{self.view}"
                parts.append(
                    Span(f"[{action.keys[0]} {action.label}]", "tab") if here else Span(f" {action.keys[0]} ", "dim")
                )
        note = self.main.viewer_note
        left = width - sum(len(part.text) for part in parts) - len(note) - 1
        if note and left > 0:
            parts += [Span(" " * left), Span(note, "dim")]
        return [fit(tuple(parts), width)]

    def headline(self) -> str:
        """What this screen is about, when nothing was said."""
        return ""

    def _says(self, width: int, height: int) -> Sequence[Line]:
        if not self.said:
            return [fit(line(Span(" " + self.headline().replace("\n", " · "), "dim")), width)]
        rows = wrap(self.said.replace("\n", " · "), width - 2, self.said_style)[:_MOST_SAID]
        return [(Span(" "), *row) for row in rows]

    def say(self, words: str, *, style: str = "good") -> None:
        """One line under the tabs; toasts would hide half a pane on a small screen."""
        self.said, self.said_style = words, style
        for strap in self.query("#says").results(Strap):
            # A path that is cut is of no use: what is said may take three lines, until the next key.
            # Behind a pane that is zoomed it has no width of its own.
            width = max(20, strap.size.width or self.app.size.width)
            strap.styles.height = max(1, len(self._says(width, 0)))
            strap.redraw()

    def fail(self, error: SpecbenchError) -> None:
        """What, where, what to type next."""
        parts = [f"✗ {error.what}"]
        if error.where:
            parts.append(error.where)
        if error.try_:
            parts.append(f"try: {error.try_}")
        self.say(" · ".join(parts), style="bad")

    def refresh_words(self) -> None:
        """The headline may have changed."""
        for strap in self.query("#says, #tabs").results(Strap):
            strap.redraw()

    # --- work beside the screen ---------------------------------------------------------------------------------------

    def in_background(
        self,
        name: str,
        work: Callable[[], T],
        then: Callable[[T], None],
        *,
        failed: Callable[[SpecbenchError], None] | None = None,
    ) -> None:
        """Run `work` in a thread, then `then` with its result on the screen; a SpecbenchError is said, and given to
        `failed`. Another work of that name takes this one's place: for what a key asks for. What a timer asks for looks
        at `is_under_way` first, or a work that takes longer than the timer would never be delivered."""

        def guarded() -> T | SpecbenchError:
            try:
                return work()
            except SpecbenchError as error:
                return error

        worker = self.run_worker(guarded, name=name, group=name, thread=True, exclusive=True, exit_on_error=True)
        self._waiting[cast("Worker[object]", worker)] = (cast("Callable[[object], None]", then), failed)

    def is_under_way(self, name: str) -> bool:
        """A work of that name has not been delivered yet."""
        return any(worker.name == name for worker in self._waiting)

    def on_worker_state_changed(self, event: Worker.StateChanged) -> None:
        """Deliver what a thread found."""
        if event.state not in (WorkerState.SUCCESS, WorkerState.CANCELLED, WorkerState.ERROR):
            return
        waiting = self._waiting.pop(cast("Worker[object]", event.worker), None)
        if waiting is None or event.state is not WorkerState.SUCCESS:
            return
        (then, failed), result = waiting, event.worker.result
        if isinstance(result, SpecbenchError):
            self.fail(result)
            if failed is not None:
                failed(result)
        else:
            self.attempt(lambda: then(result))

    def attempt(self, work: Callable[[], object]) -> None:
        """What is not a key's action (timers, answers of a dialog or a thread): a SpecbenchError is said."""
        try:
            work()
        except SpecbenchError as error:
            self.fail(error)

    def poll(self, seconds: float, look: Callable[[], None]) -> None:
        """Look every so many seconds while the screen is shown. One behind another screen or a dialog does not wake."""
        self._polls.append(self.set_interval(seconds, lambda: self.attempt(look), pause=not self.is_current))

    # --- actions that all share ---------------------------------------------------------------------------------------

    def on_screen_suspend(self) -> None:
        for timer in self._polls:
            timer.pause()
        self.left()

    def on_screen_resume(self) -> None:
        for timer in self._polls:
            timer.resume()
        self.attempt(self.entered)
        # A screen that was resized, or first laid out, while another stood before it was told its sizes and not drawn.
        self.call_after_refresh(self.draw_again)

    def draw_again(self) -> None:
        """Every pane for the size it has now."""
        for pane in self.query(LineView):
            pane.redraw()

    def entered(self) -> None:
        """The screen is shown, for the first time or again."""

    def left(self) -> None:
        """Another screen or a dialog is shown."""

    def run_opened(self) -> None:
        """Another run was chosen in the workspace."""

    def action_go_home(self) -> None:
        self.main.show_view("home")

    def action_go_race(self) -> None:
        self.main.show_view("race")

    def action_go_tree(self) -> None:
        self.main.show_view("tree")

    def action_go_accept(self) -> None:
        self.main.show_view("accept")

    def action_go_speed(self) -> None:
        self.main.show_view("speed")

    def action_go_system(self) -> None:
        self.main.show_view("system")

    def action_go_train(self) -> None:
        self.main.show_view("train")

    def action_go_board(self) -> None:
        self.main.show_view("board")

    def action_go_chat(self) -> None:
        self.main.show_view("chat")

    def action_go_library(self) -> None:
        self.main.show_view("library")

    def action_new(self) -> None:
        """The form."""
        from specbench.tui.views.launch import LaunchForm

        self.main.push_screen(LaunchForm(self.workspace))

    def action_zoom(self) -> None:
        """Textual's maximise, on the pane that has the focus."""
        if self.maximized is not None:
            self.minimize()
        elif self.focused is not None:
            self.maximize(self.zoomable(self.focused))

    def zoomable(self, focused: Widget) -> Widget:
        """What a zoom makes big: the pane itself unless a view says otherwise."""
        return focused

    def action_help(self) -> None:
        """All keys of this screen."""
        from specbench.tui.views.dialogs import Reading

        title = next(action.label for action in actions.SCREENS if action.name == f"go_{self.view}")
        keys = [*actions.help_lines(self.view), (), *self.explain()]
        self.main.push_screen(Reading(f"Keys on {title}", [*self._explain_focused(), *keys], topic=f"help-{self.view}"))

    def _explain_focused(self) -> list[Line]:
        """Of the pane that has the focus: what it shows and the keys that are its own."""
        focused = self.focused
        if focused is None:
            return []
        known = PANES[self.view]
        pane = next((each for each in focused.ancestors_with_self if each.id in known), None)
        found: list[Line] = []
        if isinstance(pane, Widget) and pane.id is not None:
            found.append(line(Span(f"The pane with the focus: {pane.border_title or pane.id}", "bold")))
            found.append(line(known[pane.id]))
        if isinstance(focused, LineView) and focused.KEYS:
            found.append(line(Span(focused.KEYS, "dim")))
        return [*found, ()] if found else []

    def explain(self) -> list[Line]:
        """What the words on this screen mean, for its help."""
        return []

    def copied(self) -> str:
        """What `y` copies: the focused pane."""
        focused = self.focused
        return focused.text() if isinstance(focused, LineView) else ""

    def action_copy(self) -> None:
        """To the clipboard and a file."""
        words = self.copied()
        if not words:
            self.say("nothing to copy: put the focus on a pane with tab", style="warn")
            return
        try:
            told = self.main.copy(f"copy-{self.view}", words)
        except SpecbenchError as error:
            self.fail(error)
            return
        self.say(told)

    def exports(self) -> list[Path]:
        """Write what the screen shows; every screen has at least its picture."""
        return [sharing.write_svg(self.workspace.store, self.view, self.main.export_screenshot())]

    def action_export(self) -> None:
        """Files, and their paths said."""
        try:
            written = self.exports()
        except SpecbenchError as error:
            self.fail(error)
            return
        late = self.late_exports()
        self.say(_written(written) + (", …" if late is not None else ""))
        if late is not None:
            self.in_background("export", late, lambda more: self.say(_written(written + more)))

    def late_exports(self) -> Callable[[], list[Path]] | None:
        """Files that take seconds to make; written beside the screen."""
        return None

    def action_theme(self) -> None:
        """The next theme."""
        self.main.next_theme()

    def action_suspend(self) -> None:
        """To the shell."""
        self.main.action_suspend()

    def action_quit(self) -> None:
        """Runs go on."""
        self.main.exit()

    def key_escape(self) -> None:
        """Back: out of a zoom, out of what was said."""
        if self.maximized is not None:
            self.minimize()
        else:
            self.say("")
