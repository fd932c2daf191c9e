"""What a run and its rows say beside their figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from specbench.events import Event, GenerationFinished, Measured, RunStarted
from specbench.store.db import open_store
from specbench.store.ingest import ingest
from specbench.store.summary import RunSummary, summarise
from tests.store.synthetic import make_manifest, run_events, write_run


def summary_of(
    tmp_path: Path, change: Callable[[Event], Iterable[Event]] = lambda event: [event], *, num_tokens: int = 40
) -> RunSummary:
    """change: an event -> what stands in the journal for it."""
    manifest = make_manifest(num_questions=2)

    def changed() -> Iterator[Event]:
        for event in run_events(manifest, num_tokens=num_tokens):
            yield from change(event)

    ingest(tmp_path / "s.duckdb", write_run(tmp_path / manifest.run_id, manifest, changed()))
    with open_store(tmp_path / "s.duckdb", read_only=True) as connection:
        return summarise(connection, manifest.run_id)


def warmed(method: str, detail: str) -> Measured:
    return Measured(name="warm_up_s", value=1.0, unit="s", method=method, detail=detail)


def test_a_method_whose_steps_never_settled_says_so_on_its_row(tmp_path: Path) -> None:
    def change(event: Event) -> list[Event]:
        return (
            [event, warmed("tree", "2 and 1 ms"), warmed("draft_model", "")]
            if isinstance(event, RunStarted)
            else [event]
        )

    notes = {row.method: row.notes for row in summary_of(tmp_path, change).rows}
    assert "not warm when timing began: 2 and 1 ms" in notes["tree"]
    assert not any("not warm" in note for label, found in notes.items() if label != "tree" for note in found)


def test_where_nothing_was_decoded_no_figure_of_decoding_is_shown(tmp_path: Path) -> None:
    """Every answer is the prefill's token: `1.00x` and `0.00 GB/s, 0 %` would be about nothing."""
    found = summary_of(tmp_path, num_tokens=1)
    assert {row.num_steps for row in found.rows} == {0} and all(row.tokens_per_s for row in found.rows)
    assert [row.speedup_decode for row in found.rows] == [None] * len(found.rows)
    assert [row.meter for row in found.rows] == [None] * len(found.rows)
    assert found.rows[0].speedup == 1.0


def test_a_journal_that_took_more_than_its_share_is_said_of_the_run(tmp_path: Path) -> None:
    def change(event: Event) -> list[Event]:
        if not isinstance(event, GenerationFinished):
            return [event]
        share = {"tree": 0.012, "draft_model": 0.0049}.get(event.method, 0.0)
        return [dataclasses.replace(event, journal_s=share * event.total_s)]

    [told] = [note for note in summary_of(tmp_path, change).notes if "journal" in note]
    assert told.startswith("writing the journal took more than 0.5% of timed seconds (tree 1.2%)")
