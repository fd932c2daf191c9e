"""Where steps are graphs, a row of which too many timed steps met none has no rank: it was run in another way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from specbench.events import Event, Measured
from specbench.store.compare import compare
from specbench.store.db import open_store
from specbench.store.ingest import ingest
from specbench.store.listing import list_runs
from specbench.store.summary import RunSummary, summarise
from tests.store.synthetic import AUTOREGRESSIVE, CHAIN, TREE, make_manifest, run_events, write_run
from tests.store.test_summary import rows_of

CAUSE = "(with --graphs off all steps of a run do)"


def _single(label: str, number: int) -> Measured:
    return Measured(name="single_steps", value=number, unit="steps", method=label)


def _store(tmp_path: Path, told: Sequence[Event], *, batch_size: int = 1, run_id: str = "run-a") -> Path:
    """A run of 12 questions x 3 whose baseline takes 39 steps an answer, with these events in its journal."""
    manifest = make_manifest(num_questions=12, batch_size=batch_size, run_id=run_id)
    events = list(run_events(manifest, num_tokens=40))
    events[-1:-1] = told
    store = tmp_path / "specbench.duckdb"
    ingest(store, write_run(tmp_path / "runs" / manifest.run_id, manifest, iter(events)))
    return store


def _summary(tmp_path: Path, told: Sequence[Event], *, batch_size: int = 1) -> RunSummary:
    with open_store(_store(tmp_path, told, batch_size=batch_size), read_only=True) as connection:
        return summarise(connection, "run-a")


def test_one_step_in_twenty_without_a_graph_keeps_the_rank_and_is_said(tmp_path: Path) -> None:
    """The number of timed steps is the store's own: 36 answers of 39 steps."""
    found = rows_of(_summary(tmp_path, [_single(AUTOREGRESSIVE.label, 70)]))
    row = found[AUTOREGRESSIVE.label]
    assert row.ranked and row.reasons == ()
    assert "70 of 1404 timed steps met no graph and ran operator by operator" in row.notes
    assert found[TREE.label].ranked and not found[TREE.label].notes


def test_more_than_one_in_twenty_takes_the_rank_and_says_so_once(tmp_path: Path) -> None:
    """Counts of parts of a resumed run, and of single groups, add up."""
    plain = rows_of(_summary(tmp_path / "plain", ()))[CHAIN.label]
    num = plain.num_steps // 20 + 1
    found = rows_of(_summary(tmp_path, [_single(CHAIN.label, num - 3), _single(CHAIN.label, 3)]))
    row = found[CHAIN.label]
    assert not row.ranked and row.rank is None and not row.too_noisy
    reason = f"not ranked: {num} of its {plain.num_steps} timed steps met no graph and ran operator by operator {CAUSE}"
    assert row.reasons == (reason,)
    assert [note for note in row.notes if "operator" in note] == [reason]
    assert row.speedup == plain.speedup, "shown all the same"
    assert found[TREE.label].ranked and found[AUTOREGRESSIVE.label].ranked


def test_a_step_of_a_batch_is_one_step_however_many_rows_it_has(tmp_path: Path) -> None:
    """Twelve questions in groups of four, three times: nine groups of 39 steps."""
    row = rows_of(_summary(tmp_path, [_single(AUTOREGRESSIVE.label, 18)], batch_size=4))[AUTOREGRESSIVE.label]
    assert row.reasons == (f"not ranked: 18 of its 351 timed steps met no graph and ran operator by operator {CAUSE}",)


def test_a_step_that_was_thrown_away_is_not_one_more_than_there_were(tmp_path: Path) -> None:
    row = rows_of(_summary(tmp_path, [_single(AUTOREGRESSIVE.label, 36 * 40)]))[AUTOREGRESSIVE.label]
    assert row.reasons[0].startswith("not ranked: 1404 of its 1404 timed steps met no graph")


def test_steps_that_could_not_be_captured_take_the_rank_with_their_cause(tmp_path: Path) -> None:
    refused = Measured(name="num_graphs", value=0, unit="graphs", method=CHAIN.label, detail="`nonzero` reads a value")
    row = rows_of(_summary(tmp_path, [refused, _single(CHAIN.label, 500)]))[CHAIN.label]
    said = "its steps could not be captured and ran operator by operator: `nonzero` reads a value"
    assert row.reasons == (f"not ranked: {said} {CAUSE}",)
    assert [note for note in row.notes if "operator" in note] == list(row.reasons)


def test_a_baseline_without_graphs_leaves_nothing_to_rank(tmp_path: Path) -> None:
    summary = _summary(tmp_path, [_single(AUTOREGRESSIVE.label, 702)])
    assert not any(row.ranked for row in summary.rows)
    reason = "not ranked: the baseline ran operator by operator in 702 of its 1404 timed steps"
    assert rows_of(summary)[TREE.label].reasons == (reason,)
    assert sum(reason in row.reasons for row in summary.rows) == len(summary.rows) - 1


def test_rows_of_which_no_step_could_be_captured_are_ranked_among_themselves(tmp_path: Path) -> None:
    """A mixture of experts reads on the host which experts are meant: nothing of it is a graph, plain or drafted."""
    plain = rows_of(_summary(tmp_path / "plain", ()))
    labels = (AUTOREGRESSIVE.label, CHAIN.label)
    told: list[Event] = []
    for label in labels:
        told.append(Measured(name="num_graphs", value=0, unit="graphs", method=label, detail="`nonzero` reads a value"))
        told.append(_single(label, plain[label].num_steps))
    found = rows_of(_summary(tmp_path, told))
    for label in labels:
        assert found[label].ranked, found[label].reasons
        said = "its steps ran operator by operator, they could not be captured: `nonzero` reads a value"
        assert said in found[label].notes
    assert not found[TREE.label].ranked, "its steps were graphs, the baseline's were not"
    assert "the baseline ran operator by operator" in found[TREE.label].reasons[0]


def test_lists_and_comparisons_rank_no_such_row_either(tmp_path: Path) -> None:
    store = _store(tmp_path, [_single(CHAIN.label, 500)])
    (entry,) = list_runs(tmp_path).runs
    assert list(entry.unranked) == [CHAIN.label] and "met no graph" in entry.unranked[CHAIN.label]
    _store(tmp_path, (), run_id="run-b")
    with open_store(store, read_only=True) as connection:
        found = compare(connection, ["run-a", "run-b"])
    [note] = [note for note in found.notes if "met no graph" in note]
    assert note.startswith(f"run-a: {CHAIN.label} is not ranked: 500 of its")
