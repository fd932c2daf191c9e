"""A results folder with a recorded run."""

from __future__ import annotations

from pathlib import Path

import pytest

from specbench.store.ingest import ingest
from specbench.tui import app
from specbench.tui.aside import Aside
from specbench.tui.yielding import GivingWay
from tests.store.synthetic import make_manifest, run_events, write_run
from tests.tui.screens import RUN


@pytest.fixture(autouse=True)
def as_nice_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The viewer of the tests is pytest, which must not become nice for good, nor its terminal, nor be moved."""
    monkeypatch.setattr(app, "GivingWay", lambda: GivingWay(lower=lambda: None, set_session=lambda niceness: True))
    monkeypatch.setattr(app, "Aside", lambda: Aside(keep_to=lambda pid, cpus: None))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """One finished run, ingested."""
    manifest = make_manifest(run_id=RUN, num_questions=6, num_turns=2, repeats=2)
    folder = write_run(tmp_path / "runs" / manifest.run_id, manifest, run_events(manifest))
    ingest(tmp_path / "specbench.duckdb", folder)
    return tmp_path
