"""The page printed by a real browser: what is on the sheets, which nobody can scroll or wait for."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import itertools
import os
import random
import subprocess
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from specbench.report.page import render_page
from tests.conftest import find_chromium
from tests.report.browser import Browser
from tests.report.pdf import read_pdf
from tests.report.samples import method_row, record, summary

pytestmark = pytest.mark.chromium

FIGURES = ("speedup", "scatter", "efficiency", "phases", "waterfall", "acceptance")
IN_FIGURES = ("Decode speed-up over τ", "Efficiency η", "Milliseconds per committed token", "Conditional acceptance")
"""A heading of each kind of figure; each is drawn with its figure, not before."""
PAPER = {"Letter": (8.5, 11.0), "A4": (8.27, 11.69)}
"""Inches."""


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of one run with ten methods: no figure is near a window of 600 pixels."""
    names = [f"draft_model[num_tokens={n}]" for n in range(1, 11)]
    rows = [method_row(name, speedup=2.4 - n / 10, rank=n + 1) for n, name in enumerate(names)]
    return _write(tmp_path_factory.mktemp("board"), *rows)


def _write(folder: Path, *rows: Any, **changes: Any) -> Path:
    found = summary(*rows)
    found = dataclasses.replace(found, rows=tuple(dataclasses.replace(row, **changes) for row in found.rows))
    page = render_page([record(found)], [], source="specbench.duckdb", made=datetime(2026, 11, 21, tzinfo=UTC))
    out = folder / "board.html"
    out.write_text(page.html, encoding="utf-8")
    return out


def _printed(browser: Browser, page: Path, paper: str, **window: Any) -> list[list[str]]:
    browser.open(page.as_uri(), **window)
    width, height = PAPER[paper]
    found = browser.call("Page.printToPDF", paperWidth=width, paperHeight=height, printBackground=True)
    return read_pdf(base64.b64decode(found["data"]))


def _text(sheets: list[list[str]]) -> str:
    return " ".join(" ".join(part for sheet in sheets for part in sheet).split())


def test_every_figure_is_on_paper_where_none_came_near_the_window(board: Path, tmp_path: Path) -> None:
    """A browser prints the page as `beforeprint` leaves it: nothing can come later."""
    executable = find_chromium()
    assert executable is not None
    out = tmp_path / "board.pdf"
    how = ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=800,600", f"--user-data-dir={tmp_path / 'p'}")
    printing = [executable, *how, f"--print-to-pdf={out}", board.as_uri()]
    subprocess.run(printing, check=True, timeout=120, capture_output=True)
    text = _text(read_pdf(out.read_bytes()))
    assert "Drawing" not in text and "No figure" not in text
    assert [heading for heading in IN_FIGURES if heading not in text] == []


def test_the_ranking_stands_on_the_sheet_with_its_last_column(browser: Browser, board: Path) -> None:
    sheets = _printed(browser, board, "Letter", width=1280)
    assert {"Rank", "Method", "Speed-up", "95 % interval", "Tokens/s", "Identical", "Questions"} <= set(sheets[0])
    assert sum(sheet.count("80 × 3") for sheet in sheets) == 12


def test_so_it_does_where_every_column_is_there_and_wide(browser: Browser, tmp_path: Path) -> None:
    """A4 is the narrower paper."""
    wide = {"tokens_per_s": 12_345.6, "joules_per_token": 0.1234, "accuracy": 0.975, "num_questions": 1_319}
    rows = [method_row(f"hybrid(draft_model)[num_tokens={n},beam_width=4]", speedup=12.0, tau=12.5) for n in (3, 4)]
    parts = _printed(browser, _write(tmp_path, *rows, **wide), "A4")[0]
    assert {"Speed-up", "J/token", "Accuracy", "Questions"} <= set(parts)
    assert parts.count("1319 × 3") == 4 and parts.count("97.5 %") == 4


def test_a_ranking_of_several_sheets_names_its_columns_on_each(browser: Browser, tmp_path: Path) -> None:
    rows = [method_row(f"suffix[max_tokens={n}]", speedup=4 - n / 10, rank=n) for n in range(1, 31)]
    sheets = _printed(browser, _write(tmp_path, *rows), "A4")
    with_rows = [sheet for sheet in sheets if "80 × 3" in sheet]
    assert len(with_rows) >= 2 and sum(sheet.count("80 × 3") for sheet in sheets) == 32
    assert [sheet.count("Questions") for sheet in sheets[: len(with_rows)]] == [1] * len(with_rows)
    assert all({"Rank", "Speed-up", "Tokens/s"} <= set(sheet) for sheet in with_rows)


@pytest.mark.parametrize("width", [390, 1920])
def test_paper_looks_the_same_whatever_the_window_and_the_window_as_before(
    browser: Browser, board: Path, width: int
) -> None:
    sheets = _printed(browser, board, "A4", width=1000)
    assert _printed(browser, board, "A4", width=width, dark=True) == sheets
    browser.wait(f"document.documentElement.clientWidth === {width}")
    root = "document.documentElement"
    assert browser.evaluate(f"{root}.className + {root}.dataset.theme") == "undefined"
    browser.wait("document.querySelector('#fig-scatter .main-svg')")
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.problems == []


def test_without_the_chart_library_the_tables_of_numbers_are_printed(
    browser: Browser, board: Path, tmp_path: Path
) -> None:
    """Folded tables are not printed: a sheet without figures must not be one without numbers."""
    html = board.read_text(encoding="utf-8")
    start = html.index('id="library">') + 13
    damaged = tmp_path / "damaged.html"
    damaged.write_text(html[: start + 4000] + "AAAAAAAA" + html[start + 4008 :], encoding="utf-8")
    text = _text(_printed(browser, damaged, "A4"))
    assert text.count("No figure: the packed chart library is damaged.") == len(FIGURES) and "Drawing" not in text
    assert "Baseline step" in text and "Coverage" in text


def test_what_the_page_unpacks_is_what_was_packed(browser: Browser, board: Path) -> None:
    """Every kind of block, against zlib: stored, fixed codes, codes of its own; copies that reach into themselves."""
    random.seed(0)
    words = [bytes(random.choices(b"abcdef", k=random.randint(1, 9))) for _ in range(50)]
    plain = [b"", b"a", b"abc" * 100, os.urandom(70_000), b" ".join(random.choices(words, k=30_000)), bytes(300_000)]
    browser.open(board.as_uri(), height=300)
    for data in plain:
        for level in (0, 1, 6, 9):
            packed = base64.b64encode(gzip.compress(data, level, mtime=0)).decode()
            unpacked = browser.evaluate(
                f"(bytes => {{ let found = ''; for (const byte of gunzip(bytes)) found += String.fromCharCode(byte);"
                f" return btoa(found) }})(Uint8Array.from(atob('{packed}'), c => c.charCodeAt(0)))"
            )
            assert base64.b64decode(unpacked) == data, (len(data), level)
    fixed = zlib.compressobj(9, zlib.DEFLATED, 31, 9, zlib.Z_FIXED)
    packed = base64.b64encode(fixed.compress(plain[4]) + fixed.flush()).decode()
    assert browser.evaluate(f"gunzip(Uint8Array.from(atob('{packed}'), c => c.charCodeAt(0))).length") == len(plain[4])


def test_damaged_bytes_are_refused_instead_of_being_run(browser: Browser, board: Path) -> None:
    random.seed(1)
    browser.open(board.as_uri(), height=300)
    whole = bytearray(gzip.compress(random.randbytes(500) * 40, 9, mtime=0))
    for cut in (whole[:-40] + whole[-8:], whole[:10] + b"\xff" * 40 + whole[50:]):
        packed = base64.b64encode(bytes(cut)).decode()
        said = browser.evaluate(
            f"(() => {{ try {{ gunzip(Uint8Array.from(atob('{packed}'), c => c.charCodeAt(0))); return 'nothing' }}"
            " catch (error) { return error.message } })()"
        )
        assert said == "the packed chart library is damaged"


def test_no_tick_of_the_ranking_stands_over_another(browser: Browser, tmp_path: Path) -> None:
    """Between 2 and 3 times the steps are halves, and the last label ends at the strip's edge."""
    for tenths in (14, 17, 20, 24, 25, 29, 36):
        rows = [method_row("suffix", speedup=tenths / 10), method_row("lstm", speedup=0.7)]
        browser.open(_write(tmp_path, *rows).as_uri())
        ends = browser.evaluate(
            "[...document.querySelectorAll('#ranking-table th svg text')]"
            ".map(t => t.getBoundingClientRect()).map(r => [r.left, r.right])"
        )
        assert len(ends) >= (1 if tenths < 20 else 2)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(ends)), (tenths, ends)
