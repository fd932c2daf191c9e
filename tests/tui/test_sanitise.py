"""Model text is hostile: what of it may reach a terminal."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from specbench.tui.sanitise import sendable, visible

_ANY_TEXT = st.text(st.characters(), max_size=80)
"""Lone surrogates included: models with byte tokens make them."""


@given(_ANY_TEXT)
def test_nothing_that_a_terminal_obeys_survives(text: str) -> None:
    """An escape code in an answer could rewrite the screen, or the clipboard."""
    shown = visible(text)
    assert not [char for char in shown if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")]
    shown.encode("utf-8")


@given(_ANY_TEXT)
def test_text_for_the_clipboard_keeps_only_line_breaks_and_tabs(text: str) -> None:
    """The clipboard is pasted into shells."""
    kept = sendable(text)
    assert {char for char in kept if unicodedata.category(char) == "Cc"} <= {"\n", "\t"}
    kept.encode("utf-8")


def test_control_characters_are_shown_as_signs() -> None:
    assert visible("a\x1b[31mb\nc\td\re\x00\x7f") == "a␛[31mb⏎c⇥d␍e␀␡"


def test_markup_is_text() -> None:
    assert visible("[red]x[/red] [link=file:///]") == "[red]x[/red] [link=file:///]"


def test_direction_overrides_and_zero_widths_do_not_pass() -> None:
    assert visible("a\u202eb\u200bc\u2066d") == "a�b�c�d"


def test_a_pile_of_combining_marks_is_cut() -> None:
    """A thousand marks on one letter would paint over the rows above."""
    assert visible("e" + "\u0301" * 1000) == "e" + "\u0301" * 3


def test_wide_characters_and_emoji_stay() -> None:
    assert visible("日本 🎉 é עברית") == "日本 🎉 é עברית"
