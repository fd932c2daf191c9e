"""What a screen was told once is not true for good: verdicts, figures and lists are asked for again."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from pathlib import Path
from typing import Any

from specbench.errors import EnvironmentFailed
from specbench.store.ingest import ingest
from specbench.store.records import RunEntry
from specbench.tui.app import SpecbenchApp
from specbench.tui.draw_home import ordered
from specbench.tui.figures import summed
from specbench.tui.reader import HereReader
from specbench.tui.views.home import HomeView
from specbench.tui.views.speed import SpeedView
from specbench.tui.views.system import SystemView
from specbench.tui.views.train import TrainView
from specbench.tui.widgets.canvas import Canvas
from specbench.tui.workspace import Workspace
from tests.store.synthetic import AUTOREGRESSIVE, CHAIN, make_manifest, run_events, write_run
from tests.tui.screens import RUN, WIDE, an_app, append, drive, finish, raced, screen_text, settled, write_live
from tests.tui.test_training import TRAINING, write_training


class Reader(HereReader):
    """Fails or holds what it is told to; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.failing: set[str] = set()
        self.may_answer = threading.Event()
        self.may_answer.set()

    def ask(self, job: str, *values: Any) -> Any:
        self.may_answer.wait(20)
        self.asked.append(job)
        if job in self.failing:
            raise EnvironmentFailed("the process that reads the store ended")
        return super().ask(job, *values)


def _clean(view: SystemView) -> str:
    return " ".join(view.query_one("#clean", Canvas).text().split())


async def _system(app: SpecbenchApp, pilot: Any) -> SystemView:
    await pilot.press("6")
    await settled(pilot, lambda: isinstance(app.screen, SystemView))
    assert isinstance(app.screen, SystemView)
    return app.screen


def test_whether_a_measurement_is_clean_is_asked_again_after_the_run_went_on(store: Path) -> None:
    folder = write_live(store, pid=1)

    async def body() -> None:
        app = an_app(store, folder.name)
        async with app.run_test(size=WIDE) as pilot:
            view = await _system(app, pilot)
            await settled(pilot, lambda: view.summed is not None)
            first = view.summed
            await pilot.press("1")
            finish(folder)
            # Home sums it up as well: that the workspace knows better must not hide that this screen does not.
            await settled(pilot, lambda: app.workspace.is_as_of_now(folder.name, _of_home(app, folder.name)))
            await pilot.press("6")
            await settled(pilot, lambda: view.summed is not first and view.summed is not None)
            assert view.summed is not None and view.summed.summary.state == "finished"
            assert "so far" not in _clean(view)

    drive(body)


def _of_home(app: SpecbenchApp, run_id: str) -> Any:
    view = app.view("home")
    assert isinstance(view, HomeView)
    return view._summed.get(run_id)


def test_a_verdict_that_could_not_be_had_says_why_and_is_asked_for_again(store: Path) -> None:
    reader = Reader()
    reader.failing = {"summed"}

    async def body() -> None:
        app = SpecbenchApp(store, RUN, reader=reader)
        async with app.run_test(size=WIDE) as pilot:
            view = await _system(app, pilot)
            await settled(pilot, lambda: "not known: the process that reads the store ended" in _clean(view))
            reader.failing = set()
            await pilot.press("2", "6")
            await settled(pilot, lambda: "A/A control" in _clean(view))

    drive(body)


def test_figures_that_could_not_be_read_are_read_when_the_screen_is_entered_again(store: Path) -> None:
    reader = Reader()
    reader.failing = {"summed"}

    async def body() -> None:
        app = SpecbenchApp(store, RUN, reader=reader)
        async with app.run_test(size=WIDE) as pilot:
            await pilot.press("5")
            await settled(pilot, lambda: "No figures: the process that reads" in " ".join(screen_text(app).split()))
            reader.failing = set()
            await pilot.press("2", "5")
            await settled(pilot, lambda: isinstance(app.screen, SpeedView) and app.screen.summed is not None)

    drive(body)


def test_home_tries_a_run_again_that_could_not_be_summed_up(tmp_path: Path) -> None:
    """When its journal went on, or after a while; not with every look: a damaged run would cost a processor."""
    manifest = make_manifest((AUTOREGRESSIVE, CHAIN), run_id="odd", num_questions=2, repeats=1)
    events = list(run_events(manifest, (AUTOREGRESSIVE, CHAIN)))
    folder = write_run(tmp_path / "runs" / "odd", manifest, iter(events[:-1]))
    reader = Reader()
    reader.failing = {"summed"}

    async def body() -> None:
        app = SpecbenchApp(tmp_path, reader=reader)
        async with app.run_test(size=WIDE) as pilot:
            view = app.screen
            assert isinstance(view, HomeView)
            await settled(pilot, lambda: "odd" in view._unreadable)
            reader.failing = set()
            view.entered()
            await pilot.pause(0.1)
            assert "odd" not in view._summed, "nothing of it has changed, and it is not long ago"
            append(folder, events[-1])
            view.look()
            await settled(pilot, lambda: "odd" in view._summed and "odd" not in view._unreadable)

    drive(body)


def test_a_run_that_came_into_the_store_is_read_from_it_though_the_store_did_not_grow(store: Path) -> None:
    """DuckDB's file grows by blocks of 256 KiB, and a small run finds room in them."""
    manifest = make_manifest((AUTOREGRESSIVE, CHAIN), run_id="small", num_questions=1, repeats=1)
    folder = write_run(store / "runs" / "small", manifest, run_events(manifest, (AUTOREGRESSIVE, CHAIN)))
    workspace, file = Workspace(store, reader=HereReader()), store / "specbench.duckdb"
    # Of one size before and after: whether it grows of itself depends on DuckDB's version.
    size = 4 * file.stat().st_size
    os.truncate(file, size)
    before = workspace.summed("small")
    assert workspace.is_as_of_now("small", before) and "not in the store" in before.source
    listed = workspace.signature()
    ingest(file, folder)
    os.truncate(file, size)
    assert workspace.signature() != listed and not workspace.is_as_of_now("small", before)
    assert workspace.summed("small").source == "store"


def test_the_keys_do_not_wait_for_a_list_of_runs(store: Path) -> None:
    """Two presses while the store is busy go on by two."""
    write_training(store)
    for name in ("b", "c"):
        manifest = make_manifest((AUTOREGRESSIVE, CHAIN), run_id=f"20260102-demo-run-{name}", num_questions=2)
        ingest(
            store / "specbench.duckdb",
            write_run(store / "runs" / manifest.run_id, manifest, run_events(manifest, (AUTOREGRESSIVE, CHAIN))),
        )
    reader = Reader()

    async def body() -> None:
        app = SpecbenchApp(store, RUN, reader=reader)
        async with app.run_test(size=WIDE) as pilot:
            await pilot.press("5")
            await settled(pilot, lambda: isinstance(app.screen, SpeedView) and app.screen.summed is not None)
            runs = [entry.run_id for entry in app.workspace.listing().runs if entry.kind == "run"]
            reader.may_answer.clear()
            began_s = time.monotonic()
            await pilot.press("right_square_bracket", "right_square_bracket")
            assert time.monotonic() - began_s < 5
            assert app.workspace.run_id == RUN
            reader.may_answer.set()
            await settled(pilot, lambda: app.workspace.run_id == runs[(runs.index(RUN) + 2) % len(runs)])
            app.open_run(TRAINING)
            await settled(pilot, lambda: isinstance(app.screen, TrainView) and app.screen.training is not None)
            reader.may_answer.clear()
            began_s = time.monotonic()
            await pilot.press("right_square_bracket")
            assert time.monotonic() - began_s < 5
            reader.may_answer.set()

    drive(body)


def test_a_run_that_is_opened_after_a_live_one_has_not_ended_with_it(store: Path) -> None:
    async def body() -> None:
        app = an_app(store, RUN)
        async with app.run_test(size=WIDE) as pilot:
            view = await raced(app, pilot)
            view.state = "running"
            view.run_opened()
            await settled(pilot, lambda: view.race is not None)
            assert view.state == "finished" and "the run is" not in view.said

    drive(body)


def test_runs_are_sorted_by_the_speedup_that_is_shown_and_unknown_ones_stand_last(store: Path) -> None:
    """The store's own list holds the control called oracle, which the column never shows."""
    figures = summed(store, RUN).summary

    def entry(run_id: str, speedups: dict[str, float], state: str = "finished") -> RunEntry:
        return RunEntry(
            run_id=run_id, created="", suite="s", target="t", state=state, has_journal=True, is_stored=True,
            speedups=speedups,
        )  # fmt: skip

    def times(factor: float) -> Any:
        rows = tuple(
            dataclasses.replace(row, speedup=None if row.speedup is None else row.speedup * factor)
            for row in figures.rows
        )
        return dataclasses.replace(figures, rows=rows)

    entries = [
        entry("unread", {"oracle": 99.0}),
        entry("slow", {"oracle": 50.0}),
        entry("live", {}, state="running"),
        entry("fast", {}),
    ]
    known = {"slow": times(1.0), "fast": times(2.0), "live": times(9.0)}
    assert [each.run_id for each in ordered(entries, "speed-up", known)] == ["fast", "slow", "unread", "live"]
