"""Model text is hostile: what of it may reach a terminal."""

from __future__ import annotations

import unicodedata

from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len, get_character_cell_size

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


@given(_ANY_TEXT)
@example("⚠\ufe0fab")
@example("1\ufe0f\u20e3 👩\u200d💻 👍🏽 \u1112\u1161\u11ab \u3164")
def test_a_text_is_as_wide_as_its_characters(text: str) -> None:
    """Rows are broken character by character, and what is wider than that is cut at the pane's edge."""
    shown = visible(text)
    assert cell_len(shown) == sum(map(get_character_cell_size, shown))


def test_looks_of_emoji_are_left_out_and_what_would_join_two_is_shown() -> None:
    assert visible("⚠\ufe0f ❤\ufe0f 1\ufe0f\u20e3 ☕\ufe0e") == "⚠ ❤ 1\u20e3 ☕"
    assert visible("👍🏽") == "👍�" and visible("👩\u200d💻") == "👩�💻" and visible("a\u3164b") == "a�b"
    assert visible("\u1112\u1161\u11ab") == "\u1112\u1161\u11ab"


def test_wide_characters_and_emoji_stay() -> None:
    assert visible("日本 🎉 é עברית") == "日本 🎉 é עברית"
