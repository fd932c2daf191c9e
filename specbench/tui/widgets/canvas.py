"""A pane of lines: drawn for its width, scrolled, selected with the mouse, copied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.events import Resize
from textual.geometry import Region, Size
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip

from specbench.tui.lines import Line, Span, plain_text
from specbench.tui.sanitise import visible
from specbench.tui.theme import styles

Draw = Callable[[int, int], Sequence[Line]]
"""(width, height) in cells -> lines; height 0: as many as there are."""


_WIDE = 300
_MOST_STRIPS = 400
"""Kept by a pane: several screens of them."""


class LineView(ScrollView):
    """Renders what `shown_line` gives; subclasses keep the lines."""

    DEFAULT_CSS = """
    LineView {
        scrollbar-size-vertical: 1;
        scrollbar-gutter: stable;
        overflow-x: hidden;
        background: transparent;
    }
    """

    KEYS: ClassVar[str] = ""
    """Its own ones in a sentence, for help."""
    _base: Style | None = None

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._strips: dict[int, tuple[object, Strip]] = {}
        """By content row: what it was made of, and the strip. The same strip object keeps its own cuts and escapes, so
        that a pane that scrolls by one row makes one row anew."""

    def shown_line(self, y: int) -> Line:
        """The line at content row y."""
        raise NotImplementedError

    def num_lines(self) -> int:
        """Content rows."""
        raise NotImplementedError

    def redraw(self) -> None:
        """Make the lines again, for the size of now."""
        raise NotImplementedError

    def set_content_size(self, size: Size) -> None:
        """Tell how large the lines are together: scroll limits and bar follow.

        Assigning `virtual_size` would lay the whole screen out and draw it anew, for every row that an answer grows.
        That is only right where the bar appears or goes, or the widget is as high as its lines.
        """
        if size == self.virtual_size:
            return
        room = self.scrollable_content_region.height
        is_fixed = not self.styles.auto_dimensions and self.is_mounted
        has_bar = self.styles.overflow_y == "scroll" or size.height > room
        if not is_fixed or has_bar != self.show_vertical_scrollbar:
            self.virtual_size = size
            return
        self.set_reactive(LineView.virtual_size, size)
        if self.show_vertical_scrollbar:
            self.vertical_scrollbar.window_virtual_size = size.height
        if self.scroll_y > self.max_scroll_y:
            self.scroll_y = self.max_scroll_y

    def refresh_rows(self, first: int, last: int) -> None:
        """Draw content rows first to last again, as far as they are on the screen."""
        top = round(self.scroll_y)
        begin, end = max(first - top, 0), min(last - top + 1, self.size.height)
        if begin < end:
            self.refresh(Region(0, begin, self.size.width, end - begin))

    def refresh_changed(self, before: Sequence[Line], now: Sequence[Line]) -> None:
        """Draw the rows again in which two states differ."""
        for row in range(max(len(before), len(now))):
            if row >= len(before) or row >= len(now) or before[row] != now[row]:
                self.refresh_rows(row, row)

    @property
    def width(self) -> int:
        """Cells a line may fill."""
        return self.scrollable_content_region.width

    def style_of(self, name: str) -> Style:
        """A named style in the theme of now."""
        theme = self.app.current_theme
        return styles(dark=theme.dark, ansi=theme.ansi)[name]

    def row_state(self, y: int) -> object:
        """All that a row's look depends on beside the widget's style and size; equal states look equal."""
        return self.shown_line(y)

    def row_segments(self, y: int) -> list[Segment]:
        """A whole style on every segment: NO_COLOR's filter crashes on None (Textual 8.2)."""
        base = self.base_style
        return [Segment(span.text, base + self.style_of(span.style)) for span in self.shown_line(y)]

    def render_lines(self, crop: Region) -> list[Strip]:
        # The widget's own style is found anew by every question: once a frame, not three times a line.
        self._base = self.rich_style
        if self.styles.gutter or self.opacity != 1.0:
            return super().render_lines(crop)
        # Without border and padding there is nothing that Textual would add to a line.
        _, background = self.background_colors
        # The bar's column belongs to the line, though the bar is drawn over it.
        width = self.outer_size.width
        strips = [self.render_line(y).adjust_cell_length(width, self._base) for y in crop.line_range]
        for each in self.get_line_filters():
            strips = [strip.apply_filter(each, background) for strip in strips]
        begin, end = crop.column_span
        return strips if (begin, end) == (0, width) else [strip.crop(begin, end) for strip in strips]

    def render_line(self, y: int) -> Strip:
        _, scroll_y = self.scroll_offset
        row = scroll_y + y
        width = self.size.width
        if row >= self.num_lines():
            return Strip.blank(width, self.base_style)
        selection = self.text_selection
        state = (
            self.row_state(row), width, self.base_style, self.app.theme,
            selection.get_span(row) if selection is not None else None,
        )  # fmt: skip
        kept = self._strips.get(row)
        if kept is not None and kept[0] == state:
            return kept[1]
        if len(self._strips) > _MOST_STRIPS:
            self._strips.clear()
        segments = self._with_selection(self.row_segments(row), row)
        strip = Strip(segments).crop_extend(0, width, self.base_style).apply_offsets(0, row)
        self._strips[row] = (state, strip)
        return strip

    @property
    def base_style(self) -> Style:
        """The widget's own style, as of this frame."""
        if self._base is None:
            self._base = self.rich_style
        return self._base

    def _with_selection(self, segments: list[Segment], row: int) -> list[Segment]:
        selection = self.text_selection
        span = selection.get_span(row) if selection is not None else None
        if span is None:
            return segments
        start, end = span
        chosen = self.screen.get_component_rich_style("screen--selection")
        found: list[Segment] = []
        at = 0
        for text, style, _ in segments:
            style = style or Style.null()
            stop = len(text) if end == -1 else max(0, min(len(text), end - at))
            begin = max(0, min(len(text), start - at))
            if begin < stop:
                found += [
                    Segment(text[:begin], style),
                    Segment(text[begin:stop], style + chosen),
                    Segment(text[stop:], style),
                ]
            else:
                found.append(Segment(text, style))
            at += len(text)
        return [segment for segment in found if segment.text]

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        return selection.extract(self.text()), "\n"

    def selection_updated(self, selection: Selection | None) -> None:
        self.refresh()

    def text(self) -> str:
        """All of it, as it would be copied."""
        return plain_text(self.shown_line(y) for y in range(self.num_lines()))

    def set_title(self, text: str, *, below: str = "") -> None:
        """The border's words; never read as markup."""
        self.border_title = Content(visible(text)) if text else None
        self.border_subtitle = Content(visible(below)) if below else None


class Canvas(LineView, can_focus=True):
    """Lines from a function of the size, drawn again on every resize."""

    KEYS: ClassVar[str] = "arrows, j k, page up and down, home and end scroll it; the mouse selects"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "scroll_down", "Scroll", show=False),
        Binding("k", "scroll_up", "Scroll", show=False),
    ]

    def __init__(self, draw: Draw, *, title: str = "", id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._draw = draw
        self._lines: Sequence[Line] = ()
        self._title = title

    def on_mount(self) -> None:
        super().on_mount()  # type: ignore[no-untyped-call]
        if self._title:
            self.set_title(self._title)

    def on_resize(self, event: Resize) -> None:
        self.redraw()

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Where the height is auto: as many rows as there are lines."""
        return max(1, len(self._draw(max(1, width - self.scrollbar_size_vertical), 0)))

    def redraw(self) -> None:
        """Ask for the lines again."""
        region = self.scrollable_content_region
        if region.width <= 0 or region.height <= 0:
            return
        before, self._lines = self._lines, self._draw(region.width, region.height)
        self.set_content_size(Size(region.width, len(self._lines)))
        self.refresh_changed(before, self._lines)

    def shown_line(self, y: int) -> Line:
        return self._lines[y]

    def num_lines(self) -> int:
        return len(self._lines)


class Strap(LineView, can_focus=False):
    """One line at the screen's edge. Not a stop of the tab key: it has no border that would show the focus."""

    DEFAULT_CSS = """
    Strap { height: 1; scrollbar-size: 0 0; scrollbar-gutter: auto; overflow: hidden; }
    """

    def __init__(self, draw: Draw, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._draw = draw
        self._lines: Sequence[Line] = ()

    def on_resize(self, event: Resize) -> None:
        self.redraw()

    def redraw(self) -> None:
        """Ask for the line again."""
        if self.size.width > 0:
            before, self._lines = self._lines, self._draw(self.size.width, 1)
            self.refresh_changed(before, self._lines)

    def shown_line(self, y: int) -> Line:
        return self._lines[y]

    def num_lines(self) -> int:
        return len(self._lines)


class Rows(Canvas):
    """A list with a cursor: its first lines stand still, the others are rows with keys."""

    KEYS: ClassVar[str] = "arrows, j k, page up and down, home, end and a click move its cursor"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "cursor(1)", "Down", show=False),
        Binding("up,k", "cursor(-1)", "Up", show=False),
        Binding("pagedown", "cursor(10)", "Page down", show=False),
        Binding("pageup", "cursor(-10)", "Page up", show=False),
        Binding("home", "cursor(-1000000)", "First", show=False),
        Binding("end", "cursor(1000000)", "Last", show=False),
    ]

    def __init__(
        self,
        draw: Callable[[int, int], tuple[Sequence[Line], Sequence[tuple[str, Line]]]],
        *,
        title: str = "",
        id: str | None = None,
        moved: Callable[[], None] | None = None,
    ) -> None:
        """draw: (width, height) -> head lines, rows as (key, line). moved: told when the cursor stands elsewhere."""
        super().__init__(self._both, title=title, id=id)
        self._draw_rows = draw
        self._head: Sequence[Line] = ()
        self._keys: list[str] = []
        self._moved = moved
        self.key = ""
        """Of the row under the cursor; empty without rows."""

    def _both(self, width: int, height: int) -> Sequence[Line]:
        # Two cells for the cursor's arrow: where there is no colour, reverse video alone is easy to miss.
        self._head, rows = self._draw_rows(width - 2, height)
        self._keys = [key for key, _ in rows]
        before = self.key
        if self.key not in self._keys:
            self.key = self._keys[0] if self._keys else ""
        if before != self.key and self._moved is not None:
            self.call_later(self._moved)
        return [*self._head, *(row for _, row in rows)]

    def redraw(self) -> None:
        before = self._keys, self.key, tuple(self._head)
        super().redraw()
        # The cursor is no part of a line: where it stands elsewhere now, equal lines look different. The head stands
        # still while the rows below it are scrolled.
        if before != (self._keys, self.key, tuple(self._head)):
            self.refresh()

    def shown_line(self, y: int) -> Line:
        _, scroll_y = self.scroll_offset
        if y - scroll_y < len(self._head):
            return (Span("  "), *self._head[y - scroll_y])
        row = self._lines[y]
        place = y - len(self._head)
        if place < len(self._keys) and self._keys[place] == self.key:
            rest = tuple(Span(span.text, "cursor") for span in row)
            return (Span("▸ ", "key"), *rest) if self.has_focus else (Span("▸ ", "key"), *row)
        return (Span("  "), *row)

    def text(self) -> str:
        """Every row whole, however narrow the pane: a cut run id is of no use in another window."""
        head, rows = self._draw_rows(_WIDE, 0)
        return plain_text([*head, *(row for _, row in rows)])

    def action_cursor(self, places: int) -> None:
        """Move by so many rows."""
        # Without room the rows are those of before: what they say may be gone.
        if not self._keys or not self.scrollable_content_region.area:
            return
        place = self._keys.index(self.key)
        self.select(self._keys[min(max(0, place + places), len(self._keys) - 1)])

    def select(self, key: str) -> None:
        """Put the cursor on a row. A pane without room (another one is zoomed, the terminal is small) draws no rows:
        there the key waits for the next time it does."""
        self.key = key
        self._show_cursor()
        self.refresh()
        if self._moved is not None:
            self._moved()

    def _show_cursor(self) -> None:
        """Scroll to the cursor's row, where there is one and room for it."""
        first, room = round(self.scroll_y), self.scrollable_content_region.height - len(self._head)
        if self.key not in self._keys or room <= 0:
            return
        top = self._keys.index(self.key)
        if top < first:
            self.scroll_to(y=top, animate=False)
        elif top >= first + room:
            self.scroll_to(y=top - room + 1, animate=False)

    def on_resize(self, event: Resize) -> None:
        # After Canvas's own, and when the pane knows how long its content is.
        self.call_after_refresh(self._show_cursor)

    def on_click(self, event: object) -> None:
        """The row under the pointer."""
        y = getattr(event, "y", 0) - self.gutter.top
        if y >= len(self._head):
            place = y + round(self.scroll_y) - len(self._head)
            if 0 <= place < len(self._keys):
                self.select(self._keys[place])

    def on_focus(self) -> None:
        self.refresh()

    def on_blur(self) -> None:
        self.refresh()
