"""A results folder with a recorded run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from specbench.store.ingest import ingest
from specbench.tui import app, remote
from specbench.tui.aside import Aside
from specbench.tui.remote import Stream, parse
from specbench.tui.yielding import GivingWay
from tests.store.synthetic import make_manifest, run_events, write_run
from tests.tui.screens import LIVE, RUN, hold, write_live


@pytest.fixture(autouse=True)
def as_nice_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The viewer of the tests is pytest, which must not become nice for good, nor its terminal, nor be moved."""
    monkeypatch.setattr(app, "GivingWay", lambda: GivingWay(lower=lambda: None, set_session=lambda niceness: True))
    monkeypatch.setattr(app, "Aside", lambda: Aside(keep_to=lambda pid, cpus: None))


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished run, ingested: made once, copied for every test."""
    folder = tmp_path_factory.mktemp("recorded")
    manifest = make_manifest(run_id=RUN, num_questions=6, num_turns=2, repeats=2)
    ingest(folder / "specbench.duckdb", write_run(folder / "runs" / RUN, manifest, run_events(manifest)))
    return folder


@pytest.fixture
def store(tmp_path: Path, recorded: Path) -> Path:
    """One finished run, ingested; the test's own to change."""
    shutil.copytree(recorded, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def writer() -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands for the run. Where the tests themselves run in a shell's background, SIGINT is ignored and
    its children inherit that: it listens by its own word."""
    listens = "import signal, time; signal.signal(signal.SIGINT, signal.default_int_handler); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", listens], start_new_session=True)
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def live(tmp_path: Path) -> Path:
    """A run that is not the one that is open; this process stands for its writer."""
    folder = write_live(tmp_path, pid=os.getpid(), run_id=LIVE)
    hold(folder)
    return folder


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ssh that pretends: writes what it was asked into a file, words and stdin, then does it here."""
    said = tmp_path / "asked"
    script = tmp_path / "bin" / "ssh"
    script.parent.mkdir()
    script.write_text(f"""#!/bin/sh
given={said}.$$
cat > "$given"
{{ printf '%s\\n' "$*"; cat "$given"; echo; }} >> {said}
for last; do :; done
exec sh -c "$last" < "$given"
""")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    return said


@pytest.fixture
def stream(store: Path, ssh: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stream]:
    """Of a live run, which a third machine writes."""
    monkeypatch.setattr(remote, "_LOOK_EVERY_S", 0.2)
    folder = write_live(store, pid=1)
    (folder / "run.lock").write_text('{"pid": 1, "host": "elsewhere", "started": 0.0}')
    found = Stream(parse(f"ssh://far{folder}"))
    yield found
    with suppress(OSError):  # closed by the test
        found.close()
