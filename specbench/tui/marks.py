"""How a token is shown by where it came from: colours, and marks that say the same without colour. No Textual.

Contrast of every pair below is at least 4.5 (WCAG); deeper drafts are lighter, as a second clue for anyone who sees
lightness but not hue. Blue and amber stay apart for the usual kinds of colour blindness.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum
from functools import cache

from rich.style import Style


class Kind(StrEnum):
    """Where a token came from."""

    PLAIN = "plain"
    """A step without a draft, or the prompt's own first token: one target forward for one token."""
    DRAFTED = "drafted"
    """Drafted at a depth and accepted there."""
    BONUS = "bonus"
    """The target's own token at the end of a step that had drafted."""
    MISSING = "missing"
    """There is a token, and the journal does not say which yet."""
    GHOST = "ghost"
    """Drafted and rejected: no part of the answer. Known where there is a trace."""


class Mode(Enum):
    """What `m` cycles through."""

    COLOUR = "colour"
    BOTH = "colour and marks"
    MARKS = "marks only"
    PLAIN = "plain text"

    def next(self) -> Mode:
        """The mode after this one."""
        modes = list(Mode)
        return modes[(modes.index(self) + 1) % len(modes)]

    @property
    def has_colour(self) -> bool:
        """Tokens get backgrounds."""
        return self in (Mode.COLOUR, Mode.BOTH)

    @property
    def has_marks(self) -> bool:
        """Tokens get signs behind them."""
        return self in (Mode.MARKS, Mode.BOTH)


SUPERSCRIPTS = "¹²³⁴⁵⁶"
BEYOND = "⁺"
"""Depths past the last superscript."""
BONUS_MARK = "◆"
_DEPTH_BACKGROUNDS = ("#0b3c6e", "#0f5596", "#1c6fb5", "#3d8ccf", "#6aaee3", "#9fcdf2", "#c9e3f8")
_NUM_WHITE_ON = 3
"""Backgrounds dark enough for white letters."""
BONUS_BACKGROUND = "#f0a30a"


@dataclass(frozen=True, kw_only=True)
class Look:
    """A token's style, and the mark that follows it."""

    style: Style
    mark: str


def mark(kind: Kind, depth: int) -> str:
    """`³` for the third draft position, `◆` for the target's own token behind a draft."""
    if kind is Kind.BONUS:
        return BONUS_MARK
    if kind is Kind.DRAFTED:
        return SUPERSCRIPTS[depth - 1] if depth <= len(SUPERSCRIPTS) else BEYOND
    return ""


@cache
def look(kind: Kind, depth: int, mode: Mode) -> Look:
    """Style and mark of a token in a mode. Every style is a whole one: a segment without a style crashes NO_COLOR."""
    shown = mark(kind, depth) if mode.has_marks else ""
    if mode is Mode.PLAIN:
        return Look(style=Style.null(), mark="")
    if kind is Kind.MISSING:
        return Look(style=Style(dim=True), mark="")
    if kind is Kind.GHOST:
        # Struck through where the terminal can; the tildes around it say it everywhere.
        return Look(style=Style(dim=True, strike=True), mark="")
    if kind is Kind.DRAFTED:
        if not mode.has_colour:
            return Look(style=Style(underline=True), mark=shown)
        index = min(depth, len(_DEPTH_BACKGROUNDS)) - 1
        letters = "#ffffff" if index < _NUM_WHITE_ON else "#000000"
        return Look(style=Style(color=letters, bgcolor=_DEPTH_BACKGROUNDS[index]), mark=shown)
    if kind is Kind.BONUS:
        if not mode.has_colour:
            return Look(style=Style(bold=True), mark=shown)
        return Look(style=Style(color="#000000", bgcolor=BONUS_BACKGROUND, bold=True), mark=shown)
    return Look(style=Style.null(), mark="")


METHOD_SYMBOLS = "●○△◇▲◆□■▽▼"
METHOD_COLOURS = ("#4e9bd8", "#f0a30a", "#4ebf71", "#d77bb8", "#b9a2f2", "#e5826b", "#5fc7c7", "#c9c95c")
"""On the dark theme; `theme.py` darkens them for the light one."""


def symbol(position: int) -> str:
    """A method's sign by its place in the plan: the same in every view of the run."""
    return METHOD_SYMBOLS[position % len(METHOD_SYMBOLS)]
