"""Acceptance: by depth, category and method, with the answers that went worst."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from textual.containers import Horizontal, Vertical
from textual.widget import Widget

from specbench.tui import draw_figures, draw_streams
from specbench.tui.lines import Line, line
from specbench.tui.views.race import RaceView
from specbench.tui.views.summed import SummedView
from specbench.tui.views.tree import TreeView
from specbench.tui.widgets.canvas import Canvas, Rows

_UNITS = {"conditional": "Acceptance by depth", "survival": "Survival by depth"}
_STREAM = {"stream": "Acceptance along the stream"}


class AcceptView(SummedView):
    """The heat table above, survival and the worst answers below. Of a run in which a method learns: acceptance along
    the stream in place of survival, and above as a third unit, for terminals that have no room for both."""

    view: ClassVar[str] = "accept"

    DEFAULT_CSS = """
    AcceptView #heat { height: 1fr; }
    AcceptView #under { height: 12; }
    AcceptView #survival { width: 1fr; }
    AcceptView #worst { width: 1fr; }
    AcceptView.-short #under { height: 7; }
    AcceptView.-narrow #survival { display: none; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.unit = "conditional"

    def body(self) -> Iterable[Widget]:
        with Vertical(id="body"):
            yield Canvas(self._heat, title="Acceptance by depth", id="heat", classes="pane")
            with Horizontal(id="under"):
                yield Canvas(self._survival, title="Survival: at least k kept", id="survival", classes="pane")
                yield (worst := Rows(self._worst, title="Worst answers: enter replays, t its trees", id="worst"))
                worst.add_class("pane")

    def on_mount(self) -> None:
        super().on_mount()
        self.query_one("#worst").focus()

    def _heat(self, width: int, height: int) -> Sequence[Line]:
        if self.summed is None:
            return self.waiting(width)
        if self.unit == "stream":
            return draw_streams.stream_lines(self.summed.streams, self.summed.summary, width, height)
        return draw_figures.acceptance_lines(self.summed.summary, self.summed.positions, unit=self.unit, width=width)

    def _survival(self, width: int, height: int) -> Sequence[Line]:
        if self.summed is None:
            return []
        if self.summed.streams and self.unit != "stream":
            return draw_streams.stream_lines(self.summed.streams, self.summed.summary, width, height)
        return draw_figures.survival_lines(self.summed.summary, width)

    def _worst(self, width: int, height: int) -> tuple[Sequence[Line], Sequence[tuple[str, Line]]]:
        if self.summed is None:
            return [], []
        return draw_figures.worst_rows(self.summed.summary, self.summed.worst, width)

    def action_unit(self) -> None:
        units = list(self._units())
        self.unit = units[(units.index(self.unit) + 1) % len(units)]
        self.redraw_all()

    def _units(self) -> dict[str, str]:
        has_streams = self.summed is not None and bool(self.summed.streams)
        return _UNITS | _STREAM if has_streams else _UNITS

    def redraw_all(self) -> None:
        units = self._units()
        if self.unit not in units:
            self.unit = "conditional"
        self.query_one("#heat", Canvas).set_title(units[self.unit])
        shows_stream = "stream" in units and self.unit != "stream"
        title = _STREAM["stream"] if shows_stream else "Survival: at least k kept"
        self.query_one("#survival", Canvas).set_title(title)
        super().redraw_all()

    def action_open(self) -> None:
        """The replay of the answer under the cursor, beside the baseline."""
        key = self.query_one("#worst", Rows).key
        if not key or self.summed is None:
            self.say("no answer is chosen", style="warn")
            return
        which = draw_figures.answer_of(key)
        baseline = next((row.method for row in self.summed.summary.rows if row.kind == "baseline"), which.method)
        self.main.open_run(self.workspace.run_id)
        race = self.main.view("race")
        assert isinstance(race, RaceView)
        race.show_question(which.question_id, which.turn, [baseline, which.method])

    def action_trace(self) -> None:
        """The first repeat of the answer under the cursor, as trees."""
        key = self.query_one("#worst", Rows).key
        if not key:
            self.say("no answer is chosen", style="warn")
            return
        tree = self.main.view("tree")
        assert isinstance(tree, TreeView)
        tree.show_answer(self.workspace.run_id, draw_figures.answer_of(key), 0, came_from="accept")
        self.main.show_view("tree")

    def explain(self) -> list[Line]:
        return [
            line("conditional  P(the k-th drafted token is accepted | the one before was, and a k-th was proposed)"),
            line("survival     steps that kept at least k drafted tokens / all steps"),
            line("τ            tokens kept per step, the target's own included"),
            line(
                "stream       accepted of tried positions of a method that learns, as its answers came; ▲ ◀ are swaps"
            ),
        ]
