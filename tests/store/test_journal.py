"""The journal loses nothing that was written, and never pretends about what was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from specbench.errors import EnvironmentFailed, UsageError
from specbench.events import (
    SCHEMA,
    Event,
    GenerationStarted,
    Measured,
    RunFinished,
    RunStarted,
    StepRow,
    Steps,
    to_line,
)
from specbench.store import journal as journal_module
from specbench.store.files import holder
from specbench.store.journal import Journal, last_event, read_events, run_state
from tests.store.crafted import crafted_steps

STARTED = RunStarted(schema=SCHEMA, run_id="r", time="2026-01-02T03:04:05+00:00", pid=1, resumed=False)
ONE = Measured(name="one", value=1.0, unit="s")
TWO = Measured(name="two", value=2.0, unit="s")
ROWS = crafted_steps([(2, 1, 0), (2, 2, 0), (2, 0, 0)])


def events_of(folder: Path) -> list[Event]:
    return [line.event for line in read_events(folder)]


def append(folder: Path, text: str) -> None:
    with (folder / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write(text)


def test_what_is_written_is_read_back_in_order(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.write(STARTED)
        journal.steps(0, ROWS[:1])
        journal.steps(0, ROWS[1:])
        journal.write(ONE)
    assert events_of(tmp_path) == [STARTED, Steps(group=0, rows=tuple(ROWS)), ONE]


def test_a_line_of_steps_is_what_json_would_write_but_for_its_digits() -> None:
    """The hand-written encoder against the general one: any reader of JSON reads both."""
    rows = (
        StepRow(0, 7, 0.1234567894, 5, 3, 2, 3, 1, (1, 0), (11, 4095), 1e-7, 0.003, 2.5e-5, 0.0),
        StepRow(1, 7, 123.5, 0, 0, 0, 1, 0, (), (6,), 0.0, 0.0, 0.0, 0.0),
    )
    written = json.loads(to_line(Steps(group=3, rows=rows)))
    plain = json.loads(json.dumps({"e": "steps", "group": 3, "rows": rows}))
    assert written.keys() == plain.keys() and written["group"] == 3
    for ours, theirs in zip(written["rows"], plain["rows"], strict=True):
        assert [x for x in ours if not isinstance(x, float)] == [x for x in theirs if not isinstance(x, float)]
        assert [x for x in ours if isinstance(x, float)] == pytest.approx(
            [x for x in theirs if isinstance(x, float)], rel=0, abs=5.1e-10
        )


def test_offsets_let_a_tail_go_on_where_it_stopped(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.write(STARTED)
        (first,) = read_events(tmp_path)
        journal.write(ONE)
        assert [line.event for line in read_events(tmp_path, offset=first.next_offset)] == [ONE]


def test_steps_are_held_back_until_a_tenth_of_a_second_has_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(journal_module.time, "monotonic", lambda: now)
    with Journal(tmp_path) as journal:
        journal.steps(0, ROWS[:1])
        now += 0.05
        journal.steps(0, ROWS[1:2])
        assert events_of(tmp_path) == []
        now += 0.06
        journal.steps(0, ROWS[2:])
        assert events_of(tmp_path) == [Steps(group=0, rows=tuple(ROWS))]


def test_steps_of_two_groups_stay_apart(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.steps(0, ROWS[:1])
        journal.steps(1, ROWS[1:])
        journal.flush()
        assert events_of(tmp_path) == [Steps(group=0, rows=(ROWS[0],)), Steps(group=1, rows=tuple(ROWS[1:]))]


@pytest.mark.parametrize("torn", ['{"e":"measured","name":"tw', '{"e":"measured","name":"two"}', "\x00\x00\x00"])
def test_a_torn_last_line_is_passed_over_and_cut_by_the_next_writer(tmp_path: Path, torn: str) -> None:
    with Journal(tmp_path) as journal:
        journal.write(ONE)
    append(tmp_path, torn)
    assert events_of(tmp_path) == [ONE]
    assert last_event(tmp_path) == ONE
    with Journal(tmp_path) as journal:
        journal.write(TWO)
    assert events_of(tmp_path) == [ONE, TWO]


def test_a_journal_of_one_torn_line_starts_again_from_nothing(tmp_path: Path) -> None:
    append(tmp_path, '{"e":"run_sta')
    with Journal(tmp_path) as journal:
        journal.write(ONE)
    assert events_of(tmp_path) == [ONE]


def test_a_torn_middle_line_is_an_error_that_names_file_and_line(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.write(ONE)
    append(tmp_path, '{"e":"measured","na\n')
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"e":"measured","name":"two","value":2.0,"unit":"s","method":""}\n')
    with pytest.raises(EnvironmentFailed) as caught:
        events_of(tmp_path)
    assert "line 2" in caught.value.what
    assert caught.value.where.endswith("events.jsonl:2")


def test_an_unknown_event_is_an_error_even_at_the_end(tmp_path: Path) -> None:
    """A whole object of another program is no torn line; passing over it would lose it silently."""
    append(tmp_path, '{"e":"from_the_future"}\n')
    with pytest.raises(EnvironmentFailed, match="from_the_future"):
        events_of(tmp_path)


def test_a_journal_of_the_first_schema_is_read(tmp_path: Path) -> None:
    """Its generations do not say when they began, and its seconds have all their digits."""
    append(
        tmp_path,
        '{"e":"run_started","schema":1,"run_id":"r","time":"t","pid":1,"resumed":false}\n'
        '{"e":"generation_started","group":0,"row":0,"method":"m","question_id":"81","category":"c","turn":0,"repeat":0,'
        '"num_prompt_tokens":20}\n'
        '{"e":"steps","group":0,"rows":[[0,0,0.006023514604421867,0,0,0,1,0,[],[11],0.0,0.003,1e-05,2e-05]]}\n',
    )
    _, began, steps = events_of(tmp_path)
    assert isinstance(began, GenerationStarted) and began.began_s is None
    assert isinstance(steps, Steps) and steps.rows[0].end_s == 0.006023514604421867


def test_a_newer_journal_is_refused(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.write(RunStarted(schema=SCHEMA + 1, run_id="r", time="t", pid=1, resumed=False))
    with pytest.raises(EnvironmentFailed, match="newer specbench"):
        events_of(tmp_path)


def test_the_last_line_is_found_behind_long_ones(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.steps(0, ROWS * 5000)
        journal.write(TWO)
    assert last_event(tmp_path) == TWO


def test_a_second_writer_is_refused_by_the_pid_of_the_first(tmp_path: Path) -> None:
    with Journal(tmp_path), pytest.raises(UsageError) as caught:
        Journal(tmp_path)
    assert str(os.getpid()) in caught.value.what
    with Journal(tmp_path) as journal:
        journal.write(ONE)


WRITER = """
import sys, time
from pathlib import Path
from specbench.events import Measured
from specbench.store.journal import Journal
journal = Journal(Path(sys.argv[1]))
journal.write(Measured(name="one", value=1.0, unit="s"))
print("written", flush=True)
time.sleep(60)
"""


def test_a_killed_writer_loses_nothing_and_its_lock_is_taken_over(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "written\n"
    held = holder(tmp_path)
    assert held is not None and held.pid == writer.pid
    assert run_state(tmp_path) == "running"
    with pytest.raises(UsageError, match=str(writer.pid)):
        Journal(tmp_path)
    writer.send_signal(signal.SIGKILL)
    # Not waited for yet: a zombie must not count as alive.
    deadline = time.monotonic() + 10
    while holder(tmp_path) is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert run_state(tmp_path) == "lost"
    with Journal(tmp_path) as journal:
        journal.write(TWO)
    writer.wait()
    assert events_of(tmp_path) == [ONE, TWO]


def test_the_state_is_the_last_word(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.write(STARTED)
        journal.write(RunFinished(state="interrupted", time="t"))
        assert run_state(tmp_path) == "interrupted"
        journal.write(STARTED)
        assert run_state(tmp_path) == "running"


FILL = """
import sys
from pathlib import Path
from specbench.errors import EnvironmentFailed
from specbench.events import Measured
from specbench.store.journal import Journal
with Journal(Path(sys.argv[1])) as journal:
    try:
        for index in range(100000):
            journal.write(Measured(name="x" * 200, value=float(index), unit="s"))
    except EnvironmentFailed as error:
        print(error.what, "|", error.try_)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small tmpfs needs root")
def test_a_full_disk_is_named_and_leaves_whole_lines(tmp_path: Path) -> None:
    """In a mount namespace of its own, so that nothing is left mounted whatever happens."""
    script = textwrap.dedent(f"""
        mkdir -p {tmp_path}/small && mount -t tmpfs -o size=64k none {tmp_path}/small || exit 77
        {sys.executable} - {tmp_path}/small/run <<'PYTHON' && cp {tmp_path}/small/run/events.jsonl {tmp_path}/
    """)
    script += FILL + "\nPYTHON\n"
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True, check=False)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no mount namespace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert "disk is full" in done.stdout and "--resume" in done.stdout
    events = events_of(tmp_path)
    assert len(events) > 50
    assert (tmp_path / "events.jsonl").read_bytes().endswith(b"\n")


def test_a_failed_write_is_cut_back_so_that_a_later_one_tears_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    with Journal(tmp_path) as journal:
        journal.write(ONE)
        calls = 0

        def half_then_full(file: int, data: memoryview) -> int:
            nonlocal calls
            calls += 1
            if calls == 1:
                return real(file, bytes(data[:10]))
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "write", half_then_full)
        with pytest.raises(EnvironmentFailed, match="disk is full"):
            journal.write(TWO)
        monkeypatch.undo()
        journal.write(TWO)
    assert events_of(tmp_path) == [ONE, TWO]


def test_no_permission_is_named_with_the_way_out(read_only_folder: Path) -> None:
    with pytest.raises(EnvironmentFailed, match="no permission") as caught:
        Journal(read_only_folder / "run")
    assert "--store" in caught.value.try_


def test_the_journal_loads_neither_duckdb_nor_numpy_nor_torch() -> None:
    code = (
        "import sys, specbench.store.journal, specbench.store.attempts, specbench.store.invariants;"
        "print(sorted({'duckdb', 'numpy', 'torch', 'pyarrow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
