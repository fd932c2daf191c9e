"""Acceptance: by depth, category and method, with the answers that went worst."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

from textual.containers import Horizontal, Vertical
from textual.widget import Widget

from specbench.store.traces import Which
from specbench.tui import draw_figures
from specbench.tui.lines import Line, line
from specbench.tui.views.race import RaceView
from specbench.tui.views.summed import SummedView
from specbench.tui.views.tree import TreeView
from specbench.tui.widgets.canvas import Canvas, Rows

_UNITS = ("conditional", "survival")


class AcceptView(SummedView):
    """The heat table above, survival and the worst answers below."""

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
        self.unit = _UNITS[0]

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
        return draw_figures.acceptance_lines(self.summed.summary, self.summed.positions, unit=self.unit, width=width)

    def _survival(self, width: int, height: int) -> Sequence[Line]:
        return draw_figures.survival_lines(self.summed.summary, width) if self.summed is not None else []

    def _worst(self, width: int, height: int) -> tuple[Sequence[Line], Sequence[tuple[str, Line]]]:
        if self.summed is None:
            return [], []
        return draw_figures.worst_rows(self.summed.summary, self.summed.worst, width)

    def action_unit(self) -> None:
        self.unit = _UNITS[1 - _UNITS.index(self.unit)]
        self.query_one("#heat", Canvas).set_title(
            "Acceptance by depth" if self.unit == "conditional" else "Survival by depth"
        )
        self.query_one("#heat", Canvas).redraw()

    def action_open(self) -> None:
        """The replay of the answer under the cursor, beside the baseline."""
        key = self.query_one("#worst", Rows).key
        if not key or self.summed is None:
            self.say("no answer is chosen", style="warn")
            return
        method, question_id, turn = key.split("\n")
        baseline = next((row.method for row in self.summed.summary.rows if row.kind == "baseline"), method)
        self.main.open_run(self.workspace.run_id)
        race = self.main.view("race")
        assert isinstance(race, RaceView)
        race.show_question(question_id, int(turn), [baseline, method])

    def action_trace(self) -> None:
        """The first repeat of the answer under the cursor, as trees."""
        key = self.query_one("#worst", Rows).key
        if not key:
            self.say("no answer is chosen", style="warn")
            return
        method, question_id, turn = key.split("\n")
        tree = self.main.view("tree")
        assert isinstance(tree, TreeView)
        which = Which(method, question_id, int(turn), 0)
        tree.show_answer(self.workspace.run_id, which, 0, came_from="accept")
        self.main.show_view("tree")

    def explain(self) -> list[Line]:
        return [
            line("conditional  P(the k-th drafted token is accepted | the one before was, and a k-th was proposed)"),
            line("survival     steps that kept at least k drafted tokens / all steps"),
            line("τ            tokens kept per step, the target's own included"),
        ]
