"""Two methods are compared over the same turns and repeats of the same questions, whatever one of them failed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from specbench.bench.plan import Planned, make_plan
from specbench.events import Event, GenerationFailed, GenerationFinished
from specbench.manifest import Manifest
from specbench.store.compare import compare
from specbench.store.db import open_store
from specbench.store.ingest import ingest
from specbench.store.pairs import fetch
from specbench.store.records import MethodRow
from specbench.store.summary import summarise
from tests.store.synthetic import (
    AUTOREGRESSIVE,
    CHAIN,
    COMPETITORS,
    CONTROL,
    Competitor,
    make_manifest,
    run_events,
    write_run,
)

TWIN = dataclasses.replace(CHAIN, label="twin")
FOUR = (AUTOREGRESSIVE, CONTROL, CHAIN, TWIN)
Fails = Callable[[GenerationFinished], bool]


def failed(event: GenerationFinished) -> GenerationFailed:
    names = [field.name for field in dataclasses.fields(GenerationFailed) if field.name != "error"]
    return GenerationFailed(**{name: getattr(event, name) for name in names}, error="out of memory")


def events_of(manifest: Manifest, competitors: tuple[Competitor, ...], fails: Fails) -> Iterator[Event]:
    """On second turns drafting pays nothing: whoever drafts takes three times as long there."""
    for event in run_events(manifest, competitors):
        if isinstance(event, GenerationFinished) and event.turn == 1 and not event.method.startswith("autoregressive"):
            event = dataclasses.replace(event, total_s=3 * event.total_s)
        yield failed(event) if isinstance(event, GenerationFinished) and fails(event) else event


def put(tmp_path: Path, fails: Fails, *, run_id: str = "run-a", first: int | None = None) -> dict[str, MethodRow]:
    """A run of two-turn questions, or its first events; its rows by method."""
    manifest = make_manifest(FOUR, run_id=run_id, num_questions=12, num_turns=2)
    events = list(events_of(manifest, FOUR, fails))
    ingest(tmp_path / "s.duckdb", write_run(tmp_path / run_id, manifest, iter(events[:first])))
    with open_store(tmp_path / "s.duckdb", read_only=True) as connection:
        return {row.method: row for row in summarise(connection, run_id).rows}


def is_second_turn_of(method: str, *question_ids: str) -> Fails:
    return lambda event: event.method == method and event.turn == 1 and event.question_id in question_ids


def test_failing_what_is_slow_for_both_brings_no_rank(tmp_path: Path) -> None:
    """The two are equally fast on every answer that both finished."""
    half = tuple(str(81 + index) for index in range(6))
    rows = put(tmp_path, is_second_turn_of("twin", *half))
    assert rows["twin"].num_units == 6 and rows["draft_model"].num_units == 12
    assert rows["twin"].tied_with == ("draft_model",) and rows["draft_model"].tied_with == ("twin",)
    assert rows["twin"].speedup == pytest.approx(rows["draft_model"].speedup, rel=0.05)
    whole = "its speed-up rests on 6 of 12 questions: left out whole are 6 in which it failed"
    assert whole in rows["twin"].notes
    assert not any("rests on" in note for note in rows["draft_model"].notes)


def test_a_method_without_a_whole_question_has_no_speedup_and_says_why(tmp_path: Path) -> None:
    row = put(tmp_path, lambda event: event.method == "twin" and event.turn == 1)["twin"]
    assert row.speedup is None and row.num_units == 0 and not row.ranked
    assert row.reasons == ("not ranked: it finished no question as far as the baseline did",)
    assert row.tokens_per_s is not None, "what it finished is counted all the same"


def test_one_failed_repeat_takes_the_question_for_that_method_alone(tmp_path: Path) -> None:
    rows = put(tmp_path, lambda event: event.method == "twin" and event.question_id == "81" and event.repeat == 2)
    assert {name: row.num_units for name, row in rows.items()} == {
        "autoregressive": 12, "autoregressive#2": 12, "draft_model": 12, "twin": 11,
    }  # fmt: skip
    with open_store(tmp_path / "s.duckdb", read_only=True) as connection:
        query = "SELECT method, count(*) AS num FROM paired_cells GROUP BY method ORDER BY method"
        cells = {row["method"]: row["num"] for row in fetch(connection, query)}
    assert cells["draft_model"] == 12 * 2 * 3 and cells["twin"] == 11 * 2 * 3


def test_what_the_baseline_failed_is_in_nobodys_speedup_and_costs_no_question(tmp_path: Path) -> None:
    rows = put(tmp_path, is_second_turn_of("autoregressive", "81"))
    assert rows["draft_model"].num_units == rows["twin"].num_units == 12
    for name in ("draft_model", "twin", "autoregressive#2"):
        assert "3 of its timed generations stand in no speed-up: the baseline failed there" in rows[name].notes


def test_in_a_run_that_was_cut_only_the_question_in_progress_is_out(tmp_path: Path) -> None:
    """The baseline is ahead of one method and behind another at nearly every moment of a run."""
    manifest = make_manifest(FOUR, num_questions=12, num_turns=2)
    events = list(events_of(manifest, FOUR, lambda _: False))
    ends = [place for place, event in enumerate(events) if isinstance(event, GenerationFinished)]
    # Two questions whole; of the third both turns of three repeats but for the last two answers, chain and twin.
    cut = ends[3 * 2 * 3 * len(FOUR) - 3] + 1
    rows = put(tmp_path, lambda _: False, first=cut)
    assert [rows[name].num_units for name in ("autoregressive", "autoregressive#2", "draft_model", "twin")] == [
        3,
        3,
        2,
        2,
    ]
    open_ = "its speed-up rests on 2 of 3 questions: left out whole are 1 not measured to the end"
    assert open_ in rows["draft_model"].notes and not rows["draft_model"].num_failed


def test_a_stream_that_was_cut_in_its_last_repeat_loses_one_question_at_most(tmp_path: Path) -> None:
    """Repeat by repeat: every question then has fewer cells than were planned, and all methods the same ones."""
    manifest = make_manifest(FOUR, num_questions=6, carry="stream")
    questions = [Planned(each.question_id, each.num_turns, 20) for each in manifest.questions]
    labels = [method.label for method in manifest.methods]
    plan = make_plan(questions, labels, repeats=3, batch_size=1, seed=0, carry="stream")
    manifest = manifest.model_copy(update={"groups": plan})
    events = list(run_events(manifest, FOUR))
    ends = [place for place, event in enumerate(events) if isinstance(event, GenerationFinished)]
    cut = ends[(2 * 6 + 3) * len(FOUR) + 1] + 1  # in the fourth question of the third repeat
    ingest(tmp_path / "s.duckdb", write_run(tmp_path / manifest.run_id, manifest, iter(events[:cut])))
    with open_store(tmp_path / "s.duckdb", read_only=True) as connection:
        rows = summarise(connection, "run-a").rows
        counted = fetch(connection, "SELECT unit, count(DISTINCT len(turns)) AS num FROM unit_pairs GROUP BY unit")
    assert all(row.num_units >= 5 for row in rows) and {row.num_units for row in rows} <= {5, 6}
    assert len(counted) == 6 and all(row["num"] == 1 for row in counted)


def test_at_batch_two_one_failed_row_takes_its_group(tmp_path: Path) -> None:
    manifest = make_manifest(FOUR, num_questions=8, batch_size=2)
    events = events_of(manifest, FOUR, lambda event: event.method == "twin" and event.question_id == "82")
    ingest(tmp_path / "s.duckdb", write_run(tmp_path / manifest.run_id, manifest, events))
    with open_store(tmp_path / "s.duckdb", read_only=True) as connection:
        rows = {row.method: row for row in summarise(connection, "run-a").rows}
    assert (rows["draft_model"].num_units, rows["twin"].num_units) == (4, 3)
    whole = "its speed-up rests on 3 of 4 groups of questions: left out whole are 1 in which it failed"
    assert whole in rows["twin"].notes


def test_runs_are_compared_by_questions_of_the_same_turns(tmp_path: Path) -> None:
    """Where one run's baseline failed a second turn, that question is its first turn there and both turns here."""
    put(tmp_path, lambda _: False)
    put(tmp_path, is_second_turn_of("autoregressive", "81", "82"), run_id="run-b")
    with open_store(tmp_path / "s.duckdb", read_only=True) as connection:
        assert compare(connection, ["run-a", "run-b"]).num_units == 10


def test_runs_of_other_numbers_of_repeats_share_their_questions(tmp_path: Path) -> None:
    for run_id, repeats in (("run-a", 3), ("run-b", 2)):
        manifest = make_manifest(COMPETITORS, run_id=run_id, num_questions=4, num_turns=2, repeats=repeats)
        ingest(tmp_path / "s.duckdb", write_run(tmp_path / run_id, manifest, run_events(manifest)))
    with open_store(tmp_path / "s.duckdb", read_only=True) as connection:
        assert compare(connection, ["run-a", "run-b"]).num_units == 4


def test_a_comparison_goes_on_without_a_method_that_finished_nothing(tmp_path: Path) -> None:
    put(tmp_path, lambda event: event.method == "twin")
    put(tmp_path, lambda _: False, run_id="run-b")
    with open_store(tmp_path / "s.duckdb", read_only=True) as connection:
        found = compare(connection, ["run-a", "run-b"])
    assert {(row.run_id, row.method) for row in found.entries} == {
        ("run-a", "draft_model"), ("run-b", "draft_model"), ("run-b", "twin"),
    }  # fmt: skip
    (note,) = found.notes
    assert note.startswith("run-a: twin is left out of this comparison; not ranked: nothing that the baseline finished")
