"""The application: which screens there are, the store they share, the theme. It draws nothing itself."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

from textual import events
from textual.actions import ActionParseResult
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.dom import DOMNode
from textual.screen import Screen
from textual.timer import Timer
from textual.worker import WorkerFailed

from specbench.errors import SpecbenchError
from specbench.store.files import is_training, unknown_run
from specbench.tui import actions, children, sharing, spawning
from specbench.tui.aside import Aside
from specbench.tui.reader import Asking
from specbench.tui.remote import Stream
from specbench.tui.theme import DARK, LIGHT, PLACEHOLDER, THEMES, first_mode, theme_for
from specbench.tui.views.base import View
from specbench.tui.views.home import HomeView
from specbench.tui.workspace import Workspace
from specbench.tui.yielding import GivingWay, live_here

_LATER: dict[str, tuple[str, str]] = {
    "race": ("race", "RaceView"),
    "tree": ("tree", "TreeView"),
    "accept": ("accept", "AcceptView"),
    "speed": ("speed", "SpeedView"),
    "system": ("system", "SystemView"),
    "train": ("train", "TrainView"),
    "board": ("board", "BoardView"),
    "chat": ("chat", "ChatView"),
    "library": ("library", "LibraryView"),
}
"""Modules of screens that are imported when they are first shown."""


_REST_EVERY_S = 10.0
_LIVE_EVERY_S = 2.0
_LIFT_S = 1.0
"""After a key."""
_STREAM_EVERY_S = 2.0
_ANSWERED = (events.Key, events.Paste, events.MouseDown, events.MouseScrollUp, events.MouseScrollDown)
"""What somebody waits for."""


class ActionsProvider(Provider):
    """The command palette: every action of the screen beneath it, from the one table."""

    def _all(self) -> Iterable[tuple[actions.Action, View]]:
        screen = self.screen
        if isinstance(screen, View):
            for action in actions.actions_of(screen.view):
                yield action, screen

    async def discover(self) -> Hits:
        for action, screen in self._all():
            yield DiscoveryHit(_title(action), self._run(screen, action), help=action.help)

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for action, screen in self._all():
            score = max(matcher.match(_title(action)), matcher.match(action.help))
            if score > 0:
                yield Hit(score, matcher.highlight(_title(action)), self._run(screen, action), help=action.help)

    @staticmethod
    def _run(screen: View, action: actions.Action) -> _Doing:
        return _Doing(screen, action)


class _Doing:
    """An action to be run when it is chosen."""

    def __init__(self, screen: View, action: actions.Action) -> None:
        self._screen, self._action = screen, action

    async def __call__(self) -> None:
        await self._screen.run_action(self._action.name)


def _title(action: actions.Action) -> str:
    keys = f"  ({actions.spelt(action.keys[0])})" if action.keys else ""
    return f"{action.label}{keys}"


class SpecbenchApp(App[None]):
    """`specbench tui`. run: a run to open at once; empty for the list."""

    COMMANDS: ClassVar = {ActionsProvider}
    TITLE = "specbench"
    # Before dialogs and fields: a shell's key works wherever one is.
    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+z", "suspend", show=False, priority=True)]
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-normal"), (120, "-wide")]  # noqa: RUF012 - as Textual declares it
    VERTICAL_BREAKPOINTS = [(0, "-short"), (30, "-tall")]  # noqa: RUF012
    CSS = """
    CommandPalette > Vertical { margin: 1 4; }
    ToastRack { display: none; }
    Input > .input--placeholder, Input > .input--suggestion { color: $placeholder; }
    """

    def __init__(
        self,
        store: Path | None,
        run: str = "",
        *,
        theme: str = "auto",
        reader: Asking | None = None,
        stream: Stream | None = None,
    ) -> None:
        """stream: the run's journal comes from another machine; its end is said."""
        super().__init__()
        self._stream = stream
        self._silence = ""
        """Of the stream, as it was said last."""
        # Before anything gives way: runs are started as heavy as this process is now.
        spawning.prepare()
        self.workspace = Workspace(store, reader=reader)
        self._launched: list[children.Child] = []
        self.ending: dict[Path, Timer] = {}
        """What waits for the answer under way, of runs that are to end with it, by their folders. One for each: a
        second signal would end the summing-up as well."""
        self.giving_way = GivingWay()
        self.aside = Aside()
        self._asked_at = 0.0
        self.shown_note = ""
        for each in THEMES:
            self.register_theme(each)
        self.theme = theme_for(theme, os.environ)
        self._run = run
        self._views: dict[str, View] = {}

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Textual's own hints have a contrast of 3.5 on dark grounds and of 2.7 on light ones."""
        return PLACEHOLDER

    def on_mount(self) -> None:
        self.marks = first_mode(no_color=self.no_color, color_system=self.console.color_system)
        self._keep("home", HomeView())
        self.push_screen("home")
        if self._run:
            self.open_run(self._run)
        self.set_interval(_REST_EVERY_S, self.workspace.reader.rest)
        # Ended from outside, or with its terminal's window, it leaves the session as it was, and no ssh, all the same.
        with suppress(NotImplementedError, RuntimeError, ValueError):
            for number in (signal.SIGTERM, signal.SIGHUP):
                asyncio.get_running_loop().add_signal_handler(number, self.exit)
        self.look_for_runs()
        self.set_interval(_LIVE_EVERY_S, self.look_for_runs)
        if self._stream is not None:
            self.set_interval(_STREAM_EVERY_S, self._look_at_stream)

    @property
    def shown_view(self) -> View | None:
        """The screen that is shown, beneath dialogs."""
        return next((screen for screen in reversed(self.screen_stack) if isinstance(screen, View)), None)

    async def run_action(
        self,
        action: str | ActionParseResult,
        default_namespace: DOMNode | None = None,
        namespaces: Mapping[str, DOMNode] | None = None,
    ) -> bool:
        """What is wrong with the user's world (a journal that is gone, a folder of nobody) is said where the key was
        pressed; a defect of ours still ends the viewer."""
        try:
            return await super().run_action(action, default_namespace, namespaces)
        except SpecbenchError as error:
            if self.shown_view is None:
                raise
            self.shown_view.fail(error)
            return True

    def launch(self, words: Sequence[str]) -> children.Child:
        """Start `specbench WORDS`; where it fails later on, that is said on whatever screen is shown then. Raises
        EnvironmentFailed."""
        child = children.start(words, store=self.workspace.store)
        self._launched.append(child)
        return child

    def copy(self, name: str, words: str, *, suffix: str = ".txt") -> str:
        """OSC 52 and a file: a terminal that ignores the one leaves the other -> what to say of it. name: the file's
        beginning. Raises EnvironmentFailed where it cannot be written."""
        path = sharing.write_text(self.workspace.store, name, suffix, words)
        self.copy_to_clipboard(sharing.clipboard(words))
        return f"copied {len(words)} characters; also in {path}"

    def disturbed(self) -> str:
        """What of this machine a start would disturb: a live run or training, else a command that was started here and
        has no journal yet. Empty without one."""
        beginning = (f"process {child.process.pid}" for child in self._launched if child.process.poll() is None)
        return self.workspace.live_here() or next(beginning, "")

    def end_is_known(self, pid: int) -> None:
        """It was ended on request: no failure to be told of."""
        self._launched = [child for child in self._launched if child.process.pid != pid]

    def _look_at_launched(self) -> None:
        for child in [each for each in self._launched if each.process.poll() is not None]:
            self._launched.remove(child)
            failure = children.failure_of(child)
            if failure and self.shown_view is not None:
                self.shown_view.say(failure, style="bad")

    def _look_at_stream(self) -> None:
        stream, view = self._stream, self.shown_view
        if stream is None or view is None:
            return
        note, problem = "", stream.problem()
        if not problem:
            try:
                note = stream.look()
            except SpecbenchError as error:
                problem = error.what
        silence = stream.silence()
        if problem:
            self._stream = None
            view.say(problem, style="bad")
        elif note:
            view.say(note, style="warn")
        elif silence and (not self._silence or view.said in ("", self._silence)):
            # Once over whatever is said, then not again over what was said since; escape brings it back.
            view.say(silence, style="warn")
            self._silence = silence
        elif not silence and self._silence:
            for each in self._views.values():
                if each.said.startswith("no word from "):
                    each.say("")
            view.say(f"{stream.place.host} is heard from again")
            self._silence = ""

    @property
    def defect(self) -> Exception | None:
        """What ended the viewer against its will; of a thread, what the thread raised."""
        error = self._exception
        return error.error if isinstance(error, WorkerFailed) and isinstance(error.error, Exception) else error

    def _fatal_error(self) -> None:
        """Textual's own fills the terminal with the locals of every frame: `defect` is told as any command's is."""
        self._close_messages_no_wait()

    def on_unmount(self) -> None:
        self.giving_way.end()
        self.workspace.reader.close()

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """None of Textual's own: the palette is made from our table."""
        return ()

    def view(self, name: str) -> View:
        """A screen, made when it is first asked for."""
        if name not in self._views:
            module, cls = _LATER[name]
            self._keep(name, getattr(importlib.import_module(f"specbench.tui.views.{module}"), cls)())
        return self._views[name]

    def _keep(self, name: str, view: View) -> None:
        # Installed: Textual unmounts every other screen that is switched away from, and would build it anew each time.
        self._views[name] = view
        self.install_screen(view, name)

    def show_view(self, name: str) -> None:
        """Switch screens; what they show is kept."""
        found = self.view(name)
        if found is not self.screen:
            self.switch_screen(name)

    def open_run(self, run_id: str) -> None:
        """A run's race, or a training's curves. run_id: of this store, whole; what somebody typed is for
        `Workspace.resolve`, which looks for a folder of that name first."""
        if not self.workspace.folder(run_id).is_dir():
            error = unknown_run(run_id, (path.name for path in self.workspace.folder("").glob("*")))
            (self.screen if isinstance(self.screen, View) else self.view("home")).fail(error)
            return
        if is_training(self.workspace.folder(run_id)):
            self.workspace.training_id = run_id
            name = "train"
        else:
            self.workspace.run_id = run_id
            name = "race"
        self.view(name).run_opened()
        self.show_view(name)

    @property
    def viewer_note(self) -> str:
        """Of this process, in the corner: that it gives way."""
        return self.giving_way.words()

    @property
    def is_beside_a_run(self) -> bool:
        """A process of this machine writes a run: what moves here moves slower."""
        return self.giving_way.is_on

    def look_for_runs(self) -> None:
        """Give way to the runs of this machine as long as there is one, whatever screen is shown; tell of those started
        here that failed."""
        self._look_at_launched()
        pids = [pid for folder in self.workspace.being_written() if (pid := live_here(folder))]
        # First: the kernel takes one change in 100 ms, and the reader tries again at the next look.
        if self.giving_way.look(pids):
            self.set_timer(_LIFT_S, self._give_way_again)
        self.workspace.reader.give_way(bool(pids))
        self.aside.look(pids, [os.getpid(), *self.workspace.reader.pids()])
        if self.viewer_note != self.shown_note and isinstance(self.screen, View):
            self.shown_note = self.viewer_note
            self.screen.refresh_words()

    async def on_event(self, event: events.Event) -> None:
        """A key is answered at full weight, however busy the machine is."""
        if isinstance(event, _ANSWERED):
            self._asked_at = time.monotonic()
            if self.giving_way.lift():
                self.set_timer(_LIFT_S, self._give_way_again)
        await super().on_event(event)

    def _give_way_again(self) -> None:
        # What a key or an opening set off in a thread is part of its answer.
        is_answering = any(not worker.is_finished for worker in self.workers)
        is_typing = time.monotonic() - self._asked_at < _LIFT_S
        if is_answering or is_typing or not self.giving_way.again():
            self.set_timer(_LIFT_S, self._give_way_again)

    def action_suspend(self) -> None:
        """As any program of a shell; `fg` brings it back. The key itself has given its session its weight again."""
        if sys.platform != "win32" and self._driver is not None and self._driver.can_suspend:
            self.action_suspend_process()
        elif self.shown_view is not None:
            self.shown_view.say("the viewer cannot be suspended in this terminal", style="warn")

    def next_theme(self) -> None:
        """Dark, light, the terminal's own."""
        names = [DARK, LIGHT, "ansi-dark"]
        self.theme = names[(names.index(self.theme) + 1) % len(names)] if self.theme in names else DARK
