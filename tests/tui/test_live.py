"""A run that is being written: followed, lost, stopped, and never disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from specbench.errors import StoreBusy, UsageError
from specbench.events import GenerationStarted, Steps
from specbench.manifest import read_manifest
from specbench.tui import children
from specbench.tui.figures import listing, summed
from specbench.tui.marks import Kind
from specbench.tui.race import Race
from specbench.tui.reader import Reader
from specbench.tui.views.dialogs import Reading
from specbench.tui.views.home import HomeView
from specbench.tui.views.race import RaceView
from specbench.tui.widgets.lane_pane import LanePane
from specbench.tui.yielding import NICENESS, live_here
from tests.store.crafted import crafted_answer, crafted_steps
from tests.tui.screens import (
    LIVE,
    LIVE_STEPS,
    RUN,
    WIDE,
    an_app,
    append,
    drive,
    finish,
    hold,
    raced,
    screen_text,
    settled,
    write_held,
    write_live,
)


@pytest.fixture
def live(store: Path, writer: subprocess.Popen[bytes]) -> Path:
    """A live run's folder."""
    return write_held(store, pid=writer.pid)


def test_following_shows_what_the_journal_gets_and_nothing_it_has_not(live: Path) -> None:
    now = [10.0]
    race = Race(live, now=lambda: now[0], wall=lambda: 0.0)
    race.advance()
    race.choose(["autoregressive", "draft_model"])
    race.follow()
    baseline, chain = race.lanes
    assert baseline.state == "done" and chain.state == "live"
    assert race.live_lane() is chain
    assert [token.kind for token in chain.tokens][:2] == [Kind.PLAIN, Kind.DRAFTED]
    # No step holds the prefill's token: until the answer ends it is the reference's, of the same prompt and noise.
    reference = race.index.first_tokens[chain.generation.question_id, 0] if chain.generation else None
    assert chain.timeline is not None and chain.timeline.tokens[0].id == reference
    before = len(chain.tokens)
    steps = crafted_steps([(3, 2, 0), (3, 0, 0), (3, 3, 0), (3, 1, 0)])
    append(live, Steps(group=1, rows=tuple(steps[3:])))
    assert race.advance()
    assert len(chain.tokens) == before + 2
    append(live, crafted_answer(race.manifest, 1, steps))
    race.advance()
    # Its own, once it is told.
    assert chain.state == "done" and chain.timeline.tokens[0].id == 100 and chain.tokens[0].text == "⟨100⟩"


def test_following_goes_on_to_the_next_question(live: Path) -> None:
    race = Race(live)
    race.advance()
    race.follow()
    second = race.manifest.groups[2]
    append(
        live,
        GenerationStarted(
            group=2, row=0, method=second.method, question_id=second.question_ids[0], category="math", turn=0,
            repeat=0, num_prompt_tokens=3, began_s=1.0,
        ),
    )  # fmt: skip
    race.advance()
    assert race.question.question_id == second.question_ids[0]


def test_a_drafter_whose_drafts_are_never_accepted_is_said_to_be_stuck(store: Path) -> None:
    folder = write_live(store, pid=1)
    append(folder, Steps(group=1, rows=tuple(crafted_steps([(3, 0, 0)] * 25))))
    race = Race(folder)
    race.advance()
    race.choose(["draft_model"])
    assert race.lanes[0].is_stuck_at(1e9)
    assert not race.lanes[0].is_stuck_at(0.5)


def test_the_screen_follows_a_live_run_and_says_that_it_gives_way(store: Path, live: Path) -> None:
    async def body() -> None:
        app = an_app(store, LIVE)
        async with app.run_test(size=WIDE) as pilot:
            view = await raced(app, pilot)
            await settled(pilot, lambda: "● LIVE" in screen_text(app))
            assert "gives way ≤ 8 fps" in screen_text(app).splitlines()[0]
            pane = view.query_one("#lane1", LanePane)
            shown = pane.tokens.num_shown
            append(live, Steps(group=1, rows=tuple(crafted_steps([(3, 2, 0)] * 5)[3:])))
            await settled(pilot, lambda: pane.tokens.num_shown > shown)
            await pilot.press("space")
            await pilot.pause()
            assert view.race is not None and not view.race.is_following

    drive(body)


def test_a_run_that_ends_between_two_ticks_is_read_to_its_end(store: Path, live: Path) -> None:
    """As it does while another screen is shown: the look at its state comes first, and after it no tick."""

    async def body() -> None:
        app = an_app(store, LIVE)
        async with app.run_test(size=WIDE) as pilot:
            await settled(pilot, lambda: isinstance(app.screen, RaceView) and app.screen.state == "running")
            view = app.screen
            assert isinstance(view, RaceView) and view.race is not None
            assert view._timer is not None
            view._timer.pause()
            steps = crafted_steps([(3, 2, 0), (3, 0, 0), (3, 3, 0), (3, 1, 0)])
            append(live, Steps(group=1, rows=tuple(steps[3:])), crafted_answer(view.race.manifest, 1, steps))
            finish(live)
            (live / "run.lock").write_text("", encoding="utf-8")
            view._look_at_state()
            assert view.state == "finished"
            assert [lane.state for lane in view.race.lanes] == ["done", "done"]

    drive(body)


def test_a_run_killed_under_the_viewer_is_lost_and_its_log_is_shown(
    store: Path, live: Path, writer: subprocess.Popen[bytes]
) -> None:
    logs = store / "logs"
    logs.mkdir()
    began_s = int(datetime(2026, 1, 3, tzinfo=UTC).timestamp())
    (logs / f"{writer.pid}-{began_s - 5}.log").write_text(
        "warm-up\n3/4 generations\nOut of mem\x1b[31mory\n", encoding="utf-8"
    )

    async def body() -> None:
        app = an_app(store, LIVE)
        async with app.run_test(size=WIDE) as pilot:
            await settled(pilot, lambda: isinstance(app.screen, RaceView) and app.screen.state == "running")
            writer.kill()
            writer.wait()
            await settled(pilot, lambda: "the run is lost" in screen_text(app))
            view = app.screen
            assert isinstance(view, RaceView) and view.race is not None
            assert [lane.state for lane in view.race.lanes] == ["done", "cut"], "nothing is live any more"
            await pilot.press("L")
            await settled(pilot, lambda: isinstance(app.screen, Reading))
            assert isinstance(app.screen, Reading)
            words = app.screen.text()
            assert "3/4 generations" in words and "Out of mem␛[31mory" in words

    drive(body)


def test_home_shows_how_far_a_live_run_is(store: Path, live: Path) -> None:
    async def body() -> None:
        app = an_app(store)
        async with app.run_test(size=WIDE) as pilot:
            await settled(pilot, lambda: "● running" in screen_text(app))
            assert "1 of 4" in screen_text(app)
            append(live, crafted_answer(read_manifest(live), 1, LIVE_STEPS))
            await settled(pilot, lambda: "2 of 4" in screen_text(app))
            finish(live)
            (live / "run.lock").write_text("", encoding="utf-8")
            await settled(pilot, lambda: "● running" not in screen_text(app))

    drive(body)


def test_a_live_run_cannot_be_deleted(store: Path, live: Path) -> None:
    async def body() -> None:
        app = an_app(store)
        async with app.run_test(size=WIDE) as pilot:
            await settled(pilot, lambda: "● running" in screen_text(app))
            view = app.screen
            assert isinstance(view, HomeView)
            view._delete(LIVE)
            await settled(pilot, lambda: "is being written by process" in view.said)
            assert live.exists()

    drive(body)


def test_a_locked_store_costs_the_stored_figures_and_not_the_journals(store: Path) -> None:
    """DuckDB lets one process write and locks everyone else out meanwhile."""
    code = (
        "import sys, duckdb; c = duckdb.connect(sys.argv[1]); c.execute('CREATE TABLE x (y INT)'); "
        "print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(store / "specbench.duckdb")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        found = listing(store)
        assert [run.run_id for run in found.runs] == [RUN]
        assert "speed-ups are missing" in found.notes[0]
        figures = summed(store, RUN)
        assert figures.source.startswith("read from the journal: the store is held by")
        assert next(row for row in figures.summary.rows if row.method == "tree").speedup_ci is not None
    finally:
        holder.communicate()


def test_the_reader_answers_from_its_own_process_and_carries_errors(store: Path) -> None:
    """What the screens ask at run time; the other tests read in-process for speed. It is nice beside a run alone: a key
    waits for it."""
    reader = Reader()
    reader.give_way(False)
    before = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        assert [run.run_id for run in reader.ask("listing", store).runs] == [RUN]
        with pytest.raises(UsageError, match="two different runs") as caught:
            reader.ask("comparison", store, [RUN])
        assert caught.value.try_
        assert not isinstance(caught.value, StoreBusy)
        assert reader._process is not None and psutil.Process(reader._process.pid).nice() == before
        reader.give_way(True)
        assert psutil.Process(reader._process.pid).nice() == max(NICENESS, before)
    finally:
        reader.close()


def test_a_reader_that_dies_is_said_and_replaced(store: Path) -> None:
    reader = Reader()
    reader.give_way(False)
    try:
        reader.ask("listing", store)
        assert reader._process is not None
        reader._process.kill()
        reader._process.wait()
        assert reader.ask("listing", store).runs, "the next job starts another"
        with pytest.raises(Exception, match="ended in the middle of"):
            reader.ask("no such job")
    finally:
        reader.close()


def test_a_run_of_this_machine_is_told_from_one_that_is_elsewhere(store: Path, writer: subprocess.Popen[bytes]) -> None:
    folder = write_live(store, pid=writer.pid)
    assert not live_here(folder)
    hold(folder, pid=writer.pid)
    assert live_here(folder) == writer.pid
    (folder / "run.lock").write_text(json.dumps({"pid": 1, "host": "elsewhere", "started": 0.0}), encoding="utf-8")
    assert not live_here(folder)


def test_a_child_outlives_the_process_that_started_it(tmp_path: Path) -> None:
    """Killing the viewer leaves the run alone: the child has a session of its own."""
    code = (
        "import sys; from pathlib import Path; from specbench.tui import children; "
        "sys.executable = sys.argv[2]; print(children.start(['x'], store=Path(sys.argv[1])).process.pid, flush=True); "
        "import time; time.sleep(60)"
    )
    sleeper = tmp_path / "sleeper"
    sleeper.write_text("#!/bin/sh\necho begun\nexec sleep 60\n", encoding="ascii")
    sleeper.chmod(0o755)
    viewer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(sleeper)], stdout=subprocess.PIPE)
    assert viewer.stdout is not None
    pid = int(viewer.stdout.readline())
    try:
        viewer.kill()
        viewer.wait()
        time.sleep(0.2)
        assert psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        log = children.log_of(tmp_path, pid, time.time())
        assert log is not None and children.end_of(log) == ["begun"]
    finally:
        os.kill(pid, signal.SIGKILL)


def test_a_run_streamed_from_another_host_is_followed_without_giving_way(
    store: Path, writer: subprocess.Popen[bytes]
) -> None:
    """What the README says for SSH: manifest and lock are copied, the journal is streamed by tail."""
    folder = write_live(store, pid=writer.pid, run_id=LIVE)
    (folder / "run.lock").write_text(json.dumps({"pid": 1, "host": "elsewhere", "started": 0.0}), encoding="utf-8")

    async def body() -> None:
        app = an_app(store, LIVE)
        async with app.run_test(size=WIDE) as pilot:
            await settled(pilot, lambda: "● LIVE" in screen_text(app))
            assert app.viewer_note == ""

    drive(body)
