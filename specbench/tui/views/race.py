"""Race: up to four methods on one question, live or replayed on their recorded clocks."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual.containers import Grid, Horizontal
from textual.timer import Timer
from textual.widget import Widget

from specbench.errors import SpecbenchError
from specbench.report import text
from specbench.store.journal import MAY_GROW, run_state
from specbench.tui import draw_race
from specbench.tui.lines import Line, Span, line, wrap
from specbench.tui.race import MOST_LANES, Race
from specbench.tui.views.race_keys import RaceKeys
from specbench.tui.widgets.canvas import Canvas, Strap
from specbench.tui.widgets.lane_pane import LanePane
from specbench.tui.workspace import LIVE_FPS, LIVE_LOOKS, REPLAY_FPS

if TYPE_CHECKING:
    from specbench.tui.sofar import MethodSoFar, SoFar

_STATE_EVERY_S = 2.0
_SUMMING_SHARE = 0.005
"""Of a core: what the intervals beside a live run may take."""


class RaceView(RaceKeys):
    """See specbench.tui.race for what is shown; here it is only put on the screen."""

    view: ClassVar[str] = "race"

    DEFAULT_CSS = """
    RaceView #lanes { height: 1fr; grid-size: 4 1; grid-gutter: 0; }
    RaceView #boxes { height: 9; }
    RaceView #boxes Canvas { width: 1fr; }
    RaceView #clock { height: 7; }
    RaceView #speedstrap, RaceView #clockstrap { display: none; }
    RaceView.-short #boxes, RaceView.-short #clock { display: none; }
    RaceView.-short #speedstrap, RaceView.-short #clockstrap { display: block; }
    RaceView #noracing { height: 1fr; display: none; }
    RaceView.-empty #lanes, RaceView.-empty #boxes, RaceView.-empty #clock { display: none; }
    RaceView.-empty #speedstrap, RaceView.-empty #clockstrap { display: none; }
    RaceView.-empty #noracing { display: block; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.race: Race | None = None
        self.figures: dict[str, MethodSoFar] = {}
        self.state = ""
        self._sofar: SoFar | None = None
        self._summed_version = -1
        self._timer: Timer | None = None
        self._pace = 0
        """Ticks a second; 0: none, nothing moves by itself."""
        self._shown_at = -1.0
        self._sum_again_at = 0.0
        self.opened = ""
        self.wanted: tuple[str, int, Sequence[str]] | None = None
        """Asked for while the run was still being opened."""

    def body(self) -> Iterable[Widget]:
        yield Canvas(self._empty, title="Race", id="noracing", classes="pane")
        with Grid(id="lanes"):
            for number in range(MOST_LANES):
                yield LanePane(number, self.main.marks)
        with Horizontal(id="boxes"):
            yield Canvas(self._speedups, title="Speed-up so far", id="speedups", classes="pane")
            yield Canvas(self._costs, title="Where a step goes: mean ms", id="costs", classes="pane")
        yield Canvas(self._clock, title="Race clock: tokens over time", id="clock", classes="pane")
        yield Strap(self._speedup_strap, id="speedstrap")
        yield Strap(self._clock_strap, id="clockstrap")

    def on_mount(self) -> None:
        self.poll(_STATE_EVERY_S, self._look_at_state)
        self.run_opened()

    # --- opening ------------------------------------------------------------------------------------------------------

    def run_opened(self) -> None:
        self.opened = self.workspace.run_id
        self.race = self._sofar = None
        # A state is of one run: kept, the next one would be said to have ended with it.
        self.state, self._shown_at = "", -1.0
        self.figures, self._summed_version, self._sum_again_at = {}, -1, 0.0
        # `is_mounted` is not true yet inside on_mount: whether the panes are there is asked instead.
        if not self.query("#lanes"):
            return
        self.set_class(not self.opened, "-empty")
        if not self.opened:
            return
        folder = self.workspace.folder(self.opened)
        self.said = ""
        self.in_background("opening", lambda: _open(folder), self._race_read)

    def _race_read(self, found: tuple[Race, SoFar, dict[str, MethodSoFar]]) -> None:
        race, self._sofar, self.figures = found
        self._summed_version = race.index.version
        if race.folder.name != self.opened:
            return
        self.race = race
        self._look_at_state()
        if self.state == "running":
            race.follow()
        else:
            race.clock.play()
        self.query_one("#lane0", LanePane).tokens.focus()
        self.draw_methods()
        self.keep_pace()
        if self.wanted is not None:
            wanted, self.wanted = self.wanted, None
            self.show_question(*wanted)

    def entered(self) -> None:
        if self.opened != self.workspace.run_id:
            self.run_opened()
        elif self.race is not None:
            # One may have been made on the Tree screen.
            self.race.look_for_traces()
        self.set_class(not self.workspace.run_id, "-empty")
        self.keep_pace()

    def left(self) -> None:
        self.keep_pace()

    def _look_at_state(self) -> None:
        if self.race is None or not self.is_current:
            return
        try:
            state = run_state(self.race.folder)
        except SpecbenchError as error:
            self.fail(error)
            return
        if state not in MAY_GROW and self.state in MAY_GROW:
            lost = "its process is gone without a last word: L shows the end of its log"
            self.say(
                f"the run is {state}" + (f": {lost}" if state == "lost" else ""),
                style="bad" if state == "lost" else "good",
            )
            # No tick may come any more: what was written since the last one is read here.
            try:
                self.race.advance()
            except SpecbenchError as error:
                self.race = None
                self.fail(error)
                return
            # What is there can be played now.
            self.race.leave_following()
        # Where nothing is heard of it, it is shown as it was.
        is_running = state == "running" or (state == "unknown" and self.state != "" and self.race.is_running)
        if self.race.is_running != is_running:
            self.race.is_running = is_running
            self.race.refresh()
            self.draw_now()
        self.state = state
        if state == "running":
            self.main.look_for_runs()
        self._sum_up()
        self.keep_pace()

    # --- time ---------------------------------------------------------------------------------------------------------

    def _wanted_pace(self) -> int:
        race = self.race
        if race is None or not self.is_current:
            return 0
        if race.clock.is_playing and not race.is_following:
            return LIVE_FPS if self.main.is_beside_a_run else REPLAY_FPS
        if race.index.is_behind:
            return REPLAY_FPS
        return LIVE_LOOKS if self.state in MAY_GROW else 0

    def keep_pace(self) -> None:
        """Tick as often as something may move, and not at all where nothing does: a timer that finds nothing to do
        still wakes the process, and with it a processor that a run may want."""
        pace = self._wanted_pace()
        if pace == self._pace:
            return
        self._pace = pace
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_interval(1 / pace, self.tick) if pace else None

    def tick(self) -> None:
        """Read on and redraw; nothing happens where nothing changed."""
        self.keep_pace()
        if self.race is None or not self.is_current:
            return
        race = self.race
        try:
            changed = race.advance() if self.state in MAY_GROW or race.index.is_behind else False
        except SpecbenchError as error:
            self.race = None
            self.fail(error)
            return
        if changed or race.clock.is_playing or race.position() != self._shown_at:
            self.draw_now()

    def draw_now(self) -> None:
        """Everything to the moment of now."""
        if self.race is None:
            return
        seconds = self._shown_at = self.race.position()
        for number, lane in enumerate(self.race.lanes):
            figure = self.figures.get(lane.method)
            ratio = text.times(figure.speedup.geometric_mean) if figure is not None and figure.speedup else ""
            self.query_one(f"#lane{number}", LanePane).show_lane(
                lane, seconds, ratio, is_moving=self.race.clock.is_playing
            )
        self.query_one("#says", Strap).redraw()
        for name in ("clock", "clockstrap"):
            self._redraw(name)
        self.keep_pace()

    def draw_methods(self) -> None:
        self._shape()
        for name in ("speedups", "costs", "speedstrap"):
            self._redraw(name)
        self.draw_now()

    def _redraw(self, name: str) -> None:
        widget = self.query_one(f"#{name}")
        if widget.display and isinstance(widget, Canvas | Strap):
            widget.redraw()

    def _shape(self) -> None:
        """As many panes as methods: side by side, or two by two where it is narrow."""
        if self.race is None:
            return
        number = len(self.race.lanes)
        for place in range(MOST_LANES):
            self.query_one(f"#lane{place}").display = place < number
        grid = self.query_one("#lanes", Grid)
        columns = number if not self.has_class("-narrow") else min(2, number)
        grid.styles.grid_size_columns = max(1, columns)
        grid.styles.grid_size_rows = max(1, -(-number // max(1, columns)))

    def on_resize(self) -> None:
        self.call_after_refresh(self._shape)

    def _sum_up(self) -> None:
        """Intervals in a thread: ten thousand resamples take a moment, in a long run a longer one."""
        race, sofar = self.race, self._sofar
        if race is None or sofar is None or self._summed_version == race.index.version:
            return
        if self.state in MAY_GROW and time.monotonic() < self._sum_again_at:
            return
        self._summed_version = race.index.version

        def figures() -> tuple[dict[str, MethodSoFar], float]:
            began = time.thread_time()
            return sofar.figures(race.index), time.thread_time() - began

        self.in_background("sofar", figures, lambda found: self._figures_found(race, found))

    def _figures_found(self, race: Race, found: tuple[dict[str, MethodSoFar], float]) -> None:
        if race is not self.race:
            return  # another run was opened meanwhile
        self.figures, cost_s = found
        self._sum_again_at = time.monotonic() + cost_s / _SUMMING_SHARE
        for name in ("speedups", "costs", "speedstrap"):
            self._redraw(name)
        self.draw_now()

    # --- drawing ------------------------------------------------------------------------------------------------------

    def headline(self) -> str:
        if self.race is None:
            return "no run is open: 1 Home, then enter on one" if not self.opened else f"opening {self.opened} …"
        parts = [draw_race.header(self.race, self.race.position())]
        if self.state == "running":
            parts.append(draw_race.progress(self.race))
            parts.append(draw_race.live_note(self.race))
        if self.race.found.why_not:
            parts.append(self.race.found.why_not)
        parts += self.race.notes[-1:]
        parts.append(f"{self.race.manifest.suite.name} on {self.race.manifest.target.name}, {self.state}")
        return " · ".join(part for part in parts if part)

    def _empty(self, width: int, height: int) -> Sequence[Line]:
        return [
            (),
            *wrap("No run is open.", width, "bold"),
            (),
            line(Span("  1", "key"), "  goes Home: enter on a run opens it here."),
            line(Span("  n", "key"), "  starts a new one."),
            line("  specbench tui RUN opens one at once."),
        ]

    def _speedups(self, width: int, height: int) -> Sequence[Line]:
        return draw_race.speedup_lines(self.race, self.figures, width) if self.race is not None else []

    def _costs(self, width: int, height: int) -> Sequence[Line]:
        return draw_race.cost_lines(self.race, self.figures, width) if self.race is not None else []

    def _clock(self, width: int, height: int) -> Sequence[Line]:
        return draw_race.clock_lines(self.race, self._shown_at, width) if self.race is not None else []

    def _speedup_strap(self, width: int, height: int) -> Sequence[Line]:
        return [draw_race.speedup_strap(self.race, self.figures, width)] if self.race is not None else [()]

    def _clock_strap(self, width: int, height: int) -> Sequence[Line]:
        return [draw_race.clock_strap(self.race, self._shown_at, width)] if self.race is not None else [()]

    def explain(self) -> list[Line]:
        return [
            line(Span("What is shown", "bold")),
            line("¹²³  drafted, and accepted at that depth      ◆  the target's own token behind a draft"),
            line("■■□  levels of the last draft, accepted filled       ~of~  rejected, where t has made a trace"),
            line("τ    tokens kept per step, the bonus included  │  now on the race clock, · still to come"),
            *wrap(
                "Speed-ups are over the whole run so far, paired by question, with the 95 % interval of the tables.", 96
            ),
        ]


def _open(folder: Path) -> tuple[Race, SoFar, dict[str, MethodSoFar]]:
    """In a thread: a long journal and a large vocabulary take a moment."""
    from specbench.tui.sofar import SoFar  # 0.1 s of numpy, not for the first screen

    race = Race(folder)
    race.load_tokenizer()
    while race.index.advance():
        pass
    sofar = SoFar(race.manifest)
    figures = sofar.figures(race.index)
    speeds = {method: each.speedup.geometric_mean for method, each in figures.items() if each.speedup is not None}
    race.choose(race.first_choice(speeds))
    # A million steps' index is thousands of objects that live as long as the run is open. A full collection that looks
    # at all of them again stopped the screen for 70 ms in the middle of a seek.
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    return race, sofar, figures
