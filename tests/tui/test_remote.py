"""A run of another machine, by an ssh that only pretends: it runs the command here."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from specbench.errors import EnvironmentFailed, UsageError
from specbench.store import pausing
from specbench.store.streamed import Place
from specbench.tui import link
from specbench.tui.link import Link
from specbench.tui.race import Race
from specbench.tui.remote import Stream, parse
from specbench.tui.views.dialogs import Reading
from specbench.tui.views.train import TrainView
from tests.tui.screens import RUN, an_app, drive, finish, hold, look_until, raced, settled, write_live
from tests.tui.test_training import TRAINING, write_training


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
    asked = ssh.read_text()
    assert asked.count("-o BatchMode=yes far ") == 5, "two files, two streams, one look at the process"


def test_the_shell_there_is_given_nothing_to_misread(store: Path, ssh: Path, tmp_path: Path) -> None:
    """csh ends a quoted text with its line and looks for commands of before behind an exclamation mark."""
    odd = tmp_path / 'wow! it\'s "it" $HOME'
    odd.mkdir()
    (store / "runs").rename(odd / "runs")
    folder = write_live(odd, pid=1)
    (folder / "run.lock").write_text('{"pid": 1, "host": "elsewhere", "started": 0.0}')
    words = tmp_path / "bin" / "ssh"
    commands = tmp_path / "commands"
    words.write_text(words.read_text().replace("exec sh", f'printf "%s\\0" "$last" >> {commands}\nexec sh'))
    found = Stream(parse(f"ssh://far{folder}"))
    try:
        here = found.store / "runs" / folder.name / "events.jsonl"
        said: list[str] = []
        look_until(found, lambda: bool(said) and here.stat().st_size == (folder / here.name).stat().st_size, said)
    finally:
        found.close()
    sent = commands.read_text().split("\0")[:-1]
    assert len(sent) == 5
    assert not any(set(each) & set("\n!'\"$`\\") for each in sent), "one plain line each"


def test_a_second_viewer_of_a_run_leaves_the_first_ones_copy_alone(stream: Stream, store: Path) -> None:
    """Emptied and written by both, it had holes of NUL bytes, and the first viewer's journal "became shorter"."""
    far = store / "runs" / stream.place.run_id / "events.jsonl"

    def here(each: Stream) -> Path:
        return each.store / "runs" / each.place.run_id / "events.jsonl"

    look_until(stream, lambda: here(stream).read_bytes() == far.read_bytes())
    second = Stream(stream.place)
    try:
        assert here(stream).read_bytes() == far.read_bytes() and second.store != stream.store
        finish(far.parent)
        for each in (stream, second):
            look_until(each, lambda each=each: here(each).read_bytes() == far.read_bytes())  # type: ignore[misc]
    finally:
        second.close()
    third = Stream(stream.place)
    third.close()
    assert third.store == second.store, "a place that is free again is taken again"


def test_what_a_killed_viewer_left_running_writes_into_no_later_copy(stream: Stream, store: Path) -> None:
    far = store / "runs" / stream.place.run_id / "events.jsonl"
    here = stream.store / "runs" / stream.place.run_id / "events.jsonl"
    look_until(stream, lambda: here.read_bytes() == far.read_bytes())
    # As the kernel does at a process's end; its children are in sessions of their own.
    fcntl.flock(stream._held, fcntl.LOCK_UN)
    theirs = here.stat().st_ino
    later = Stream(stream.place)
    try:
        assert later.store == stream.store and here.stat().st_ino != theirs
        finish(far.parent)
        look_until(later, lambda: here.read_bytes() == far.read_bytes())
    finally:
        later.close()


def test_a_stream_that_cannot_begin_leaves_no_process(store: Path, ssh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_live(store, pid=1)
    (folder / "run.lock").write_text("")
    begun: list[subprocess.Popen[bytes]] = []
    start = Link.start

    def failing(far: Link, script: str, **how: Any) -> subprocess.Popen[bytes]:
        if "sleep" in script:
            raise OSError(errno.EMFILE, "Too many open files")
        begun.append(start(far, script, **how))
        return begun[-1]

    monkeypatch.setattr(Link, "start", failing)
    with pytest.raises(EnvironmentFailed):
        Stream(parse(f"ssh://far{folder}"))
    assert len(begun) == 2 and all(each.poll() is not None for each in begun)


@pytest.mark.parametrize("end", ["let go", "killed"])
def test_a_run_that_ends_there_is_not_live_here_for_ever(stream: Stream, store: Path, end: str) -> None:
    """Its lock was copied once; a killed process leaves it as it stands."""
    far, here = store / "runs" / stream.place.run_id, stream.store / "runs" / stream.place.run_id
    lock = json.dumps({"pid": 2147483646, "host": os.uname().nodename, "started": 0.0})
    (far / "run.lock").write_text("" if end == "let go" else lock)
    assert (here / "run.lock").read_text() != ""
    look_until(stream, lambda: (here / "run.lock").read_text() == "")


def test_a_process_that_cannot_be_seen_from_there_is_said_to_be_unknown(stream: Stream) -> None:
    """The lock names a third machine."""
    said: list[str] = []
    look_until(stream, lambda: bool(said), said)
    assert (
        "is unknown over ssh" in said[0]
        and "elsewhere" in (stream.store / "runs" / stream.place.run_id / "run.lock").read_text()
    )
    assert stream.look() == "", "once"


def test_the_record_of_the_machine_comes_too_though_it_began_later(stream: Stream, store: Path) -> None:
    far, here = store / "runs" / stream.place.run_id, stream.store / "runs" / stream.place.run_id
    (far / "metrics.jsonl").write_text("{}\n", encoding="ascii")
    look_until(stream, lambda: (here / "metrics.jsonl").read_text() == "{}\n")


def test_what_a_learning_method_observed_comes_too(store: Path, ssh: Path) -> None:
    """Without it the versions of its adapter would be missing from the run's figures."""
    folder, there = write_live(store, pid=1), "observed.jsonl"
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["methods"][1]["options"] = {"depth": 4, "adapt": True}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "run.lock").write_text("")
    found = Stream(parse(f"ssh://far{folder}"))
    try:
        (folder / there).write_text("{}\n", encoding="ascii")
        here = found.store / "runs" / folder.name / there
        look_until(found, lambda: here.read_text() == "{}\n")
    finally:
        found.close()


def test_a_training_there_is_watched_like_a_bench_run(store: Path, ssh: Path) -> None:
    """Its folder holds train.json in place of a manifest."""
    far = write_training(store, num_steps=20)
    (far / "run.lock").write_text("")
    found = Stream(parse(f"ssh://far{far}"))

    async def body() -> None:
        app = an_app(found.store, TRAINING)
        async with app.run_test(size=(120, 36)) as pilot:
            await settled(
                pilot,
                lambda: (
                    isinstance(app.screen, TrainView)
                    and app.screen.training is not None
                    and len(app.screen.training.steps) == 20
                ),
            )
            await pilot.press("b")
            assert isinstance(app.screen, TrainView) and "lies where the training was made" in app.screen.said

    try:
        drive(body)
    finally:
        found.close()
    assert "metrics.jsonl" not in ssh.read_text(), "which a training does not write"


def test_the_end_of_the_stream_is_said_on_the_screen(stream: Stream) -> None:
    async def body() -> None:
        app = an_app(stream.store, stream.place.run_id)
        app._stream = stream
        async with app.run_test(size=(120, 36)) as pilot:
            stream._journal.process.kill()
            stream._journal.process.wait()
            app._look_at_stream()
            await pilot.pause()
            assert "has ended" in getattr(app.screen, "said", "")

    drive(body)


def test_a_run_that_is_not_there_is_an_error_with_what_ssh_said(tmp_path: Path, ssh: Path) -> None:
    with pytest.raises(EnvironmentFailed, match="gives no manifest") as caught:
        Stream(parse(f"ssh://far{tmp_path}/runs/{RUN}"))
    assert "No such file" in caught.value.what and "ssh far ls" in caught.value.try_


def test_what_is_proposed_can_be_typed_here_and_is_read_as_meant_there(tmp_path: Path, ssh: Path) -> None:
    """Two shells read it; the home of `~` is the one there."""
    for folder in (f"{tmp_path}/it's a folder", "~/of mine", f"{tmp_path}/plain"):
        with pytest.raises(EnvironmentFailed) as caught:
            Stream(parse(f"ssh://me@far:2222/{folder.removeprefix('/')}/runs/{RUN}"))
        line = caught.value.try_.partition("; a key")[0]
        ssh.unlink()
        said = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False).stderr
        assert ssh.read_text().startswith("-p 2222 me@far ls ")
        there = folder.replace("~", str(Path.home()))
        assert f"{there}/runs/{RUN}" in said.replace("'\\''", "'"), said


def test_a_host_that_does_not_answer_is_said_so_in_words(
    tmp_path: Path, ssh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "_PATIENCE_S", 0.2)
    script = tmp_path / "bin" / "ssh"
    script.write_text(script.read_text().replace("exec sh", "exec sleep 60; exec sh"))
    with pytest.raises(EnvironmentFailed) as caught:
        Stream(parse(f"ssh://me@far:2222{tmp_path}/runs/{RUN}"))
    assert caught.value.what == "me@far did not answer in 0.2 s"
    assert caught.value.try_.startswith("ssh -p 2222 me@far true")


def test_a_machine_without_ssh_is_told_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentFailed, match="ssh does not start here") as caught:
        Stream(parse(f"ssh://far{tmp_path}/runs/{RUN}"))
    assert "HOST" not in caught.value.try_ and "[" not in caught.value.what


def test_a_shell_there_that_greets_is_named_and_its_words_become_no_file(
    store: Path, ssh: Path, tmp_path: Path
) -> None:
    script = tmp_path / "bin" / "ssh"
    script.write_text(script.read_text().replace("exec sh", "echo ../../welcome; exec sh"))
    with pytest.raises(EnvironmentFailed, match="welcome") as caught:
        Stream(parse(f"ssh://far{store}/runs/{RUN}"))
    assert "must print nothing" in caught.value.try_


@pytest.mark.parametrize("seen", ["held", "unseen"])
def test_what_cannot_be_done_from_here_is_not_offered_but_said_how_to_type(
    stream: Stream, store: Path, seen: str
) -> None:
    """Pause wrote a file into the copy, where no run looks, and said that the run would wait."""
    far, here = store / "runs" / stream.place.run_id, stream.store / "runs" / stream.place.run_id
    if seen == "held":
        hold(far)
        look_until(stream, lambda: (here / "run.lock").read_text() == (far / "run.lock").read_text())
    told: list[str] = []

    async def body() -> None:
        app = an_app(stream.store, stream.place.run_id)
        async with app.run_test(size=(120, 36)) as pilot:
            await raced(app, pilot)
            await pilot.press("x")
            await settled(pilot, lambda: isinstance(app.screen, Reading))
            assert isinstance(app.screen, Reading)
            told.append(app.screen._words())
            await pilot.press("escape")

    drive(body)
    assert f"ssh far touch {far}/pause" in told[0] and f"ssh far rm {far}/pause" in told[0]
    if seen == "held":
        assert f"ssh far 'kill -INT {os.getpid()}'" in told[0] or f"ssh far kill -INT {os.getpid()}" in told[0]
    else:
        assert "in a shell on elsewhere:\n    kill -INT 1\n" in told[0]
    assert f"specbench run --resume {far.name} --store {store}" in told[0]
    for act in (pausing.ask, pausing.let_go):
        with pytest.raises(UsageError, match="only copied here"):
            act(here)
    assert not (here / "pause").exists()
