"""What a resumed run may skip, and what of a journal counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from specbench.events import SCHEMA, GenerationFailed, RunStarted, Steps, to_line
from specbench.store.attempts import finished_groups
from tests.store.crafted import crafted_answer, crafted_group, crafted_steps, started
from tests.store.synthetic import AUTOREGRESSIVE, make_manifest, write_run, write_synthetic

MANIFEST = make_manifest([AUTOREGRESSIVE], num_questions=4, repeats=1)
RESUMED = RunStarted(schema=SCHEMA, run_id="run-a", time="t", pid=2, resumed=True)
PLAIN = [(0, 0, 0)] * 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run-a"


def failed(group: int, row: int = 0) -> GenerationFailed:
    record = MANIFEST.groups[group]
    return GenerationFailed(
        group=group, row=row, method=record.method, question_id=record.question_ids[0], category="c", turn=0, repeat=0,
        error="out of memory",
    )  # fmt: skip


def test_finished_and_failed_groups_are_skipped_and_begun_ones_are_not(folder: Path) -> None:
    begun = list(crafted_group(MANIFEST, 2, PLAIN))[:-1]
    write_run(folder, MANIFEST, iter([*crafted_group(MANIFEST, 0, PLAIN), failed(1), *begun]))
    assert finished_groups(folder) == {0, 1}


def test_a_run_without_a_journal_has_finished_nothing(folder: Path) -> None:
    assert finished_groups(folder) == set()


def test_a_batched_group_counts_when_its_last_row_has_ended(folder: Path) -> None:
    manifest = make_manifest([AUTOREGRESSIVE], num_questions=2, repeats=1, batch_size=2)
    answers = [crafted_answer(manifest, 0, crafted_steps(PLAIN, row=row)) for row in (0, 1)]
    events = [started(answers[0]), started(answers[1]), answers[1]]
    write_run(folder, manifest, iter(events))
    assert finished_groups(folder) == set()
    with (folder / "events.jsonl").open("a") as file:
        file.write(to_line(answers[0]) + "\n")
    assert finished_groups(folder) == {0}


def test_rows_of_two_attempts_do_not_add_up_to_one(folder: Path) -> None:
    """Row 0 before the kill and row 1 after it are not a group that was measured."""
    manifest = make_manifest([AUTOREGRESSIVE], num_questions=2, repeats=1, batch_size=2)
    first, second = (crafted_answer(manifest, 0, crafted_steps(PLAIN, row=row)) for row in (0, 1))
    write_run(folder, manifest, iter([started(first), started(second), first, RESUMED, started(second), second]))
    assert finished_groups(folder) == set()


def test_a_torn_tail_hides_only_the_group_it_tears(folder: Path) -> None:
    write_synthetic(folder, num_questions=2, repeats=1)
    whole = finished_groups(folder)
    lines = (folder / "events.jsonl").read_bytes().splitlines(keepends=True)
    assert b"run_finished" in lines[-1] and b"generation_finished" in lines[-2]
    (folder / "events.jsonl").write_bytes(b"".join(lines[:-2]) + lines[-2][:-20])
    assert finished_groups(folder) == whole - {max(whole)}


def test_without_a_manifest_a_group_is_what_was_started(folder: Path) -> None:
    write_run(folder, MANIFEST, iter([*crafted_group(MANIFEST, 0, PLAIN), Steps(group=1, rows=())]))
    (folder / "manifest.json").unlink()
    assert finished_groups(folder) == {0}
