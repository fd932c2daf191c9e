"""A run is called as its folder: rows in the store and the folder that `--resume` writes to go by that name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specbench import paths
from specbench.api import Silent
from specbench.bench.request import RunRequest
from specbench.bench.runner import run
from specbench.errors import EnvironmentFailed, StoreBusy, UsageError
from specbench.manifest import read_manifest
from specbench.store.attempts import finished_groups
from specbench.store.db import open_store
from specbench.store.ingest import ingest
from specbench.store.pairs import fetch
from specbench.store.rebuilding import ingest_all
from specbench.training.record import read_record
from specbench.tui.figures import summed
from tests.store.synthetic import write_synthetic


def renamed(folder: Path, run_id: object) -> Path:
    """Another id in the manifest, as an editor or a stranger would leave it."""
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"run_id": run_id}))
    return folder


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A results folder with run-a of two answers a method, and a copy of it from when it had one of each."""
    folder = write_synthetic(tmp_path / "runs" / "run-a", num_questions=2, repeats=1)
    shutil.copytree(folder, tmp_path / "runs" / "run-a.bak")
    lines = (folder / "events.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "runs" / "run-a.bak" / "events.jsonl").write_text("".join(lines[: len(lines) // 2]))
    return tmp_path


def test_a_copied_folder_does_not_replace_the_run_it_was_copied_from(copied: Path) -> None:
    store = copied / "specbench.duckdb"
    ingest(store, copied / "runs" / "run-a")
    with pytest.raises(EnvironmentFailed, match=r"run-a\.bak is not this folder's.*'run-a'") as caught:
        ingest(store, copied / "runs" / "run-a.bak")
    assert "rename the folder to run-a" in caught.value.try_
    with open_store(store, read_only=True) as connection:
        assert fetch(connection, "SELECT count(*) AS num FROM groups")[0]["num"] == 2 * 5


@pytest.mark.parametrize("run_id", ["../../elsewhere", "/tmp/elsewhere", "", "..", "a\x1b[2J", "run-b"])
def test_an_id_that_is_not_the_folder_s_name_is_refused_wherever_a_manifest_is_read(
    tmp_path: Path, run_id: str
) -> None:
    folder = renamed(write_synthetic(tmp_path / "runs" / "run-a", num_questions=1, repeats=1), run_id)
    for read in (read_manifest, finished_groups, lambda found: ingest(tmp_path / "s.duckdb", found)):
        with pytest.raises(EnvironmentFailed, match=r"manifest\.json of run-a is not this folder's"):
            read(folder)
    assert not (tmp_path / "s.duckdb").exists()


def test_a_folder_may_be_read_from_inside_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_synthetic(tmp_path / "run-a", num_questions=1, repeats=1))
    assert read_manifest(Path()).run_id == "run-a"


def test_a_resumed_run_writes_into_its_own_folder_only(tmp_path: Path) -> None:
    store = tmp_path / "results"
    folder = renamed(write_synthetic(paths.run_dir(store, "run-a"), num_questions=1, repeats=1), "../../elsewhere")
    with pytest.raises(EnvironmentFailed, match="is not this folder's"):
        run(RunRequest(resume="run-a", store=store), Silent())
    renamed(folder, "run-a")
    beside = write_synthetic(tmp_path / "run-b", run_id="run-b", num_questions=1, repeats=1)
    with pytest.raises(UsageError, match=r"no run '\.\./\.\./run-b'"):
        run(RunRequest(resume="../../run-b", store=store), Silent())
    assert not (tmp_path / "elsewhere").exists() and beside.exists()
    assert [path.name for path in (store / "runs").iterdir()] == ["run-a"]


def test_a_training_is_called_as_its_folder_too(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    (folder / "train.json").write_text(json.dumps({"request": {}, "run_id": "../u"}))
    with pytest.raises(EnvironmentFailed, match=r"train\.json of t is not this folder's"):
        read_record(folder)
    (folder / "train.json").write_text(json.dumps({"request": {}, "run_id": "t"}))
    assert read_record(folder)["run_id"] == "t"


def test_ingest_names_a_damaged_folder_and_takes_the_others(copied: Path, specbench: Callable[..., Any]) -> None:
    write_synthetic(copied / "runs" / "run-z", run_id="run-z", num_questions=1, repeats=1)
    ran = specbench("results", "ingest", "--store", str(copied), "--json")
    assert ran.code == 3 and [each["run_id"] for each in json.loads(ran.out)] == ["run-a", "run-z"]
    assert "run-a.bak stays out of the store" in ran.err and "rename the folder to run-a" in ran.err
    alone = specbench("results", "ingest", "run-a.bak", "--store", str(copied))
    assert alone.code == 3 and "is not this folder's" in alone.err
    assert specbench("results", "ls", "--store", str(copied)).code == 0
    assert specbench("leaderboard", "-o", str(copied / "board.html"), "--store", str(copied)).code == 0


def test_a_store_that_refuses_is_not_the_folders_fault(tmp_path: Path) -> None:
    folders = [
        write_synthetic(tmp_path / "runs" / name, run_id=name, num_questions=1, repeats=1) for name in ("run-a", "b")
    ]
    (tmp_path / "s.duckdb").write_bytes(b"this is no database" * 1000)
    with pytest.raises(EnvironmentFailed, match="cannot be opened") as caught:
        ingest_all(tmp_path / "s.duckdb", folders)
    assert not isinstance(caught.value, StoreBusy)


def test_the_viewer_shows_a_copied_folder_as_one_that_cannot_be_read(copied: Path) -> None:
    """`EnvironmentFailed` is what its screens say of a run; anything else would end it."""
    with pytest.raises(EnvironmentFailed, match="is not this folder's"):
        summed(copied, "run-a.bak")
    assert summed(copied, "run-a").summary.run_id == "run-a"
