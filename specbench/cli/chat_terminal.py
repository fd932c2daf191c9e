"""The conversation on a plain terminal: tokens in colour and with marks, the figures beside the end of the text."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style

from specbench.chat.commands import figures_words
from specbench.chat.conversation import BASELINE, Conversation
from specbench.chat.reply import Figures, Heard, Reply
from specbench.cli.failures import note
from specbench.cli.text import visible
from specbench.tui.detokenise import Pieces
from specbench.tui.marks import Kind, Mode, look
from specbench.tui.sanitise import visible as harmless
from specbench.tui.theme import first_mode

if TYPE_CHECKING:
    pass

_KINDS = {"plain": Kind.PLAIN, "drafted": Kind.DRAFTED, "bonus": Kind.BONUS}
_STYLES = {"good": Style(color="green"), "warn": Style(color="yellow"), "bad": Style(color="red", bold=True)}
_SYSTEMS = {
    "standard": ColorSystem.STANDARD,
    "256": ColorSystem.EIGHT_BIT,
    "truecolor": ColorSystem.TRUECOLOR,
    "windows": ColorSystem.WINDOWS,
}


class Terminal:
    """A front (see `chat.commands.Front`): answers on stdout, narration on stderr."""

    def __init__(self, conversation: Conversation) -> None:
        self._talk = conversation
        out = Console(file=sys.stdout)
        self._is_terminal = out.is_terminal
        # rich hides the colours it must not use; attributes such as bold remain.
        self._colours = _SYSTEMS.get(out.color_system or "") if out.is_terminal and not out.no_color else None
        system = out.color_system if self._colours is not None else None
        self.mode = first_mode(no_color=out.no_color, color_system=system) if out.is_terminal else Mode.PLAIN
        self._pieces = Pieces.of(self._talk.tokenizer)
        self._column = 0
        self._aside = 0
        """Cells of the figures that stand behind the text now."""

    def greet(self) -> None:
        """What one talks to, and how fast it is by itself."""
        settings, pace = self._talk.settings, self._talk.pace
        assert pace is not None, "measured when the target was loaded"
        self.note(
            f"{self._talk.lm.name} · {settings.method} · plain decoding {1 / pace.step_s:.1f} tok/s here "
            f"(mean of {pace.num_steps} steps behind a short prompt) · /help"
        )
        if settings.method == BASELINE:
            self.note("no method drafts: /method names those there are")
        for each in self._talk.notes:
            self.note(f"⚠ {each}", "warn")
        if self._is_terminal and self.mode is not Mode.PLAIN:
            self.note("¹²³ drafted and accepted at that depth · ◆ the target's own token behind a draft")

    def note(self, text: str, style: str = "") -> None:
        text = visible(text)
        if style and sys.stderr.isatty() and self._colours is not None:
            text = _STYLES[style].render(text, color_system=self._colours)
        note(text)

    def heard(self, tokens: Sequence[Heard], figures: Figures) -> None:
        self._clear_aside()
        for each in tokens:
            self._token(self._pieces.add(each.token), _KINDS[each.source], each.depth)
        if figures.num_steps:
            self._show_aside(f"  {figures_words(figures, self._talk)}")
        sys.stdout.flush()

    def _token(self, text: str, kind: Kind, depth: int) -> None:
        shown = look(kind, depth, self.mode)
        lines = text.split("\n")
        # The mark of a token that ends in a line break stands before the break.
        marked = len(lines) - 2 if len(lines) > 1 and not lines[-1] else len(lines) - 1
        for place, part in enumerate(lines):
            self._write(harmless(part), shown.style)
            if place == marked and text and shown.mark:
                self._write(shown.mark, Style(bold=True))
            if place < len(lines) - 1:
                sys.stdout.write("\n")
                self._column = 0

    def _write(self, text: str, style: Style) -> None:
        if not text:
            return
        width = shutil.get_terminal_size().columns
        self._column = (self._column + cell_len(text)) % max(1, width)
        if not self._is_terminal:
            sys.stdout.write(text)
        elif self._colours is None:
            # NO_COLOR: underlines and bold are no colours.
            bare = Style(bold=style.bold, underline=style.underline)
            sys.stdout.write(bare.render(text, color_system=ColorSystem.STANDARD))
        else:
            sys.stdout.write(style.render(text, color_system=self._colours))

    def _show_aside(self, words: str) -> None:
        """Only where the row has room: a row of its own would scroll the text it belongs to."""
        room = shutil.get_terminal_size().columns - self._column - 1
        if self._is_terminal and cell_len(words) <= room:
            sys.stdout.write(Style(dim=True).render(words, color_system=ColorSystem.STANDARD))
            self._aside = cell_len(words)

    def _clear_aside(self) -> None:
        if self._aside:
            sys.stdout.write(f"\x1b[{self._aside}D\x1b[K")
            self._aside = 0

    def ended(self, reply: Reply) -> None:
        self._clear_aside()
        self._write(harmless(self._pieces.rest()), Style.null())
        sys.stdout.write("\n")
        sys.stdout.flush()
        self._column = 0
        self._pieces = Pieces.of(self._talk.tokenizer)
        stopped = " · stopped" if reply.finish_reason == "stopped" else ""
        cut = " · cut at max_new_tokens" if reply.finish_reason == "length" else ""
        self.note(f"  {figures_words(reply.figures, self._talk)}{stopped}{cut}")

    def changed(self) -> None:
        """Nothing is shown for long that could have become untrue."""
