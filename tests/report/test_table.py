"""The comparison table: what a terminal, a pipe and a Markdown file get."""

from __future__ import annotations

import dataclasses
import io
import itertools
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from specbench.metrics import Interval
from specbench.report import table
from specbench.report.layout import wrap_label, wrap_words
from specbench.store.records import Control, Equality
from tests.report.samples import baseline_row, contrast, method_row, summary

GRID = "redrafter[beam_width=4,beam_length=6]"
BROKEN = Equality(identical=400, tie=2, numeric=0, bug=78)
NOISY = "too noisy here: the interval is ±32% wide"


def _race():
    return summary(
        method_row("draft_model", rank=1, tied_with=(GRID,), accuracy=0.453),
        method_row(GRID, speedup=1.57, rank=1, tied_with=("draft_model",), accuracy=0.45),
        method_row("suffix", speedup=1.25, half=0.4, rank=None, too_noisy=True, notes=(NOISY,)),
        method_row("ctc", speedup=1.9, rank=None, lossless=False, equality=BROKEN, notes=("not ranked: bug",)),
    )


def _line_of(text: str, method: str) -> str:
    return next(line for line in text.splitlines() if method in line and "×" in line)


@pytest.mark.parametrize("width", [80, 100, 120, 160])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    text = table.to_text(_race(), width=width)
    assert max(cell_len(line) for line in text.splitlines()) <= width


@pytest.mark.parametrize("width", [60, 80, 120, None])
def test_numbers_are_never_wrapped(width: int | None) -> None:
    text = table.to_text(_race(), width=width)
    assert "1.60×" in _line_of(text, "draft_model")
    assert "[1.56, 1.64]" in _line_of(text, "draft_model")
    if width is None or width >= 80:
        assert "400/2/0/78" in _line_of(text, "ctc")


def test_columns_leave_in_the_stated_order_and_are_named() -> None:
    shown = []
    for width in range(150, 50, -1):
        head = table.to_text(_race(), width=width).split("─")[0]
        shown.append([name for name, mark in _MARKS.items() if mark in head])
    gone = [name for before, after in itertools.pairwise(shown) for name in before if name not in after]
    assert gone == [name for name in table.DROP_ORDER if name in gone]
    assert len(gone) >= 5
    assert "Too narrow for questions, η" in table.to_text(_race(), width=80)


_MARKS = {
    "questions": "questions\n",
    "efficiency": " η ",
    "decode": "decode",
    "accuracy": "accuracy",
    "tok/s": "tok/s",
    "acceptance": " τ ",
    "equality": "num/bug",
}


def test_a_noisy_row_says_so_where_its_rank_would_stand() -> None:
    line = _line_of(table.to_text(_race()), "suffix")
    assert line.startswith("too noisy here")


def test_a_buggy_row_is_never_called_noisy() -> None:
    wide = dataclasses.replace(_race().rows[-1], speedup_ci=Interval(1.0, 3.0))
    assert _line_of(table.to_text(summary(wide)), "ctc").startswith("not ranked")


def test_a_control_among_the_methods_is_never_called_noisy() -> None:
    """More repeats would not bring it a rank, which is what `too noisy here` promises."""
    notes = ("not ranked: a control, not a competitor", "too noisy here: the interval is ±40% wide")
    oracle = method_row("oracle", half=0.8, rank=None, ranked=False, notes=notes)
    assert _line_of(table.to_text(summary(oracle)), "oracle").startswith("not ranked")


def test_differences_under_a_lossy_rule_are_no_defect() -> None:
    lossy = dataclasses.replace(_race(), rule="typical")
    assert [line.is_broken for line in table.lines(_race())].count(True) == 1
    assert not any(line.is_broken for line in table.lines(lossy))


def test_ties_are_marked_and_named() -> None:
    text = table.to_text(_race())
    assert _line_of(text, "draft_model").startswith("1=")
    assert f"draft_model: tied with {GRID}" in text


def test_ranked_rows_come_first_and_the_control_last() -> None:
    order = [line.cells["method"] for line in table.lines(_race())]
    assert order == ["draft_model", GRID, "suffix", "ctc", "autoregressive", "autoregressive#2"]


def test_a_ranked_baseline_stands_among_the_methods() -> None:
    slow = method_row("slow", speedup=0.8, rank=3)
    fast = method_row("fast", speedup=1.5, rank=1)
    found = dataclasses.replace(summary(fast, slow), rows=(slow, baseline_row(ranked=True, rank=2), fast))
    assert [line.cells["method"] for line in table.lines(found)] == ["fast", "autoregressive", "slow"]


def test_accuracy_has_a_column_only_where_a_suite_has_answers() -> None:
    assert "accuracy" in table.to_text(_race())
    assert "accuracy" not in table.to_text(summary(method_row()))


def test_energy_has_a_column_only_where_a_card_counted_it() -> None:
    """Three digits below one joule; a method without a reading shows none."""
    rows = (method_row("a", joules_per_token=2.456), method_row("b", joules_per_token=0.04567), method_row("c"))
    text = table.to_text(summary(*rows))
    assert "J/tok" in text and "J/tok" in table.to_markdown(summary(*rows))
    assert "2.46" in _line_of(text, "a ") and "0.0457" in _line_of(text, "b ")
    assert "J/tok" not in table.to_text(summary(method_row()))


def test_conditions_name_all_that_a_number_depends_on() -> None:
    text = table.to_text(summary(method_row(), temperature=0.7, top_p=0.9, batch_size=4))
    for said in ("mtbench", "80 questions × 3 repeats", "tiny-instruct", "Example CPU", "1 thread", "float32", "T 0.7"):
        assert said in text
    for said in ("top-p 0.9", "coupled", "batch 4", "carry none", "256 tokens", "seed 0", "20261121-0335-ab12"):
        assert said in text


def test_control_and_meter_stand_below_the_table() -> None:
    text = table.to_text(_race())
    assert "A/A control: 1.00× [0.99, 1.01], contains 1: passed." in text
    assert "12.3 GB/s" in text and "62 % of the 20.0 GB/s" in text


def test_a_failed_control_is_told_once_by_the_run_s_own_note() -> None:
    failed = Control(method="autoregressive#2", speedup=1.1, speedup_ci=Interval(1.05, 1.15), passed=False)
    note = "the A/A control failed: autoregression against itself gives [1.050, 1.150]"
    text = table.to_text(summary(method_row(), control=failed, notes=(note,)))
    assert text.count("A/A control") == 1


def test_methods_of_a_run_whose_control_failed_have_words_in_place_of_a_rank() -> None:
    """Their speed-up and interval stay."""
    withheld = method_row("suffix", speedup=1.5, ranked=False, rank=None, control_failed=True)
    (cells,) = [line.cells for line in table.lines(summary(withheld)) if line.cells["method"] == "suffix"]
    assert (cells["rank"], cells["speedup"]) == ("control failed", "1.50×")
    assert cells["interval"] != "–"


def test_a_partial_run_is_marked_in_its_first_line() -> None:
    assert "INTERRUPTED" in table.to_text(summary(method_row(), state="interrupted")).splitlines()[0]


def test_control_characters_in_names_do_not_reach_the_terminal() -> None:
    text = table.to_text(summary(method_row("evil\x1b[31m\u202e\n[bold]x[/]")))
    assert "\x1b" not in text and "\u202e" not in text
    assert "[bold]x[/]" in text


def _printed(console: Console) -> str:
    table.print_summary(_race(), console)
    out = console.file
    assert isinstance(out, io.StringIO)
    return out.getvalue()


def test_a_pipe_gets_plain_text_with_every_column() -> None:
    text = _printed(Console(file=io.StringIO(), force_terminal=False, width=40))
    assert "\x1b" not in text
    assert all(mark.strip() in text for mark in _MARKS.values())


def test_no_color_keeps_colour_out_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    colour = re.compile(r"\x1b\[[0-9;]*3[0-9]")
    assert colour.search(_printed(Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=120)))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not colour.search(_printed(Console(file=io.StringIO(), force_terminal=True, width=120)))


def test_a_stream_without_unicode_gets_ascii() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    table.print_summary(_race(), Console(file=stream, force_terminal=False))
    stream.flush()
    assert b"1.60x" in raw.getvalue() and b" tau " in raw.getvalue()


def test_what_an_option_is_worth_is_said_below_the_table() -> None:
    told = "draft=shared-noise instead of plain is worth τ 1.21× [1.18, 1.25], speed 1.14× [1.09, 1.19]"
    found = summary(contrasts=(contrast(), contrast(speed_ratio_ci=None, acceptance_ratio=None)))
    assert told in table.to_text(found)
    assert "τ – [1.18, 1.25], speed 1.14× –" in table.to_text(found)
    assert told.replace("_", "\\_") in table.to_markdown(found).replace("\\", "")
    assert all(cell_len(line) <= 80 for line in table.to_text(found, width=80).splitlines())


def test_markdown_cells_cannot_be_broken_out_of() -> None:
    text = table.to_markdown(summary(method_row("a|b<img src=x>`c`")))
    row = next(line for line in text.splitlines() if "img" in line)
    assert "a\\|b&lt;img src=x&gt;\\`c\\`" in row
    columns = text.splitlines()[4].count("|")
    assert row.replace("\\|", "").count("|") == columns


def test_labels_break_at_their_brackets_before_they_break_inside_a_word() -> None:
    assert wrap_label(GRID, 24) == ["redrafter[beam_width=4,", "beam_length=6]"]
    assert "".join(wrap_label("x" * 30, 8)) == "x" * 30


def test_words_longer_than_the_line_keep_a_line_of_their_own() -> None:
    assert wrap_words("a " + "b" * 12 + " c", 6) == ["a", "b" * 12, "c"]
