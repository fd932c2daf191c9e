"""Tables and progress: narrow terminals, NO_COLOR, hostile text, no carriage returns in a log."""

from __future__ import annotations

import io
import json
import re
import sys

import pytest

from specbench.cli import progress
from specbench.cli.progress import Lines, duration, open_progress
from specbench.cli.text import Column, show, show_json, show_table, visible

COLUMNS = [Column("method"), Column("speed-up", right=True), Column("what it is")]
ROWS = [("prompt_lookup", "1.62", "copies the continuation of the longest n-gram"), ("oracle", "2.10", "replays")]


def test_control_characters_are_shown_instead_of_sent() -> None:
    assert visible("a\x1b[31m\u202eb\x9b\r") == "a\\x1b[31m\\u202eb\\x9b\\r"
    assert visible("tab\tand\nnewline é 漢") == "tab\tand\nnewline é 漢"


def test_json_on_a_terminal_carries_no_control_character(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON escapes C0 alone: C1 (a one-byte CSI) and the bidirectional controls came through as they are."""
    text = {"text": "é 漢\x1b[1m\x9b31m\u202egnp\x7f\n"}
    show_json(text)
    out = capsys.readouterr().out
    assert not set("\x1b\x9b\u202e\x7f") & set(out) and "é 漢" in out
    assert json.loads(out) == text


def test_a_wide_table_stands_on_one_line_per_row(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(COLUMNS, ROWS, width=100)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[2].split()[:2] == ["prompt_lookup", "1.62"]


def test_a_pipe_gets_every_character(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(COLUMNS, [("m", "1", "x" * 300)])
    assert "x" * 300 in capsys.readouterr().out


@pytest.mark.parametrize("width", [20, 40, 60, 80])
def test_a_narrow_terminal_keeps_every_word_within_its_width(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    show_table(COLUMNS, ROWS, width=width)
    out = capsys.readouterr().out
    for word in ("prompt_lookup", "1.62", "continuation", "replays"):
        assert word in out
    if width >= 60:
        assert max(len(line.rstrip()) for line in out.splitlines()) <= width


def test_blocks_of_a_narrow_terminal_break_between_words(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(COLUMNS, ROWS, width=34)
    lines = capsys.readouterr().out.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("what it is"))
    assert lines[at : at + 3] == [
        "what it is  copies the",
        "            continuation of the",
        "            longest n-gram",
    ]


def test_no_line_of_a_table_ends_in_white_space(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(COLUMNS, ROWS)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all(line == line.rstrip() for line in lines)


def test_markup_in_a_cell_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    show_table([Column("a")], [("[bold]x[/bold] [/nothing] :smile:",)], width=80)
    assert "[bold]x[/bold] [/nothing] :smile:" in capsys.readouterr().out


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for variables, has_colour in (({"NO_COLOR": "1"}, False), ({}, True)):
        terminal = Terminal()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", terminal)
            patch.setenv("TERM", "xterm-256color")
            patch.delenv("NO_COLOR", raising=False)
            for name, value in variables.items():
                patch.setenv(name, value)
            show_table(COLUMNS, ROWS)
            show("plain")
        colours = re.findall(r"\x1b\[[0-9;]*3[0-9]", terminal.getvalue())
        assert not colours or has_colour


def test_plain_progress_prints_complete_lines_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with open_progress() as told:
        assert isinstance(told, Lines)
        told.plan(num_groups=10, num_done=2, title="demo")
        for index in range(8):
            told.group_done(method="m", question=str(index), seconds=1.0, num_tokens=9, failed=index == 3)
    err = capsys.readouterr().err
    assert "\r" not in err and err.endswith("\n")
    lines = err.splitlines()
    assert lines[0] == "demo: 10 generations, 2 done before"
    assert lines[-1].startswith("10/10 generations in") and lines[-1].endswith(", 1 failed")
    # One line at most every ten seconds, groups being four seconds apart.
    assert sum(line.split()[0].endswith("/10") for line in lines) == 3


def test_the_bar_starts_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A drawing thread would run inside timed regions: 27 % of the engine's speed."""
    import threading

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    before = threading.active_count()
    with open_progress() as told:
        told.plan(num_groups=2, num_done=0, title="demo [bold]")
        told.group_done(method="m", question="1", seconds=1.0, num_tokens=9, failed=False)
        assert threading.active_count() == before
        told.say("a \x1b[31m line")
        told.group_done(method="m", question="2", seconds=1.0, num_tokens=9, failed=True)
    out = terminal.getvalue()
    assert "demo [bold]" in out and "2/2" in out and "a \\x1b[31m line" in out and "demo [bold], 1 failed" in out


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (185, "3 min 5 s"), (7800, "2 h 10 min"), (-3, "0 s")]
)
def test_durations_are_read_at_a_glance(seconds: float, text: str) -> None:
    assert duration(seconds) == text
