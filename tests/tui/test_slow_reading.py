"""A reading that takes longer than the next look: of a large store, or beside a run that takes every core."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from specbench.events import TrainStep
from specbench.store.training import TrainingReplay, read_training
from specbench.tui.reader import HereReader
from specbench.tui.views import home, summed, train
from specbench.tui.views.home import HomeView
from specbench.tui.views.speed import SpeedView
from specbench.tui.views.train import TrainView
from tests.tui.screens import RUN, WIDE, append, drive, settled
from tests.tui.test_training import TRAINING, write_training

_LOOK_S, _READING_S = 0.1, 0.6
_PATIENCE_S = 20.0
"""Of a busy machine; where readings replace each other nothing comes however long one waits."""


class SlowReader(HereReader):
    """Takes its time for one job, and remembers how often it was asked for it."""

    def __init__(self, job: str) -> None:
        self.job, self.num_asked = job, 0

    def ask(self, job: str, *values: Any) -> Any:
        if job == self.job:
            self.num_asked += 1
            time.sleep(_READING_S)
        return super().ask(job, *values)


def _app(store: Path, reader: SlowReader, run: str = "") -> Any:
    from specbench.tui.app import SpecbenchApp

    return SpecbenchApp(store, run, theme="dark", reader=reader)


@asynccontextmanager
async def _home(store: Path, reader: SlowReader) -> AsyncIterator[tuple[Pilot[None], HomeView]]:
    app = _app(store, reader)
    async with app.run_test(size=WIDE) as pilot:
        view = app.view("home")
        assert isinstance(view, HomeView)
        yield pilot, view


def _step(number: int) -> TrainStep:
    return TrainStep(
        step=number, epoch=3.0, num_tokens=1000 * number, seconds=0.5 * number, num_anchors=900, loss=0.5, lr=1e-3,
        grad_norm=2.0,
    )  # fmt: skip


def test_home_shows_its_list_though_reading_it_takes_longer_than_a_look(
    store: Path, live: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a live run it is looked for every time: each look took the place of the one before, for ever."""
    monkeypatch.setattr(home, "_LOOK_EVERY_S", _LOOK_S)
    reader = SlowReader("listing")

    async def body() -> None:
        async with _home(store, reader) as (pilot, view):
            await settled(pilot, lambda: view.listing is not None, seconds=_PATIENCE_S)
            assert reader.num_asked <= 2, "readings that nobody waits for any more stood in line"
            before = reader.num_asked
            await settled(pilot, lambda: reader.num_asked > before, seconds=_PATIENCE_S)

    drive(body)


def test_a_run_that_is_deleted_while_the_list_is_read_leaves_the_list_with_the_next_one(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home, "_LOOK_EVERY_S", 1000.0)
    reader = SlowReader("listing")

    async def body() -> None:
        async with _home(store, reader) as (pilot, view):
            await settled(pilot, lambda: view.listing is not None and len(view.listing.runs) == 1)
            view._signature = None
            view.look()
            assert view.is_under_way("listing")
            await pilot.pause(0.2)
            view._delete(RUN)
            await settled(pilot, lambda: view.listing is not None and not view.listing.runs, seconds=_PATIENCE_S)

    drive(body)


def test_train_shows_a_training_whose_journal_grows_faster_than_it_is_read(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "_LOOK_EVERY_S", _LOOK_S)
    folder, reader, numbers = write_training(store), SlowReader("training"), iter(range(201, 10_000))

    def grows() -> None:
        append(folder, _step(next(numbers)))

    async def body() -> None:
        app = _app(store, reader, TRAINING)
        async with app.run_test(size=WIDE) as pilot:
            app.set_interval(_LOOK_S / 2, grows)
            view = app.view("train")
            assert isinstance(view, TrainView)
            await settled(pilot, lambda: view.training is not None, seconds=_PATIENCE_S)
            assert reader.num_asked <= 2
            # And what came meanwhile is read in its turn.
            await settled(
                pilot, lambda: view.training is not None and len(view.training.steps) > 205, seconds=_PATIENCE_S
            )

    drive(body)


def test_train_and_speed_find_their_first_run_though_the_list_takes_longer_than_a_look(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "_LOOK_EVERY_S", _LOOK_S)
    monkeypatch.setattr(summed, "_LOOK_EVERY_S", _LOOK_S)
    write_training(store)
    reader = SlowReader("listing")

    async def body() -> None:
        app = _app(store, reader)
        async with app.run_test(size=WIDE) as pilot:
            await pilot.press("7")
            view = app.view("train")
            assert isinstance(view, TrainView)
            await settled(pilot, lambda: view.training is not None, seconds=_PATIENCE_S)
            await pilot.press("5")
            speed = app.view("speed")
            assert isinstance(speed, SpeedView)
            await settled(pilot, lambda: speed.summed is not None, seconds=_PATIENCE_S)

    drive(body)


def test_a_training_is_read_on_from_where_it_was_read_to(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says the same as one that is read from its beginning; of another journal in its place, that one's."""
    folder = write_training(store)
    journal = folder / "events.jsonl"
    whole = journal.read_bytes()
    cut = whole.index(b"\n", len(whole) // 2) + 1
    # In the middle of a line: what is torn is read when it is whole.
    journal.write_bytes(whole[: cut + 7])
    replay = TrainingReplay(folder)
    first = replay.read()
    with journal.open("ab") as file:
        file.write(whole[cut + 7 :])
    offsets: list[int] = []
    real = TrainingReplay.read.__globals__["read_events"]

    def counted(where: Path, *, offset: int = 0) -> Any:
        offsets.append(offset)
        return real(where, offset=offset)

    monkeypatch.setitem(TrainingReplay.read.__globals__, "read_events", counted)
    assert 0 < len(first.steps) < 200 and replay.read() == read_training(folder)
    assert offsets == [cut, 0]
    other = folder / "other"
    other.write_bytes(whole[:cut])
    other.replace(journal)
    assert replay.read() == read_training(folder) == first


def test_beside_a_live_run_the_list_rests_longer_than_its_reading_took(
    store: Path, live: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three hundred runs take a third of a second, and were listed every two: a sixth of a core."""
    monkeypatch.setattr(home, "_LOOK_EVERY_S", _LOOK_S)
    reader = SlowReader("listing")

    async def body() -> None:
        async with _home(store, reader) as (pilot, view):
            await settled(
                pilot, lambda: reader.num_asked == 2 and not view.is_under_way("listing"), seconds=_PATIENCE_S
            )
            await pilot.pause(1.5)
            assert reader.num_asked == 2
            (live / "run.lock").write_text("", encoding="utf-8")
            view.main.look_for_runs()
            await settled(pilot, lambda: reader.num_asked == 3, seconds=3.0)

    drive(body)
