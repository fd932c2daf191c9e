"""What stands beside what on the page, and in which place."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from specbench.metrics import Interval
from specbench.report.board import RunRecord, build_board
from specbench.store.records import RunSummary
from tests.report.samples import external_row, failed, method_row, record, summary


def _rows(board: dict[str, Any], scope: int = 0) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in board["scopes"][scope]["rows"]}


def _later(found: RunSummary, **changes: Any) -> RunSummary:
    return dataclasses.replace(found, run_id="later", created="2026-11-22T00:00:00Z", **changes)


@pytest.mark.parametrize(
    "change",
    [
        {"suite_hash": "c" * 64},
        {"target_hash": "c" * 64},
        {"quantisation": "int8"},
        {"dtype": "bfloat16"},
        {"device": "Another CPU"},
        {"device_kind": "cuda"},
        {"threads": 2},
        {"attention": "reference"},
        {"execution": "graphs"},
        {"temperature": 1.0},
        {"top_p": 0.9},
        {"repetition_penalty": 1.1},
        {"rule": "rejection"},
        {"batch_size": 2},
        {"carry": "stream"},
        {"max_new_tokens": 128},
        {"stop": ("Question:",)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_rows_measured_under_other_conditions_stand_in_another_scope(change: dict[str, Any]) -> None:
    board = build_board([record(summary()), record(_later(summary(), **change))], [])
    assert len(board["scopes"]) == 2
    assert len({scope["title"] for scope in board["scopes"]}) == 2


def test_another_choice_of_questions_is_another_scope() -> None:
    board = build_board([record(summary()), record(_later(summary(), num_questions=20))], [])
    assert len(board["scopes"]) == 2


def test_another_seed_or_number_of_repeats_is_the_same_scope() -> None:
    board = build_board([record(summary()), record(_later(summary(), seed=7, repeats=5))], [])
    assert len(board["scopes"]) == 1


def test_suites_of_one_setting_share_a_figure_and_other_settings_do_not() -> None:
    same = _later(summary(), suite="gsm8k", suite_hash="c" * 64)
    other = dataclasses.replace(same, run_id="other", dtype="float64")
    scopes = build_board([record(summary()), record(same), record(other)], [])["scopes"]
    settings = {(scope["suite"], scope["title"]): scope["setting"] for scope in scopes}
    assert len(settings) == 3 and len(set(settings.values())) == 2


def test_the_ranks_of_a_run_are_the_store_s() -> None:
    a, b = method_row("a", rank=1, tied_with=("b",)), method_row("b", speedup=1.4, rank=1, tied_with=("a",))
    c = method_row("c", speedup=1.3, rank=3)
    rows = _rows(build_board([record(summary(a, b, c))], []))
    assert [rows[name]["rank_text"] for name in "abc"] == ["1=", "1=", "3"]
    assert rows["a"]["notes"] == ["tied with b"]


def test_rows_of_two_runs_tie_when_their_intervals_overlap() -> None:
    old = summary(method_row("a", speedup=1.60, half=0.04), method_row("c", speedup=1.3, half=0.02, rank=2))
    new = _later(summary(method_row("b", speedup=1.66, half=0.04)))
    rows = _rows(build_board([record(old), record(new)], []))
    assert [rows[name]["rank_text"] for name in ("b", "a", "c")] == ["1=", "1=", "3"]
    assert rows["a"]["tied_with"] == ["b"]


def test_the_newest_row_of_a_method_replaces_its_older_ones() -> None:
    board = build_board(
        [record(summary(method_row(speedup=1.6))), record(_later(summary(method_row(speedup=1.8))))], []
    )
    rows = board["scopes"][0]["rows"]
    assert [row["speedup"] for row in rows if row["method"] == "draft_model"] == [1.8]
    assert board["scopes"][0]["runs"] == ["later"]
    assert set(board["runs"]) == {"later", "20261121-0335-ab12"}


def test_a_newer_run_that_failed_takes_no_good_run_s_place_and_is_named() -> None:
    """Two newer runs measured nothing: the older figures stand, and every row says which runs failed since."""
    good = summary(method_row("a"))
    worse = dataclasses.replace(failed(good), run_id="worse", created="2026-11-21T23:00:00Z")
    board = build_board([record(good), record(failed(_later(good))), record(worse)], [])
    scope, rows = board["scopes"][0], _rows(board)
    assert scope["runs"] == [good.run_id]
    assert {name: (row["speedup"], row["run_id"]) for name, row in rows.items()} == {
        "a": (1.6, good.run_id),
        "autoregressive": (1.0, good.run_id),
        "autoregressive#2": (1.002, good.run_id),
    }
    assert all("newer runs of it failed: later and worse" in row["notes"] for row in rows.values())
    assert any("A/A control" in remark for remark in scope["remarks"]) and scope["meter"]


def test_a_method_that_failed_in_a_newer_run_stands_beside_that_run_s_own_rows() -> None:
    """One method's row is older than its neighbour's and the baseline; only it says that a newer run failed."""
    old = summary(method_row("a", speedup=1.6), method_row("b", speedup=1.3, rank=2))
    newer = _later(summary(method_row("a", speedup=None, rank=None, num_failed=240), method_row("b", speedup=1.4)))
    rows = _rows(build_board([record(old), record(newer)], []))
    assert {name: row["run_id"] for name, row in rows.items()} == {
        "a": old.run_id,
        "b": "later",
        "autoregressive": "later",
        "autoregressive#2": "later",
    }
    assert [name for name, row in rows.items() if "a newer run of it failed: later" in row["notes"]] == ["a"]


def test_where_every_run_of_a_method_failed_its_newest_row_stands_without_a_number() -> None:
    first = failed(summary(method_row("a")))
    rows = _rows(build_board([record(first), record(failed(_later(first)))], []))
    assert (rows["a"]["run_id"], rows["a"]["speedup"]) == ("later", None)
    assert not any("newer" in note for row in rows.values() for note in row["notes"])


def test_several_runs_in_a_scope_show_one_baseline_and_one_control() -> None:
    board = build_board([record(summary(method_row("a"))), record(_later(summary(method_row("b"))))], [])
    names = sorted(row["method"] for row in board["scopes"][0]["rows"])
    assert names == ["a", "autoregressive", "autoregressive#2", "b"]


def test_a_partial_run_does_not_mix_with_finished_ones() -> None:
    half = _later(summary(method_row("b")), state="interrupted")
    board = build_board([record(summary(method_row("a"))), record(half)], [])
    assert "b" not in _rows(board)
    assert "b" in _rows(build_board([record(half)], []))


def test_a_noisy_row_has_words_in_place_of_its_rank() -> None:
    noisy = method_row("suffix", half=0.5, rank=None, too_noisy=True)
    row = _rows(build_board([record(summary(noisy))], []))["suffix"]
    assert (row["rank"], row["rank_text"], row["standing"]) == (None, "too noisy here", "noisy")


def test_a_run_whose_control_failed_takes_no_rank_beside_a_run_whose_did_not() -> None:
    withheld = method_row("suffix", speedup=1.5, ranked=False, rank=None, control_failed=True)
    rows = _rows(build_board([record(summary(withheld)), record(_later(summary(method_row("b", speedup=1.2))))], []))
    assert (rows["suffix"]["rank"], rows["suffix"]["rank_text"]) == (None, "control failed")
    assert rows["suffix"]["standing"] == "control_failed" and rows["suffix"]["speedup"] == 1.5
    assert rows["b"]["rank"] == 1


def test_external_rows_never_enter_a_scope() -> None:
    board = build_board([record(summary())], [external_row()])
    assert [row["method"] for row in board["external"]] == ["their_method"]
    assert "their_method" not in _rows(board)
    assert "their_method" not in board["methods"]


def test_the_baseline_is_ranked_as_exactly_one_beside_rows_of_another_run() -> None:
    """Without an interval of its own it ties with a row whose interval contains 1, and with no other."""
    newest = summary(method_row("a", rank=1), method_row("b", speedup=0.8, rank=3))
    ranked = tuple(
        dataclasses.replace(row, ranked=True, rank=2) if row.method == "autoregressive" else row for row in newest.rows
    )
    near = dataclasses.replace(
        summary(method_row("near", speedup=1.01, half=0.02)), run_id="older", created="2026-01-01"
    )
    rows = _rows(build_board([record(dataclasses.replace(newest, rows=ranked)), record(near)], []))
    assert rows["autoregressive"]["tied_with"] == ["near"]
    assert [rows[name]["rank_text"] for name in ("a", "autoregressive", "near", "b")] == ["1", "2=", "2=", "4"]


def test_numbers_keep_six_digits_and_names_lose_their_control_characters() -> None:
    row = method_row("a\x1b[2J", speedup_ci=Interval(1.23456789, 2.0))
    found = build_board([record(summary(row))], [])["scopes"][0]["rows"][0]
    assert found["speedup_ci"] == [1.23457, 2.0]
    assert found["method"] == "a\ufffd[2J"


def test_an_empty_store_is_an_empty_board() -> None:
    board = build_board([], [])
    assert (board["scopes"], board["runs"], board["external"]) == ([], {}, [])


def test_rows_of_one_name_and_other_options_say_in_what_they_differ() -> None:
    """prompt_lookup of two runs with other settings: two rows that only their options tell apart."""
    old, new = record(summary(method_row("a"))), record(_later(summary(method_row("a"))))

    def with_options(found: RunRecord, **options: int) -> RunRecord:
        methods = [
            method.model_copy(update={"options": options} if method.label == "a" else {})
            for method in found.manifest.methods
        ]
        return dataclasses.replace(found, manifest=found.manifest.model_copy(update={"methods": tuple(methods)}))

    board = build_board([with_options(old, num_tokens=10, width=1), with_options(new, num_tokens=5, width=1)], [])
    details = [row["detail"] for row in board["scopes"][0]["rows"] if row["method"] == "a"]
    assert sorted(detail.split(" · ")[0] for detail in details) == ["num_tokens=10", "num_tokens=5"]
    alone = build_board([with_options(old, num_tokens=10, width=1)], [])
    assert not any("num_tokens" in row["detail"] for row in alone["scopes"][0]["rows"])
