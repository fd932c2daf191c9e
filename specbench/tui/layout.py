"""Tokens -> rows of a pane: wrapped once for a width, then only cut where the race has got to. No Textual.

A token that begins a word goes to the next row whole where it does not fit; a long one that continues a word is broken
at the edge. A line break in a token is shown (`⏎`) and obeyed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from rich.cells import get_character_cell_size

from specbench.tui.marks import Kind, Mode, look
from specbench.tui.sanitise import NEWLINE, visible


class Shown(NamedTuple):
    """A token as it is to be shown."""

    text: str
    """What it added to the answer, raw."""
    kind: Kind
    depth: int


class Piece(NamedTuple):
    """A stretch of one token on one row."""

    token: int
    text: str
    is_mark: bool


class TokenRows:
    """The rows of an answer at one width and mode."""

    def __init__(self, width: int, mode: Mode) -> None:
        self.width = max(1, width)
        self.mode = mode
        self.rows: list[list[Piece]] = [[]]
        self._column = 0
        self._last_row: list[int] = []
        """Of each token: the row its last piece stands on."""

    def __len__(self) -> int:
        return len(self._last_row)

    def extend(self, tokens: Sequence[Shown]) -> None:
        """Lay out more tokens behind those that are there."""
        for token in tokens:
            self._put(token)

    def _put(self, token: Shown) -> None:
        number = len(self._last_row)
        parts = token.text.split("\n")
        mark = look(token.kind, token.depth, self.mode).mark
        # The mark of a token that ends in a line break stands before the break, beside what it marks.
        marked = len(parts) - 2 if len(parts) > 1 and not parts[-1] else len(parts) - 1
        for place, part in enumerate(parts):
            is_last = place == len(parts) - 1
            text = visible(part) + ("" if is_last else NEWLINE)
            self._text(number, text, mark if place == marked else "")
            if not is_last:
                self._break()
        self._last_row.append(len(self.rows) - 1)

    def _text(self, number: int, text: str, mark: str) -> None:
        size = sum(map(get_character_cell_size, text)) + len(mark)
        begins_word = text.startswith(" ")
        if self._column and self._column + size > self.width and (begins_word or size <= self.width // 3):
            self._break()
            text = text[1:] if begins_word else text
        start = 0
        for place, char in enumerate(text):
            width = get_character_cell_size(char)
            if self._column + width > self.width:
                self._add(number, text[start:place])
                self._break()
                start = place
            self._column += width
        self._add(number, text[start:])
        if mark:
            if self._column + len(mark) > self.width:
                self._break()
            self.rows[-1].append(Piece(number, mark, True))
            self._column += len(mark)

    def _add(self, number: int, text: str) -> None:
        if text:
            self.rows[-1].append(Piece(number, text, False))

    def _break(self) -> None:
        self.rows.append([])
        self._column = 0

    def num_rows(self, num_tokens: int) -> int:
        """Rows that so many tokens fill."""
        if num_tokens <= 0 or not self._last_row:
            return 0
        return self._last_row[min(num_tokens, len(self._last_row)) - 1] + 1

    def row(self, y: int, num_tokens: int) -> list[Piece]:
        """The pieces of a row that belong to the first num_tokens tokens."""
        row = self.rows[y]
        if not row or row[-1].token < num_tokens:
            return row
        return row[: bisect_right([piece.token for piece in row], num_tokens - 1)]
