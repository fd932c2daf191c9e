"""Every ratio of views.sql against a run small enough for fingers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from specbench.events import Event, Measured, Steps
from specbench.store.db import open_store
from specbench.store.ingest import ingest
from specbench.store.pairs import fetch
from tests.store.crafted import crafted_answer, crafted_group, crafted_steps, started
from tests.store.synthetic import AUTOREGRESSIVE, CHAIN, TREE, Competitor, make_manifest, write_run, write_synthetic

# One question, one repeat. Baseline: 10 steps of 1 s, prefill 1 s, 11 tokens.
# Chain: 5 steps of 1 s, the last cut by one token; the same 11 tokens.
#   step      a  b  c  d  e
#   depth     3  3  3  0  3
#   accepted  3  1  0  0  2
#   kept      4  2  1  1  2 (of 3)
SHAPES = [(3, 3, 0), (3, 1, 0), (3, 0, 0), (0, 0, 0), (3, 2, 1)]
SECONDS = {
    "prefill_s": 1.0,
    "decode_s": 5.0,
    "total_s": 6.25,
    "draft_s": 1.0,
    "verify_s": 3.0,
    "accept_s": 0.25,
    "commit_s": 0.25,
    "journal_s": 0.125,
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    manifest = make_manifest([AUTOREGRESSIVE, CHAIN], num_questions=1, repeats=1)
    events: list[Event] = [
        *crafted_group(manifest, 0, [(0, 0, 0)] * 10),
        *crafted_group(manifest, 1, SHAPES, **SECONDS, equality="tie", correct=True),
    ]
    ingest(tmp_path / "s.duckdb", write_run(tmp_path / "run-a", manifest, iter(events)))
    with open_store(tmp_path / "s.duckdb", read_only=True) as connection:
        yield connection


def one(store: duckdb.DuckDBPyConnection, query: str) -> dict[str, Any]:
    (row,) = fetch(store, query)
    return row


def test_conditional_survival_and_coverage_leave_the_cut_step_beyond_its_cut(store: duckdb.DuckDBPyConnection) -> None:
    rows = fetch(store, "SELECT * FROM acceptance_by_position WHERE category IS NULL ORDER BY depth")
    counts = [(row["num_steps"], row["num_proposed"], row["num_tested"], row["num_accepted"]) for row in rows]
    # Depth 3: step e was cut behind its second token and leaves; b and c proposed depth 3 but were not tested there.
    assert counts == [(5, 4, 4, 3), (5, 4, 3, 2), (4, 3, 1, 1)]
    assert [row["conditional"] for row in rows] == pytest.approx([3 / 4, 2 / 3, 1.0])
    assert [row["survival"] for row in rows] == pytest.approx([3 / 5, 2 / 5, 1 / 4])
    assert [row["proposed"] for row in rows] == pytest.approx([4 / 5, 4 / 5, 3 / 4])


def test_acceptance_length_counts_the_bonus_and_not_what_was_cut(store: duckdb.DuckDBPyConnection) -> None:
    row = one(store, "SELECT * FROM totals WHERE method = 'draft_model' AND category IS NULL")
    assert row["acceptance_length"] == 2.0  # 10 kept tokens in 5 steps; the prefill's token is in neither
    assert row["num_new_tokens"] == 11
    assert row["tokens_per_s"] == pytest.approx(11 / 6.25)


def test_phases_and_the_rest_make_the_whole(store: duckdb.DuckDBPyConnection) -> None:
    row = one(store, "SELECT * FROM totals WHERE method = 'draft_model' AND category IS NULL")
    assert row["other_s"] == pytest.approx(6.25 - 1 - 1 - 3 - 0.25 - 0.25)
    assert row["journal_share"] == pytest.approx(0.125 / 6.25)


def test_the_speedup_is_the_ratio_of_seconds_per_token(store: duckdb.DuckDBPyConnection) -> None:
    row = one(store, "SELECT * FROM unit_pairs WHERE method = 'draft_model'")
    assert row["speedup"] == pytest.approx((11 / 11) / (6.25 / 11))
    assert row["unit"] == "81"


def test_the_waterfall_multiplies_out_to_the_speedup(store: duckdb.DuckDBPyConnection) -> None:
    row = one(store, "SELECT * FROM waterfall WHERE method = 'draft_model' AND category IS NULL")
    terms = [row[f"{name}_s"] for name in ("draft", "verify", "accept", "commit", "other")]
    assert terms == pytest.approx([0.2, 0.6, 0.05, 0.05, 0.1])
    assert sum(terms) == pytest.approx(row["step_s"]) == pytest.approx(1.0)
    assert row["other_share"] == pytest.approx(0.1)
    assert row["ar_s"] == pytest.approx(1.0)
    assert row["speedup_decode"] == pytest.approx(2.0 * 1.0 / 1.0)
    assert row["efficiency"] == pytest.approx(row["speedup_decode"] / row["acceptance_length"])
    assert row["bound_speedup"] == pytest.approx(2.0 * 1.0 / 0.8)


def test_the_chain_is_described_by_what_theory_asks_for(store: duckdb.DuckDBPyConnection) -> None:
    row = one(store, "SELECT * FROM chain_theory")
    assert row["alpha"] == pytest.approx(6 / 8)
    assert row["gamma"] == pytest.approx(12 / 5)
    assert row["c"] == pytest.approx(0.2 / 2.4)


def test_the_meter_counts_weights_per_round_and_cache_per_context(store: duckdb.DuckDBPyConnection) -> None:
    row = one(store, "SELECT * FROM baseline_meter")
    # Ten steps behind a prompt of 20: contexts of 21 .. 30.
    assert row["num_bytes"] == 10 * 4_000_000 + sum(range(21, 31)) * 1_000
    assert row["bytes_per_s"] == pytest.approx(row["num_bytes"] / 10)
    assert row["share"] == pytest.approx(row["num_bytes"] / 10 / 8e9)


def test_verdicts_are_numbers_of_answers(store: duckdb.DuckDBPyConnection) -> None:
    row = one(store, "SELECT * FROM verdicts WHERE method = 'draft_model' AND category IS NULL")
    assert (row["identical"], row["tie"], row["numeric"], row["bug"]) == (0, 1, 0, 0)
    assert (row["num_scored"], row["num_correct"], row["accuracy"]) == (1, 1, 1.0)


def test_macro_gives_each_category_one_vote(tmp_path: Path) -> None:
    """82's category has one step of 4 tokens, 81's ten of one: pooled 14/11, macro (4 + 1) / 2."""
    manifest = make_manifest([AUTOREGRESSIVE, CHAIN], num_questions=2, repeats=1)
    shapes = {"81": [(0, 0, 0)] * 10, "82": [(3, 3, 0)]}
    events = [
        event
        for record in manifest.groups
        for event in crafted_group(
            manifest,
            record.group,
            shapes[record.question_ids[0]] if record.method == CHAIN.label else [(0, 0, 0)] * 3,
        )
    ]
    ingest(tmp_path / "s.duckdb", write_run(tmp_path / "run-a", manifest, iter(events)))
    with open_store(tmp_path / "s.duckdb", read_only=True) as connection:
        pooled = one(connection, "SELECT * FROM totals WHERE method = 'draft_model' AND category IS NULL")
        macro = one(connection, "SELECT * FROM acceptance_macro WHERE method = 'draft_model'")
    assert pooled["acceptance_length"] == pytest.approx(14 / 11)
    assert macro["acceptance_length_macro"] == pytest.approx(2.5)


def test_macro_goes_by_the_categories_of_answers_where_groups_mix_them(tmp_path: Path) -> None:
    """Two groups of both categories and one of a single one: 4 tokens a step in one category, 1 in the other."""
    categories = {"81": "math", "82": "chat", "83": "math", "84": "chat", "85": "math", "86": "math"}
    shapes = {"math": [(3, 3, 0)] * 2, "chat": [(3, 0, 0)] * 8}
    manifest = make_manifest([AUTOREGRESSIVE, CHAIN], num_questions=6, repeats=1, batch_size=2)
    questions = tuple(q.model_copy(update={"category": categories[q.question_id]}) for q in manifest.questions)
    manifest = manifest.model_copy(update={"questions": questions})
    events: list[Event] = []
    for record in manifest.groups:
        is_chain = record.method == CHAIN.label
        steps = [
            crafted_steps(shapes[categories[question_id]] if is_chain else [(0, 0, 0)] * 8, row=row)
            for row, question_id in enumerate(record.question_ids)
        ]
        answers = [crafted_answer(manifest, record.group, of_row) for of_row in steps]
        events += [started(answer) for answer in answers]
        events += [Steps(group=record.group, rows=tuple(steps[0] + steps[1])), *answers]
    ingest(tmp_path / "s.duckdb", write_run(tmp_path / manifest.run_id, manifest, iter(events)))
    with open_store(tmp_path / "s.duckdb", read_only=True) as connection:
        macro = {row["method"]: row for row in fetch(connection, "SELECT * FROM acceptance_macro")}
    assert macro["draft_model"]["acceptance_length_macro"] == pytest.approx((4 + 1) / 2)
    assert macro["autoregressive"]["acceptance_length_macro"] == pytest.approx(1.0)


def test_only_what_both_sides_finished_is_paired(tmp_path: Path) -> None:
    """The method lacks question 82: its pair is missing, the baseline's own total is not."""
    manifest = make_manifest([AUTOREGRESSIVE, CHAIN], num_questions=2, repeats=1)
    chosen = [record for record in manifest.groups if record.question_ids == ("81",) or record.method != CHAIN.label]
    events = [event for record in chosen for event in crafted_group(manifest, record.group, [(0, 0, 0)] * 3)]
    ingest(tmp_path / "s.duckdb", write_run(tmp_path / "run-a", manifest, iter(events)))
    with open_store(tmp_path / "s.duckdb", read_only=True) as connection:
        pairs = fetch(connection, "SELECT method, unit FROM unit_pairs ORDER BY method, unit")
    assert [(row["method"], row["unit"]) for row in pairs] == [
        ("autoregressive", "81"),
        ("autoregressive", "82"),
        ("draft_model", "81"),
    ]


def test_at_batch_two_the_unit_is_the_group_and_weights_are_read_once_a_round(tmp_path: Path) -> None:
    """Rows of 10 and 5 steps: 10 rounds, 15 sequence-steps, seconds of the group."""
    manifest = make_manifest([AUTOREGRESSIVE], num_questions=2, repeats=1, batch_size=2)
    steps = [crafted_steps([(0, 0, 0)] * number, row=row) for row, number in ((0, 10), (1, 5))]
    zero = {"prefill_s": 0.0, "decode_s": 0.0, "total_s": 0.0, "verify_s": 0.0}
    answers = [crafted_answer(manifest, 0, steps[0]), crafted_answer(manifest, 0, steps[1], **zero)]
    events: list[Event] = [started(answers[0]), started(answers[1])]
    events += [Steps(group=0, rows=tuple(steps[0] + steps[1])), *answers]
    events.append(Measured(name="copy_bandwidth", value=1e9, unit="bytes/s"))
    device = manifest.device.model_copy(update={"copy_bandwidth": None})
    manifest = manifest.model_copy(update={"device": device})
    ingest(tmp_path / "s.duckdb", write_run(tmp_path / "run-a", manifest, iter(events)))
    with open_store(tmp_path / "s.duckdb", read_only=True) as connection:
        pair = one(connection, "SELECT * FROM unit_pairs")
        meter = one(connection, "SELECT * FROM baseline_meter")
    assert (pair["unit"], pair["category"]) == ("81|82", "mixed")
    assert pair["seconds_per_token"] == pytest.approx(11 / 17)
    assert meter["num_bytes"] == 10 * 4_000_000 + (sum(range(21, 31)) + sum(range(21, 26))) * 1_000
    assert meter["copy_bandwidth"] == 1e9  # measured in the run where the manifest has none


def test_ranks_are_counted_by_depth_and_not_beyond_the_cut(tmp_path: Path) -> None:
    manifest = make_manifest([AUTOREGRESSIVE, TREE], num_questions=1, repeats=1)
    steps = crafted_steps([(2, 2, 0), (2, 2, 0), (2, 2, 1)])
    ranks = [(0, 2), (1, 0), (0, 1)]
    steps = [step._replace(num_nodes=6, ranks=of_step) for step, of_step in zip(steps, ranks, strict=True)]
    answer = crafted_answer(manifest, 1, steps)
    events: list[Event] = [*crafted_group(manifest, 0, [(0, 0, 0)] * 8)]
    events += [started(answer), Steps(group=1, rows=tuple(steps)), answer]
    ingest(tmp_path / "s.duckdb", write_run(tmp_path / "run-a", manifest, iter(events)))
    with open_store(tmp_path / "s.duckdb", read_only=True) as connection:
        rows = fetch(connection, "SELECT depth, rank, num, share FROM acceptance_ranks ORDER BY depth, rank")
    # The cut step kept two tokens, both accepted: its ranks at depths 1 and 2 stand.
    assert [(row["depth"], row["rank"], row["num"]) for row in rows] == [
        (1, 0, 2), (1, 1, 1), (2, 0, 1), (2, 1, 1), (2, 2, 1)
    ]  # fmt: skip
    assert rows[0]["share"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("alpha", [0.3, 0.8])
def test_the_conditional_rate_is_the_one_that_was_forced(tmp_path: Path, alpha: float) -> None:
    """About 12 000 steps at a known rate, cut by the length limit as real ones are."""
    forced = Competitor(label="forced", depth=5, alpha=alpha)
    folder = write_synthetic(
        tmp_path / "run-a", [AUTOREGRESSIVE, forced], num_questions=40, num_tokens=300, repeats=3, seed=2
    )
    ingest(tmp_path / "s.duckdb", folder)
    with open_store(tmp_path / "s.duckdb", read_only=True) as connection:
        rows = fetch(connection, "SELECT * FROM acceptance_by_position WHERE category IS NULL ORDER BY depth")
    for row in rows:
        sigma = (alpha * (1 - alpha) / row["num_tested"]) ** 0.5
        assert abs(row["conditional"] - alpha) < 4 * sigma
        assert row["survival"] == pytest.approx(alpha ** row["depth"], abs=0.02)
