"""One method of a race: its tokens, under them two lines of counts."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from textual.containers import Vertical
from textual.content import Content
from textual.geometry import Region
from textual.widget import Widget

from specbench.tui import draw_race
from specbench.tui.lines import Line, Span, line, wrap
from specbench.tui.marks import Mode, symbol
from specbench.tui.names import short
from specbench.tui.race import Lane
from specbench.tui.sanitise import visible
from specbench.tui.widgets.canvas import Canvas
from specbench.tui.widgets.token_view import TokenView

_STATES = {
    "queued": ("⧗", "queued"),
    "live": ("●", "LIVE"),
    "cut": ("‖", "cut off"),
    "done": ("↻", "replay"),
    "failed": ("✗", "failed"),
}
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
        self._ratio = ""
        self._restarts = -1
        self._words = ("", "")
        self._words_at = 0.0
        self._is_border_only = False
        """What is refreshed now are the border's words and nothing else."""
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
        """Words as far as there is room: the state's sign stays, its word and then a part of the name go."""
        sign, word = _STATES[lane.state]
        room = max(8, self.size.width - 4)
        for tail in (f" {ratio} {sign} {word}", f" {ratio} {sign}"):
            title = f"{symbol(lane.position)} {lane.method}{tail}".replace("  ", " ")
            if cell_len(title) <= room:
                return title
        tail = f" {ratio} {sign}".replace("  ", " ")
        name = short(lane.method, max(1, room - 2 - cell_len(tail)), lane.among)
        return f"{symbol(lane.position)} {name}{tail}"

    def show_lane(self, lane: Lane, seconds: float, ratio: str, *, is_moving: bool) -> None:
        """Bring the pane to a moment. ratio: the method's speed-up so far, as text."""
        is_new = lane is not self.lane or lane.num_restarts != self._restarts
        self.lane, self.seconds, self._ratio = lane, seconds, ratio
        self._entitle(lane, is_moving=is_moving)
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
            self.tokens.set_ghost(lane.ghost_at(seconds))
        self.counts.redraw()

    def on_resize(self) -> None:
        """A race that stands still is not drawn again, and the words were cut for another width."""
        if self.lane is not None:
            self._entitle(self.lane, is_moving=False)

    def _entitle(self, lane: Lane, *, is_moving: bool) -> None:
        title, below = self._title(lane, self._ratio), draw_race.lane_rate(lane, self.seconds)
        # Only where they changed, and the rate not with every token: nobody reads it so fast.
        now = time.monotonic()
        is_due = not is_moving or now - self._words_at > _RATE_EVERY_S
        if title != self._words[0] or (below != self._words[1] and is_due):
            self._words, self._words_at = (title, below), now
            self._is_border_only = True
            self.border_title, self.border_subtitle = Content(visible(title)), Content(below)
            self._is_border_only = False

    def refresh(
        self, *regions: Region, repaint: bool = True, layout: bool = False, recompose: bool = False
    ) -> LanePane:
        """Border words lie on two rows; Textual would draw the pane anew for them, with all its tokens."""
        if self._is_border_only:
            left, top = self.gutter.left, self.gutter.top
            width, height = self.outer_size
            regions = (Region(-left, -top, width, 1), Region(-left, height - 1 - top, width, 1))
        return super().refresh(*regions, repaint=repaint, layout=layout, recompose=recompose)

    def _why_empty(self, lane: Lane) -> Sequence[Line]:
        width = max(10, self.tokens.width)
        ending = lane.generation.ending if lane.generation is not None else None
        if ending is not None and ending.error:
            return [line(Span("✗ no answer", "bad")), *wrap(ending.error, width)]
        waits = "waits for its turn: one method at a time is on the device, in an order drawn for every question"
        return wrap(waits, width, "dim")
