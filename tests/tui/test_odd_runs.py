"""Runs that are not like the others, and terminals that are hardly there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from rich.cells import cell_len

from specbench.errors import UsageError
from specbench.events import GenerationFailed, GenerationFinished, RunFinished, RunStarted
from specbench.tui import actions
from specbench.tui.figures import summed
from specbench.tui.views.home import HomeView
from specbench.tui.views.race import RaceView
from specbench.tui.widgets.lane_pane import LanePane
from specbench.tui.workspace import Workspace
from tests.store.synthetic import AUTOREGRESSIVE, CHAIN, make_manifest, run_events, write_run
from tests.tui.screens import WIDE, an_app, drive, screen_text, settled


def _write(store: Path, **plan: object) -> str:
    manifest = make_manifest((AUTOREGRESSIVE, CHAIN), run_id="odd", **plan)  # type: ignore[arg-type]
    write_run(store / "runs" / "odd", manifest, run_events(manifest, (AUTOREGRESSIVE, CHAIN)))
    return "odd"


@pytest.mark.parametrize("size", [(60, 16), (40, 12), (20, 6), (1, 1)])
def test_tiny_terminals_crash_nothing(store: Path, size: tuple[int, int]) -> None:
    async def body() -> None:
        app = an_app(store, "20260102-demo-run-a")
        async with app.run_test(size=WIDE) as pilot:
            await settled(pilot, lambda: isinstance(app.screen, RaceView) and app.screen.race is not None)
            await pilot.resize_terminal(*size)
            for action in actions.SCREENS:
                await pilot.press(action.keys[0])
                await pilot.pause(0.1)
            await pilot.press("n")
            await pilot.pause(0.1)
            await pilot.press("escape")
            await pilot.resize_terminal(*WIDE)
            await pilot.press("2")
            await settled(pilot, lambda: "tok/s" in screen_text(app))

    drive(body)


def test_a_race_that_stands_still_has_the_titles_of_its_width_after_a_resize(store: Path) -> None:
    async def body() -> None:
        app = an_app(store, "20260102-demo-run-a")
        async with app.run_test(size=WIDE) as pilot:
            await settled(pilot, lambda: isinstance(app.screen, RaceView) and app.screen.race is not None)
            view = app.screen
            assert isinstance(view, RaceView) and view.race is not None
            await pilot.press("G")
            await settled(pilot, lambda: view._pace == 0)
            panes = [view.query_one(f"#lane{number}", LanePane) for number in range(len(view.race.lanes))]
            before = [str(pane.border_title) for pane in panes]
            for width in (80, 44):
                await pilot.resize_terminal(width, 30)
                # Nothing ticks: what is cut is cut by the pane itself.
                await settled(pilot, lambda: all(cell_len(str(pane.border_title)) <= pane.size.width for pane in panes))
            assert [str(pane.border_title) for pane in panes] != before
            await pilot.resize_terminal(*WIDE)
            await settled(pilot, lambda: [str(pane.border_title) for pane in panes] == before)

    drive(body)


def test_a_batched_run_races_each_of_its_questions(tmp_path: Path) -> None:
    _write(tmp_path, num_questions=4, batch_size=2, repeats=1)

    async def body() -> None:
        app = an_app(tmp_path, "odd")
        async with app.run_test(size=WIDE) as pilot:
            await settled(pilot, lambda: isinstance(app.screen, RaceView) and app.screen.race is not None)
            view = app.screen
            assert isinstance(view, RaceView) and view.race is not None
            assert len(view.race.questions) == 4
            await pilot.press("right_square_bracket", "G")
            assert view.race.lanes[1].generation is not None and view.race.lanes[1].generation.row == 1
            assert view.query_one("#lane1", LanePane).tokens.num_shown == 40

    drive(body)


def test_a_run_without_an_answer_yet_says_so_on_every_screen(tmp_path: Path) -> None:
    manifest = make_manifest((AUTOREGRESSIVE, CHAIN), run_id="odd", num_questions=2)
    started = RunStarted(schema=2, run_id="odd", time="t", pid=1, resumed=False)
    write_run(tmp_path / "runs" / "odd", manifest, iter([started]))

    async def body() -> None:
        app = an_app(tmp_path, "odd")
        async with app.run_test(size=WIDE) as pilot:
            await settled(pilot, lambda: isinstance(app.screen, RaceView) and app.screen.race is not None)
            assert "waits for its turn" in screen_text(app)
            for action in actions.SCREENS:
                await pilot.press(action.keys[0])
                await pilot.pause(0.3)
            await pilot.press("1")
            await settled(pilot, lambda: "? lost" in screen_text(app))

    drive(body)


def test_a_question_that_failed_shows_its_error_in_its_pane(tmp_path: Path) -> None:
    manifest = make_manifest((AUTOREGRESSIVE, CHAIN), run_id="odd", num_questions=1, repeats=1)
    kept = [e for e in run_events(manifest, (AUTOREGRESSIVE, CHAIN)) if getattr(e, "group", 0) == 0]
    failed = GenerationFailed(
        group=1, row=0, method="draft_model", question_id="81", category="writing", turn=0, repeat=0,
        error="the prompt has 9000 tokens, the target takes 4096",
    )  # fmt: skip
    last = [e for e in kept if isinstance(e, RunFinished)]
    events = [e for e in kept if not isinstance(e, RunFinished)]
    assert any(isinstance(e, GenerationFinished) for e in events)
    write_run(tmp_path / "runs" / "odd", manifest, iter([*events, failed, *last]))

    async def body() -> None:
        app = an_app(tmp_path, "odd")
        async with app.run_test(size=WIDE) as pilot:
            await settled(pilot, lambda: isinstance(app.screen, RaceView) and app.screen.race is not None)
            await pilot.pause(0.2)
            assert "9000 tokens" in " ".join(screen_text(app).split())

    drive(body)


def test_a_damaged_manifest_is_a_row_that_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "broken"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{", encoding="utf-8")
    (folder / "events.jsonl").write_text("", encoding="utf-8")

    async def body() -> None:
        app = an_app(tmp_path)
        async with app.run_test(size=WIDE) as pilot:
            await settled(pilot, lambda: "✗ damaged" in screen_text(app))
            await pilot.press("enter")
            await settled(pilot, lambda: isinstance(app.screen, RaceView) and "damaged" in app.screen.said)
            await pilot.press("1")
            await settled(pilot, lambda: isinstance(app.screen, HomeView))

    drive(body)


def test_a_damaged_store_shows_the_journals_and_says_what_is_wrong(store: Path) -> None:
    (store / "specbench.duckdb").write_bytes(b"no database at all" * 1000)
    found = summed(store, "20260102-demo-run-a")
    assert "cannot be opened" in found.source
    assert found.summary.rows


def test_a_run_is_found_by_its_end_its_beginning_or_its_folder(store: Path, tmp_path: Path) -> None:
    workspace = Workspace(store)
    assert workspace.resolve("run-a") == "20260102-demo-run-a"
    assert workspace.resolve("202601") == "20260102-demo-run-a"
    elsewhere = Workspace(tmp_path / "other")
    assert elsewhere.resolve(str(store / "runs" / "20260102-demo-run-a")) == "20260102-demo-run-a"
    assert elsewhere.store == store
    with pytest.raises(UsageError, match="no run 'zzz'"):
        workspace.resolve("zzz")


def test_a_folder_that_no_store_holds_is_refused_and_not_taken_for_the_stores_own_run(store: Path) -> None:
    """A copy beside the store carries the id of the run it was copied from: that one would be shown silently."""
    run = store / "runs" / "20260102-demo-run-a"
    copy = store / "backup" / run.name
    shutil.copytree(run, copy)
    for where in (store, store / "other"):
        with pytest.raises(UsageError, match="no store holds") as caught:
            Workspace(where).resolve(str(copy))
        assert f"mv {copy} {store / 'backup' / 'runs'}/" in caught.value.try_
    (store / "link").symlink_to(run)
    (store / "runs" / "lent").symlink_to(copy)
    elsewhere = Workspace(store / "other")
    assert elsewhere.resolve(str(store / "link")) == run.name and elsewhere.store == store
    assert Workspace(store).resolve(str(store / "runs" / "lent")) == "lent"
