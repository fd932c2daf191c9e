"""Keys on a world that broke under the viewer: said on the screen, never its end."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from specbench.card import Option
from specbench.errors import EnvironmentFailed, UsageError
from specbench.paths import expanded
from specbench.tui import children, form
from specbench.tui.index import RunIndex
from specbench.tui.timeline import Timeline
from tests.tui.screens import RUN, WIDE, an_app, drive, raced, settled

NOBODY = "~nobody-by-this-name"


def test_a_journal_that_goes_while_its_run_is_shown_is_said_and_other_keys_go_on(store: Path) -> None:
    async def body() -> None:
        app = an_app(store, RUN)
        async with app.run_test(size=WIDE) as pilot:
            view = await raced(app, pilot)
            (store / "runs" / RUN / "events.jsonl").rename(store / "moved")
            await pilot.press("right_square_bracket")
            await pilot.pause()
            assert "the journal cannot be read any more" in view.said
            # The answer of a dialog is no key's action.
            await pilot.press("o")
            await pilot.pause()
            await pilot.press("enter")
            await pilot.pause()
            assert app.screen is view and "the journal cannot be read any more" in view.said
            (store / "moved").rename(store / "runs" / RUN / "events.jsonl")
            await pilot.press("left_square_bracket")
            assert view.race is not None and view.race.lanes[0].timeline is not None

    drive(body)


@pytest.mark.parametrize(
    "rows",
    ["[[0,0,0.5]]", "[7]", "7", '[[0,0,"x",1,1,1,2,0,[],[5],0,0,0,0]]', "[[0,0,1.0,1,1,1,2,0,[],5,0,0,0,0]]", "["],
)
def test_a_damaged_line_of_steps_is_named_and_nothing_before_it_is_taken_twice(store: Path, rows: str) -> None:
    folder = store / "runs" / RUN
    index = RunIndex(folder)
    index.advance()
    group = index.groups[0]
    timeline = Timeline(group.rows[0])
    timeline.extend(folder, group)
    before = len(timeline.steps)
    first = group.step_offsets[0]
    with (folder / "events.jsonl").open("a", encoding="ascii") as file:
        group.step_offsets.extend([first, file.tell()])
        file.write(f'{{"e":"steps","group":0,"rows":{rows}}}\n')
    known = []
    for _ in range(2):
        with pytest.raises(EnvironmentFailed, match="steps of group 0 cannot be read"):
            timeline.extend(folder, group)
        known.append(len(timeline.steps))
    assert before < known[0] == known[1]


def test_a_home_of_nobody_is_an_error_of_the_field_it_was_typed_into() -> None:
    with pytest.raises(UsageError, match="nobody's home folder"):
        expanded(f"{NOBODY}/x")
    with pytest.raises(ValueError, match="nobody's home folder"):
        Option(type="path", help="").read(NOBODY)
    for field in ("data", "methods_dirs"):
        checked = form.check({"suite": "demo", field: NOBODY}, store=None)
        assert "nobody's home folder" in checked.problem and checked.wrong_field == field and not checked.words


def test_a_process_of_another_user_is_not_ours_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"pid": os.getpid(), "host": socket.gethostname(), "started": psutil.Process().create_time()}
    (tmp_path / "run.lock").write_text(json.dumps(body), encoding="utf-8")

    def refuse(pid: int, number: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(children.os, "kill", refuse)
    with pytest.raises(EnvironmentFailed, match="belongs to another user") as caught:
        children.interrupt(tmp_path)
    assert f"kill -INT {os.getpid()}" in caught.value.try_


def test_a_run_that_fails_at_once_is_told_with_its_last_word_and_its_log(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = subprocess.Popen

    def popen(words: list[str], **options: object) -> object:
        return real(["sh", "-c", "echo '✗ no target here'; echo '  try: another'; exit 3"], **options)  # type: ignore[call-overload]

    async def body() -> None:
        app = an_app(store)
        async with app.run_test(size=WIDE) as pilot:
            monkeypatch.setattr(children.subprocess, "Popen", popen)
            await pilot.press("b")
            monkeypatch.setattr(children.subprocess, "Popen", real)
            await pilot.press("6")
            await settled(pilot, lambda: "failed (exit 3): ✗ no target here" in getattr(app.screen, "said", ""))
            assert str(store / "logs") in app.screen.said

    drive(body)


@pytest.mark.parametrize(("code", "is_told"), [(0, False), (130, False), (1, True)])
def test_an_end_that_was_asked_for_is_no_failure(tmp_path: Path, code: int, is_told: bool) -> None:
    process = subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"])
    process.wait()
    log = tmp_path / "log"
    log.write_text("Traceback\nValueError: x\n", encoding="utf-8")
    told = children.failure_of(children.Child(process, log, "specbench run demo"))
    assert bool(told) is is_told and ("ValueError: x" in told) is is_told


def test_a_log_is_the_one_of_the_run_and_not_of_an_earlier_process_of_that_number(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    began_s = 1_767_000_000
    for stamp in (began_s - 90 * 86_400, began_s - 40, began_s + 5000):
        (logs / f"7-{stamp}.log").write_text("", encoding="utf-8")
    (logs / "7-odd.log").touch()
    assert children.log_of(tmp_path, 7, began_s) == logs / f"7-{began_s - 40}.log"
    assert children.log_of(tmp_path, 7, began_s - 80 * 86_400) is None
    assert children.log_of(tmp_path, 8, began_s) is None
