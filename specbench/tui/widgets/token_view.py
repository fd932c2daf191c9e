"""The pane in which an answer appears: tokens coloured by where they came from, wrapped, revealed up to a moment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.events import Resize
from textual.geometry import Size

from specbench.tui.layout import Shown, TokenRows
from specbench.tui.lines import Line, Span, plain
from specbench.tui.marks import Kind, Mode, look
from specbench.tui.sanitise import visible
from specbench.tui.widgets.canvas import LineView


class TokenView(LineView, can_focus=True):
    """Give it tokens with `show` or `append`, and with `reveal` how many of them are there by now."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "scroll_down", "Scroll", show=False),
        Binding("k", "scroll_up", "Scroll", show=False),
    ]

    # Always there, and seen where there is something to scroll: a bar that comes and goes with every answer lays the
    # whole screen out each time.
    DEFAULT_CSS = """
    TokenView {
        overflow-y: scroll;
        scrollbar-background: $background;
        scrollbar-background-hover: $background;
        scrollbar-background-active: $background;
    }
    """

    def __init__(self, *, id: str | None = None, mode: Mode = Mode.BOTH) -> None:
        super().__init__(id=id)
        self._tokens: list[Shown] = []
        self._num_shown = 0
        self._mode = mode
        self._rows = TokenRows(1, mode)
        self._note: Sequence[Line] = ()
        self._ghost = ""
        self._num_layouts = 0
        """Changes with tokens, width and marks: a row's pieces only name the tokens."""

    @property
    def mode(self) -> Mode:
        """How tokens are marked."""
        return self._mode

    @property
    def num_shown(self) -> int:
        """Tokens revealed."""
        return self._num_shown

    @property
    def num_held(self) -> int:
        """Tokens given, revealed or not."""
        return len(self._tokens)

    @property
    def is_note(self) -> bool:
        """It says why there are no tokens."""
        return bool(self._note)

    def set_mode(self, mode: Mode) -> None:
        """Marks take room: everything is wrapped again."""
        self._mode = mode
        self._lay_out()

    def show(self, tokens: Sequence[Shown], *, num_shown: int | None = None) -> None:
        """Another answer."""
        self._tokens = list(tokens)
        self._num_shown = len(self._tokens) if num_shown is None else num_shown
        self._note = ()
        self._lay_out()

    def append(self, tokens: Sequence[Shown]) -> None:
        """More of the same answer; `reveal` shows it."""
        self._tokens += tokens
        self._rows.extend(tokens)

    def reveal(self, num_tokens: int) -> None:
        """Show the first so many; follows the end unless it was scrolled away from."""
        num_tokens = min(num_tokens, len(self._tokens))
        if num_tokens == self._num_shown and not self._note:
            return
        follows = self.scroll_offset.y >= self.max_scroll_y - 1 or num_tokens < self._num_shown
        if self._note:
            self._num_shown, self._note = num_tokens, ()
            self._measure(follows=follows)
            return
        before, self._num_shown = self._num_shown, num_tokens
        first, last = sorted((self._rows.num_rows(before), self._rows.num_rows(num_tokens)))
        self._measure(follows=follows, rows=(max(0, first - 1), last))

    def set_ghost(self, text: str) -> None:
        """What was drafted and rejected in the last step, behind the last token and no part of the answer."""
        ghost = f"~{visible(text)}~" if text else ""
        if ghost != self._ghost:
            self._ghost = ghost
            self.refresh_rows(self.num_lines() - 1, self.num_lines() - 1)

    def say(self, lines: Sequence[Line]) -> None:
        """Instead of tokens: why there are none."""
        self._ghost = ""
        self._tokens, self._num_shown, self._note = [], 0, tuple(lines)
        self._lay_out()

    def answer(self) -> str:
        """The text revealed so far, marks left out."""
        return "".join(token.text for token in self._tokens[: self._num_shown])

    def on_resize(self, event: Resize) -> None:
        self._lay_out()

    def redraw(self) -> None:
        self._lay_out()

    def _lay_out(self) -> None:
        if self.width <= 0:
            return
        self._rows = TokenRows(self.width, self._mode)
        self._rows.extend(self._tokens)
        self._num_layouts += 1
        self._measure(follows=True)

    def _measure(self, *, follows: bool, rows: tuple[int, int] | None = None) -> None:
        """rows: the only ones that changed, first and last."""
        # As high as the pane at least: then the bar has nothing to show.
        room = self.scrollable_content_region.height
        self.set_content_size(Size(self.width, max(self.num_lines(), room)))
        if follows:
            self.scroll_to(y=self.max_scroll_y, animate=False, immediate=True, force=True)
            # Where the bar appears with this very scroll, it was not there yet to be told of it.
            self.call_after_refresh(self._place_thumb)
        # A pane that scrolled with this is drawn whole by Textual.
        if rows is None:
            self.refresh()
        else:
            self.refresh_rows(*rows)

    def _place_thumb(self) -> None:
        if self.show_vertical_scrollbar and self.vertical_scrollbar.position != self.scroll_y:
            self.vertical_scrollbar.position = self.scroll_y

    def num_lines(self) -> int:
        return len(self._note) or self._rows.num_rows(self._num_shown)

    def shown_line(self, y: int) -> Line:
        if self._note:
            return self._note[y]
        return tuple(Span(piece.text) for piece in self._rows.row(y, self._num_shown))

    def row_state(self, y: int) -> object:
        if self._note:
            return self._note[y]
        ghost = self._ghost if y == self.num_lines() - 1 else ""
        # A copy: the last row's list grows in place.
        return self._num_layouts, tuple(self._rows.row(y, self._num_shown)), ghost

    def row_segments(self, y: int) -> list[Segment]:
        """A row of tokens, each in its style; marks never wear the colour of text before them."""
        if self._note:
            return super().row_segments(y)
        base = self.base_style
        found = []
        for piece in self._rows.row(y, self._num_shown):
            token = self._tokens[piece.token]
            style = look(token.kind, token.depth, self._mode).style
            if piece.is_mark and not self._mode.has_colour:
                style = Style(bold=True)
            elif not self._mode.has_colour and piece.text.startswith(" "):
                # An underlined gap reads as a blank to be filled in.
                found.append(Segment(" ", base))
                piece = piece._replace(text=piece.text[1:])
            if piece.text:
                found.append(Segment(piece.text, base + style))
        if self._ghost and y == self.num_lines() - 1:
            room = self.width - sum(cell_len(segment.text) for segment in found)
            # On the row's rest, cut: a row of its own would make the pane jump at every step.
            ghost = self._ghost if cell_len(self._ghost) <= room else set_cell_size(self._ghost, max(0, room - 1)) + "…"
            if room > 2:
                found.append(Segment(ghost, base + look(Kind.GHOST, 0, Mode.COLOUR).style))
        return found

    def text(self) -> str:
        """What is on the pane, with its marks."""
        return "\n".join(plain(self.shown_line(y)) for y in range(self.num_lines()))
