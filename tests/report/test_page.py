"""What the page says, read without a browser."""

from __future__ import annotations

import dataclasses
import errno
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from specbench.errors import EnvironmentFailed, UsageError
from specbench.report.page import Page, embed_json, render_page, write_leaderboard
from specbench.store.db import open_store
from specbench.store.external import import_answers
from specbench.store.ingest import ingest
from specbench.store.records import to_json
from specbench.store.summary import summarise
from tests.report.samples import external_row, method_row, record, summary
from tests.store.synthetic import write_synthetic

MADE = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
HOSTILE = "</script><script>alert(1)</script><!--<img src=https://evil.example/x onerror=alert(2)>@@data@@"


class _Reader(HTMLParser):
    """Elements with their attributes, and the text inside scripts and styles by id."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.blocks: dict[str, str] = {}
        self._inside: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.elements.append((tag, attributes))
        if tag in ("script", "style"):
            self._inside = attributes.get("id") or f"{tag}-{len(self.elements)}"
            self.blocks[self._inside] = ""

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.blocks[self._inside] += data

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside = None


def _read(html: str) -> _Reader:
    reader = _Reader()
    reader.feed(html)
    return reader


def _data(html: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_read(html).blocks["data"])
    return found


def _page(*summaries: Any, **more: Any) -> Page:
    found = [record(each) for each in summaries or (summary(),)]
    return render_page(found, more.pop("externals", []), source="specbench.duckdb", made=MADE, **more)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store with two runs of one plan and another of other conditions."""
    root = tmp_path_factory.mktemp("store")
    path = root / "specbench.duckdb"
    for run_id, changes in (("run-a", {}), ("run-b", {"max_new_tokens": 32})):
        folder = write_synthetic(root / run_id, run_id=run_id, num_questions=6, **changes)
        ingest(path, folder)
    yield path


def test_the_rows_on_the_page_are_the_store_s(store: Path, tmp_path: Path) -> None:
    html = write_leaderboard(store, tmp_path / "board.html").read_text(encoding="utf-8")
    data = _data(html)
    assert {scope["runs"][0] for scope in data["scopes"]} == {"run-a", "run-b"}
    with open_store(store, read_only=True) as connection:
        for scope in data["scopes"]:
            stored = {row.method: to_json(row) for row in summarise(connection, scope["runs"][0]).rows}
            assert {row["method"] for row in scope["rows"]} == set(stored)
            for row in scope["rows"]:
                expected = {key: value for key, value in stored[row["method"]].items() if key != "notes"}
                assert {key: row[key] for key in expected} == _about(expected)
                notes = stored[row["method"]]["notes"]
                assert row["notes"][len(row["notes"]) - len(notes) :] == notes


def _about(value: Any) -> Any:
    """Six significant digits are what the page keeps; order of ties is the store's."""
    if isinstance(value, float):
        return pytest.approx(value, rel=1e-5, abs=1e-12)
    if isinstance(value, dict):
        return {key: _about(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_about(item) for item in value]
    return value


def test_provenance_stands_on_the_page(store: Path, tmp_path: Path) -> None:
    html = write_leaderboard(store, tmp_path / "board.html").read_text(encoding="utf-8")
    run = _data(html)["runs"]["run-a"]
    assert run["command"] == "specbench run demo"
    assert ["Suite hash", "5" * 64, True] in run["facts"]
    assert '"git": "none"' in run["provenance"]
    assert [method["label"] for method in run["methods"]][:2] == ["autoregressive", "autoregressive#2"]


def test_chosen_runs_alone_are_drawn_and_an_unknown_one_is_refused(store: Path, tmp_path: Path) -> None:
    html = write_leaderboard(store, tmp_path / "board.html", run_ids=["run-a"]).read_text(encoding="utf-8")
    assert set(_data(html)["runs"]) == {"run-a"}
    with pytest.raises(UsageError, match="run-x"):
        write_leaderboard(store, tmp_path / "other.html", run_ids=["run-x"])


def test_the_page_asks_the_network_for_nothing() -> None:
    page = _read(_page(externals=[external_row()]).html)
    for tag, attributes in page.elements:
        for name in ("src", "href", "srcset", "action", "formaction", "poster", "data", "background", "ping"):
            assert re.match(r"(#|data:,|$)", attributes.get(name, "")), (tag, attributes)
        assert "style" not in attributes or "url(" not in attributes["style"]
        assert tag not in ("iframe", "object", "embed", "base", "form")
    own = {name: text for name, text in page.blocks.items() if name not in ("library", "data")}
    for text in own.values():
        assert not re.search(r"@import|url\(|\bfetch\(|XMLHttpRequest|WebSocket|EventSource|sendBeacon|import\(", text)
        assert [u for u in re.findall(r"https?://[^\s\"']+", text) if u != "http://www.w3.org/2000/svg"] == []


def test_the_page_claims_no_more_of_a_rank_than_its_pairs_give() -> None:
    """Of nine equal methods a third of the runs and more give some a rank below 1: nothing here is beyond doubt."""
    html = _page().html
    assert "doubt" not in html.replace(_read(html).blocks["library"], "")
    assert "pairwise and not corrected for the number of methods" in html


def test_the_policy_forbids_every_request() -> None:
    metas = [a for tag, a in _read(_page().html).elements if tag == "meta" and a.get("http-equiv")]
    assert [meta["content"] for meta in metas] == [
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
    ]


def test_the_page_stays_below_two_and_a_half_megabytes() -> None:
    assert len(_page().html.encode()) < 2_500_000


def test_runs_that_do_not_fit_are_left_out_oldest_first_and_named() -> None:
    many = [
        dataclasses.replace(
            summary(), run_id=f"run-{i:02}", created=f"2026-11-{i + 1:02}T00:00:00Z", suite_hash=f"{i:064}"
        )
        for i in range(12)
    ]
    limit = len(_page(*many[-6:]).html.encode())
    page = _page(*many, limit=limit)
    kept = set(_data(page.html)["runs"])
    assert len(page.html.encode()) <= limit
    assert "run-11" in kept and "run-00" in page.left_out and not kept & set(page.left_out)
    assert len(kept) + len(page.left_out) == 12
    assert "run-00" in _data(page.html)["left_out"]


def test_a_page_that_cannot_hold_one_run_is_refused() -> None:
    with pytest.raises(EnvironmentFailed, match="larger than"):
        _page(limit=100_000)


def test_hostile_names_stay_text() -> None:
    row = method_row(HOSTILE, notes=(HOSTILE,), title=HOSTILE)
    hostile = summary(row, suite=HOSTILE, target=HOSTILE, device=HOSTILE, run_id=HOSTILE, notes=(HOSTILE,))
    page = _page(hostile, externals=[external_row(method=HOSTILE, notes=(HOSTILE,))])
    harmless = _read(_page(externals=[external_row()]).html)
    read = _read(page.html)
    assert [tag for tag, _ in read.elements] == [tag for tag, _ in harmless.elements]
    assert HOSTILE in [found["method"] for found in _data(page.html)["scopes"][0]["rows"]]


def test_embedded_json_cannot_end_its_element() -> None:
    text = embed_json({"a": "</ScRiPt><!-- &amp; \u2028"})
    assert not re.search(r"[<>&\u2028]", text)
    assert json.loads(text) == {"a": "</ScRiPt><!-- &amp; \u2028"}


def test_a_page_without_any_run_says_so(tmp_path: Path) -> None:
    html = write_leaderboard(tmp_path / "none.duckdb", tmp_path / "board.html").read_text(encoding="utf-8")
    assert "No measured run yet" in html and "specbench run suites/demo.yaml" in html
    assert _data(html)["scopes"] == []
    assert "library" not in _read(html).blocks
    assert len(html) < 100_000


def test_external_rows_stand_apart(tmp_path: Path) -> None:
    answers = tmp_path / "theirs.jsonl"
    choice = {"index": 0, "turns": ["x"], "idxs": [9], "new_tokens": [30], "wall_time": [0.5]}
    answers.write_text(json.dumps({"question_id": 1, "model_id": "m", "choices": [choice], "tstamp": 0}) + "\n")
    path = tmp_path / "specbench.duckdb"
    import_answers(path, answers, baseline=None, suite="MT-bench", method="medusa", target="vicuna")
    data = _data(write_leaderboard(path, tmp_path / "board.html").read_text(encoding="utf-8"))
    assert [(row["method"], row["ranked"]) for row in data["external"]] == [("medusa", False)]
    assert data["scopes"] == []


def test_every_metric_shown_is_defined_and_the_ranking_rules_are_printed() -> None:
    html = _page().html
    for term in ("Speed-up", "95 % interval", "Decode speed-up", "τ, acceptance length", "η, efficiency", "Tokens/s"):
        assert f"<dt>{term}</dt>" in html
    for term in ("Survival at depth k", "Coverage at depth k", "Waterfall", "Accuracy", "Baseline meter"):
        assert f"<dt>{term}</dt>" in html
    assert "too noisy here" in html and "never ranked with measured ones" in html


def test_the_chart_library_s_licence_stays_in_the_page() -> None:
    html = _page().html
    assert re.search(r"Copyright 2012-\d+, Plotly, Inc\.", html)
    assert "The above copyright notice and this permission notice shall be included" in html


def test_without_javascript_the_table_is_there_as_text() -> None:
    html = _page().html
    text = html.split("<noscript>")[1].split("</noscript>")[0]
    assert "draft_model" in text and "[1.56, 1.64]" in text


def test_the_same_data_gives_the_same_page() -> None:
    assert _page().html == _page().html


def test_a_folder_that_cannot_be_written_is_named(store: Path, tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(EnvironmentFailed) as caught:
        write_leaderboard(store, blocker / "board.html")
    assert "file" in str(caught.value)


def test_a_full_disk_leaves_no_half_page_and_says_where_else_to_write(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, text: str, *, encoding: str) -> int:
        self.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(self))

    out = tmp_path / "here" / "board.html"
    with monkeypatch.context() as patch, pytest.raises(EnvironmentFailed) as caught:
        patch.setattr(Path, "write_text", refuse)
        write_leaderboard(store, out)
    assert "disk is full" in caught.value.what
    assert "-o FILE" in caught.value.try_ and "--resume" not in caught.value.try_
    assert list(out.parent.iterdir()) == []


def test_the_page_is_written_whole_or_not_at_all(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "board.html"
    write_leaderboard(store, out)
    assert [path.name for path in out.parent.iterdir()] == ["board.html"]


def test_neither_torch_nor_textual_is_loaded_for_the_page(store: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from specbench.report.page import write_leaderboard\n"
        "assert 'duckdb' not in sys.modules and 'plotly' not in sys.modules\n"
        f"write_leaderboard(Path({str(store)!r}), Path({str(tmp_path / 'b.html')!r}))\n"
        "assert not {'torch', 'textual'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
