"""What the commands print with: JSON, tables that survive a narrow terminal, and text made harmless.

stdout is the answer, stderr the narration. Names, paths and model text come from elsewhere: nothing here reads markup,
and control characters are shown instead of sent to the terminal.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console

# C0 but tab and newline, DEL, C1, and the bidirectional controls that reorder what follows them.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


_WRAPS_ABOVE = 16
"""Cells: a text column longer than this may wrap, down to this width."""
_GAP = 3
"""Cells between two columns."""


class Column(NamedTuple):
    """A table's column; numbers stand right."""

    title: str
    right: bool = False


def visible(text: str) -> str:
    """text with every control character as an escape (`\\x1b`); tabs and newlines stay."""
    return _CONTROL.sub(lambda match: match.group().encode("unicode_escape").decode("ascii"), text)


def show_json(value: Any, *, indent: int | None = 1) -> None:
    """One JSON object (or list) on stdout. JSON escapes C0 alone: the other control characters are escaped here."""
    text = json.dumps(value, ensure_ascii=False, indent=indent, default=str)
    print(_CONTROL.sub(lambda match: f"\\u{ord(match.group()):04x}", text))  # noqa: T201


def show(text: str) -> None:
    """A line of the answer, control characters made visible."""
    print(visible(text))  # noqa: T201


def console(*, width: int | None = None) -> Console:
    """stdout as rich sees it, nothing read as markup; width: columns to fit into, None = the terminal's."""
    # 40 ms, only for commands that print a table
    from rich.console import Console

    return Console(highlight=False, markup=False, emoji=False, width=width, file=sys.stdout)


def show_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], *, width: int | None = None) -> None:
    """A table on stdout. Where it is wider than the terminal, long text wraps in its column; where even that does not
    fit, each row becomes a block of `title  value` lines.

    width: columns to fit into; None = the terminal's, or no limit where stdout is none (a pipe loses nothing).
    """
    from rich.box import SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    texts = [[visible(cell) for cell in row] for row in rows]
    out = console(width=width)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    natural = least = _GAP * (len(columns) - 1)
    for index, column in enumerate(columns):
        longest = max(cell_len(text) for text in [column.title, *(row[index] for row in texts)])
        wraps = longest > _WRAPS_ABOVE and not column.right
        natural += longest
        least += _WRAPS_ABOVE if wraps else longest
        table.add_column(
            Text(column.title),
            justify="right" if column.right else "left",
            no_wrap=not wraps,
            min_width=None if wraps else longest,
            overflow="fold",
        )
    for row in texts:
        table.add_row(*(Text(cell) for cell in row))
    if width is None and not out.is_terminal:
        out = console(width=natural)
    if least <= out.width:
        with out.capture() as drawn:
            out.print(table)
        # rich fills every line up to the table's width: in a file that is white space at its end.
        show_styled("\n".join(line.rstrip() for line in drawn.get().splitlines()))
        return
    label = max(cell_len(column.title) for column in columns)
    for row in texts:
        for column, text in zip(columns, row, strict=True):
            if text:
                show_hanging(f"{column.title:<{label}}  ", text, width=out.width)
        show("")


def show_styled(text: str) -> None:
    """What rich has drawn, its colours included; every cell went through `visible` before."""
    print(text)  # noqa: T201


def show_hanging(head: str, text: str, *, width: int | None = None) -> None:
    """head and text on one line; on a terminal the text wraps at spaces, later lines under its first.

    width: as in `show_table`.
    """
    # 15 ms of rich, only where a table or findings are shown
    from specbench.report.layout import cell_len, wrap_words

    if width is None:
        out = console()
        width = out.width if out.is_terminal else None
    room = width - cell_len(head) if width is not None else 0
    lines = wrap_words(visible(text), room) if room >= _WRAPS_ABOVE else [visible(text)]
    show(head + lines[0])
    for line in lines[1:]:
        show(" " * cell_len(head) + line)
