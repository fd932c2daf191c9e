"""The page in a real browser, from file://: drawn, sorted, themed, silent on the network and on the console."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path

import pytest

from specbench.report.page import render_page
from tests.report.browser import Browser
from tests.report.samples import contrast, external_row, failed, method_row, record, summary

pytestmark = pytest.mark.chromium

FIGURES = ("speedup", "scatter", "efficiency", "phases", "waterfall", "acceptance")
HOSTILE = "</script><img src=x onerror=window.hacked=1><a href='https://evil.example'>x</a>%{x}"


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of a page with two suites of one setting, a noisy, a broken and a tied row, and an external one."""
    rows = (
        method_row("draft_model", speedup=1.6, rank=1, tied_with=("tree[width=4]",)),
        method_row("tree[width=4]", speedup=1.57, tau=3.4, rank=1, tied_with=("draft_model",)),
        method_row("prompt_lookup", speedup=1.2, tau=1.6, rank=3),
        method_row("suffix", speedup=1.25, half=0.4, tau=1.8, rank=None, too_noisy=True),
    )
    second = dataclasses.replace(
        summary(*rows), suite="gsm8k", suite_hash="c" * 64, run_id="older", created="2026-11-20T00:00:00Z"
    )
    return _write(tmp_path_factory.mktemp("board"), summary(*rows), second)


def _write(folder: Path, *summaries: object) -> str:
    records = [record(each) for each in summaries]  # type: ignore[arg-type]
    page = render_page(records, [external_row()], source="specbench.duckdb", made=datetime(2026, 11, 21, tzinfo=UTC))
    out = folder / "board.html"
    out.write_text(page.html, encoding="utf-8")
    return out.as_uri()


def _drawn(browser: Browser) -> None:
    browser.wait(f"document.querySelectorAll('[data-figure] .main-svg').length >= {len(FIGURES)}")
    browser.wait("!document.querySelector('.waiting')")


def _methods(browser: Browser) -> list[str]:
    found: list[str] = browser.evaluate(
        "[...document.querySelectorAll('#ranking-table tr.row td.name')].map(td => td.textContent.split('430')[0])"
    )
    return found


def _sorting(browser: Browser) -> dict[str, str]:
    found: dict[str, str] = browser.evaluate(
        "Object.fromEntries([...document.querySelectorAll('#ranking-table th[aria-sort]')]"
        ".map(th => [th.querySelector('button').dataset.sort, th.getAttribute('aria-sort')]))"
    )
    return found


def test_every_figure_is_drawn_without_a_complaint_or_a_request(browser: Browser, board: str) -> None:
    browser.open(board, height=6000)
    _drawn(browser)
    for name in FIGURES:
        assert browser.evaluate(f"document.querySelectorAll('[data-figure={name}] .main-svg').length") >= 1, name
    # Two suites whole, three categories: a bar for each of four methods and the control (categories have no control).
    assert browser.evaluate("document.querySelectorAll('#fig-speedup .bars .point').length") == 2 * 5 + 3 * 4
    assert browser.requests == [board]
    assert browser.problems == []


def test_tables_are_there_before_any_figure(browser: Browser, board: str) -> None:
    """A short window: the figures are far below, the library is not even inflated."""
    browser.open(board, width=390, height=300)
    assert len(_methods(browser)) == 6
    assert browser.evaluate("typeof Plotly") == "undefined"
    assert browser.evaluate("document.querySelectorAll('.main-svg').length") == 0
    browser.evaluate("document.getElementById('fig-acceptance').scrollIntoView()")
    browser.wait("document.querySelector('#fig-acceptance .main-svg')")


def test_a_click_sorts_and_a_second_one_turns_the_order(browser: Browser, board: str) -> None:
    browser.open(board)
    by_rank = _methods(browser)
    assert by_rank[:2] == ["draft_model", "tree[width=4]"]
    browser.evaluate("document.querySelector('#ranking-table [data-sort=tau]').click()")
    assert _methods(browser)[0] == "tree[width=4]"
    assert _sorting(browser)["tau"] == "descending" and _sorting(browser)["rank"] == "none"
    assert "sort=-tau" in browser.evaluate("location.hash")
    browser.evaluate("document.querySelector('#ranking-table [data-sort=tau]').click()")
    assert _methods(browser)[-1] == "tree[width=4]"
    assert _sorting(browser)["tau"] == "ascending"


def test_the_keyboard_sorts(browser: Browser, board: str) -> None:
    browser.open(board)
    browser.evaluate("document.querySelector('#ranking-table [data-sort=rank]').focus()")
    browser.press("Tab", 9)
    assert browser.evaluate("document.activeElement.dataset.sort") == "method"
    browser.press("Enter", 13)
    assert _sorting(browser)["method"] == "ascending"
    assert _methods(browser) == sorted(_methods(browser))


def test_values_that_are_missing_come_last_in_either_order(browser: Browser, board: str) -> None:
    for sort in ("interval", "-interval"):
        browser.open(f"{board}#sort={sort}")
        assert _methods(browser)[-1] == "autoregressive"


def test_the_address_keeps_scope_order_and_theme(browser: Browser, board: str) -> None:
    browser.open(board)
    keys = browser.evaluate("[...document.querySelectorAll('#scope option')].map(o => o.value)")
    assert len(keys) == 2
    browser.open(f"{board}#scope={keys[1]}&sort=-tokens&theme=dark")
    assert "gsm8k" in browser.evaluate("document.getElementById('lead').textContent")
    assert _sorting(browser)["tokens"] == "descending"
    assert browser.evaluate("document.documentElement.dataset.theme") == "dark"


def test_another_scope_redraws_everything(browser: Browser, board: str) -> None:
    browser.open(board, height=6000)
    _drawn(browser)
    browser.evaluate(
        "(s => { s.selectedIndex = 1; s.dispatchEvent(new Event('change')) })(document.getElementById('scope'))"
    )
    _drawn(browser)
    assert "gsm8k" in browser.evaluate("document.getElementById('conditions').textContent")
    assert "older" in browser.evaluate("document.getElementById('runs').textContent")
    assert browser.problems == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_theme_follows_the_system_and_the_button(browser: Browser, board: str, dark: bool) -> None:
    browser.open(board, dark=dark)
    colour = "getComputedStyle(document.body).backgroundColor"
    white, night = "rgb(255, 255, 255)", "rgb(18, 22, 26)"
    assert browser.evaluate(colour) == (night if dark else white)
    browser.evaluate("document.getElementById('theme').click()")
    assert browser.evaluate(colour) == white
    browser.evaluate("document.getElementById('theme').click()")
    assert browser.evaluate(colour) == night


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_sticks_out_sideways(browser: Browser, board: str, width: int) -> None:
    browser.open(board, width=width, height=6000)
    _drawn(browser)
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    if width == 1280:
        assert (
            browser.evaluate("(r => r.scrollWidth - r.clientWidth)(document.querySelector('#ranking-table .scroll'))")
            == 0
        )


def test_the_variants_of_a_grid_can_be_told_apart_in_every_figure(browser: Browser, tmp_path: Path) -> None:
    rows = [method_row(f"prompt_lookup[num_tokens={n}]", rank=n, tied_with=()) for n in (1, 2)]
    browser.open(_write(tmp_path, summary(*rows)), height=6000)
    _drawn(browser)
    for figure in ("speedup", "efficiency", "phases"):
        ticks = browser.evaluate(
            f"[...document.querySelectorAll('#fig-{figure} .yaxislayer-above .ytick text')].map(t => t.textContent)"
        )
        shown = [tick for tick in ticks if "prompt_lookup" in tick]
        assert {"num_tokens=1" in tick or "num_tokens=2" in tick for tick in shown} == {True}, (figure, ticks)


def test_on_a_phone_a_name_stands_on_the_line_of_its_mark(browser: Browser, tmp_path: Path) -> None:
    control = method_row("autoregressive#2", kind="baseline", is_control=True, rank=None, ranked=False)
    browser.open(_write(tmp_path, summary(control)), width=390)
    heights = browser.evaluate(
        "[...document.querySelectorAll('#ranking-table td.name > div')].map(d => d.getBoundingClientRect().height)"
    )
    assert heights and max(heights) < 24, heights


def test_the_first_sentence_keeps_what_is_too_noisy_to_rank_but_above_one(browser: Browser, tmp_path: Path) -> None:
    """A page must not say that nothing was faster while a row's whole interval lies above plain decoding."""
    slow = method_row("lstm", speedup=0.8, rank=2)
    fast = method_row("suffix", speedup=1.6, half=0.4, rank=None, too_noisy=True)
    unclear = method_row("prompt_lookup", speedup=1.1, half=0.4, rank=None, too_noisy=True)
    found = summary(slow, fast, unclear)
    rows = tuple(
        dataclasses.replace(row, rank=1, ranked=True) if row.kind == "baseline" and not row.is_control else row
        for row in found.rows
    )
    browser.open(_write(tmp_path, dataclasses.replace(found, rows=rows)))
    lead = browser.evaluate("document.getElementById('lead').textContent")
    assert "no ranked method was faster" in lead and "the nearest, lstm, ran at 0.80×" in lead
    assert "faster by the whole of their intervals: suffix 1.60×" in lead and "prompt_lookup" not in lead


def test_what_an_option_is_worth_stands_in_a_table_of_its_own_where_there_is_a_pair(
    browser: Browser, tmp_path: Path
) -> None:
    cells = (
        "[...document.querySelectorAll('#contrast-table tr.row')].map(tr => [...tr.cells].map(td => td.textContent))"
    )
    with_pair = summary(contrasts=(contrast(), contrast(acceptance_ratio=None, acceptance_ratio_ci=None)))
    browser.open(_write(tmp_path, with_pair), width=390)
    first, second = browser.evaluate(cells)
    assert first[1:] == ["draft", "shared-noise", "plain", "1.21×", "[1.18, 1.25]", "1.14×", "[1.09, 1.19]", "80"]
    assert second[4:6] == ["–", "–"]
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    browser.open(_write(tmp_path, summary()))
    assert browser.evaluate("document.getElementById('contrasts').hidden")
    assert browser.problems == []


@pytest.mark.parametrize("width", [390, 1280])
def test_curves_over_batch_sizes_stand_where_there_are_several(browser: Browser, tmp_path: Path, width: int) -> None:
    runs = [
        dataclasses.replace(summary(method_row(speedup=speedup)), run_id=f"b{size}", batch_size=size)
        for size, speedup in ((1, 2.0), (4, 1.25), (16, 0.8))
    ]
    browser.open(_write(tmp_path, *runs), width=width, height=6000)
    browser.wait("document.querySelectorAll('#fig-batches .main-svg').length >= 2")
    cells = "[...document.querySelectorAll('#tab-batches tr.row')].map(tr => [...tr.cells].map(td => td.textContent))"
    baseline, draft = sorted(browser.evaluate(cells))
    assert draft[1:] == ["200 (2.00×)", "125 (1.25×)", "80.0 (0.80×)", "≈ 8.0", "pays at 1, 4; costs at 16"]
    assert baseline[1:] == ["100", "100", "100", "–", "–"]
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    browser.open(_write(tmp_path, summary()))
    assert browser.evaluate("document.getElementById('batches').hidden")
    assert browser.problems == []


def test_hostile_names_run_nothing_and_link_nowhere(browser: Browser, tmp_path: Path) -> None:
    row = method_row(HOSTILE, title=HOSTILE, notes=(HOSTILE,))
    url = _write(tmp_path, summary(row, suite=HOSTILE, target=HOSTILE, notes=(HOSTILE,)))
    browser.open(url, height=6000)
    _drawn(browser)
    assert browser.evaluate("window.hacked") is None
    assert browser.evaluate("document.querySelectorAll('main img, main a, svg a').length") == 0
    assert HOSTILE in _methods(browser)
    assert browser.requests == [url]
    assert browser.problems == []


def test_a_run_without_a_number_is_not_called_one_of_the_baseline_alone(browser: Browser, tmp_path: Path) -> None:
    browser.open(_write(tmp_path, failed(summary())), height=6000)
    browser.wait("document.getElementById('fig-speedup').textContent.startsWith('No row')")
    assert browser.evaluate("document.getElementById('fig-speedup').textContent") == "No row here has a number."
    assert browser.problems == []


def test_an_empty_board_says_so_and_draws_nothing(browser: Browser, tmp_path: Path) -> None:
    page = render_page([], [], source="specbench.duckdb", made=datetime(2026, 11, 21, tzinfo=UTC))
    out = tmp_path / "empty.html"
    out.write_text(page.html, encoding="utf-8")
    browser.open(out.as_uri())
    assert "No measured run yet" in browser.evaluate("document.body.innerText")
    assert "Ranking\n" not in browser.evaluate("document.body.innerText")
    assert browser.problems == []
