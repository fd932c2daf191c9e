"""Lines of styled text: what every view draws and every test reads. No Textual.

A span names its style (`warn`, `method3`, `heat2`); theme.py gives it colours. So a view can be tested as text, and no
colour is the only carrier of anything by accident: `plain` shows what is left without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size

from specbench.tui.names import short
from specbench.tui.sanitise import visible

BLOCKS = " ▏▎▍▌▋▊▉█"
BARS = "▁▂▃▄▅▆▇█"


class Span(NamedTuple):
    """Text with a style's name."""

    text: str
    style: str = ""


Line = tuple[Span, ...]


def line(*parts: str | Span) -> Line:
    """Parts side by side, each made harmless."""
    return tuple(
        Span(visible(part.text), part.style) if isinstance(part, Span) else Span(visible(part)) for part in parts
    )


def plain(row: Line) -> str:
    """The text alone."""
    return "".join(span.text for span in row)


def plain_text(rows: Iterable[Line]) -> str:
    """Lines as they would be copied."""
    return "\n".join(plain(row).rstrip() for row in rows)


def width_of(row: Line) -> int:
    """Terminal cells."""
    return sum(cell_len(span.text) for span in row)


def fit(row: Line, width: int) -> Line:
    """Cut at `width` cells, the last of them `…` where something was cut; never padded."""
    if width_of(row) <= width:
        return row
    kept: list[Span] = []
    left = width - 1
    for span in row:
        size = cell_len(span.text)
        if size > left:
            kept.append(Span(set_cell_size(span.text, max(0, left)) + "…", span.style))
            break
        kept.append(span)
        left -= size
    return tuple(kept)


def cell(text: str, width: int, *, right: bool = False) -> str:
    """Text in exactly `width` cells, cut with `…` or padded."""
    text = visible(text)
    size = cell_len(text)
    if size > width:
        return set_cell_size(text, max(0, width - 1)) + ("…" if width > 0 else "")
    pad = " " * (width - size)
    return pad + text if right else text + pad


def bar(share: float, width: int) -> str:
    """A bar of eighths of cells; share of the width, 0 to 1. plotext's bars round to whole rows and mislead."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    whole, rest = divmod(eighths, 8)
    return "█" * whole + (BLOCKS[rest] if rest else "")


def sparkline(values: Sequence[float], width: int, *, low: float | None = None, high: float | None = None) -> str:
    """Values as bars, one a cell, means where there are more values than cells. low, high: ends of the scale."""
    if not values or width < 1:
        return ""
    if len(values) > width:
        edges = [round(place * len(values) / width) for place in range(width + 1)]
        values = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    bottom = min(values) if low is None else low
    top = max(values) if high is None else high
    if top <= bottom:
        return BARS[3] * len(values)
    places = [(value - bottom) / (top - bottom) for value in values]
    return "".join(BARS[min(7, max(0, int(place * 8)))] for place in places)


class Column(NamedTuple):
    """A column of a table. drop: columns with the highest number leave first where it is narrow; 0 never leaves."""

    title: str
    right: bool = False
    drop: int = 0
    grows: bool = False
    """Takes what is left over, and gives it back first."""
    least: int = 0
    """Cells that it may be cut to before it leaves; 0: it is shown whole or not at all."""
    is_name: bool = False
    """Cut so that different ones stay different."""
    most: int = 1000
    """Cells at most; longer ones are cut."""


_GAP = 2
_LEAST = 18


def table(columns: Sequence[Column], rows: Sequence[Sequence[Span]], width: int) -> tuple[Line, list[Line]]:
    """Head and body fitted to `width`: columns leave by `drop`, those for which room is left after all come back, the
    last to leave first, and the growing one takes the rest."""
    shown = list(range(len(columns)))

    def natural(place: int) -> int:
        longest = max([cell_len(columns[place].title), *(cell_len(visible(row[place].text)) for row in rows)])
        return min(longest, columns[place].most)

    whole = {place: natural(place) for place in shown}
    widths = {place: min(whole[place], _LEAST if columns[place].grows else columns[place].least or whole[place])
              for place in shown}  # fmt: skip

    def total(places: Sequence[int]) -> int:
        return sum(widths[place] for place in places) + _GAP * (len(places) - 1)

    left: list[int] = []
    while total(shown) > width and any(columns[place].drop for place in shown):
        left.append(max(shown, key=lambda place: columns[place].drop))
        shown.remove(left[-1])
    for place in reversed(left):
        if total([*shown, place]) <= width:
            shown = sorted([*shown, place])
    # What was cut to stay gets its cells back before the growing one gets any.
    for place in sorted(shown, key=lambda place: columns[place].grows):
        widths[place] += max(0, min(whole[place] - widths[place], width - total(shown)))
    grower = next((place for place in shown if columns[place].grows), None)
    if grower is not None:
        widths[grower] = max(1, widths[grower] - max(0, total(shown) - width))

    names = {place: list(dict.fromkeys(row[place].text for row in rows)) for place in shown if columns[place].is_name}

    def laid(cells: Sequence[Span]) -> Line:
        parts: list[Span] = []
        for number, place in enumerate(shown):
            text = cells[place].text
            if place in names and text in names[place]:
                text = short(text, widths[place], names[place])
            text = cell(text, widths[place], right=columns[place].right)
            parts.append(Span(("" if number == 0 else " " * _GAP) + text, cells[place].style))
        return fit(tuple(parts), width)

    return laid([Span(column.title, "bold") for column in columns]), [laid(row) for row in rows]


def wrap(text: str, width: int, style: str = "") -> list[Line]:
    """Words of a sentence over lines; a word longer than the line is cut into pieces. A character that is wider than
    the line has one to itself, and sticks out."""
    found: list[str] = [""]
    for word in visible(text).split(" "):
        while cell_len(word) > width > 0:
            head = set_cell_size(word, width).rstrip() or word[0]
            if found[-1]:
                found.append("")
            found[-1], word = head, word[len(head) :]
            found.append("")
        joined = f"{found[-1]} {word}" if found[-1] else word
        if cell_len(joined) > width and found[-1]:
            found.append(word)
        else:
            found[-1] = joined
    return [(Span(part, style),) for part in found if part or len(found) == 1]


_HANGING = 20
"""Cells that a sentence needs to stand beside what is before it; with less it begins a line of its own."""
_INDENT = 4


def wrap_last(row: Line, width: int) -> list[Line]:
    """A row whose last span is a sentence: what does not fit of it goes on below, under its beginning."""
    if width_of(row) <= width:
        return [row]
    *before, last = row
    text = last.text.lstrip(" ")
    head = (*before, Span(" " * (len(last.text) - len(text))))
    column = width_of(head)
    if width - column >= _HANGING:
        first, *rest = wrap(text, width - column, last.style)
        return [(*head, *first), *((Span(" " * column), *more) for more in rest)]
    indent = min(column, _INDENT, width // 4)
    above = [fit(head, width)] if plain(head).strip() else []
    return [*above, *((Span(" " * indent), *more) for more in wrap(text, width - indent, last.style))]
