"""Names of styles -> colours, for dark and light screens; and which of them a terminal wants.

Under NO_COLOR Textual takes the colours away; bold, dim, underline and the texts themselves must carry everything then.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from rich.style import Style
from textual.theme import Theme

from specbench.tui.marks import METHOD_COLOURS, Mode

DARK, LIGHT, TERMINAL = "specbench-dark", "specbench-light", "ansi-dark"
NAMES = {"dark": DARK, "light": LIGHT, "terminal": TERMINAL}
"""What `--theme` takes; `terminal` leaves the colours to the terminal's own sixteen."""

_DIM_ON_DARK, _DIM_ON_WHITE = "#8f969e", "#5f6368"
PLACEHOLDER = {"placeholder": "ansi_default"}
"""Of the style sheet's `$placeholder`, where the colours are the terminal's own."""

THEMES = (
    Theme(
        name=DARK,
        primary="#4e9bd8",
        secondary="#8a8a8a",
        accent="#f0a30a",
        warning="#f0a30a",
        error="#ff7a6b",
        success="#4ebf71",
        foreground="#e0e0e0",
        background="#101418",
        surface="#101418",
        panel="#1a2028",
        dark=True,
        variables={"placeholder": _DIM_ON_DARK},
    ),
    Theme(
        name=LIGHT,
        primary="#0f5596",
        secondary="#6b6b6b",
        accent="#8a5a00",
        warning="#8a5a00",
        error="#b3261e",
        success="#1a6b38",
        foreground="#1a1a1a",
        background="#ffffff",
        surface="#ffffff",
        panel="#eef1f4",
        dark=False,
        variables={"placeholder": _DIM_ON_WHITE},
    ),
)

_METHODS_ON_WHITE = ("#0f5596", "#8a5a00", "#1a6b38", "#96306f", "#5b3fb0", "#a33b1d", "#0b6b6b", "#6b6b00")


@cache
def styles(*, dark: bool, ansi: bool) -> Mapping[str, Style]:
    """Every style the views name. ansi: only the terminal's own sixteen colours."""
    if ansi:
        colours = {"good": "green", "warn": "yellow", "bad": "red", "accent": "blue", "dim": "bright_black"}
        methods: tuple[str, ...] = ("blue", "yellow", "green", "magenta", "cyan", "red", "bright_blue", "bright_green")
    elif dark:
        colours = {"good": "#4ebf71", "warn": "#f0a30a", "bad": "#ff7a6b", "accent": "#6aaee3", "dim": _DIM_ON_DARK}
        methods = METHOD_COLOURS
    else:
        colours = {"good": "#1a6b38", "warn": "#8a5a00", "bad": "#b3261e", "accent": "#0f5596", "dim": _DIM_ON_WHITE}
        methods = _METHODS_ON_WHITE
    found = {
        "": Style.null(),
        "dim": Style(color=colours["dim"]),
        "bold": Style(bold=True),
        "good": Style(color=colours["good"]),
        "warn": Style(color=colours["warn"]),
        "bad": Style(color=colours["bad"], bold=True),
        "accent": Style(color=colours["accent"]),
        "key": Style(color=colours["accent"], bold=True),
        "tab": Style(reverse=True, bold=True),
        "cursor": Style(reverse=True),
        "ghost": Style(color=colours["dim"], strike=True),
    }
    for place, colour in enumerate(methods):
        found[f"method{place}"] = Style(color=colour)
    return found


def first_mode(*, no_color: bool, color_system: str | None) -> Mode:
    """Sixteen colours cannot tell seven depths apart: marks do."""
    return Mode.MARKS if no_color or color_system in (None, "standard", "windows") else Mode.BOTH


def theme_for(chosen: str, environ: Mapping[str, str]) -> str:
    """`--theme auto`: light where the terminal says that its background is (COLORFGBG), else dark."""
    if chosen != "auto":
        return NAMES[chosen]
    background = environ.get("COLORFGBG", "").rpartition(";")[2]
    return LIGHT if background in ("7", "15") else DARK
