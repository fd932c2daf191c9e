"""A link to another machine that is silent, is cut, or does not end; by an ssh that only pretends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from specbench.errors import UsageError
from specbench.store import streamed
from specbench.store.journal import Journal, run_state
from specbench.tui import link
from specbench.tui.link import NO_LINK
from specbench.tui.race import Race
from specbench.tui.remote import Stream, parse
from specbench.tui.views.race import RaceView
from specbench.tui.views.train import TrainView
from tests.tui.screens import an_app, drive, finish, look_until, raced, screen_text, settled, write_live
from tests.tui.test_training import TRAINING, write_training


def _copy(stream: Stream) -> Path:
    return stream.store / "runs" / stream.place.run_id


def test_a_link_that_is_silent_loses_no_run_and_recovers_by_itself(stream: Stream, store: Path) -> None:
    """Its record of the machine, which the link keeps back as well, is an hour old by then."""
    far = store / "runs" / stream.place.run_id

    async def body() -> None:
        app = an_app(stream.store, stream.place.run_id)
        async with app.run_test(size=(120, 36)) as pilot:
            view = await raced(app, pilot)
            app._stream = stream

            def seen(state: str, words: str) -> Callable[[], bool]:
                def is_seen() -> bool:
                    app._look_at_stream()
                    view._look_at_state()
                    return view.state == state and words in view.said

                return is_seen

            await settled(pilot, seen("running", ""))
            os.killpg(stream._watch.pid, signal.SIGSTOP)
            (_copy(stream) / "metrics.jsonl").write_text("{}\n")
            os.utime(_copy(stream) / "metrics.jsonl", (0, 0))
            os.utime(_copy(stream) / "events.jsonl", (0, 0))
            await settled(pilot, seen("unknown", "no word from far for "))
            assert "lost" not in view.said and _unfinished(view) == ["live"]
            await settled(pilot, seen("unknown", "for 2 s"))
            os.killpg(stream._watch.pid, signal.SIGCONT)
            os.utime(_copy(stream) / "metrics.jsonl")
            await settled(pilot, seen("running", "heard from again"))
            finish(far)
            await settled(pilot, seen("finished", "the run is finished"))

    try:
        drive(body)
    finally:
        os.killpg(stream._watch.pid, signal.SIGCONT)


def test_of_a_run_that_is_over_no_word_is_expected(stream: Stream, store: Path) -> None:
    finish(store / "runs" / stream.place.run_id)
    (store / "runs" / stream.place.run_id / "run.lock").write_text("")
    look_until(stream, lambda: (_copy(stream) / "run.lock").read_text() == "")
    stream._heard_s -= 60
    assert stream.silence() == ""


def test_an_ssh_that_heeds_nothing_does_not_keep_the_viewer(
    store: Path, ssh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "_END_S", 0.2)
    script = ssh.parent / "bin" / "ssh"
    script.write_text(script.read_text().replace("for last", "trap '' TERM\nfor last"))
    folder = write_live(store, pid=1)
    (folder / "run.lock").write_text("")
    found = Stream(parse(f"ssh://far{folder}"))
    here = found.store / "runs" / folder.name / "events.jsonl"
    look_until(found, lambda: here.stat().st_size > 0)
    found.close()
    assert found._journal.process.returncode == -signal.SIGKILL


def _unfinished(view: RaceView) -> list[str]:
    assert view.race is not None
    return [lane.state for lane in view.race.lanes if lane.state in ("live", "cut")]


def test_a_copy_that_nobody_streams_into_is_of_unknown_state(stream: Stream) -> None:
    assert run_state(_copy(stream)) == "running"
    os.utime(_copy(stream) / streamed.NAME, (0, 0))
    assert run_state(_copy(stream)) == "unknown"


def test_a_connection_that_is_cut_goes_on_where_it_was(
    stream: Stream, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ssh itself ends with 255; the journal has grown meanwhile, behind a line that had come in part."""
    far, here = store / "runs" / stream.place.run_id / "events.jsonl", _copy(stream) / "events.jsonl"
    look_until(stream, lambda: here.read_bytes() == far.read_bytes())
    race = Race(_copy(stream))
    race.advance()
    for process in (stream._journal.process, stream._watch):
        process.kill()
        process.wait()
        process.returncode = NO_LINK
    with here.open("ab") as file:
        file.write(b'{"torn')
    finish(far.parent)
    assert stream.problem() == ""
    look_until(stream, lambda: here.read_bytes() == far.read_bytes())
    race.advance()
    assert race.index.finished is not None
    look_until(stream, lambda: stream._watch.poll() is None)


def test_what_is_continued_is_continued_where_it_was_measured(stream: Stream) -> None:
    """On this machine its answers would be joined to those of another."""
    stream.close()
    os.utime(_copy(stream) / streamed.NAME, (0, 0))

    async def body() -> None:
        app = an_app(stream.store)
        started: list[object] = []
        app.launch = started.append  # type: ignore[assignment, return-value]
        async with app.run_test(size=(120, 36)) as pilot:
            await settled(pilot, lambda: "? unknown" in screen_text(app))
            await pilot.press("c")
            await pilot.pause()
            said = getattr(app.screen, "said", "")
            assert f"ssh far, then specbench run --resume {stream.place.run_id} --store " in said and not started

    drive(body)
    with pytest.raises(UsageError, match="streamed here") as caught:
        Journal(_copy(stream))
    assert caught.value.try_.startswith("ssh far, then specbench run --resume")


def test_a_training_of_which_nothing_is_heard_is_said_to_be_unknown(store: Path, ssh: Path) -> None:
    """It writes nothing for minutes while it evaluates: its journal alone would never tell."""
    far = write_training(store, num_steps=20)
    lines = (far / "events.jsonl").read_text().splitlines(keepends=True)
    (far / "events.jsonl").write_text("".join(each for each in lines if '"run_finished"' not in each))
    (far / "run.lock").write_text('{"pid": 1, "host": "elsewhere", "started": 0.0}')
    found = Stream(parse(f"ssh://far{far}"))

    async def body() -> None:
        app = an_app(found.store, TRAINING)
        async with app.run_test(size=(120, 36)) as pilot:
            assert isinstance(app.screen, TrainView)
            view = app.screen
            await settled(pilot, lambda: view.training is not None and view.training.state == "running")
            os.utime(found.store / "runs" / TRAINING / streamed.NAME, (0, 0))
            await settled(pilot, lambda: view.training is not None and view.training.state == "unknown")

    try:
        drive(body)
    finally:
        found.close()
