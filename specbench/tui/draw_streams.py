"""Acceptance along a stream as lines: a row of dots per method, its swaps marked below. No Textual."""

from __future__ import annotations

from collections.abc import Sequence

from specbench.report.stream_words import words_of
from specbench.store.records import RunSummary
from specbench.store.stream_records import AdapterChange, StreamCurve
from specbench.tui.draw_race import method_name
from specbench.tui.draw_train import curve as braille
from specbench.tui.lines import Line, Span, fit, line, wrap

_AXIS = 7
_MARKS = {"promoted": "▲", "rolled back": "◀", "kept": "·", "dropped": "✗"}


def stream_lines(streams: Sequence[StreamCurve], summary: RunSummary, width: int, height: int) -> list[Line]:
    """A chart per method on one scale, swaps in their places, then the newest changes in words."""
    drawn = [each for each in streams if each.points]
    if not drawn:
        return wrap("Nothing was drafted along the stream yet.", width, "dim")
    places = {row.method: place for place, row in enumerate(summary.rows)}
    values = [point.acceptance for each in drawn for point in each.points]
    low, high = min(values), max(values)
    room = max(4, width - _AXIS - 1)
    whole = max(point.until for each in drawn for point in each.points)
    # Name, chart, marks for each; a line for the axis and one for what the marks mean.
    rows = max(1, min(5, (height - 2) // len(drawn) - 2))
    found: list[Line] = []
    for each in drawn:
        first, last = each.points[0], each.points[-1]
        words = f"{first.acceptance:.3f} → {last.acceptance:.3f}" + ("" if each.learns else "  does not learn")
        # A single row has no place for the lower end of its scale.
        words += f"  on {low:.3f} to {high:.3f}" if rows == 1 else ""
        room_of_name = max(8, min(36, width - len(words) - 2))
        name = method_name(each.method, places.get(each.method, 0), room_of_name, list(places))
        found.append(fit((*name, Span(f"  {words}")), width))
        # A shorter stream ends where it ended: one scale for all.
        own = max(1, round(room * last.until / whole))
        dots = braille(_spread(each, own), own, rows, low=low, high=high)
        for number, row in enumerate(dots):
            label = f"{high if number == 0 else low:.3f}" if number in (0, len(dots) - 1) else ""
            found.append(fit((Span(f"{label:>{_AXIS - 2}} ┤", "dim"), Span(row, "accent")), width))
        if each.changes:
            found.append(fit((Span(" " * _AXIS), Span(_marks(each.changes, room, whole), "bold")), width))
    axis = f"{whole:,} positions tried"
    found.append(fit((Span(" " * _AXIS + "0" + " " * max(1, room - 1 - len(axis)) + axis, "dim"),), width))
    legend = "accepted of tried, all repeats · ▲ promoted ◀ rolled back · kept ✗ dropped"
    found.append(fit(line(Span(legend, "dim")), width))
    changes = [(each, change) for each in drawn for change in each.changes if change.is_swap]
    for _, change in changes[-4:]:
        found += wrap(words_of(change), width)
    if not changes and any(each.changes for each in drawn):
        found += wrap("No candidate was surely better on held-out answers: nothing was swapped.", width, "dim")
    return found


def _spread(curve: StreamCurve, cells: int) -> list[float]:
    """Acceptance at every column of dots, each point as wide as its stretch."""
    columns, end = cells * 2, curve.points[-1].until
    places = [(column + 0.5) / columns * end for column in range(columns)]
    return [next(point.acceptance for point in curve.points if at <= point.until) for at in places]


def _marks(changes: Sequence[AdapterChange], room: int, whole: int) -> str:
    """One mark a cell; a swap is not hidden by a round that changed nothing."""
    cells = [" "] * room
    for change in sorted(changes, key=lambda each: each.is_swap):
        cells[min(room - 1, round(change.at / max(1, whole) * (room - 1)))] = _MARKS.get(change.outcome, "?")
    return "".join(cells).rstrip()
