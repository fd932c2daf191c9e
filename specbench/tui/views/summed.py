"""What Accept and Speed share: one run of the store in figures, read in a thread, the next one with `]`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from textual.widget import Widget

from specbench.errors import SpecbenchError
from specbench.store.words import count
from specbench.tui import sharing
from specbench.tui.lines import Line, Span, line, wrap
from specbench.tui.views.base import View
from specbench.tui.widgets.canvas import Canvas

if TYPE_CHECKING:
    from specbench.tui.figures import Summed

_LOOK_EVERY_S = 5.0


class SummedView(View):
    """Subclasses draw `self.summed`."""

    def __init__(self) -> None:
        super().__init__()
        self.summed: Summed | None = None
        self._shown_run = self._asked = ""
        self._runs: list[str] | None = None
        self._why_not = ""
        """The run that was asked for could not be summed up."""
        self._places = 0
        """Runs to go on by, as soon as it is known which there are."""

    def on_mount(self) -> None:
        self.poll(_LOOK_EVERY_S, self.look)
        self.look()

    def entered(self) -> None:
        self.look(is_entered=True)

    def _is_old(self, run_id: str) -> bool:
        # What could not be summed up is among them: it is tried again when the screen is entered.
        return not self.workspace.is_as_of_now(run_id, self.summed)

    def look(self, *, is_entered: bool = False) -> None:
        """Read the run's figures where they are not those on the screen. Those of a run that is being written are read
        again when the screen is entered, not while it stands: that would take processor time from the run."""
        if not self.is_current:
            return
        if not self.workspace.run_id:
            if not self.is_under_way("runs"):
                self.in_background("runs", self._read_runs, self._runs_read)
            return
        run_id = self.workspace.run_id
        if run_id == self._asked and not (is_entered and self._is_old(run_id)):
            return
        if run_id != self._shown_run:
            # The figures of another run would stand there under this one's name.
            self.summed, self._shown_run = None, ""
        self._asked, self._why_not = run_id, ""
        self.redraw_all()
        self.in_background("summing", lambda: self.workspace.summed(run_id), self._summed_up, failed=self._not_summed)

    def _read_runs(self) -> list[str]:
        return [entry.run_id for entry in self.workspace.listing().runs if entry.kind == "run"]

    def _runs_read(self, runs: list[str]) -> None:
        self._runs = runs
        if runs and not self.workspace.run_id:
            self.workspace.run_id = runs[0]
            self.look()
        else:
            self.redraw_all()

    def _not_summed(self, error: SpecbenchError) -> None:
        self._why_not = error.what
        self.redraw_all()

    def _summed_up(self, found: Summed) -> None:
        self.summed, self._shown_run = found, found.summary.run_id
        self.redraw_all()

    def redraw_all(self) -> None:
        """Every pane; heights that follow the lines as well."""
        for canvas in self.query(Canvas):
            canvas.redraw()
            canvas.refresh(layout=True)
        self.refresh_words()

    def waiting(self, width: int) -> Sequence[Line]:
        """Instead of figures, as long as there are none."""
        if self._why_not:
            return wrap(f"No figures: {self._why_not}. Coming back to this screen tries again.", width, "warn")
        if self.workspace.run_id:
            return wrap(
                f"{self.workspace.run_id} is being summed up; of a long one outside the store that takes a while …",
                width,
            )
        if self._runs is None:
            return wrap("reading runs …", width, "dim")
        return [
            line(Span("There is no run yet.", "bold")),
            line(
                Span("1", "key"),
                " then ",
                Span("b", "key"),
                " measures the demo; ",
                Span("n", "key"),
                " opens the form.",
            ),
        ]

    def headline(self) -> str:
        if self.summed is None:
            return ""
        summary = self.summed.summary
        parts = [summary.run_id, f"{summary.suite} on {summary.target}", count(summary.num_questions, "question")]
        parts.append(summary.state)
        if self.summed.source != "store":
            parts.append(self.summed.source)
        return " · ".join(parts)

    def _go(self, places: int) -> None:
        self._places += places
        if self._runs is None:
            # A listing may wait for the store: the keys must not wait with it.
            self.in_background("where to go on", self._read_runs, self._go_on, failed=self._stay)
        else:
            self._go_on(self._runs)

    def _stay(self, _: SpecbenchError) -> None:
        self._places = 0

    def _go_on(self, runs: list[str]) -> None:
        self._runs = runs
        places, self._places = self._places, 0
        if not runs:
            self.say("there is no other run", style="warn")
            return
        at = runs.index(self.workspace.run_id) if self.workspace.run_id in runs else -1
        self.workspace.run_id = runs[(at + places) % len(runs)]
        self.say("")
        self.look()

    def action_next(self) -> None:
        self._go(+1)

    def action_previous(self) -> None:
        self._go(-1)

    def exports(self) -> list[Path]:
        words = "\n\n".join(canvas.text() for canvas in self.query(Canvas))
        return [*super().exports(), sharing.write_text(self.workspace.store, self.view, ".txt", words)]

    def body(self) -> Iterable[Widget]:
        raise NotImplementedError
