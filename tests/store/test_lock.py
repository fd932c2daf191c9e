"""Who holds a run folder: told by the kernel and by what a process cannot change, whatever the wall clock does."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from specbench.errors import UsageError
from specbench.store import files, streamed
from specbench.store.files import holder
from specbench.store.journal import Journal, run_state

HOUR_S = 3600.0
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="boot and ticks are read from /proc")


def write_lock(folder: Path, **changes: Any) -> None:
    """This process's, as RunLock writes it, with something else about it."""
    body = files._identity(os.getpid()) | changes
    (folder / "run.lock").write_text(json.dumps({key: value for key, value in body.items() if value is not None}))


def leave_quiet(folder: Path, seconds: float) -> None:
    for path in folder.glob("*.jsonl"):
        os.utime(path, (time.time() - seconds,) * 2)


@pytest.fixture
def stepped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wall clock was set forward by five seconds, and with it the start that psutil tells of every process."""
    right = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: right(self) + 5.0)


@needs_proc
def test_a_run_keeps_its_folder_when_the_clock_is_set(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    with Journal(tmp_path):
        request.getfixturevalue("stepped")
        held = holder(tmp_path)
        assert held is not None and held.pid == os.getpid() and run_state(tmp_path) == "running"
        with pytest.raises(UsageError, match=str(os.getpid())):
            Journal(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", '{"pid": 999999999, "host": "HERE", "started": 0.0}'])
def test_the_kernel_keeps_a_second_writer_out_whatever_the_file_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(files, "_PATIENCE_S", 0.05)
    with Journal(tmp_path):
        (tmp_path / "run.lock").write_text(text.replace("HERE", socket.gethostname()))
        with pytest.raises(UsageError, match="held by what its writer"):
            Journal(tmp_path)
    Journal(tmp_path).close()


@needs_proc
@pytest.mark.parametrize(
    "changes",
    [{"start_ticks": 1}, {"boot_id": None, "start_ticks": None, "started": 1.0}, {"boot_id": "another"}],
    ids=["another start", "another start in an older lock", "before the machine was booted"],
)
def test_a_lock_of_another_process_with_the_same_number_is_stale(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_lock(tmp_path)
    assert holder(tmp_path) is not None
    write_lock(tmp_path, **changes)
    assert holder(tmp_path) is None
    Journal(tmp_path).close()


def test_a_lock_of_an_older_specbench_is_read(tmp_path: Path) -> None:
    write_lock(tmp_path, boot_id=None, start_ticks=None)
    assert holder(tmp_path) is not None
    with pytest.raises(UsageError, match=f"kill -INT {os.getpid()}"):
        Journal(tmp_path)


def test_a_run_of_another_host_is_lost_when_it_gives_no_sign_of_life_for_a_minute(tmp_path: Path) -> None:
    """A container that is gone, a job that was queued again, a copied folder: nobody will ever let go of the lock."""
    write_lock(tmp_path, host="elsewhere")
    for name in ("events.jsonl", "metrics.jsonl"):
        (tmp_path / name).write_text("{}\n")
    assert holder(tmp_path) == (os.getpid(), "elsewhere", False)
    with pytest.raises(UsageError, match="on elsewhere") as caught:
        Journal(tmp_path)
    assert "kill" not in caught.value.try_ and "a minute after" in caught.value.try_
    (tmp_path / "events.jsonl").write_text("")
    leave_quiet(tmp_path, 61)
    assert holder(tmp_path) is None and run_state(tmp_path) == "lost"
    Journal(tmp_path).close()


def test_what_is_quiet_is_told_by_the_clock_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a shared folder: the times are its server's, and this machine's clock may be an hour off."""
    write_lock(tmp_path, host="elsewhere")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    right = time.time
    for wrong_s in (-HOUR_S, HOUR_S):
        monkeypatch.setattr(files.time, "time", lambda wrong_s=wrong_s: right() + wrong_s)
        assert holder(tmp_path) is not None
    leave_quiet(tmp_path, 2 * HOUR_S)
    assert holder(tmp_path) is None


def test_what_keeps_no_record_of_its_machine_counts_as_alive_elsewhere(tmp_path: Path) -> None:
    """A training may evaluate for longer than a minute without a word."""
    write_lock(tmp_path, host="elsewhere")
    (tmp_path / "events.jsonl").touch()
    leave_quiet(tmp_path, HOUR_S)
    assert holder(tmp_path) is not None
    with pytest.raises(UsageError) as caught:
        Journal(tmp_path)
    assert "kill" not in caught.value.try_ and f"empty {tmp_path / 'run.lock'}" in caught.value.try_


@needs_proc
def test_a_machine_of_the_same_name_is_another_one(tmp_path: Path) -> None:
    """Its numbers are those of other processes here, and a signal would end one of them."""
    write_lock(tmp_path)
    assert holder(tmp_path) == (os.getpid(), socket.gethostname(), True)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    write_lock(tmp_path, boot_id="another")
    assert holder(tmp_path) == (os.getpid(), socket.gethostname(), False)
    with pytest.raises(UsageError) as caught:
        Journal(tmp_path)
    assert "kill" not in caught.value.try_, "which would be typed on this machine"


@pytest.mark.parametrize("text", ["{}", "{", '{"host": "far"}'])
def test_a_copy_whose_note_is_damaged_is_still_no_run_of_this_machine(tmp_path: Path, text: str) -> None:
    write_lock(tmp_path)
    (tmp_path / streamed.NAME).write_text(text)
    assert holder(tmp_path) is None
    copy = streamed.copy_of(tmp_path)
    assert copy is not None and not copy.is_fresh


def test_a_streamed_run_is_never_of_this_machine(tmp_path: Path) -> None:
    """Though the lock that was copied with it names a process that is here."""
    write_lock(tmp_path)
    place = streamed.Place("localhost", "", str(tmp_path))
    (tmp_path / streamed.NAME).write_text(streamed.contents(place, "held", patience_s=15.0))
    assert holder(tmp_path) == (os.getpid(), socket.gethostname(), False)
