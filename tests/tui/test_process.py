"""What `specbench tui` loads, how soon it stands, and a whole visit in a real terminal."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from specbench.cli import tui as command
from specbench.cli.entry import main
from specbench.tui import app
from specbench.tui.app import SpecbenchApp

_WITHOUT = ("torch", "transformers", "duckdb", "pyarrow", "plotly")

_EVERY_SCREEN = """
import asyncio, sys
from pathlib import Path
from specbench.tui import actions
from specbench.tui.app import SpecbenchApp

async def answered(app, pilot):
    await pilot.pause(0.1)
    while any(not worker.is_finished for worker in app.workers):
        await pilot.pause(0.05)

async def main():
    app = SpecbenchApp(Path(sys.argv[1]), sys.argv[2], theme="dark")
    async with app.run_test(size=(120, 36)) as pilot:
        for action in actions.SCREENS:
            await pilot.press(action.keys[0])
            await answered(app, pilot)
        await pilot.press("n")
        await answered(app, pilot)

asyncio.run(main())
print(" ".join(name for name in sys.argv[3:] if name in sys.modules))
"""


def test_no_screen_loads_torch_or_duckdb(store: Path) -> None:
    """torch is 2 s and 200 MB; DuckDB belongs to the reader's process."""
    words = [sys.executable, "-c", _EVERY_SCREEN, str(store), "20260102-demo-run-a", *_WITHOUT]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == ""


def test_importing_the_app_takes_a_fraction_of_a_second() -> None:
    """Processor time, since the machine may be busy; the promise is a second to the first screen."""
    code = "import time; b = time.process_time(); import specbench.tui.app; print(time.process_time() - b)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert float(done.stdout) < 1.0


def test_without_a_terminal_it_says_what_to_type_instead(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "specbench", "tui", "--store", str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 3
    assert "needs a terminal" in done.stderr and "specbench results ls" in done.stderr


class _Failing(SpecbenchApp):
    """Raises as it begins: on the screen's own thread, or where screens read files."""

    where: ClassVar[str] = ""

    def on_mount(self) -> None:
        if self.where == "thread":
            self.run_worker(self._fail, thread=True)
        else:
            self._fail()

    def _fail(self) -> None:
        secret = "the value of a local"
        raise ZeroDivisionError(f"of ours, beside {len(secret)} characters")

    def run(self, **_: Any) -> None:
        return super().run(headless=True)


@pytest.mark.parametrize("where", ["screen", "thread"])
def test_a_viewer_that_fails_exits_with_1_and_leaves_its_traceback_in_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    """As every command does: a script must not take it for a good end, nor a terminal be filled with locals."""
    terminal = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr(command, "sys", SimpleNamespace(stdin=terminal, stdout=terminal, stderr=terminal))
    monkeypatch.setattr(app, "SpecbenchApp", _Failing)
    monkeypatch.setattr(_Failing, "where", where)
    monkeypatch.setenv("SPECBENCH_CACHE", str(tmp_path / "cache"))
    with pytest.raises(SystemExit) as caught:
        main(["tui", "--store", str(tmp_path)])
    assert caught.value.code == 1
    told = capsys.readouterr().err
    assert "failed unexpectedly: ZeroDivisionError: of ours" in told and "the value of a local" not in told
    (trace,) = (tmp_path / "cache" / "failures").iterdir()
    assert "in _fail" in trace.read_text(encoding="utf-8") and str(trace) in told


class _Terminal:
    """tmux, driven by keys and read as text."""

    def __init__(self, name: str, command: str, *, size: tuple[int, int]) -> None:
        self.name = name
        self._tmux("new-session", "-d", "-s", name, "-x", str(size[0]), "-y", str(size[1]), command)
        self.resize(*size)

    def _tmux(self, *words: str) -> str:
        environ = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "TMUX")}
        command = ["tmux", "-L", self.name, *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environ).stdout

    def press(self, *keys: str) -> None:
        self._tmux("send-keys", "-t", self.name, *keys)

    def screen(self) -> str:
        return self._tmux("capture-pane", "-p", "-t", self.name)

    def wait_for(self, words: str, *, seconds: float = 60.0) -> str:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            text = self.screen()
            if words in text:
                return text
            time.sleep(0.3)
        raise AssertionError(f"{words!r} never came:\n{self.screen()}")

    def resize(self, width: int, height: int) -> None:
        self._tmux("resize-window", "-t", self.name, "-x", str(width), "-y", str(height))

    def close(self) -> None:
        self._tmux("kill-server")


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[_Terminal]:
    command = f"OMP_NUM_THREADS=1 {sys.executable} -m specbench tui --store {tmp_path}"
    found = _Terminal(f"specbench-test-{os.getpid()}", command, size=(120, 36))
    yield found
    found.close()


@pytest.mark.tmux
@pytest.mark.slow
def test_from_an_empty_store_to_an_exported_board(tmp_path: Path, terminal: _Terminal) -> None:
    """The whole visit: launch, watch, replay, resize, compare, export. The run is a real one, of two questions."""
    terminal.wait_for("No runs here yet")
    terminal.press("n")
    terminal.wait_for("ctrl+r runs")
    for value in ("", "autoregressive,prompt_lookup", "2", "1", "24"):
        terminal.press("Tab")
        if value:
            terminal.press("-l", value)
    terminal.wait_for("--max-new-tokens 24")
    terminal.press("C-r")
    terminal.wait_for("started process")
    terminal.wait_for("demo-", seconds=120)
    terminal.wait_for("finished", seconds=120)
    terminal.press("Enter")
    terminal.wait_for("[2 Race]")
    text = terminal.wait_for("tok/s")
    assert "prompt_lookup" in text and "autoregressive" in text
    terminal.press("g", ".", ".")
    terminal.wait_for("‖ paused")
    terminal.resize(80, 24)
    time.sleep(1.0)
    assert all(len(row) <= 80 for row in terminal.screen().splitlines())
    terminal.resize(120, 36)
    terminal.press("Tab", "t")
    terminal.wait_for("no trace yet")
    terminal.press("t")
    terminal.wait_for("Draft tree of step", seconds=120)
    terminal.press("g")
    terminal.wait_for("step 1/")
    terminal.press("8")
    terminal.wait_for("like-for-like")
    terminal.wait_for("prompt_lookup")
    terminal.press("e")
    terminal.wait_for(".html")
    deadline = time.monotonic() + 30
    while not list((tmp_path / "exports").glob("board-*.html")) and time.monotonic() < deadline:
        time.sleep(0.3)
    (page,) = (tmp_path / "exports").glob("board-*.html")
    assert "prompt_lookup" in page.read_text(encoding="utf-8")
    terminal.press("C-q")
