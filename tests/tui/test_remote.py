"""A run of another machine, by an ssh that only pretends: it runs the command here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from specbench.errors import EnvironmentFailed, UsageError
from specbench.tui.race import Race
from specbench.tui.remote import Place, Stream, parse
from tests.tui.screens import RUN, an_app, drive, finish, settled, write_live


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Writes what it was asked into a file, then does it."""
    said = tmp_path / "asked"
    script = tmp_path / "bin" / "ssh"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\necho "$@" >> {said}\nfor last; do :; done\nexec sh -c "$last"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    return said


@pytest.fixture
def stream(store: Path, ssh: Path) -> Iterator[Stream]:
    folder = write_live(store, pid=1)
    (folder / "run.lock").write_text('{"pid": 1, "host": "elsewhere", "started": 0.0}')
    found = Stream(parse(f"ssh://far{folder}"))
    yield found
    found.close()


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("ssh://far/data/runs/run-a", Place("far", "", "/data/runs/run-a")),
        ("ssh://me@far.example:2222/~/results/runs/run-a/", Place("me@far.example", "2222", "~/results/runs/run-a")),
    ],
)
def test_an_address_names_host_and_folder(url: str, place: Place) -> None:
    assert parse(url) == place and place.run_id == "run-a"


@pytest.mark.parametrize(
    "url", ["ssh://far", "ssh:///runs/a", "ssh://-oProxyCommand=x/runs/a", "ssh://far:p/runs/a", "ssh://far/.."]
)
def test_an_address_that_could_be_something_else_is_refused(url: str) -> None:
    """A host that begins with a dash would be an option of ssh."""
    with pytest.raises(UsageError, match="names no run"):
        parse(url)


def test_the_journal_is_followed_as_it_grows_there(store: Path, stream: Stream, ssh: Path) -> None:
    far = store / "runs" / stream.place.run_id

    async def body() -> None:
        app = an_app(stream.store, stream.place.run_id)
        async with app.run_test(size=(120, 36)) as pilot:
            here = stream.store / "runs" / stream.place.run_id / "events.jsonl"
            await settled(pilot, lambda: here.stat().st_size == (far / "events.jsonl").stat().st_size)
            race = Race(here.parent)
            race.advance()
            assert race.index.finished is None
            finish(far)
            await settled(pilot, lambda: race.advance() or race.index.finished is not None)
            assert race.index.finished is not None and app.viewer_note == ""

    drive(body)
    asked = ssh.read_text().splitlines()
    assert all("BatchMode=yes" in row for row in asked)
    assert [row.split()[3] for row in asked] == ["cat", "cat", "exec"]


def test_the_end_of_the_stream_is_said_on_the_screen(stream: Stream) -> None:
    async def body() -> None:
        app = an_app(stream.store, stream.place.run_id)
        app._stream = stream
        async with app.run_test(size=(120, 36)) as pilot:
            stream._process.kill()
            stream._process.wait()
            app._look_at_stream()
            await pilot.pause()
            assert "has ended" in getattr(app.screen, "said", "")

    drive(body)


def test_a_run_that_is_not_there_is_an_error_with_what_ssh_said(tmp_path: Path, ssh: Path) -> None:
    with pytest.raises(EnvironmentFailed, match="gives no manifest") as caught:
        Stream(parse(f"ssh://far{tmp_path}/runs/{RUN}"))
    assert "No such file" in caught.value.what and "ssh far ls" in caught.value.try_
