"""Text from models, files and names made fit for a terminal: the one place. No Textual.

Nothing that leaves `visible` can move the cursor, change a colour, reorder what follows or join two cells that were
measured apart, so that a text is as wide as its characters: what a terminal would obey is shown as a sign instead.
Markup is never read: the widgets draw segments, so `[red]` stays five characters.
"""

from __future__ import annotations

import re
import unicodedata

from rich.cells import get_character_cell_size

HIDDEN = "\ufffd"
"""Stands for a character that must not be sent and has no sign of its own."""
NEWLINE = "⏎"
TAB = "⇥"
_LONGEST_PILE = 3
"""Combining marks kept on one character: a thousand of them would paint over the rows above."""
_LOOKS = "\ufe0e\ufe0f"
"""Ask for a character as text or as emoji, which is twice as wide in some terminals: left out, the character stays."""

_HARMLESS = re.compile(r"[\x20-\x7e\u00a1-\u00ac\u00ae-\u02ff\u2500-\u259f\u4e00-\u9fff]*")
"""What most text is made of: passed without a look at each character."""


def visible(text: str) -> str:
    """One line: line breaks and tabs as signs, control characters as their pictures, invisible ones as HIDDEN."""
    if _HARMLESS.fullmatch(text):
        return text
    kept: list[str] = []
    pile = 0
    for char in text:
        if char in _LOOKS:
            continue
        category = unicodedata.category(char)
        if category in ("Mn", "Me", "Mc") or _is_drawn_into_the_one_before(char):
            pile += 1
            if pile > _LONGEST_PILE:
                continue
            kept.append(char)
            continue
        pile = 0
        kept.append(_sign(char, category))
    return "".join(kept)


def _is_drawn_into_the_one_before(char: str) -> bool:
    """Vowels and last consonants of Hangul that is written in its parts."""
    return "\u1160" <= char <= "\u11ff" or "\ud7b0" <= char <= "\ud7fb"


def _sign(char: str, category: str) -> str:
    if char == "\n":
        return NEWLINE
    if char == "\t":
        return TAB
    if char < " ":
        return chr(0x2400 + ord(char))
    if char == "\x7f":
        return "␡"
    # Cf holds zero widths, joiners and the bidirectional controls; Cs lone surrogates, which no terminal can be sent;
    # Cn may be given any width by the next Unicode.
    if category in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return HIDDEN
    if category == "Zs":
        return " "
    # Skin tones and fillers: without a cell here, and with one or two of their own in some terminals.
    return char if get_character_cell_size(char) else HIDDEN


def sendable(text: str) -> str:
    """Text for the clipboard or a file: line breaks and tabs stay, what `visible` would hide is hidden."""
    return "\n".join("\t".join(visible(part) for part in line.split("\t")) for line in text.split("\n"))
