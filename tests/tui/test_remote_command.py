"""`specbench tui ssh://…` from the command line, by an ssh that only pretends."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import shutil
import struct
import sys
import termios
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import psutil
import pytest

from specbench.cli import tui as command
from specbench.cli.entry import main
from specbench.errors import UsageError
from specbench.paths import cache_dir
from specbench.tui import app
from specbench.tui.app import SpecbenchApp
from specbench.tui.remote import Stream
from tests.tui.screens import write_live


class _Visit(SpecbenchApp):
    """Without a terminal; ends at once."""

    stores: ClassVar[list[Path | None]] = []
    streams: ClassVar[list[Stream]] = []

    def __init__(self, store: Path | None, run: str, *, stream: Stream, **options: Any) -> None:
        self.streams.append(stream)
        super().__init__(store, run, stream=stream, **options)

    def on_ready(self) -> None:
        # As enter on Home does.
        self.open_run(self.workspace.run_id)
        self.stores.append(self.workspace.store)
        self.exit()

    def run(self, **_: Any) -> None:
        return super().run(headless=True)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's streams pass for one."""
    stream = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr(command, "sys", SimpleNamespace(stdin=stream, stdout=stream, stderr=stream))
    monkeypatch.setattr(app, "SpecbenchApp", _Visit)
    monkeypatch.setattr(_Visit, "stores", [])
    monkeypatch.setattr(_Visit, "streams", [])


@pytest.fixture
def far(store: Path, ssh: Path) -> Path:
    """A live run's folder on the other machine."""
    folder = write_live(store, pid=1)
    (folder / "run.lock").write_text('{"pid": 1, "host": "elsewhere", "started": 0.0}')
    return folder


def test_who_waits_for_the_other_machine_is_told_so(
    far: Path, ssh: Path, terminal: None, capfd: pytest.CaptureFixture[str]
) -> None:
    script = next(ssh.parent.glob("bin/ssh"))
    script.write_text(script.read_text().replace("for last", 'echo "a word of ssh" >&2\nfor last'))
    with pytest.raises(SystemExit) as caught:
        main(["tui", f"ssh://me@far{far.parent}/no-such-run"])
    assert caught.value.code == 3
    said = capfd.readouterr().err
    assert said.startswith("asking me@far …\n") and "gives no manifest" in said


@pytest.mark.parametrize("here", ["copied/runs", "loose"])
def test_a_folder_of_the_runs_name_here_does_not_take_its_place(
    far: Path, ssh: Path, terminal: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: str
) -> None:
    """Who copied the run and stands beside the copy still asked for the one over there."""
    shutil.copytree(far, tmp_path / here / far.name)
    monkeypatch.chdir(tmp_path / here)
    with pytest.raises(SystemExit) as caught:
        main(["tui", f"ssh://far{far}"])
    assert caught.value.code == 0
    (store,) = _Visit.stores
    assert store is not None and store.is_relative_to(cache_dir())


def test_no_ssh_outlives_a_viewer_that_could_not_begin(
    far: Path, ssh: Path, terminal: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(view: SpecbenchApp, run_id: str) -> None:
        raise UsageError(f"{run_id} cannot be shown")

    monkeypatch.setattr(_Visit, "open_run", refuse)
    with pytest.raises(SystemExit) as caught:
        main(["tui", f"ssh://far{far}"])
    assert caught.value.code == 2
    (stream,) = _Visit.streams
    assert all(each.poll() is not None for each in stream._link._started)


def test_no_ssh_outlives_the_window_it_was_started_in(far: Path, ssh: Path) -> None:
    """A terminal that is closed sends SIGHUP, which by itself ends a process where it stands."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "specbench", "tui", f"ssh://far{far}"])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 36, 120, 0, 0))
    drawn, until = b"", time.monotonic() + 60
    while b"LIVE" not in drawn:
        assert time.monotonic() < until, drawn[-2000:]
        if select.select([terminal], [], [], 0.1)[0]:
            drawn += os.read(terminal, 1 << 16)
    os.close(terminal)
    os.waitpid(pid, 0)
    # The pretended ssh names a file by its pid, and becomes what was asked for.
    started = [int(path.suffix[1:]) for path in ssh.parent.glob("asked.*")]
    assert len(started) == 5 and not any(psutil.pid_exists(each) for each in started)
