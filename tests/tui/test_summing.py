"""Which runs Home sums up, and when again: figures are asked for once, and beside a live run hardly at all."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from specbench.errors import StoreBusy
from specbench.store.ingest import ingest
from specbench.tui.app import SpecbenchApp
from specbench.tui.figures import batches, summed
from specbench.tui.reader import HereReader
from specbench.tui.views import home
from specbench.tui.views.home import HomeView
from specbench.tui.views.speed import SpeedView
from specbench.tui.widgets.canvas import Canvas
from specbench.tui.workspace import Workspace
from tests.store.synthetic import AUTOREGRESSIVE, CHAIN, make_manifest, run_events, write_run
from tests.tui.screens import RUN, WIDE, an_app, drive, finish, settled


class Counting(HereReader):
    """Remembers which runs were summed up."""

    def __init__(self) -> None:
        self.summed: list[str] = []

    def ask(self, job: str, *values: Any) -> Any:
        if job == "summed":
            self.summed.append(values[1])
        return super().ask(job, *values)


def _write(store: Path, run_id: str, *, is_stored: bool = True) -> Path:
    manifest = make_manifest((AUTOREGRESSIVE, CHAIN), run_id=run_id, num_questions=2, repeats=1)
    folder = write_run(store / "runs" / run_id, manifest, run_events(manifest, (AUTOREGRESSIVE, CHAIN)))
    if is_stored:
        ingest(store / "specbench.duckdb", folder)
    return folder


def _home(app: SpecbenchApp) -> HomeView:
    view = app.view("home")
    assert isinstance(view, HomeView)
    return view


def test_a_run_that_is_ingested_costs_no_other_run_its_figures(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store's file changes with every ingest: three hundred runs were summed up again for each."""
    monkeypatch.setattr(home, "_LOOK_EVERY_S", 0.1)
    _write(store, "20260101-other")
    unstored = _write(store, "20260101-unstored", is_stored=False)
    reader = Counting()

    async def body() -> None:
        app = SpecbenchApp(store, theme="dark", reader=reader)
        async with app.run_test(size=WIDE) as pilot:
            view = _home(app)
            await settled(pilot, lambda: len(view._summed) == 3)
            assert sorted(reader.summed) == ["20260101-other", "20260101-unstored", RUN]
            reader.summed.clear()
            _write(store, "20260103-new")
            await settled(pilot, lambda: "20260103-new" in view._summed)
            await pilot.pause(0.5)
            assert reader.summed == ["20260103-new"]
            assert view._summed[unstored.name].source.startswith("read from the journal")
            reader.summed.clear()
            ingest(store / "specbench.duckdb", unstored)
            await settled(pilot, lambda: view._summed[unstored.name].source == "store")
            await pilot.pause(0.5)
            assert reader.summed == [unstored.name]

    drive(body)


def test_a_list_that_could_not_read_the_store_takes_no_figures_from_it(store: Path) -> None:
    """A store that is locked for a moment tells of no row: that is not a row that is gone."""
    reader = Counting()
    workspace, file = Workspace(store, reader=reader), store / "specbench.duckdb"
    found = workspace.summed(RUN)
    workspace.listing()
    whole = file.read_bytes()
    file.write_bytes(b"no store")
    assert workspace.listing().notes and workspace.is_as_of_now(RUN, found)
    file.write_bytes(whole)
    assert workspace.summed(RUN) is found and reader.summed == [RUN]
    # And a row that is gone is seen: the journal has to tell then.
    file.unlink()
    workspace.listing()
    assert not workspace.is_as_of_now(RUN, found) and workspace.summed(RUN).source != "store"


def test_figures_of_a_run_that_went_on_are_old(store: Path) -> None:
    folder = _write(store, "odd", is_stored=False)
    workspace = Workspace(store, reader=HereReader())
    before = workspace.summed("odd")
    finish(folder)
    assert not workspace.is_as_of_now("odd", before)


def test_beside_a_live_run_only_the_chosen_run_is_summed_up_and_the_others_when_it_is_over(
    store: Path, live: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Summing up three hundred runs took nine tenths of a core for minutes beside a measurement."""
    monkeypatch.setattr(home, "_LOOK_EVERY_S", 0.1)
    monkeypatch.setattr(home, "_LISTING_SHARE", 1.0)
    _write(store, "20260101-other")
    _write(store, "20260101-third")
    reader = Counting()

    async def body() -> None:
        app = SpecbenchApp(store, theme="dark", reader=reader)
        async with app.run_test(size=WIDE) as pilot:
            view = _home(app)
            await settled(pilot, lambda: view.listing is not None and len(view.listing.runs) == 4)
            await pilot.pause(0.5)
            assert reader.summed == [], "the cursor is on the live run"
            assert "beside a live run only the chosen one is summed up" in view.headline()
            await pilot.press("down")
            await settled(pilot, lambda: RUN in view._summed)
            await pilot.pause(0.5)
            assert reader.summed == [RUN]
            (live / "run.lock").write_text("", encoding="utf-8")
            await settled(pilot, lambda: len(view._summed) == 4)
            assert "beside a live run" not in view.headline()

    drive(body)


def test_what_is_kept_of_a_run_does_not_grow_with_the_number_of_runs_beside_it(store: Path) -> None:
    """Every run carried the throughput of every other, and Home kept them all: a quarter of a gigabyte at 300 runs."""
    alone = len(pickle.dumps(summed(store, RUN)))
    for letter in "bcdefg":
        _write(store, f"20260102-demo-run-{letter}")
    assert len(pickle.dumps(summed(store, RUN))) == alone
    workspace = Workspace(store, reader=HereReader())
    runs = [f"20260102-demo-run-{letter}" for letter in "abcdefg"]
    for number in (*range(7), 0):
        workspace.summed(runs[number])
    assert len(workspace._summed) == 7
    for letter in "hij":
        _write(store, f"20260102-demo-run-{letter}")
        workspace.summed(f"20260102-demo-run-{letter}")
    assert len(workspace._summed) == 8
    assert RUN in workspace._summed and runs[1] not in workspace._summed, "the one that was asked for longest ago goes"


def test_home_keeps_the_summary_and_the_ratios_of_the_headline_alone(store: Path) -> None:
    async def body() -> None:
        app = an_app(store)
        async with app.run_test(size=WIDE) as pilot:
            view = _home(app)
            await settled(pilot, lambda: RUN in view._summed)
            known, whole = view._summed[RUN], app.workspace.summed(RUN)
            assert known.summary is whole.summary and len(known.ratios) == 6
            assert len(pickle.dumps(known)) < len(pickle.dumps(whole)) / 2
            assert not any(each is whole.units or each is whole.positions for each in known)

    drive(body)


def test_throughput_against_batch_is_the_newest_of_each_size(tmp_path: Path) -> None:
    both = (AUTOREGRESSIVE, CHAIN)

    def write(run_id: str, created: str, **options: Any) -> None:
        manifest = make_manifest(both, run_id=run_id, num_questions=4, repeats=1, **options)
        manifest = manifest.model_copy(update={"created": created})
        ingest(store / "specbench.duckdb", write_run(store / "runs" / run_id, manifest, run_events(manifest, both)))

    store = tmp_path
    write("one", "2026-02-01T00:00:00+00:00", batch_size=1)
    assert batches(store, "one") == [], "of one size there is nothing to compare"
    write("one-again", "2026-02-02T00:00:00+00:00", batch_size=1)
    assert batches(store, "one") == []
    write("two", "2026-02-03T00:00:00+00:00", batch_size=2)
    write("two-before", "2026-02-01T00:00:00+00:00", batch_size=2)
    found = batches(store, "one")
    assert [(row["batch_size"], row["method"]) for row in found] == [
        (size, method) for size in (1, 2) for method in ("autoregressive", "draft_model")
    ]
    newest = {row.method: row.tokens_per_s for row in summed(store, "two").summary.rows}
    assert {row["method"]: row["tokens_per_s"] for row in found[2:]} == newest
    assert batches(store, "unknown") == []
    assert batches(store / "nowhere", "one") == []


def test_speed_asks_for_batches_of_the_run_it_shows_and_says_where_it_cannot_have_them(store: Path) -> None:
    class Failing(Counting):
        def ask(self, job: str, *values: Any) -> Any:
            if job == "batches":
                raise StoreBusy("the store is busy")
            return super().ask(job, *values)

    async def body(app: SpecbenchApp, words: str) -> None:
        async with app.run_test(size=WIDE) as pilot:
            await pilot.press("5")
            speed = app.view("speed")
            assert isinstance(speed, SpeedView)
            await settled(pilot, lambda: words in " ".join(speed.query_one("#batch", Canvas).text().split()))

    drive(lambda: body(an_app(store, RUN), "batch 1 ● autoregressive 891"))
    drive(lambda: body(SpecbenchApp(store, RUN, reader=Failing()), "nothing is known: the store is busy"))
