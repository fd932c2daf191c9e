"""Recorded runs and an app that reads them in its own process: what the screens' tests share."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import pickle
import socket
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from specbench.events import GenerationStarted, RunFinished, RunStarted, Steps, to_line
from specbench.tui.app import SpecbenchApp
from specbench.tui.reader import HereReader
from specbench.tui.remote import Stream
from specbench.tui.views.race import RaceView
from tests.store.crafted import crafted_steps
from tests.store.synthetic import AUTOREGRESSIVE, CHAIN, make_manifest, run_events, write_run

os.environ["TEXTUAL_ANIMATIONS"] = "none"
WIDE, NARROW = (120, 36), (80, 24)
SIZES = [pytest.param(WIDE, id="120x36"), pytest.param(NARROW, id="80x24")]


RUN = "20260102-demo-run-a"
LIVE = "20260103-demo-live"
LIVE_STEPS = crafted_steps([(3, 2, 0), (3, 0, 0), (3, 3, 0)])
"""What the live answer has so far."""


def write_live(store: Path, *, pid: int, run_id: str = LIVE) -> Path:
    """A run in the middle of its second answer: the baseline's is finished, the chain's has three steps."""
    manifest = make_manifest((AUTOREGRESSIVE, CHAIN), run_id=run_id, num_questions=2, repeats=1)
    events = list(run_events(manifest, (AUTOREGRESSIVE, CHAIN)))
    start = next(n for n, e in enumerate(events) if isinstance(e, GenerationStarted) and e.method == "draft_model")
    started = RunStarted(schema=2, run_id=run_id, time="2026-01-03T00:00:00+00:00", pid=pid, resumed=False)
    steps = Steps(group=1, rows=tuple(LIVE_STEPS))
    return write_run(store / "runs" / run_id, manifest, iter([started, *events[1 : start + 1], steps]))


def hold(folder: Path, *, pid: int | None = None, host: str = "") -> None:
    """The run's lock, as if this process or `pid` wrote it, here or on `host`."""
    process = psutil.Process(pid)
    body = {"pid": process.pid, "host": host or socket.gethostname(), "started": process.create_time()}
    (folder / "run.lock").write_text(json.dumps(body), encoding="utf-8")


def write_held(store: Path, *, pid: int) -> Path:
    """As `write_live`, and the process writes it still."""
    folder = write_live(store, pid=pid)
    hold(folder, pid=pid)
    return folder


def append(folder: Path, *events: Any) -> None:
    """What the run writes next."""
    with (folder / "events.jsonl").open("a", encoding="ascii") as file:
        file.writelines(to_line(event) + "\n" for event in events)


def finish(folder: Path) -> None:
    """The run's last word."""
    append(folder, RunFinished(state="finished", time="2026-01-03T00:01:00+00:00"))


class Remembering(HereReader):
    """Asked again for figures of the same files, byte for byte, it gives those of before: most tests look at the same
    run, and its intervals are ten thousand resamples every time."""

    _known: ClassVar[dict[tuple[object, ...], bytes]] = {}

    def ask(self, job: str, *values: Any) -> Any:
        if job not in ("summed", "board"):
            return super().ask(job, *values)
        store, *rest = values
        key = (job, *map(str, rest), _contents(store))
        if key not in self._known:
            found = super().ask(job, *values)
            # As it goes through the reader's pipe: every asker gets its own.
            kept = pickle.dumps(found)
            if str(store).encode() in kept or key[-1] != _contents(store):
                return found
            self._known[key] = kept
        return pickle.loads(self._known[key])  # noqa: S301 - from just above


def _contents(store: Path) -> bytes:
    """A digest of the store and of everything that its runs have written."""
    found = hashlib.blake2b()
    for path in sorted([store / "specbench.duckdb", *(store / "runs").rglob("*")]):
        if path.is_file():
            found.update(f"{path.relative_to(store)} {path.stat().st_size} ".encode() + path.read_bytes())
    return found.digest()


def an_app(store: Path, run: str = "", *, theme: str = "dark") -> SpecbenchApp:
    """The app without a process beside it."""
    return SpecbenchApp(store, run, theme=theme, reader=Remembering())


def drive(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a Pilot test; pytest-asyncio is not among the dependencies for the sake of these."""
    asyncio.run(body())


async def settled(pilot: Any, until: Callable[[], bool], *, seconds: float = 60.0) -> None:
    """Wait for a thread's result to be on the screen; a busy machine may take its time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        await pilot.pause(0.05)
        if until():
            await pilot.pause()
            return
    raise AssertionError("the screen never came to what was waited for")


async def raced(app: SpecbenchApp, pilot: Any) -> RaceView:
    """The Race screen, once its run has been read."""
    await settled(pilot, lambda: isinstance(app.screen, RaceView) and app.screen.race is not None)
    assert isinstance(app.screen, RaceView)
    return app.screen


def screen_text(app: SpecbenchApp) -> str:
    """What is on the screen, row by row, as a terminal would show it."""
    width, height = app.size
    lines = app.screen._compositor.render_strips(app.size)
    return "\n".join("".join(segment.text for segment in strip)[:width] for strip in lines[:height])


def look_until(stream: Stream, is_so: Callable[[], bool], said: list[str] | None = None) -> None:
    """Wait for what a stream brings. said: takes what the looks said."""
    until = time.monotonic() + 15
    while not is_so():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.05)
        told = stream.look()
        if told and said is not None:
            said.append(told)
