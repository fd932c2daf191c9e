"""A damaged run folder is named and stays out of the store; the others go in, whatever the damage is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specbench.errors import CheckFailed, EnvironmentFailed
from specbench.store.rebuilding import ingest_all
from tests.store.synthetic import write_synthetic


def change(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_bytes(text.replace(old, new, 1).encode("latin-1"))


def shorten_a_step(folder: Path) -> None:
    lines = (folder / "events.jsonl").read_text().splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if line.startswith('{"e":"steps"'))
    body = json.loads(lines[at])
    body["rows"][0].pop()
    lines[at] = json.dumps(body, separators=(",", ":")) + "\n"
    (folder / "events.jsonl").write_text("".join(lines))


def make_a_folder(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").mkdir()


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "bytes that are no text": (lambda f: change(f, "manifest.json", "suite", "su\xffte"), "manifest.json is damaged"),
    "a version that is no number": (
        lambda f: change(f, "manifest.json", '"schema_version": ', '"schema_version": "x", "was": '),
        "manifest.json is damaged",
    ),
    "a folder in its place": (make_a_folder, "manifest.json cannot be read"),
    "a step that lacks a field": (shorten_a_step, "a step of 13 fields, not 14"),
    "a count of another kind": (
        lambda f: change(f, "events.jsonl", '"num_steps":39,', '"num_steps":{},'),
        "its counts cannot be",
    ),
    "a time of another kind": (
        lambda f: change(f, "events.jsonl", '"total_s":', '"total_s":"x","was":'),
        "line ",
    ),
    "seconds that are words": (
        lambda f: change(f, "events.jsonl", '"prefill_s":0', '"prefill_s":"x","decode_s":0'),
        "hold what nothing writes",
    ),
    "counts that cannot be": (
        lambda f: change(f, "events.jsonl", '"num_steps":39,', '"num_steps":40,'),
        "its counts cannot be",
    ),
}


@pytest.mark.parametrize(("damage", "told"), DAMAGES.values(), ids=DAMAGES)
def test_one_damaged_folder_keeps_no_other_out(tmp_path: Path, damage: Callable[[Path], None], told: str) -> None:
    folders = [
        write_synthetic(tmp_path / "runs" / name, run_id=name, num_questions=1, repeats=1) for name in ("bad", "good")
    ]
    damage(folders[0])
    done = ingest_all(tmp_path / "s.duckdb", folders)
    assert [each.run_id for each in done.runs] == ["good"]
    [refused] = done.refused
    assert refused.folder == folders[0] and told in refused.error.what
    expected = CheckFailed if told == "its counts cannot be" else EnvironmentFailed
    assert isinstance(refused.error, expected)


def test_the_command_ends_as_the_worst_of_them(tmp_path: Path, specbench: Callable[..., Any]) -> None:
    for name in ("bad", "good", "worse"):
        write_synthetic(tmp_path / "runs" / name, run_id=name, num_questions=1, repeats=1)
    DAMAGES["counts that cannot be"][0](tmp_path / "runs" / "bad")
    ran = specbench("results", "ingest", "--store", str(tmp_path))
    assert ran.code == 1 and "bad stays out of the store" in ran.err and "good" in ran.out
    assert specbench("results", "ingest", "bad", "--store", str(tmp_path)).code == 1
    DAMAGES["a step that lacks a field"][0](tmp_path / "runs" / "worse")
    assert specbench("results", "ingest", "--store", str(tmp_path)).code == 3
