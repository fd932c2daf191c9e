"""What a run says of itself: the JSON scripts rely on, and who may stand in a rank."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from specbench.errors import UsageError
from specbench.events import Event, GenerationFailed, GenerationFinished, Measured
from specbench.report.standing import Standing, standing
from specbench.store.db import open_store
from specbench.store.ingest import ingest
from specbench.store.summary import MethodRow, RunSummary, run_ids, summarise, to_json
from tests.store.synthetic import (
    AUTOREGRESSIVE,
    CHAIN,
    COMPETITORS,
    CONTROL,
    SLOW,
    TREE,
    Competitor,
    make_manifest,
    run_events,
    write_run,
)

Change = Callable[[Event], Event]


def summary_of(
    tmp_path: Path,
    competitors: Sequence[Competitor] = COMPETITORS,
    *,
    change: Change = lambda event: event,
    num_tokens: int = 40,
    **plan: Any,
) -> RunSummary:
    manifest = make_manifest(competitors, **({"num_questions": 12} | plan))
    events = (change(event) for event in run_events(manifest, competitors, num_tokens=num_tokens))
    ingest(tmp_path / "s.duckdb", write_run(tmp_path / manifest.run_id, manifest, events))
    with open_store(tmp_path / "s.duckdb", read_only=True) as connection:
        return summarise(connection, manifest.run_id)


def rows_of(summary: RunSummary) -> dict[str, MethodRow]:
    return {row.method: row for row in summary.rows}


def of_method(label: str, **changes: Any) -> Change:
    """Changes every answer of one method."""

    def change(event: Event) -> Event:
        is_its = isinstance(event, GenerationFinished) and event.method == label
        return dataclasses.replace(event, **changes) if is_its else event  # type: ignore[type-var]

    return change


def test_the_json_has_every_field_that_scripts_rely_on(tmp_path: Path) -> None:
    found = json.loads(json.dumps(to_json(summary_of(tmp_path)), allow_nan=False))
    assert {
        "schema", "run_id", "suite", "target", "device", "dtype", "threads", "batch_size", "temperature", "rule",
        "seed", "rows",
    } <= found.keys()  # fmt: skip
    assert found["schema"] == 1
    chain = next(row for row in found["rows"] if row["method"] == "draft_model")
    assert {
        "method", "num_questions", "num_repeats", "num_failed", "num_new_tokens", "tokens_per_s", "speedup",
        "speedup_ci", "speedup_decode", "acceptance_length", "acceptance_by_position", "efficiency", "phase_s",
        "equality", "accuracy", "lossless", "carry", "ranked", "notes", "rank", "tied_with", "by_category",
        "speedup_total",
    } <= chain.keys()  # fmt: skip
    assert chain["acceptance_by_position"].keys() == {"conditional", "survival", "proposed"}
    assert chain["phase_s"].keys() == {"prefill", "draft", "verify", "accept", "commit", "other"}
    assert chain["equality"] == {"identical": 36, "tie": 0, "numeric": 0, "bug": 0}
    low, high = chain["speedup_ci"]
    assert low < chain["speedup"] < high
    assert (chain["num_questions"], chain["num_repeats"], chain["num_new_tokens"]) == (12, 3, 12 * 3 * 40)
    assert chain["accuracy"] is None and chain["carry"] == "none"


def test_the_baseline_is_one_and_has_no_interval(tmp_path: Path) -> None:
    row = rows_of(summary_of(tmp_path))["autoregressive"]
    assert (row.speedup, row.speedup_total, row.speedup_decode, row.speedup_ci) == (1.0, 1.0, 1.0, None)
    assert row.acceptance_by_position.conditional == ()
    assert row.meter is not None and row.ranked


def test_ranks_go_by_speed_and_the_control_has_none(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, num_questions=40)
    rows = rows_of(summary)
    assert not rows["autoregressive#2"].ranked and rows["autoregressive#2"].rank is None
    ranked = sorted((row for row in summary.rows if row.ranked), key=lambda row: row.rank or 0)
    assert [row.method for row in ranked][-2:] == ["autoregressive", "slow"]
    assert [row.rank for row in ranked][-1] == 4
    assert summary.control is not None and summary.control.passed


def test_methods_of_one_speed_share_a_rank_and_name_each_other(tmp_path: Path) -> None:
    twin = dataclasses.replace(CHAIN, label="twin")
    rows = rows_of(summary_of(tmp_path, [AUTOREGRESSIVE, CHAIN, twin], num_questions=20))
    assert rows["draft_model"].rank == rows["twin"].rank == 1
    assert rows["draft_model"].tied_with == ("twin",)
    assert rows["autoregressive"].rank == 3


def test_speedup_over_acceptance_length_is_the_efficiency(tmp_path: Path) -> None:
    for row in summary_of(tmp_path).rows:
        assert row.speedup_decode is not None and row.acceptance_length and row.efficiency
        assert row.efficiency == pytest.approx(row.speedup_decode / row.acceptance_length)
        if row.efficiency_ci is not None:
            assert row.efficiency_ci.low <= row.efficiency <= row.efficiency_ci.high


def test_theory_stands_beside_a_chain_and_not_beside_a_tree(tmp_path: Path) -> None:
    rows = rows_of(summary_of(tmp_path, num_questions=40))
    theory = rows["draft_model"].theory
    assert theory is not None and rows["tree"].theory is None
    assert theory.alpha == pytest.approx(0.7, abs=0.02) and theory.gamma == pytest.approx(4.0)
    assert theory.c == pytest.approx(0.1, rel=0.05)


def test_a_bug_takes_the_rank_and_says_how_many(tmp_path: Path) -> None:
    row = rows_of(summary_of(tmp_path, change=of_method("draft_model", equality="bug")))["draft_model"]
    assert not row.ranked and not row.lossless and row.rank is None
    assert row.equality is not None and row.equality.bug == 36
    assert any("36 answers differ" in note for note in row.notes)


def test_ties_and_numeric_differences_keep_the_rank_and_are_said(tmp_path: Path) -> None:
    row = rows_of(summary_of(tmp_path, change=of_method("draft_model", equality="numeric")))["draft_model"]
    assert row.ranked and row.lossless
    assert any("36 numeric" in note for note in row.notes)


def test_the_typical_rule_is_lossy_and_never_ranked(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, rule="typical")
    assert not any(row.ranked for row in summary.rows)
    for row in summary.rows:
        is_baseline = row.kind == "baseline"  # it drafts nothing, so no rule can take anything from it
        assert row.lossless is is_baseline
        assert any("typical" in note for note in row.notes) is not is_baseline


def test_differences_under_a_lossy_rule_are_expected_and_no_bug(tmp_path: Path) -> None:
    row = rows_of(summary_of(tmp_path, rule="typical", change=of_method("draft_model", equality="bug")))["draft_model"]
    assert "36 of 36 answers differ from the reference, as a lossy rule may" in row.notes
    assert not any("bug" in note or "beyond rounding" in note for note in row.notes)


def test_without_a_promise_equality_is_null(tmp_path: Path) -> None:
    def change(event: Event) -> Event:
        return dataclasses.replace(event, equality=None) if isinstance(event, GenerationFinished) else event  # type: ignore[type-var]

    row = rows_of(summary_of(tmp_path, change=change, rule="rejection"))["draft_model"]
    assert row.equality is None and row.lossless and row.ranked


def test_more_speed_than_acceptance_is_implausible(tmp_path: Path) -> None:
    """A method whose steps cost half of the baseline's: no engine does that, so the measurement is wrong."""
    magic = dataclasses.replace(CHAIN, label="magic", draft_s=0.0, verify_s=0.4e-3)
    row = rows_of(summary_of(tmp_path, [AUTOREGRESSIVE, CONTROL, magic]))["magic"]
    assert not row.ranked and any("implausible" in note for note in row.notes)
    assert row.speedup is not None and row.speedup > 3  # shown all the same


def test_a_wide_interval_says_too_noisy_here(tmp_path: Path) -> None:
    def change(event: Event) -> Event:
        if isinstance(event, GenerationFinished) and event.method == "draft_model":
            factor = 1.0 + 4.0 * (int(event.question_id) % 4 == 0)
            return dataclasses.replace(event, total_s=event.total_s * factor)
        return event

    row = rows_of(summary_of(tmp_path, change=change))["draft_model"]
    assert not row.ranked and any(note.startswith("too noisy here: the interval is ±") for note in row.notes)
    assert row.too_noisy and not any(other.too_noisy for other in rows_of(summary_of(tmp_path, run_id="b")).values())


@pytest.mark.parametrize("reason", ["bug", "lossy", "no competitor"])
def test_a_row_that_more_repeats_would_not_rank_is_never_only_too_noisy(tmp_path: Path, reason: str) -> None:
    """`too noisy here` in a rank's place promises one; the width of the interval is said all the same."""

    def wide(event: Event) -> Event:
        if isinstance(event, GenerationFinished) and event.method == "draft_model":
            factor = 1.0 + 4.0 * (int(event.question_id) % 4 == 0)
            changed = dataclasses.replace(event, total_s=event.total_s * factor)
            return dataclasses.replace(changed, equality="bug") if reason == "bug" else changed
        return event

    plan: dict[str, Any] = {"rule": "typical"} if reason == "lossy" else {}
    if reason == "no competitor":
        methods = make_manifest().methods
        plan["methods"] = tuple(each.model_copy(update={"is_ranked": each.label != "draft_model"}) for each in methods)
    row = rows_of(summary_of(tmp_path, change=wide, **plan))["draft_model"]
    assert not row.ranked and not row.too_noisy
    assert any(note.startswith("too noisy here") for note in row.notes)


def test_one_question_gives_no_interval_and_no_rank(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, num_questions=1)
    assert not any(row.ranked for row in summary.rows)
    assert all(row.speedup_ci is None for row in summary.rows)
    assert "not ranked: one question gives no interval" in rows_of(summary)["tree"].notes
    batched = rows_of(summary_of(tmp_path, num_questions=2, batch_size=2, run_id="batched"))["tree"]
    assert "not ranked: one group of questions gives no interval" in batched.notes


def test_one_of_a_kind_is_said_in_the_singular(tmp_path: Path) -> None:
    def change(event: Event) -> Event:
        if isinstance(event, GenerationFinished) and event.question_id == "81" and event.repeat == 0:
            verdicts = {"draft_model": "bug", "slow": "tie"}
            return dataclasses.replace(event, equality=verdicts.get(event.method, "identical"))
        return event

    rows = rows_of(summary_of(tmp_path, change=change))
    assert any("1 answer differs from" in note for note in rows["draft_model"].notes)
    assert "1 tie and 0 numeric differences from the reference" in rows["slow"].notes


def test_failures_are_counted_and_in_no_number(tmp_path: Path) -> None:
    def change(event: Event) -> Event:
        if isinstance(event, GenerationFinished) and event.method == "slow" and event.question_id == "81":
            names = [field.name for field in dataclasses.fields(GenerationFailed) if field.name != "error"]
            return GenerationFailed(**{name: getattr(event, name) for name in names}, error="NaN logits")
        return event

    row = rows_of(summary_of(tmp_path, change=change))["slow"]
    assert (row.num_failed, row.num_questions) == (3, 11)
    assert row.num_new_tokens == 11 * 3 * 40
    assert any("3 generations failed" in note for note in row.notes)


def test_a_method_without_an_answer_is_not_called_lossless(tmp_path: Path) -> None:
    def failing(event: Event) -> Event:
        if not (isinstance(event, GenerationFinished) and event.method == "tree"):
            return event
        names = [field.name for field in dataclasses.fields(GenerationFailed) if field.name != "error"]
        return GenerationFailed(**{name: getattr(event, name) for name in names}, error="out of memory")

    rows = rows_of(summary_of(tmp_path, change=failing, num_questions=2, repeats=1))
    assert rows["tree"].speedup is None and not rows["tree"].lossless and rows["draft_model"].lossless


def slower_control(event: Event) -> Event:
    if isinstance(event, GenerationFinished) and event.method == "autoregressive#2":
        return dataclasses.replace(event, total_s=event.total_s * 1.03)
    return event


def test_a_failed_control_is_said_of_the_run(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, change=slower_control)
    assert summary.control is not None and summary.control.passed is False
    (note,) = [note for note in summary.notes if "A/A control failed" in note]
    assert "excludes 1" in note and "quiet machine" in note and "--repeats" in note


def test_a_failed_control_withholds_every_rank_and_no_speedup(tmp_path: Path) -> None:
    """Differences of the size that equal things show here must not become a ranking."""
    still = rows_of(summary_of(tmp_path, run_id="still"))
    rows = rows_of(summary_of(tmp_path, change=slower_control))
    for label in ("autoregressive", "draft_model", "tree", "slow"):
        assert still[label].ranked and still[label].rank is not None and not still[label].control_failed
        row = rows[label]
        assert not row.ranked and row.rank is None and row.tied_with == () and row.control_failed
        assert row.notes[0].startswith("control failed: autoregression against itself gives [")
        assert (row.speedup, row.speedup_ci) == (still[label].speedup, still[label].speedup_ci)
    assert not rows["autoregressive#2"].control_failed  # it never had a rank to lose


def test_a_failed_control_counts_for_a_row_that_is_too_noisy_as_well(tmp_path: Path) -> None:
    """Else the page would say of it that the whole of its interval lies above plain decoding."""

    def change(event: Event) -> Event:
        event = slower_control(event)
        if isinstance(event, GenerationFinished) and event.method == "draft_model":
            return dataclasses.replace(event, total_s=event.total_s * (1.0 + int(event.question_id) % 2))
        return event

    row = rows_of(summary_of(tmp_path, change=change))["draft_model"]
    assert row.control_failed and not row.too_noisy and standing(row) is Standing.CONTROL_FAILED
    assert [reason.partition(":")[0] for reason in row.reasons] == ["control failed", "too noisy here"]
    assert row.notes[:2] == row.reasons


def test_a_row_with_a_reason_of_its_own_keeps_it_when_the_control_fails(tmp_path: Path) -> None:
    def change(event: Event) -> Event:
        return of_method("draft_model", equality="bug")(slower_control(event))

    row = rows_of(summary_of(tmp_path, change=change))["draft_model"]
    assert not row.ranked and not row.control_failed
    assert not any("control failed" in note for note in row.notes)


def test_a_run_without_control_or_repeats_says_so(tmp_path: Path) -> None:
    notes = " ".join(summary_of(tmp_path, [AUTOREGRESSIVE, TREE], repeats=1).notes)
    assert "no A/A control" in notes and "1 repeat: a published" in notes


def test_without_a_baseline_there_are_no_speedups(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, [CHAIN, TREE])
    assert all(row.speedup is None and not row.ranked for row in summary.rows)
    assert all(row.tokens_per_s for row in summary.rows)
    assert any("no autoregressive baseline" in note for note in summary.notes)
    json.dumps(to_json(summary), allow_nan=False)


def test_a_slow_baseline_on_cuda_gives_no_ranks(tmp_path: Path) -> None:
    device = make_manifest().device.model_copy(update={"kind": "cuda", "copy_bandwidth": 1e13})
    summary = summary_of(tmp_path, device=device)
    assert not any(row.ranked for row in summary.rows)
    assert any("baseline is slow" in note for note in rows_of(summary)["draft_model"].notes)


def test_categories_stand_below_the_whole_and_not_at_batch_two(tmp_path: Path) -> None:
    row = rows_of(summary_of(tmp_path))["draft_model"]
    assert sorted(category.category for category in row.by_category) == ["math", "writing"]
    assert sum(category.num_questions for category in row.by_category) == row.num_questions
    assert all(category.speedup_ci is not None for category in row.by_category)
    batched = summary_of(tmp_path, batch_size=2, run_id="batched")
    assert all(row.by_category == () for row in batched.rows)
    assert any("batch 2" in note for note in batched.notes)
    assert rows_of(batched)["draft_model"].num_questions == 12


def test_an_interrupted_run_is_summed_up_and_says_how_far_it_came(tmp_path: Path) -> None:
    manifest = make_manifest(num_questions=4)
    events = list(run_events(manifest))
    ingest(tmp_path / "s.duckdb", write_run(tmp_path / "run-a", manifest, iter(events[: len(events) // 2])))
    with open_store(tmp_path / "s.duckdb", read_only=True) as connection:
        summary = summarise(connection, "run-a")
    assert summary.state == "lost"
    assert any("of 60 planned" in note for note in summary.notes)


def test_a_run_that_has_measured_nothing_is_summed_up_too(tmp_path: Path) -> None:
    manifest = make_manifest(num_questions=1)
    ingest(tmp_path / "s.duckdb", write_run(tmp_path / "run-a", manifest, iter(list(run_events(manifest))[:1])))
    with open_store(tmp_path / "s.duckdb", read_only=True) as connection:
        summary = summarise(connection, "run-a")
    assert all(row.speedup is None and row.tokens_per_s is None and not row.ranked for row in summary.rows)


def test_answers_of_the_prefill_alone_divide_by_nothing(tmp_path: Path) -> None:
    """A model that stops at once decodes no step: no acceptance, no efficiency, no NaN in the JSON."""
    summary = summary_of(tmp_path, num_tokens=1)
    for row in summary.rows:
        assert row.acceptance_length is None and row.efficiency is None and row.waterfall is None
        assert row.tokens_per_s is not None and row.speedup is not None
    json.dumps(to_json(summary), allow_nan=False)


def test_an_unknown_run_suggests_the_nearest(tmp_path: Path) -> None:
    summary_of(tmp_path)
    with open_store(tmp_path / "s.duckdb", read_only=True) as connection:
        assert run_ids(connection) == ["run-a"]
        with pytest.raises(UsageError, match="did you mean 'run-a'"):
            summarise(connection, "run-b")


def test_the_same_store_gives_the_same_summary(tmp_path: Path) -> None:
    first = summary_of(tmp_path, [AUTOREGRESSIVE, SLOW])
    with open_store(tmp_path / "s.duckdb", read_only=True) as connection:
        assert summarise(connection, "run-a") == first


def test_the_store_loads_no_torch() -> None:
    code = (
        "import sys, specbench.store.summary, specbench.store.ingest, specbench.store.compare, specbench.store.listing,"
        "specbench.store.external, specbench.store.export;"
        "print(sorted({'torch', 'textual', 'plotly'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_row_that_learnt_beside_its_answers_does_not_say_that_learning_is_missing_from_its_times(
    tmp_path: Path,
) -> None:
    said = {}
    for learning in ("serial", "concurrent"):
        manifest = make_manifest(
            (AUTOREGRESSIVE, CONTROL, dataclasses.replace(CHAIN, options=(("learning", learning),))), run_id=learning
        )
        events = list(run_events(manifest, (AUTOREGRESSIVE, CONTROL, CHAIN)))
        events.insert(-1, Measured(name="learn_s", value=2.5, unit="s", method=CHAIN.label))
        ingest(tmp_path / "s.duckdb", write_run(tmp_path / learning, manifest, iter(events)))
        with open_store(tmp_path / "s.duckdb", read_only=True) as connection:
            row = rows_of(summarise(connection, learning))[CHAIN.label]
        [said[learning]] = [note for note in row.notes if "learnt" in note]
    assert said["serial"].startswith("learnt for 2.5 s between answers; with that on its clock (serial)")
    assert said["concurrent"].startswith("learnt beside its answers (concurrent): what rounds took of the cores is in")
    assert "handing over to them took 2.5 s" in said["concurrent"] and "serial" not in said["concurrent"]
