"""What was said: messages, answers token by token, remarks; wrapped, scrolled, following its end."""

from __future__ import annotations

from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.events import Resize
from textual.geometry import Size

from specbench.tui.layout import Shown, TokenRows
from specbench.tui.lines import Line, Span, wrap
from specbench.tui.marks import Mode, look
from specbench.tui.widgets.canvas import LineView

_INDENT = 2


class _Block:
    """One thing that was said."""

    def __init__(self, head: str, style: str) -> None:
        self.head, self.style = head, style
        self.words: list[str] = []
        self.tokens: list[Shown] = []
        self.lines: list[Line] = []
        self.rows: TokenRows | None = None

    def lay_out(self, width: int, mode: Mode) -> None:
        """For a width; words and tokens never stand in one block."""
        self.lines = [(Span(self.head, "bold"),)] if self.head else []
        for text in self.words:
            for paragraph in text.split("\n"):
                rows = wrap(paragraph, max(1, width - _INDENT), self.style)
                self.lines += [(Span(" " * _INDENT), *row) for row in rows]
        self.rows = None
        if self.tokens:
            self.rows = TokenRows(max(1, width - _INDENT), mode)
            self.rows.extend(self.tokens)

    def num_lines(self) -> int:
        return len(self.lines) + (self.rows.num_rows(len(self.tokens)) if self.rows is not None else 0)


class ChatLog(LineView, can_focus=True):
    """Give it messages, tokens and notes in the order in which they come."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "scroll_down", "Scroll", show=False),
        Binding("k", "scroll_up", "Scroll", show=False),
    ]

    def __init__(self, *, id: str, mode: Mode) -> None:
        super().__init__(id=id)
        self._blocks: list[_Block] = []
        self._mode = mode

    def message(self, text: str) -> None:
        """What the user said."""
        block = _Block("you", "")
        block.words.append(text)
        self._add(block)

    def note(self, text: str, style: str) -> None:
        """A remark; several in a row stand together."""
        if self._blocks and not self._blocks[-1].head and self._blocks[-1].style == (style or "dim"):
            block = self._blocks[-1]
        else:
            block = _Block("", style or "dim")
            self._blocks.append(block)
        block.words.append(text)
        self._changed(block)

    def answer(self, method: str) -> None:
        """An answer begins."""
        self._add(_Block(method, ""))

    def tokens(self, tokens: list[Shown]) -> None:
        """More of the answer that began last."""
        block = self._blocks[-1]
        block.tokens += tokens
        if block.rows is not None:
            block.rows.extend(tokens)
            self._measure()
        else:
            self._changed(block)

    def clear(self) -> None:
        """Nothing was said."""
        self._blocks = []
        self._measure()

    def set_mode(self, mode: Mode) -> None:
        """Marks take room: everything is wrapped again."""
        self._mode = mode
        self.redraw()

    def answer_text(self) -> str:
        """The last answer alone, marks left out."""
        last = next((block for block in reversed(self._blocks) if block.tokens), None)
        return "".join(token.text for token in last.tokens) if last is not None else ""

    def _add(self, block: _Block) -> None:
        self._blocks.append(block)
        self._changed(block)

    def _changed(self, block: _Block) -> None:
        if self.width > 0:
            block.lay_out(self.width, self._mode)
        self._measure()

    def on_resize(self, event: Resize) -> None:
        self.redraw()

    def redraw(self) -> None:
        if self.width > 0:
            for block in self._blocks:
                block.lay_out(self.width, self._mode)
            self._measure()

    def _measure(self) -> None:
        follows = self.scroll_offset.y >= self.max_scroll_y - 1
        self.virtual_size = Size(max(1, self.width), self.num_lines())
        if follows:
            self.scroll_to(y=self.max_scroll_y, animate=False, immediate=True, force=True)
        self.refresh()

    def num_lines(self) -> int:
        return sum(block.num_lines() for block in self._blocks)

    def _find(self, y: int) -> tuple[_Block, int]:
        for block in self._blocks:
            if y < block.num_lines():
                return block, y
            y -= block.num_lines()
        raise IndexError("no such line")

    def shown_line(self, y: int) -> Line:
        block, y = self._find(y)
        if y < len(block.lines):
            return block.lines[y]
        assert block.rows is not None
        pieces = block.rows.row(y - len(block.lines), len(block.tokens))
        return (Span(" " * _INDENT), *(Span(piece.text) for piece in pieces))

    def row_state(self, y: int) -> object:
        block, row = self._find(y)
        if row < len(block.lines):
            return block.lines[row]
        assert block.rows is not None
        pieces = block.rows.row(row - len(block.lines), len(block.tokens))
        return self._mode, tuple((piece, block.tokens[piece.token]) for piece in pieces)

    def row_segments(self, y: int) -> list[Segment]:
        block, row = self._find(y)
        if row < len(block.lines):
            return super().row_segments(y)
        assert block.rows is not None
        base = self.base_style
        found = [Segment(" " * _INDENT, base)]
        for piece in block.rows.row(row - len(block.lines), len(block.tokens)):
            token = block.tokens[piece.token]
            style = look(token.kind, token.depth, self._mode).style
            if piece.is_mark and not self._mode.has_colour:
                style = Style(bold=True)
            found.append(Segment(piece.text, base + style))
        return found
