"""Speed: intervals, where the time goes, and what speed-up depends on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from textual.containers import Grid, VerticalScroll
from textual.widget import Widget

from specbench.tui import draw_figures
from specbench.tui.lines import Line, line, wrap
from specbench.tui.views.summed import SummedView
from specbench.tui.widgets.canvas import Canvas

if TYPE_CHECKING:
    from specbench.tui.figures import Summed

_PLOT_ROWS = 12


class SpeedView(SummedView):
    """The forest above; below it as many panes as fit beside each other, reached with tab."""

    view: ClassVar[str] = "speed"

    DEFAULT_CSS = """
    SpeedView #forest { height: 1fr; min-height: 12; }
    SpeedView #under { grid-size: 2 2; height: 24; grid-rows: 12; }
    SpeedView.-short #body { height: 1fr; }
    SpeedView.-short #forest { height: 16; }
    SpeedView.-narrow #under { grid-size: 1 4; height: 48; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[dict[str, Any]] | None = None
        """Of the run that is shown; None until they are read."""
        self._why_no_batches = ""

    def body(self) -> Iterable[Widget]:
        with VerticalScroll(id="body", can_focus=False):
            yield Canvas(
                self._forest, title="Speed-up with 95 % intervals, paired by question", id="forest", classes="pane"
            )
            with Grid(id="under"):
                yield Canvas(self._waterfall, title="Where the time goes", id="waterfall", classes="pane")
                yield Canvas(self._tau, title="Speed-up against τ", id="tau", classes="pane")
                yield Canvas(self._batch, title="Throughput against batch", id="batch", classes="pane")
                yield Canvas(self._sizes, title="Speed-up against drafter size", id="size", classes="pane")

    def on_mount(self) -> None:
        super().on_mount()
        self.query_one("#forest").focus()

    def _summed_up(self, found: Summed) -> None:
        super()._summed_up(found)
        store, run_id = self.workspace.store, found.summary.run_id
        self.batches, self._why_no_batches = None, ""
        self.in_background(
            "batches",
            lambda: self.workspace.reader.ask("batches", store, run_id),
            lambda rows: self._batches_read(rows, ""),
            failed=lambda error: self._batches_read(None, error.what),
        )

    def _batches_read(self, rows: list[dict[str, Any]] | None, why_not: str) -> None:
        self.batches, self._why_no_batches = rows, why_not
        self.query_one("#batch", Canvas).redraw()

    def _forest(self, width: int, height: int) -> Sequence[Line]:
        return self.waiting(width) if self.summed is None else draw_figures.forest_lines(self.summed.summary, width)

    def _waterfall(self, width: int, height: int) -> Sequence[Line]:
        return draw_figures.waterfall_lines(self.summed.summary, width) if self.summed is not None else []

    def _tau(self, width: int, height: int) -> Sequence[Line]:
        if self.summed is None:
            return []
        points = draw_figures.tau_points(self.summed.summary)
        return draw_figures.scatter_lines(
            self.summed.summary, points, x_name="τ, tokens per step", width=width, height=height
        )

    def _sizes(self, width: int, height: int) -> Sequence[Line]:
        if self.summed is None:
            return []
        points = draw_figures.size_points(self.summed.summary)
        return draw_figures.scatter_lines(
            self.summed.summary, points, x_name="parameters of the drafter", width=width, height=height
        )

    def _batch(self, width: int, height: int) -> Sequence[Line]:
        if self.summed is None:
            return []
        if self._why_no_batches:
            words = f"Of other batch sizes nothing is known: {self._why_no_batches}. Coming back here asks again."
            return wrap(words, width, "warn")
        if self.batches is None:
            return wrap("reading …", width, "dim")
        return draw_figures.batch_lines(self.summed.summary, self.batches, width)

    def explain(self) -> list[Line]:
        return [
            line("●     geometric mean of the speed-up over questions, each against the baseline's own answer"),
            line("├──┤  95 % bootstrap over questions; where it crosses │ (1.0), it is tied with the baseline"),
            line("ranks count who is faster, pair by pair, uncorrected; a wide interval is `too noisy here`"),
        ]
