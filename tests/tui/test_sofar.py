"""Speed-ups from a journal alone against those of the store: one pairing, written in two languages."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from specbench.events import Event, GenerationFailed, GenerationFinished
from specbench.manifest import read_manifest
from specbench.store.db import open_store
from specbench.store.ingest import ingest
from specbench.store.summary import summarise
from specbench.tui.index import RunIndex
from specbench.tui.sofar import SoFar
from tests.store.synthetic import make_manifest, run_events, write_run, write_synthetic


@pytest.mark.parametrize(("batch_size", "num_turns"), [(1, 2), (2, 1)])
def test_figures_so_far_of_a_finished_run_are_the_tables(tmp_path: Path, batch_size: int, num_turns: int) -> None:
    """The race would otherwise show another interval than `results show`."""
    folder = write_synthetic(tmp_path / "runs" / "run-a", num_questions=6, batch_size=batch_size, num_turns=num_turns)
    index = RunIndex(folder)
    index.advance()
    found = SoFar(read_manifest(folder)).figures(index)
    ingest(tmp_path / "specbench.duckdb", folder)
    with open_store(tmp_path / "specbench.duckdb", read_only=True) as connection:
        summary = summarise(connection, "run-a")
    for row in summary.rows:
        mine = found[row.method]
        assert mine.tokens_per_s == pytest.approx(row.tokens_per_s)
        assert mine.acceptance_length == pytest.approx(row.acceptance_length)
        if row.kind == "baseline" and not row.is_control:
            assert mine.speedup is None
            continue
        assert mine.speedup is not None and row.speedup_ci is not None and mine.speedup.interval is not None
        assert mine.speedup.geometric_mean == pytest.approx(row.speedup)
        assert tuple(mine.speedup.interval) == pytest.approx(tuple(row.speedup_ci))


@pytest.mark.parametrize("share", [0.4, 0.53, 0.87])
def test_figures_so_far_of_a_cut_run_with_failures_are_the_tables(tmp_path: Path, share: float) -> None:
    """Which questions count for whom is said twice, in SQL and here."""

    def failing(event: Event) -> Event:
        if not isinstance(event, GenerationFinished) or event.turn == 0 or event.method != "draft_model":
            return event
        if event.question_id not in ("82", "85"):
            return event
        names = [field.name for field in dataclasses.fields(GenerationFailed) if field.name != "error"]
        return GenerationFailed(**{name: getattr(event, name) for name in names}, error="out of memory")

    manifest = make_manifest(num_questions=6, num_turns=2)
    events = [failing(event) for event in run_events(manifest)]
    folder = write_run(tmp_path / "runs" / "run-a", manifest, iter(events[: int(share * len(events))]))
    index = RunIndex(folder)
    index.advance()
    found = SoFar(manifest).figures(index)
    ingest(tmp_path / "specbench.duckdb", folder)
    with open_store(tmp_path / "specbench.duckdb", read_only=True) as connection:
        summary = summarise(connection, "run-a")
    rows = [row for row in summary.rows if row.method != "autoregressive" and row.speedup is not None]
    assert len({row.num_units for row in rows}) > 1, "some question counts for one method and not for another"
    for row in rows:
        mine = found[row.method].speedup
        assert mine is not None and mine.num_units == row.num_units
        assert mine.geometric_mean == pytest.approx(row.speedup)


def test_half_a_run_counts_only_what_has_a_pair(tmp_path: Path) -> None:
    folder = write_synthetic(tmp_path / "run-a", num_questions=3, repeats=1)
    index = RunIndex(folder)
    index.advance()
    last_baseline = max(n for n, g in index.groups.items() if g.rows[0].method == "autoregressive")
    del index.groups[last_baseline]
    found = SoFar(read_manifest(folder)).figures(index)
    speedup = found["draft_model"].speedup
    assert speedup is not None and speedup.num_units == 2


def test_before_the_baseline_has_answered_there_is_no_speedup(tmp_path: Path) -> None:
    folder = write_synthetic(tmp_path / "run-a", num_questions=1, repeats=1)
    index = RunIndex(folder)
    index.advance()
    index.groups = {n: g for n, g in index.groups.items() if g.rows[0].method == "tree"}
    found = SoFar(read_manifest(folder)).figures(index)
    assert found["tree"].speedup is None and found["tree"].num_tokens == 40
