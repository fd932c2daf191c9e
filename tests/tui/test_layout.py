"""Tokens wrapped into a pane, whatever they hold."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from specbench.tui.layout import Shown, TokenRows
from specbench.tui.marks import Kind, Mode

_TOKENS = st.lists(
    st.builds(
        Shown,
        text=st.text(st.characters(), max_size=12),
        kind=st.sampled_from([Kind.PLAIN, Kind.DRAFTED, Kind.BONUS]),
        depth=st.integers(1, 9),
    ),
    max_size=30,
)


def _rows(tokens: list[Shown], width: int, mode: Mode = Mode.MARKS) -> TokenRows:
    rows = TokenRows(width, mode)
    rows.extend(tokens)
    return rows


def _text(rows: TokenRows) -> list[str]:
    return ["".join(piece.text for piece in row) for row in rows.rows]


@given(_TOKENS, st.integers(4, 40))
def test_no_row_is_wider_than_the_pane(tokens: list[Shown], width: int) -> None:
    """One cell too many would break the border of the pane beside it."""
    assert all(cell_len(row) <= width for row in _text(_rows(tokens, width)))


@given(_TOKENS, st.integers(4, 40))
def test_revealing_one_token_more_never_changes_what_was_there(tokens: list[Shown], width: int) -> None:
    """Text that moves while it streams cannot be read."""
    rows = _rows(tokens, width)
    before: list[str] = []
    for number in range(len(tokens) + 1):
        shown = ["".join(p.text for p in rows.row(y, number)) for y in range(rows.num_rows(number))]
        for old, new in zip(before, shown, strict=False):
            assert new.startswith(old)
        before = shown


def test_marks_say_where_a_token_came_from() -> None:
    tokens = [Shown("a", Kind.DRAFTED, 1), Shown(" b", Kind.DRAFTED, 7), Shown(" c", Kind.BONUS, 0)]
    assert _text(_rows(tokens, 20)) == ["a¹ b⁺ c◆"]
    assert _text(_rows(tokens, 20, Mode.COLOUR)) == ["a b c"]
    assert _text(_rows(tokens, 20, Mode.PLAIN)) == ["a b c"]


def test_a_word_that_does_not_fit_begins_the_next_row() -> None:
    tokens = [Shown("one", Kind.PLAIN, 0), Shown(" three", Kind.PLAIN, 0)]
    assert _text(_rows(tokens, 8)) == ["one", "three"]


def test_line_breaks_are_shown_and_obeyed_and_the_mark_stays_beside_its_token() -> None:
    tokens = [Shown("a\n", Kind.DRAFTED, 2), Shown("b", Kind.PLAIN, 0)]
    assert _text(_rows(tokens, 10)) == ["a⏎²", "b"]


def test_wide_characters_are_never_cut_in_half() -> None:
    assert _text(_rows([Shown("日本語", Kind.PLAIN, 0)], 5)) == ["日本", "語"]


def test_a_line_of_ten_thousand_characters_wraps() -> None:
    rows = _rows([Shown("x" * 10_000, Kind.PLAIN, 0)], 50)
    assert len(rows.rows) == 200


def test_a_hundred_thousand_tokens_are_laid_out_in_seconds() -> None:
    """A whole run's worth in one pane: half a second alone."""
    began = time.process_time()
    _rows([Shown(" word", Kind.DRAFTED, 2)] * 100_000, 60)
    assert time.process_time() - began < 5
