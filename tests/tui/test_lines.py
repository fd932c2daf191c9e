"""Shapes of text: what stands on the screen must be as long as the number it stands for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from specbench.metrics import Interval
from specbench.tui.draw_race import forest
from specbench.tui.draw_train import curve
from specbench.tui.lines import (
    BARS,
    Column,
    Span,
    bar,
    cell,
    fit,
    line,
    plain,
    plain_text,
    sparkline,
    table,
    width_of,
    wrap,
    wrap_last,
)


@given(st.text(st.characters(), max_size=60), st.integers(1, 40), st.booleans())
def test_a_cell_has_exactly_its_width(text: str, width: int, right: bool) -> None:
    """A table whose cells differ is no table."""
    assert cell_len(cell(text, width, right=right)) == width


@given(st.lists(st.text(st.characters(), max_size=20), max_size=6), st.integers(1, 40))
def test_fitted_lines_are_never_wider(parts: list[str], width: int) -> None:
    assert width_of(fit(line(*parts), width)) <= width


@given(st.text(st.characters(), max_size=120), st.integers(3, 40))
def test_wrapped_words_keep_their_letters_and_fit(text: str, width: int) -> None:
    rows = wrap(text, width)
    assert all(width_of(row) <= width for row in rows)
    kept = "".join(plain(row) for row in rows).replace(" ", "")
    assert kept == plain(line(text)).replace(" ", "")


@given(st.lists(st.text(st.characters(), max_size=30), min_size=1, max_size=3), st.integers(3, 60))
def test_a_row_keeps_all_of_its_last_sentence_and_fits(parts: list[str], width: int) -> None:
    row = line(*parts)
    rows = wrap_last(row, width)
    assert all(width_of(each) <= width for each in rows)
    kept = "".join(plain(each) for each in rows).replace(" ", "")
    assert kept.endswith(row[-1].text.replace(" ", ""))


def test_a_sentence_goes_on_under_its_beginning() -> None:
    row = line(Span("  z ", "key"), "Zoom  ", "Let the focused pane fill the screen")
    assert plain_text(wrap_last(row, 31)) == "  z Zoom  Let the focused pane\n          fill the screen"
    assert plain_text(wrap_last(row, 24)) == "  z Zoom\n    Let the focused pane\n    fill the screen"
    assert wrap_last(row, 80) == [row]


def test_words_wrap_where_a_line_is_narrower_than_a_character() -> None:
    """A pane may have one cell left, and a name two cells a character: the viewer hung."""
    assert [plain(row) for row in wrap("日a本 b", 1)] == ["日", "a", "本", "b"]


@pytest.mark.parametrize(("share", "shape"), [(0.0, ""), (0.5, "██"), (1.0, "████"), (0.125, "▌"), (2.0, "████")])
def test_a_bar_is_as_long_as_its_share(share: float, shape: str) -> None:
    assert bar(share, 4) == shape


def test_a_sparkline_has_a_place_for_every_value_and_means_where_there_are_more() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8, low=0, high=8) == BARS
    assert len(sparkline(list(range(1000)), 10)) == 10
    assert sparkline([], 5) == ""


def test_a_forest_row_puts_dot_whiskers_and_the_line_of_no_gain_where_they_belong() -> None:
    assert forest(2.0, Interval(1.5, 2.5), low=0.0, high=4.0, width=9) == "  │├●┤   "
    assert forest(1.0, None, low=0.0, high=4.0, width=5) == " ●   "


def test_columns_leave_by_their_number_and_the_growing_one_is_cut() -> None:
    columns = [Column("name", grows=True), Column("kept"), Column("first", drop=2), Column("second", drop=1)]
    rows = [[Span("a" * 40), Span("k"), Span("f" * 10), Span("s" * 10)]]
    head, (row,) = table(columns, rows, 60)
    assert "first" in plain(head) and "second" in plain(head)
    head, (row,) = table(columns, rows, 40)
    assert "first" not in plain(head) and "second" in plain(head)
    head, (row,) = table(columns, rows, 26)
    assert plain(head).split() == ["name", "kept"] and "…" in plain(row)
    assert width_of(row) <= 26


def test_a_column_that_left_comes_back_where_a_wider_one_made_room() -> None:
    """Home left the fastest method, τ and the target out at 80 cells, with seventeen of them blank."""
    columns = [Column("name", grows=True), Column("wide", drop=1), Column("a", drop=3), Column("b", drop=2)]
    rows = [[Span("n" * 10), Span("w" * 30), Span("aaa"), Span("bbb")]]
    head, _ = table(columns, rows, 30)
    assert plain(head).split() == ["name", "a", "b"], "all three leave, and two of them have room"
    head, _ = table(columns, rows, 18)
    assert plain(head).split() == ["name", "b"], "the one that leaves last comes back first"


def test_a_column_is_cut_before_it_leaves_and_has_its_cells_back_before_the_growing_one() -> None:
    columns = [Column("name", grows=True), Column("method", drop=1, least=8)]
    rows = [[Span("n" * 30), Span("redrafter-long")]]

    def shown(width: int) -> list[str]:
        _, (row,) = table(columns, rows, width)
        assert width_of(row) <= width
        return plain(row).split()

    assert shown(60) == ["n" * 30, "redrafter-long"]
    assert shown(40) == ["n" * 23 + "…", "redrafter-long"]
    assert shown(28) == ["n" * 17 + "…", "redraft…"]
    assert shown(27) == ["n" * 26 + "…"]


def test_names_in_a_column_stay_different_where_they_are_cut() -> None:
    columns = [Column("method", drop=1, most=10, is_name=True)]
    rows = [[Span(f"draft_model[depth={depth}]")] for depth in (2, 4)]
    assert [plain(row) for row in table(columns, rows, 40)[1]] == ["dra…pth=2]", "dra…pth=4]"]


def test_a_curve_falls_where_the_values_fall() -> None:
    rows = curve([4.0, 3.0, 2.0, 1.0], 4, 2, low=1.0, high=4.0)
    assert rows[0][0] != "\u2800" and rows[0][-1] == "\u2800"
    assert rows[1][-1] != "\u2800" and rows[1][0] == "\u2800"
