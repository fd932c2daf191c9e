"""Race: up to four methods on one question, live or replayed on their recorded clocks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rich.cells import cell_len
from textual.containers import Grid, Horizontal, Vertical
from textual.content import Content
from textual.timer import Timer
from textual.widget import Widget

from specbench.errors import SpecbenchError
from specbench.report import text
from specbench.store.journal import run_state
from specbench.tui import draw_race, sharing
from specbench.tui.lines import Line, Span, cell, line, wrap
from specbench.tui.marks import Mode, symbol
from specbench.tui.race import MOST_LANES, Lane, Race
from specbench.tui.sanitise import visible
from specbench.tui.views.base import View
from specbench.tui.widgets.canvas import Canvas, LineView, Strap
from specbench.tui.widgets.token_view import TokenView
from specbench.tui.workspace import LIVE_FPS, REPLAY_FPS

if TYPE_CHECKING:
    from specbench.tui.sofar import MethodSoFar, SoFar

_STATES = {"queued": ("⧗", "queued"), "live": ("●", "LIVE"), "done": ("↻", "replay"), "failed": ("✗", "failed")}
_STATE_EVERY_S = 2.0
_RATE_EVERY_S = 0.25


class LanePane(Vertical):
    """One method: its tokens, under them two lines of counts."""

    ALLOW_MAXIMIZE = True

    DEFAULT_CSS = """
    LanePane { border: round $secondary; padding: 0 1; height: 1fr; width: 1fr; }
    LanePane:focus-within { border: heavy $accent; }
    LanePane TokenView { height: 1fr; }
    LanePane .counts { height: 2; scrollbar-size: 0 0; scrollbar-gutter: auto; }
    .-short LanePane .counts { height: 1; }
    """

    def __init__(self, number: int, mode: Mode) -> None:
        super().__init__(id=f"lane{number}")
        self.lane: Lane | None = None
        self.seconds = 0.0
        self._restarts = -1
        self._words = ("", "")
        self._words_at = 0.0
        self.tokens = TokenView(mode=mode)
        self.counts = Canvas(self._counts, classes="counts")
        self.counts.can_focus = False

    def compose(self) -> Iterable[Widget]:
        yield self.tokens
        yield self.counts

    def _counts(self, width: int, height: int) -> Sequence[Line]:
        rows = draw_race.lane_lines(self.lane, self.seconds, width) if self.lane is not None else []
        return rows[:height]

    def _title(self, lane: Lane, ratio: str) -> str:
        """Words as far as there is room: the state's sign stays, its word and then the end of the name go."""
        sign, word = _STATES[lane.state]
        room = max(8, self.size.width - 4)
        for tail in (f" {ratio} {sign} {word}", f" {ratio} {sign}"):
            title = f"{symbol(lane.position)} {lane.method}{tail}".replace("  ", " ")
            if cell_len(title) <= room:
                return title
        tail = f" {ratio} {sign}".replace("  ", " ")
        return f"{symbol(lane.position)} {cell(lane.method, max(1, room - 2 - cell_len(tail)))}{tail}"

    def show_lane(self, lane: Lane, seconds: float, ratio: str, *, is_moving: bool) -> None:
        """Bring the pane to a moment. ratio: the method's speed-up so far, as text."""
        is_new = lane is not self.lane or lane.num_restarts != self._restarts
        self.lane, self.seconds = lane, seconds
        title, below = self._title(lane, ratio), draw_race.lane_rate(lane, seconds)
        # Border words repaint the whole pane: only where they changed, and the rate not with every token.
        now = time.monotonic()
        is_due = not is_moving or now - self._words_at > _RATE_EVERY_S
        if title != self._words[0] or (below != self._words[1] and is_due):
            self._words, self._words_at = (title, below), now
            self.border_title, self.border_subtitle = Content(visible(title)), Content(below)
        self._restarts = lane.num_restarts
        if lane.timeline is None or (lane.generation and lane.generation.ending and lane.generation.ending.error):
            self.tokens.say(self._why_empty(lane))
        else:
            shown = lane.timeline.tokens_at(seconds)
            if is_new or self.tokens.num_held > len(lane.tokens) or self.tokens.is_note:
                self.tokens.show(lane.tokens, num_shown=shown)
            else:
                self.tokens.append(lane.tokens[self.tokens.num_held :])
                self.tokens.reveal(shown)
        self.counts.redraw()

    def _why_empty(self, lane: Lane) -> Sequence[Line]:
        width = max(10, self.tokens.width)
        ending = lane.generation.ending if lane.generation is not None else None
        if ending is not None and ending.error:
            return [line(Span("✗ no answer", "bad")), *wrap(ending.error, width)]
        waits = "waits for its turn: one method at a time is on the device, in an order drawn for every question"
        return wrap(waits, width, "dim")


class RaceView(View):
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
        self._shown_at = -1.0
        self._ticks_since = 0
        self._opened = ""
        self._wanted: tuple[str, int, Sequence[str]] | None = None
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
        self.set_interval(_STATE_EVERY_S, self._look_at_state)
        self._timer = self.set_interval(1 / REPLAY_FPS, self.tick)
        self.run_opened()

    # --- opening ------------------------------------------------------------------------------------------------------

    def run_opened(self) -> None:
        self._opened = self.workspace.run_id
        self.race = None
        self.figures, self._summed_version = {}, -1
        # `is_mounted` is not true yet inside on_mount: whether the panes are there is asked instead.
        if not self.query("#lanes"):
            return
        self.set_class(not self._opened, "-empty")
        if not self._opened:
            return
        folder = self.workspace.folder(self._opened)
        self.said = ""
        self.in_background("opening", lambda: _open(folder), self._race_read)

    def _race_read(self, found: tuple[Race, SoFar, dict[str, MethodSoFar]]) -> None:
        race, self._sofar, self.figures = found
        self._summed_version = race.index.version
        if race.folder.name != self._opened:
            return
        self.race = race
        self._look_at_state()
        if self.state == "running":
            race.follow()
        else:
            race.clock.play()
        self._shape()
        self.query_one("#lane0", LanePane).tokens.focus()
        for name in ("speedups", "costs", "speedstrap"):
            self._redraw(name)
        self.draw_now()
        if self._wanted is not None:
            wanted, self._wanted = self._wanted, None
            self.show_question(*wanted)

    def entered(self) -> None:
        if self._opened != self.workspace.run_id:
            self.run_opened()
        self.set_class(not self.workspace.run_id, "-empty")

    def _look_at_state(self) -> None:
        if self.race is None or not self.is_current:
            return
        try:
            state = run_state(self.race.folder)
        except SpecbenchError as error:
            self.fail(error)
            return
        if state != self.state and self.state == "running":
            lost = "its process is gone without a last word: L shows the end of its log"
            self.say(
                f"the run is {state}" + (f": {lost}" if state == "lost" else ""),
                style="bad" if state == "lost" else "good",
            )
            # What is there can be played now.
            self.race.leave_following()
        self.state = state
        if state == "running" and self.main.watch_live(self.race.folder):
            self.query_one("#tabs", Strap).redraw()
        self._sum_up()

    # --- time ---------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Read on and redraw; nothing happens where nothing changed, so an idle race costs nothing."""
        if self.race is None or not self.is_current:
            return
        race = self.race
        if self._timer is not None and race.is_following and self._ticks_since < REPLAY_FPS // LIVE_FPS:
            self._ticks_since += 1
            return
        self._ticks_since = 0
        try:
            changed = race.advance() if self.state == "running" or race.index.is_behind else False
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
        """Intervals in a thread: ten thousand resamples take a moment."""
        race, sofar = self.race, self._sofar
        if race is None or sofar is None or self._summed_version == race.index.version:
            return
        self._summed_version = race.index.version
        self.in_background("sofar", lambda: sofar.figures(race.index), self._figures_found)

    def _figures_found(self, figures: dict[str, MethodSoFar]) -> None:
        self.figures = figures
        for name in ("speedups", "costs", "speedstrap"):
            self._redraw(name)
        self.draw_now()

    # --- drawing ------------------------------------------------------------------------------------------------------

    def headline(self) -> str:
        if self.race is None:
            return "no run is open: 1 Home, then enter on one" if not self._opened else f"opening {self._opened} …"
        parts = [draw_race.header(self.race, self.race.position())]
        if self.state == "running":
            parts.append(draw_race.progress(self.race))
            parts.append(draw_race.live_note(self.race))
        if self.race.found.why_not:
            parts.append(self.race.found.why_not)
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
            line("■■□  levels of the last draft, accepted filled. Which tokens were rejected is not in the journal."),
            line("τ    tokens kept per step, the bonus included  │  now on the race clock, · still to come"),
            *wrap(
                "Speed-ups are over the whole run so far, paired by question, with the 95 % interval of the tables.", 96
            ),
        ]

    # --- actions ------------------------------------------------------------------------------------------------------

    def _focused_lane(self) -> Lane | None:
        if self.race is None:
            return None
        focused = self.focused
        for number, lane in enumerate(self.race.lanes):
            if focused is not None and self.query_one(f"#lane{number}") in focused.ancestors_with_self:
                return lane
        return next((lane for lane in self.race.lanes if lane.timeline is not None), None)

    def _with_race(self) -> Race | None:
        if self.race is None:
            self.say("no run is open: 1 goes Home", style="warn")
        elif self.said:
            self.say("")
        return self.race

    def action_play(self) -> None:
        race = self._with_race()
        if race is None:
            return
        if race.is_following:
            race.leave_following()
        elif race.clock.is_playing:
            race.clock.pause()
        else:
            race.clock.play()
        self.draw_now()

    def _step(self, *, forward: bool) -> None:
        race, lane = self._with_race(), self._focused_lane()
        if race is not None and lane is not None:
            race.step(lane, forward=forward)
            self.draw_now()

    def action_step_forward(self) -> None:
        self._step(forward=True)

    def action_step_back(self) -> None:
        self._step(forward=False)

    def _seek(self, seconds: float) -> None:
        race = self._with_race()
        if race is not None:
            race.leave_following()
            race.clock.seek(seconds)
            self.draw_now()

    def action_seek_forward(self) -> None:
        if self.race is not None:
            self._seek(self.race.position() + self.race.clock.duration / 20)

    def action_seek_back(self) -> None:
        if self.race is not None:
            self._seek(self.race.position() - self.race.clock.duration / 20)

    def action_first(self) -> None:
        self._seek(0.0)

    def action_last(self) -> None:
        if self.race is not None:
            self._seek(self.race.clock.duration)

    def _speed(self, places: int) -> None:
        race = self._with_race()
        if race is not None:
            race.clock.change_speed(places)
            self.draw_now()

    def action_faster(self) -> None:
        self._speed(+1)

    def action_slower(self) -> None:
        self._speed(-1)

    def _go(self, place: int, *, repeat: int | None = None) -> None:
        race = self._with_race()
        if race is not None:
            race.is_following = False
            race.go(place, repeat=repeat)
            race.clock.play()
            self.draw_now()

    def action_next(self) -> None:
        if self.race is not None:
            self._go(self.race.place + 1)

    def action_previous(self) -> None:
        if self.race is not None:
            self._go(self.race.place - 1)

    def action_repeat(self) -> None:
        if self.race is not None:
            self._go(self.race.place, repeat=self.race.repeat + 1)

    def show_question(self, question_id: str, turn: int, methods: Sequence[str]) -> None:
        """Opened from another screen on one answer."""
        if self.race is None:
            self._wanted = (question_id, turn, methods)
            return
        place = next(
            (n for n, q in enumerate(self.race.questions) if (q.question_id, q.turn) == (question_id, turn)), None
        )
        if place is not None:
            self.race.choose(list(dict.fromkeys(methods))[:MOST_LANES])
            self._shape()
            self._go(place)

    def action_follow(self) -> None:
        race = self._with_race()
        if race is not None:
            race.follow()
            if self.state != "running":
                race.leave_following()
                self.say(f"the run is {self.state}: its journal grows no more; space replays", style="warn")
            self.draw_now()

    def action_choose(self) -> None:
        race = self._with_race()
        if race is None:
            return
        from specbench.tui.views.dialogs import Picking

        names = [method.label for method in race.manifest.methods]
        picked = [lane.method for lane in race.lanes]
        self.main.push_screen(Picking("Which methods race?", names, picked, most=MOST_LANES), self._chose)

    def _chose(self, methods: list[str] | None) -> None:
        if methods and self.race is not None:
            self.race.choose(methods)
            self._shape()
            for name in ("speedups", "costs", "speedstrap"):
                self._redraw(name)
            self.draw_now()

    def action_marks(self) -> None:
        self.main.marks = self.main.marks.next()
        for number in range(MOST_LANES):
            self.query_one(f"#lane{number}", LanePane).tokens.set_mode(self.main.marks)
        self.say(f"tokens: {self.main.marks.value}")

    def action_stop(self) -> None:
        if self._with_race() is not None:
            from specbench.tui.views.stopping import ask_how_to_stop

            ask_how_to_stop(self, self._opened)

    def action_log(self) -> None:
        if self._opened:
            from specbench.tui.views.stopping import show_log

            show_log(self, self._opened)

    def zoomable(self, focused: Widget) -> Widget:
        return focused.parent if isinstance(focused.parent, LanePane) else focused

    def copied(self) -> str:
        focused = self.focused
        if isinstance(focused, TokenView):
            return focused.answer()
        return focused.text() if isinstance(focused, LineView) else ""

    def exports(self) -> list[Path]:
        if self.race is None:
            return super().exports()
        answers = {
            lane.method: self.query_one(f"#lane{number}", LanePane).tokens.answer()
            for number, lane in enumerate(self.race.lanes)
        }
        words = draw_race.export_text(self.race, self.race.position(), self.figures, answers)
        return [*super().exports(), sharing.write_text(self.workspace.store, "race", ".txt", words)]


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
    return race, sofar, figures
