"""An explicit --max-len is held against every question before a target is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from specbench import paths
from specbench.bench import runner
from specbench.bench.runner import run
from specbench.errors import EnvironmentFailed, UsageError
from tests.bench.runs import Listening, request_for, rows_of


def test_a_max_len_that_a_first_turn_exceeds_is_refused_before_the_target_is_loaded(
    tiny_suite: Path, tiny_target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The need named is that of the longest question: the next try is the last one."""
    monkeypatch.setattr(runner, "Session", lambda *_: pytest.fail("the target was loaded"))
    with pytest.raises(UsageError) as caught:
        run(request_for(tiny_suite, tiny_target, tmp_path / "results", max_len=20), Listening())
    # <user> text <end> <assistant>: 14 of "abc abc abc" and of "0 1 0 1 0 1", of which the first stands first
    assert "2 questions of tiny: the longest, one, has a prompt of 14 tokens + 12 new ones = 26" in caught.value.what
    assert caught.value.try_.startswith("--max-len 26, ")
    assert not (tmp_path / "results").exists()


def test_the_max_len_that_the_refusal_names_suffices_and_later_turns_are_warned_of(
    tiny_suite: Path, tiny_target: Path, tmp_path: Path
) -> None:
    said = Listening()
    outcome = run(request_for(tiny_suite, tiny_target, tmp_path / "results", max_len=26), said)
    [warned] = [line for line in said.lines if "--max-len" in line]
    # "hello" 8 + 12 new, "and again" 12 + 3 x 12 + 16
    assert warned.startswith("--max-len 26: later turns") and "that of two needs up to 84" in warned
    rows = rows_of(outcome)
    assert all(row["num_failed"] == 2 for row in rows.values())  # the second turn of "two", in both repeats
    assert rows["prompt_lookup"]["num_questions"] == 4


def test_a_run_that_ends_before_its_manifest_leaves_no_folder(
    tiny_suite: Path, tiny_target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise EnvironmentFailed("planted")

    monkeypatch.setattr("specbench.bench.record.make_manifest", refuse)
    with pytest.raises(EnvironmentFailed, match="planted"):
        run(request_for(tiny_suite, tiny_target, tmp_path / "results"), Listening())
    assert list(paths.run_dir(tmp_path / "results", "").iterdir()) == []
