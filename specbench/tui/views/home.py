"""Home: every run and training of the store, and what to do next."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual.containers import Horizontal
from textual.events import Resize
from textual.widget import Widget

from specbench import paths
from specbench.errors import SpecbenchError
from specbench.store import pausing, streamed
from specbench.store.journal import MAY_GROW
from specbench.store.words import count
from specbench.tui import beside, sharing
from specbench.tui.known import Known, Unread, known
from specbench.tui.lines import Line, Span, line, wrap
from specbench.tui.progress import Progress
from specbench.tui.views.base import View
from specbench.tui.widgets.canvas import Canvas, Rows

if TYPE_CHECKING:
    from specbench.store.records import Listing, RunEntry

_LOOK_EVERY_S = 2.0
_TRY_AGAIN_S = 60.0
_LOW = 16
"""Rows of a screen below which the pane under the list would leave the list none."""
_LISTING_SHARE = 0.1
"""Of a core beside a live run, where runs are listed every two seconds: 300 of them take a third of a second."""
_LONGEST_REST_S = 10.0
"""Where the run leaves nothing of any core, a list takes that long by the clock and costs little."""


class HomeView(View):
    """The list, and beside it, or below it where there is no room for both, the run under the cursor."""

    view: ClassVar[str] = "home"

    DEFAULT_CSS = """
    HomeView #body { layout: vertical; }
    HomeView #runs { width: 100%; height: 1fr; }
    HomeView #about { width: 100%; height: 7; }
    HomeView.-tall #about { height: 14; }
    HomeView.-low #about { display: none; }
    HomeView.-wide #about { display: block; }
    HomeView.-wide #body { layout: horizontal; }
    HomeView.-wide #runs { width: 1fr; height: 100%; }
    HomeView.-wide #about { width: 46; height: 100%; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.listing: Listing | None = None
        self._signature: object = None
        self._rest_until_s = 0.0
        self._is_changed = False
        """A key has changed the list while it was being read."""
        self.words = ""
        self.sorted_by = "newest"
        self._summed: dict[str, Known] = {}
        self._unreadable: dict[str, Unread] = {}
        self._progress = Progress()

    def body(self) -> Iterable[Widget]:
        with Horizontal(id="body"):
            yield (runs := Rows(self._rows, title="Runs", id="runs", moved=self._moved))
            runs.add_class("pane")
            yield Canvas(self._about, title="Run", id="about", classes="pane")

    def on_mount(self) -> None:
        self.query_one("#runs").focus()
        self.look()
        self.poll(_LOOK_EVERY_S, self._look_again)

    def on_resize(self, event: Resize) -> None:
        self.set_class(event.size.height < _LOW, "-low")

    # --- reading ------------------------------------------------------------------------------------------------------

    def entered(self) -> None:
        self.look()
        self._sum_up_next()

    def _look_again(self) -> None:
        if time.monotonic() >= self._rest_until_s or not self.main.is_beside_a_run:
            self.look()

    def look(self) -> None:
        """Which runs there are now; in a thread, since it may wait for the store."""
        # Let it end: where a reading takes longer than a look comes round, the list would never be shown.
        if (not self.is_current and self.listing is not None) or self.is_under_way("listing"):
            return
        signature = self.workspace.signature()
        may_grow = self.listing is not None and any(entry.state in MAY_GROW for entry in self.listing.runs)
        # A run's process may be gone without a trace in any file: while one runs, it is looked at every time.
        if self.listing is not None and signature == self._signature and not may_grow:
            return
        self._signature = signature
        began_s = time.monotonic()

        def listed(found: Listing) -> None:
            # Not of the first: it takes as long as the reader's process takes to start.
            if self.listing is not None and self.main.is_beside_a_run:
                took_s = time.monotonic() - began_s
                self._rest_until_s = time.monotonic() + min(took_s / _LISTING_SHARE, _LONGEST_REST_S)
            self._listed(found)

        self.in_background("listing", self.workspace.listing, listed, failed=self._not_listed)

    def _not_listed(self, error: SpecbenchError) -> None:
        self._signature = None  # asked again with the next look

    def _listed(self, found: Listing) -> None:
        if self._is_changed:
            self._is_changed, self._signature = False, None
            self.look()
        is_first = self.listing is None
        changed = self._progress.follow(found, self.workspace.folder) or found != self.listing
        self.listing = found
        if changed:
            self.query_one("#runs", Rows).redraw()
            self.query_one("#about", Canvas).redraw()
        if is_first or changed:
            self.refresh_words()
        self._sum_up_next()

    def _sum_up_next(self) -> None:
        """One run at a time, those on the screen first: 128 runs take 128 bootstraps. Beside a live run of this machine
        the chosen one alone: the others would take minutes of a core from the measurement."""
        if self.listing is None or self.is_under_way("summing"):
            return
        chosen = self.entry()
        first = [chosen] if chosen is not None else []
        for entry in first if self.workspace.live_here() else (*first, *self.shown()):
            if entry.kind == "train" or entry.state == "damaged" or self._is_given_up(entry.run_id):
                continue
            # Of a run that is being written its progress is shown: summing up would take time from it.
            if entry.state == "running" or self.workspace.is_as_of_now(entry.run_id, self._summed.get(entry.run_id)):
                continue
            self.in_background("summing", lambda run_id=entry.run_id: self._sum_up(run_id), self._summed_up)  # type: ignore[misc]
            return

    def _is_waiting_for_a_run(self) -> bool:
        """Figures are missing that are not read before the live run has ended."""
        runs = self.listing.runs if self.listing is not None else ()
        due = [entry for entry in runs if entry.kind == "run" and entry.state not in ("running", "damaged")]
        is_missing = any(entry.run_id not in self._summed and entry.run_id not in self._unreadable for entry in due)
        return is_missing and bool(self.workspace.live_here())

    def _is_given_up(self, run_id: str) -> bool:
        """It could not be summed up as it is now, and not long ago: the reader may have died of something else."""
        unread = self._unreadable.get(run_id)
        if unread is None:
            return False
        is_fresh = time.monotonic() - unread.at_s < _TRY_AGAIN_S
        return is_fresh and unread.freshness == self.workspace.freshness(run_id)

    def _sum_up(self, run_id: str) -> tuple[str, Known | str]:
        try:
            return run_id, known(self.workspace.summed(run_id))
        except SpecbenchError as error:
            # A run without an answer yet, or a damaged one: its row says so, the others go on.
            return run_id, error.what

    def _summed_up(self, found: tuple[str, Known | str]) -> None:
        run_id, summed = found
        if isinstance(summed, str):
            self._unreadable[run_id] = Unread(summed, self.workspace.freshness(run_id), time.monotonic())
        else:
            self._unreadable.pop(run_id, None)
            self._summed[run_id] = summed
        self.query_one("#runs", Rows).redraw()
        self.query_one("#about", Canvas).redraw()
        self.refresh_words()
        self._sum_up_next()

    # --- drawing ------------------------------------------------------------------------------------------------------

    def headline(self) -> str:
        if self.listing is None:
            return "reading runs …"
        running = sum(entry.state == "running" for entry in self.listing.runs)
        parts = [
            str(paths.results_dir(self.workspace.store)),
            count(len(self.listing.runs), "run"),
            f"{running} running",
        ]
        if self._is_waiting_for_a_run():
            parts.append("beside a live run only the chosen one is summed up")
        if self.words:
            parts.append(f"filter: {self.words}")
        if self.sorted_by != "newest":
            parts.append(f"sorted by {self.sorted_by}")
        # A locked store: the journals are shown, and this says what they lack.
        parts += list(self.listing.notes)
        return " · ".join(parts)

    def shown(self) -> list[RunEntry]:
        """Filtered and sorted."""
        from specbench.tui.draw_home import matches, ordered

        entries = self.listing.runs if self.listing is not None else ()
        summaries = {run_id: each.summary for run_id, each in self._summed.items()}
        return ordered([entry for entry in entries if matches(entry, self.words)], self.sorted_by, summaries)

    def _rows(self, width: int, height: int) -> tuple[Sequence[Line], Sequence[tuple[str, Line]]]:
        if self.listing is None:
            return [line(Span("reading runs …", "dim"))], []
        from specbench.tui.draw_home import empty_lines, rows

        if not self.listing.runs:
            return empty_lines(str(paths.results_dir(self.workspace.store).resolve()), width), []
        shown = self.shown()
        if not shown:
            return wrap(f"No run matches {self.words!r}. esc shows all of them.", width), []
        summaries = {run_id: each.summary for run_id, each in self._summed.items()}
        ratios = {run_id: each.ratios for run_id, each in self._summed.items()}
        return rows(shown, summaries, ratios, self._progress.words, width)

    def _about(self, width: int, height: int) -> Sequence[Line]:
        entry = self.entry()
        if entry is None:
            return []
        from specbench.tui.draw_home import details

        if entry.run_id in self._unreadable:
            return [line(Span(entry.run_id, "bold")), (), *wrap(self._unreadable[entry.run_id].why, width, "warn")]
        summed = self._summed.get(entry.run_id)
        return details(
            entry,
            summed.summary if summed else None,
            summed.source if summed is not None else "store",
            width,
            ratios=summed.ratios if summed is not None else (),
        )

    def entry(self) -> RunEntry | None:
        """The run under the cursor."""
        key = self.query_one("#runs", Rows).key
        return next((each for each in self.listing.runs if each.run_id == key), None) if self.listing else None

    def _moved(self) -> None:
        self.query_one("#about", Canvas).redraw()
        self._sum_up_next()

    # --- actions ------------------------------------------------------------------------------------------------------

    def _chosen(self) -> RunEntry | None:
        entry = self.entry()
        if entry is None:
            self.say("no run is chosen: b measures the demo, n opens the form", style="warn")
        return entry

    def action_open(self) -> None:
        entry = self._chosen()
        if entry is not None and entry.has_journal:
            self.main.open_run(entry.run_id)
        elif entry is not None:
            self.say(f"{entry.run_id} has no journal: only the store remembers it (5 Speed, 8 Board)", style="warn")
            self.workspace.run_id = entry.run_id

    def action_filter(self) -> None:
        from specbench.tui.views.dialogs import Typing

        self.main.push_screen(Typing("Show runs that contain", self.words), self._filtered)

    def _filtered(self, words: str | None) -> None:
        if words is not None:
            self.words = words
            self.query_one("#runs", Rows).redraw()
            self.refresh_words()

    def key_escape(self) -> None:
        super().key_escape()
        self._filtered("")

    def action_sort(self) -> None:
        from specbench.tui.draw_home import SORTS

        self.sorted_by = SORTS[(SORTS.index(self.sorted_by) + 1) % len(SORTS)]
        self.query_one("#runs", Rows).redraw()
        self.refresh_words()

    def action_bench(self) -> None:
        """The demo, as a process that outlives this one."""
        self.launch(["run", "demo"], key="b")

    def launch(self, words: Sequence[str], *, key: str) -> None:
        """Start `specbench WORDS` into this store. key: was pressed; beside a live run it has to be pressed again."""
        if self._is_warned(self.main.disturbed(), f"starts {shlex.join(['specbench', *words])}", key=key):
            return
        store = self.workspace.store
        where = [] if store is None else ["--store", str(store)]
        try:
            child = self.main.launch([*words, *where])
        except SpecbenchError as error:
            self.fail(error)
            return
        self.say(f"started {shlex.join(['specbench', *words])} as process {child.process.pid}; log {child.log}")

    def _is_warned(self, live: str, does: str, *, key: str) -> bool:
        """True where this is the first that is said of it."""
        told = beside.warning(live, does, key=key)
        if not told or told == self.said:
            return False
        self.say(told, style="warn")
        return True

    def action_resume(self) -> None:
        entry = self._chosen()
        if entry is None:
            return
        folder = self.workspace.folder(entry.run_id)
        if entry.state == "running" and pausing.is_asked(folder):
            if self._is_warned(self.workspace.live_here(but=entry.run_id), f"lets {entry.run_id} go on", key="c"):
                return
            try:
                pausing.let_go(folder)
            except SpecbenchError as error:
                self.fail(error)
                return
            self.say(f"{entry.run_id} goes on")
            return
        if entry.state not in ("lost", "interrupted", "failed", "unknown"):
            words = "only one that was stopped, lost or failed can be continued"
            self.say(f"{entry.run_id} is {entry.state}: {words}", style="warn")
            return
        streamed.refuse_to_write(folder, entry.kind)
        self.launch([entry.kind, "--resume", entry.run_id], key="c")

    def action_stop(self) -> None:
        entry = self._chosen()
        if entry is not None:
            from specbench.tui.views.stopping import ask_how_to_stop

            ask_how_to_stop(self, entry.run_id)

    def action_delete(self) -> None:
        entry = self._chosen()
        if entry is None:
            return
        from specbench.tui.views.dialogs import Choice, Option

        folder = self.workspace.folder(entry.run_id)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.exists() else 0
        options = [
            Option("", "Keep it"),
            Option(entry.run_id, "Delete it", help=f"{folder}, {size / 1e6:.1f} MB, and its rows in the store"),
        ]
        self.main.push_screen(Choice(f"Delete {entry.run_id}? It cannot be brought back.", options), self._delete)

    def _delete(self, run_id: str | None) -> None:
        if not run_id:
            return

        def deleted(_: object) -> None:
            self.say(f"deleted {run_id}")
            self._summed.pop(run_id, None)
            self._is_changed = self.is_under_way("listing")
            self.look()

        self.in_background(
            "deleting", lambda: self.workspace.reader.ask("delete", self.workspace.store, run_id), deleted
        )

    def action_log(self) -> None:
        entry = self._chosen()
        if entry is not None:
            from specbench.tui.views.stopping import show_log

            show_log(self, entry.run_id)

    def exports(self) -> list[Path]:
        words = self.query_one("#runs", Rows).text()
        return [*super().exports(), sharing.write_text(self.workspace.store, "runs", ".txt", words)]
