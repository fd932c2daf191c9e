"""Board: like-for-like rows of all stored runs; two marked runs are compared, everything is exported."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual.containers import Horizontal
from textual.widget import Widget

from specbench import paths
from specbench.tui import sharing
from specbench.tui.lines import Line, Span, line, wrap
from specbench.tui.views.base import View
from specbench.tui.widgets.canvas import Canvas, Rows

if TYPE_CHECKING:
    from specbench.tui.figures import Board


class BoardView(View):
    """One scope at a time; `]` shows the next."""

    view: ClassVar[str] = "board"

    DEFAULT_CSS = """
    BoardView #rows { width: 1fr; }
    BoardView #about { width: 44; }
    BoardView.-narrow #about { display: none; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.read: Board | None = None
        self.place = 0
        self.marked: list[str] = []

    def body(self) -> Iterable[Widget]:
        with Horizontal(id="body"):
            yield (rows := Rows(self._rows, title="Leaderboard", id="rows", moved=self._moved))
            rows.add_class("pane")
            yield Canvas(self._about, title="Row", id="about", classes="pane")

    def on_mount(self) -> None:
        self.query_one("#rows").focus()

    def entered(self) -> None:
        self.in_background("board", self._read_board, self._board_read)

    def _read_board(self) -> Board:
        found: Board = self.workspace.reader.ask("board", self.workspace.store)
        return found

    def _board_read(self, found: Board) -> None:
        self.read = found
        self.place = min(self.place, max(0, len(found.data["scopes"]) - 1))
        self._redraw()

    def _redraw(self) -> None:
        for canvas in self.query(Canvas):
            canvas.redraw()
        self.refresh_words()

    def scope(self) -> dict[str, Any] | None:
        """The one that is shown."""
        scopes: list[dict[str, Any]] = self.read.data["scopes"] if self.read is not None else []
        return scopes[self.place] if scopes else None

    def headline(self) -> str:
        if self.read is None:
            return "reading and summing up every run …"
        parts = [f"scope {self.place + 1} of {len(self.read.data['scopes'])}: only like-for-like rows are ranked"]
        if self.marked:
            parts.append(f"marked: {', '.join(self.marked)}")
        if self.read.left_out:
            parts.append(f"left out: {'; '.join(self.read.left_out)}")
        return " · ".join(parts)

    def _rows(self, width: int, height: int) -> tuple[Sequence[Line], Sequence[tuple[str, Line]]]:
        from specbench.tui.draw_board import scope_rows

        scope = self.scope()
        if self.read is None:
            return wrap("Every run is being summed up …", width, "dim"), []
        if scope is None:
            return [line(Span("No finished run yet.", "bold")), line(Span("n", "key"), " opens the form.")], []
        return scope_rows(scope, set(self.marked), width)

    def _chosen(self) -> dict[str, Any] | None:
        run_id, _, method = self.query_one("#rows", Rows).key.partition("\n")
        scope = self.scope()
        rows: list[dict[str, Any]] = scope["rows"] if scope is not None else []
        return next((row for row in rows if (row["run_id"], row["method"]) == (run_id, method)), None)

    def _about(self, width: int, height: int) -> Sequence[Line]:
        from specbench.tui.draw_board import about_lines

        row, scope = self._chosen(), self.scope()
        return about_lines(row, scope, width) if row is not None and scope is not None else []

    def _moved(self) -> None:
        self.query_one("#about", Canvas).redraw()

    # --- actions ------------------------------------------------------------------------------------------------------

    def action_next(self) -> None:
        self._turn(+1)

    def action_previous(self) -> None:
        self._turn(-1)

    def _turn(self, places: int) -> None:
        if self.read is not None and self.read.data["scopes"]:
            self.place = (self.place + places) % len(self.read.data["scopes"])
            self._redraw()

    def action_open(self) -> None:
        row = self._chosen()
        if row is None:
            self.say("no row is chosen", style="warn")
        else:
            self.main.open_run(row["run_id"])

    def action_mark(self) -> None:
        row = self._chosen()
        if row is None:
            return
        run_id = row["run_id"]
        if run_id in self.marked:
            self.marked.remove(run_id)
        else:
            self.marked = [*self.marked, run_id][-2:]
        self._redraw()

    def action_compare(self) -> None:
        if len(self.marked) != 2:
            self.say("mark two runs with space, then v compares them", style="warn")
            return
        self.in_background("comparing", self._compare, self._compared)

    def _compare(self) -> list[Line]:
        found: list[Line] = self.workspace.reader.ask("comparison", self.workspace.store, list(self.marked))
        return found

    def _compared(self, found: list[Line]) -> None:
        from specbench.tui.views.dialogs import Reading

        self.main.push_screen(Reading(" against ".join(self.marked), found, topic="comparison"))

    def exports(self) -> list[Path]:
        """CSV and JSON of the whole board, and this screen."""
        if self.read is None:
            return super().exports()
        from specbench.tui.draw_board import as_csv

        store = self.workspace.store
        body = json.dumps(self.read.data, indent=1, ensure_ascii=True)
        written = [
            sharing.write_text(store, "board", ".csv", as_csv(self.read.data)),
            sharing.write_text(store, "board", ".json", body),
        ]
        return [*written, *super().exports()]

    def late_exports(self) -> Callable[[], list[Path]] | None:
        """The page of `specbench leaderboard`."""
        reader, store = self.workspace.reader, self.workspace.store
        if self.read is None or not paths.store_file(store).exists():
            return None
        return lambda: [reader.ask("write_board", store, sharing.place(store, "board", ".html"))]
