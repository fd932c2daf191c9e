"""Train: a training's curves, live or finished; its drafter is benchmarked with one key."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual.containers import Grid
from textual.widget import Widget

from specbench.errors import SpecbenchError
from specbench.store.journal import run_state
from specbench.tui import sharing
from specbench.tui.lines import Line, Span, line, wrap
from specbench.tui.views.base import View
from specbench.tui.widgets.canvas import Canvas

if TYPE_CHECKING:
    from specbench.tui.figures import Course

_LOOK_EVERY_S = 2.0
_NOT_SEEN = ("", -1, "")


class TrainView(View):
    """Four panes: loss, accuracy by depth, simulated τ, health."""

    view: ClassVar[str] = "train"

    DEFAULT_CSS = """
    TrainView #body { grid-size: 2 2; }
    TrainView.-narrow #body { grid-size: 1 4; grid-rows: 11; overflow-y: auto; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.training: Course | None = None
        self._runs: list[str] | None = None
        self._seen: tuple[str, int, str] = _NOT_SEEN
        self._places = 0
        """Trainings to go on by, as soon as it is known which there are."""
        self.is_log = self.is_smooth = False
        """How the loss is drawn."""

    def body(self) -> Iterable[Widget]:
        with Grid(id="body"):
            yield Canvas(self._loss, title="Loss", id="loss", classes="pane")
            yield Canvas(self._accuracy, title="Held-out accuracy by depth", id="accuracy", classes="pane")
            yield Canvas(self._tau, title="Simulated acceptance length", id="tau", classes="pane")
            yield Canvas(self._health, title="Course", id="health", classes="pane")

    def on_mount(self) -> None:
        self.query_one("#loss").focus()
        self.poll(_LOOK_EVERY_S, self.look)
        self.look()

    def entered(self) -> None:
        if self.training is None or self.training.run_id != self.workspace.training_id:
            # What could not be read is tried again.
            self._seen = _NOT_SEEN
        self.look()

    def run_opened(self) -> None:
        self.look()

    def look(self) -> None:
        """Read the journal again where it has grown."""
        if not self.is_mounted or not self.is_current:
            return
        run_id = self.workspace.training_id
        if not run_id:
            if not self.is_under_way("trainings"):
                self.in_background("trainings", self._read_runs, self._runs_read)
            return
        journal = self.workspace.folder(run_id) / "events.jsonl"
        # Its process may be gone, or not be heard of any more, without a byte in the journal.
        seen = (run_id, journal.stat().st_size if journal.exists() else 0, run_state(journal.parent))
        if seen == self._seen:
            return
        # Its reading ends before the next begins, however long it takes; another training takes its place.
        if run_id == self._seen[0] and self.is_under_way("training"):
            return
        self._seen = seen
        self.in_background("training", lambda: self._read_training(run_id), self._training_read)

    def _read_training(self, run_id: str) -> Course:
        found: Course = self.workspace.reader.ask("training", self.workspace.store, run_id)
        return found

    def _read_runs(self) -> list[str]:
        return [entry.run_id for entry in self.workspace.listing().runs if entry.kind == "train"]

    def _runs_read(self, runs: list[str]) -> None:
        self._runs = runs
        if runs:
            self.workspace.training_id = runs[0]
            self.look()
        self._redraw()

    def _training_read(self, found: Course) -> None:
        self.training = found
        self._redraw()

    def _redraw(self) -> None:
        for canvas in self.query(Canvas):
            canvas.redraw()
        self.refresh_words()

    def headline(self) -> str:
        from specbench.tui import draw_train

        return draw_train.header(self.training) if self.training is not None else ""

    def _empty(self, width: int) -> Sequence[Line]:
        if self._runs == []:
            return [
                line(Span("No training in this store yet.", "bold")),
                *wrap("specbench train --method redrafter --target demo --dataset FILE starts one.", width),
                *wrap("Its curves appear here while it runs.", width, "dim"),
            ]
        return wrap("reading …", width, "dim")

    def _loss(self, width: int, height: int) -> Sequence[Line]:
        from specbench.tui import draw_train

        if self.training is None:
            return self._empty(width)
        return draw_train.loss_lines(self.training, width, height, is_log=self.is_log, is_smooth=self.is_smooth)

    def _accuracy(self, width: int, height: int) -> Sequence[Line]:
        from specbench.tui import draw_train

        return draw_train.accuracy_lines(self.training, width) if self.training is not None else []

    def _tau(self, width: int, height: int) -> Sequence[Line]:
        from specbench.tui import draw_train

        return draw_train.tau_lines(self.training, width) if self.training is not None else []

    def _health(self, width: int, height: int) -> Sequence[Line]:
        from specbench.tui import draw_train

        return draw_train.health_lines(self.training, width) if self.training is not None else []

    def _go(self, places: int) -> None:
        self._places += places
        # A listing may wait for the store: the keys must not wait with it.
        self.in_background("where to go on", self._read_runs, self._go_on, failed=self._stay)

    def _stay(self, _: SpecbenchError) -> None:
        self._places = 0

    def _go_on(self, runs: list[str]) -> None:
        places, self._places = self._places, 0
        if not runs:
            self.say("there is no training here", style="warn")
            return
        at = runs.index(self.workspace.training_id) if self.workspace.training_id in runs else -1
        self.workspace.training_id = runs[(at + places) % len(runs)]
        self.look()

    def action_next(self) -> None:
        self._go(+1)

    def action_previous(self) -> None:
        self._go(-1)

    def action_bench(self) -> None:
        """The form, filled in for the drafter that was kept."""
        if self.training is None:
            self.say("no training is open", style="warn")
            return
        best = self.workspace.folder(self.training.run_id) / "best"
        if not (best / "config.json").exists():
            is_elsewhere = self.training.best_step is not None
            self.say(
                f"the drafter lies where the training was made; there is no {best}"
                if is_elsewhere
                else "nothing was kept yet: the first evaluation keeps the first drafter",
                style="warn",
            )
            return
        from specbench.tui import draw_train
        from specbench.tui.views.launch import LaunchForm

        self.main.push_screen(LaunchForm(self.workspace, draw_train.bench_values(self.training, str(best.resolve()))))

    def _titled(self) -> None:
        from specbench.tui import draw_train

        words = ["log scale"] if self.is_log else []
        words += [f"exponential mean {draw_train.SMOOTHING:g}"] if self.is_smooth else []
        canvas = self.query_one("#loss", Canvas)
        canvas.set_title("Loss" + (f": {', '.join(words)}" if words else ""))
        canvas.redraw()

    def action_log_scale(self) -> None:
        self.is_log = not self.is_log
        self._titled()

    def action_smooth(self) -> None:
        self.is_smooth = not self.is_smooth
        self._titled()

    def action_log(self) -> None:
        if self.workspace.training_id:
            from specbench.tui.views.stopping import show_log

            show_log(self, self.workspace.training_id)
        else:
            self.say("no training is open", style="warn")

    def exports(self) -> list[Path]:
        words = "\n\n".join(canvas.text() for canvas in self.query(Canvas))
        return [*super().exports(), sharing.write_text(self.workspace.store, "train", ".txt", words)]

    def late_exports(self) -> Callable[[], list[Path]] | None:
        """The curves as the page that `results plot` writes."""
        if self.training is None:
            return None
        reader, store, run_id = self.workspace.reader, self.workspace.store, self.training.run_id
        return lambda: [reader.ask("write_training", store, run_id, sharing.place(store, "train", ".html"))]
