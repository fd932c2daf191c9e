"""What the disk refuses is said with a remedy that the command at hand knows."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from specbench.errors import EnvironmentFailed
from specbench.events import Measured
from specbench.store.db import open_store
from specbench.store.export import export_csv, export_json, export_parquet
from specbench.store.files import cannot_write, write_whole
from specbench.store.ingest import ingest
from specbench.store.journal import Journal
from tests.store.synthetic import write_synthetic

FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_refused_write_names_the_file_and_takes_the_callers_remedy(code: int) -> None:
    found = cannot_write(Path("a/b"), OSError(code, "why"), try_="-o elsewhere")
    assert "a/b" in found.what and found.where == "a/b" and found.try_ == "-o elsewhere"
    assert "--resume" not in cannot_write(Path("a/b"), OSError(code, "why")).try_


@pytest.mark.parametrize("name", [".", "..", "/", "there"])
def test_a_folder_in_the_place_of_a_file_is_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Nothing is written beside or into it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    with pytest.raises(EnvironmentFailed) as caught:
        write_whole(Path(name), "text")
    assert caught.value.what == f"{Path(name)} is a folder, not a file to write" and caught.value.try_ == "-o FILE"
    assert write_whole_remedy(Path(name)) == "specbench leaderboard -o FILE"
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]


def write_whole_remedy(path: Path) -> str:
    """What a caller that knows its option has said."""
    with pytest.raises(EnvironmentFailed) as caught:
        write_whole(path, "text", try_="specbench leaderboard -o FILE")
    return caught.value.try_


@pytest.mark.parametrize("command", ["run", "train"])
def test_a_full_disk_names_the_run_to_go_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    folder = tmp_path / "20260102-030405-demo-ab12"
    folder.mkdir()
    if command == "train":
        (folder / "train.json").write_text("{}")

    def full(*_: object) -> int:
        raise FULL

    with Journal(folder) as journal, monkeypatch.context() as patched, pytest.raises(EnvironmentFailed) as caught:
        patched.setattr(os, "write", full)
        journal.write(Measured(name="one", value=1.0, unit="s"))
    assert f"specbench {command} --resume 20260102-030405-demo-ab12" in caught.value.try_


def test_an_export_that_is_refused_names_its_own_option(tmp_path: Path) -> None:
    """Not the store: that one was read without trouble."""
    ingest(tmp_path / "s.duckdb", write_synthetic(tmp_path / "run-a", num_questions=1, repeats=1))
    (tmp_path / "file").write_text("in the way of a folder")
    blocked = tmp_path / "file" / "out"
    with open_store(tmp_path / "s.duckdb", read_only=True) as connection:
        for export in (export_csv, export_json, export_parquet):
            with pytest.raises(EnvironmentFailed) as caught:
                export(connection, "run-a", blocked)  # type: ignore[operator]
            assert caught.value.try_.startswith("-o PATH")
