"""`specbench tui ssh://…` from the command line, by an ssh that only pretends."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from specbench.cli import tui as command
from specbench.cli.entry import main
from specbench.tui import app
from specbench.tui.app import SpecbenchApp
from tests.tui.screens import write_live


class _Visit(SpecbenchApp):
    """Without a terminal; ends at once."""

    def on_mount(self) -> None:
        super().on_mount()
        self.exit()

    def run(self, **_: Any) -> None:
        return super().run(headless=True)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's streams pass for one."""
    stream = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr(command, "sys", SimpleNamespace(stdin=stream, stdout=stream, stderr=stream))
    monkeypatch.setattr(app, "SpecbenchApp", _Visit)


@pytest.fixture
def far(store: Path, ssh: Path) -> Path:
    """A live run's folder on the other machine."""
    folder = write_live(store, pid=1)
    (folder / "run.lock").write_text('{"pid": 1, "host": "elsewhere", "started": 0.0}')
    return folder


def test_who_waits_for_the_other_machine_is_told_so(
    far: Path, ssh: Path, terminal: None, capfd: pytest.CaptureFixture[str]
) -> None:
    script = next(ssh.parent.glob("bin/ssh"))
    script.write_text(script.read_text().replace("for last", 'echo "a word of ssh" >&2\nfor last'))
    with pytest.raises(SystemExit) as caught:
        main(["tui", f"ssh://me@far{far.parent}/no-such-run"])
    assert caught.value.code == 3
    said = capfd.readouterr().err
    assert said.startswith("asking me@far …\n") and "gives no manifest" in said
