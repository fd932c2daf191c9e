"""A journal as the viewer reads it: incrementally, small, and never further than whole lines."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import pytest

from specbench.errors import EnvironmentFailed
from specbench.events import GenerationFailed, GenerationStarted, RunFinished, RunStarted, to_line
from specbench.tui.index import RunIndex
from tests.store.synthetic import COMPETITORS, make_manifest, run_events, write_big, write_run, write_synthetic


def test_reading_in_pieces_gives_what_reading_at_once_gives(tmp_path: Path) -> None:
    """Live and replay are the same code only if this holds."""
    folder = write_synthetic(tmp_path / "run-a")
    whole = RunIndex(folder)
    whole.advance()
    pieces = RunIndex(folder)
    while pieces.advance(limit_bytes=500):
        pass
    assert list(pieces.generations()) == list(whole.generations())
    assert pieces.finished == whole.finished is not None
    assert pieces.offset == whole.offset == (folder / "events.jsonl").stat().st_size


def test_a_torn_last_line_is_left_until_it_is_whole(tmp_path: Path) -> None:
    """The writer may be in the middle of a line at any look."""
    folder = write_synthetic(tmp_path / "run-a", num_questions=1, repeats=1)
    journal = folder / "events.jsonl"
    data = journal.read_bytes()
    journal.write_bytes(data[:-10])
    index = RunIndex(folder)
    index.advance()
    assert index.finished is None
    journal.write_bytes(data)
    assert index.advance()
    assert index.finished is not None


def test_a_group_that_was_begun_again_counts_once(tmp_path: Path) -> None:
    """A resumed run measures its torn group again; the first attempt must not be shown beside it."""
    manifest = make_manifest(num_questions=1, repeats=1)
    events = list(run_events(manifest))
    first = next(place for place, event in enumerate(events) if isinstance(event, GenerationStarted))
    again = RunStarted(schema=2, run_id=manifest.run_id, time="later", pid=2, resumed=True)
    folder = write_run(tmp_path / "run-a", manifest, iter([*events[: first + 2], again, *events[first:]]))
    index, once = RunIndex(folder), RunIndex(write_run(tmp_path / "once" / "run-a", manifest, iter(events)))
    index.advance()
    once.advance()
    assert list(index.generations()) == list(once.generations())
    assert len(index.groups[0].step_offsets) == len(once.groups[0].step_offsets)


def test_a_failed_question_is_an_ending_with_its_error(tmp_path: Path) -> None:
    manifest = make_manifest(num_questions=1, repeats=1)
    record = manifest.groups[0]
    failed = GenerationFailed(
        group=0, row=0, method=record.method, question_id="81", category="writing", turn=0, repeat=0, error="too long"
    )
    folder = write_run(tmp_path / "run-a", manifest, iter([failed]))
    index = RunIndex(folder)
    index.advance()
    (generation,) = index.generations()
    assert generation.ending is not None and generation.ending.error == "too long"
    assert not generation.is_finished


def test_a_damaged_line_in_the_middle_is_an_error_that_says_where(tmp_path: Path) -> None:
    folder = write_synthetic(tmp_path / "run-a", num_questions=1, repeats=1)
    journal = folder / "events.jsonl"
    journal.write_bytes(b"{broken\n" + journal.read_bytes())
    with pytest.raises(EnvironmentFailed, match="damaged at byte 0"):
        RunIndex(folder).advance()


@pytest.mark.parametrize(
    "torn", ['{"e":"steps","group":', '{"e":"steps","group":3', '{"e":"steps","group":x,"rows":[]}']
)
def test_a_torn_line_of_steps_in_the_middle_is_an_error_that_says_where(tmp_path: Path, torn: str) -> None:
    """Lines of steps are not parsed whole, and can be torn all the same."""
    folder = write_synthetic(tmp_path / "run-a", num_questions=1, repeats=1)
    journal = folder / "events.jsonl"
    before = journal.read_bytes()
    journal.write_bytes(before + torn.encode() + b"\n" + before)
    with pytest.raises(EnvironmentFailed, match=f"damaged at byte {len(before)}"):
        RunIndex(folder).advance()


def test_a_journal_that_became_shorter_is_an_error(tmp_path: Path) -> None:
    """Offsets into a file that was replaced would show one run's steps under another's names."""
    folder = write_synthetic(tmp_path / "run-a", num_questions=1, repeats=1)
    index = RunIndex(folder)
    index.advance()
    (folder / "events.jsonl").write_text(to_line(RunFinished(state="finished", time="")) + "\n", encoding="ascii")
    with pytest.raises(EnvironmentFailed, match="shorter"):
        index.advance()


def test_no_journal_yet_is_an_empty_index(tmp_path: Path) -> None:
    index = RunIndex(tmp_path)
    assert not index.advance()
    assert list(index.generations()) == []


def test_a_journal_of_a_hundred_thousand_steps_opens_in_two_seconds_in_flat_memory(tmp_path: Path) -> None:
    """Steps stay on disk. The time has slack for a busy machine: it takes a quarter of a second alone."""
    folder = write_big(tmp_path / "big", num_steps=100_000)
    began = time.process_time()
    RunIndex(folder).advance()
    assert time.process_time() - began < 2.0
    tracemalloc.start()
    index = RunIndex(folder)
    index.advance()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(index.groups) == 80 * 2 * 3 * len(COMPETITORS)
    assert kept < 8_000_000, "memory must grow with answers, not with steps"
