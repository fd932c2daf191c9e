"""What one option is worth: pairs that differ in it alone, and what is said of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from specbench.store.db import open_store
from specbench.store.ingest import ingest
from specbench.store.records import Contrast
from specbench.store.summary import summarise, to_json
from tests.store.synthetic import AR_S, AUTOREGRESSIVE, CONTROL, Competitor, make_manifest, run_events, write_run

PLAIN = Competitor(
    label="lstm[draft=plain]", depth=4, alpha=0.5, verify_s=1.1 * AR_S, options=(("draft", "plain"), ("width", 1))
)
NOISE = dataclasses.replace(
    PLAIN, label="lstm[draft=shared-noise]", alpha=0.8, options=(("draft", "shared-noise"), ("width", 1))
)
WIDE = dataclasses.replace(PLAIN, label="lstm[width=2]", options=(("draft", "plain"), ("width", 2)))
WIDER = dataclasses.replace(PLAIN, label="lstm[width=3]", options=(("draft", "plain"), ("width", 3)))
BOTH = dataclasses.replace(PLAIN, label="lstm[both]", options=(("draft", "shared-noise"), ("width", 2)))


def found_in(tmp_path: Path, *competitors: Competitor, num_questions: int = 30) -> Sequence[Contrast]:
    planned = (AUTOREGRESSIVE, CONTROL, *competitors)
    manifest = make_manifest(planned, num_questions=num_questions)
    ingest(
        tmp_path / "s.duckdb",
        write_run(tmp_path / manifest.run_id, manifest, run_events(manifest, planned, num_tokens=60)),
    )
    with open_store(tmp_path / "s.duckdb", read_only=True) as connection:
        summary = summarise(connection, manifest.run_id)
    json.dumps(to_json(summary), allow_nan=False)
    taus = {row.method: row.acceptance_length for row in summary.rows}
    for each in summary.contrasts:
        mine, other = taus[each.method], taus[each.base]
        assert mine is not None and other is not None
        assert each.acceptance_ratio == pytest.approx(mine / other), "the ratio of the two rows' own tau"
    return summary.contrasts


def test_a_pair_that_differs_in_one_option_shows_what_it_is_worth(tmp_path: Path) -> None:
    (found,) = found_in(tmp_path, PLAIN, NOISE)
    assert (found.method, found.base) == (NOISE.label, PLAIN.label)
    assert (found.option, found.value, found.base_value) == ("draft", "shared-noise", "plain")
    assert found.num_units == 30
    # Chains of 4: (1 - a^5) / (1 - a) tokens a step, 3.36 against 1.94, at equal cost of a step.
    assert found.acceptance_ratio == pytest.approx(1.74, rel=0.1)
    assert found.acceptance_ratio_ci is not None and found.acceptance_ratio_ci.contains(found.acceptance_ratio)
    assert found.speed_ratio_ci is not None and found.speed_ratio_ci.low > 1.2
    assert found.speed_ratio < found.acceptance_ratio, "the prefill is part of the speed"


def test_the_same_pair_in_the_other_order_has_the_inverse_ratios(tmp_path: Path) -> None:
    (one,) = found_in(tmp_path / "a", PLAIN, NOISE)
    (other,) = found_in(tmp_path / "b", NOISE, PLAIN)
    assert (other.value, other.base_value) == ("plain", "shared-noise")
    assert one.acceptance_ratio is not None and other.acceptance_ratio is not None
    assert other.acceptance_ratio == pytest.approx(1 / one.acceptance_ratio, rel=0.1)
    assert other.speed_ratio_ci is not None and other.speed_ratio_ci.high < 1


def test_each_value_of_an_option_stands_against_the_first_one(tmp_path: Path) -> None:
    found = found_in(tmp_path, PLAIN, WIDE, WIDER)
    assert [(each.value, each.base_value) for each in found] == [("2", "1"), ("3", "1")]
    for each in found:
        assert each.speed_ratio_ci is not None and each.speed_ratio_ci.contains(1.0), "they do the same"


def test_of_two_options_each_is_held_against_a_row_that_shares_the_other(tmp_path: Path) -> None:
    found = found_in(tmp_path, PLAIN, WIDE, NOISE, BOTH)
    of_both = [(each.option, each.base) for each in found if each.method == BOTH.label]
    assert of_both == [("draft", WIDE.label), ("width", NOISE.label)]


def test_rows_that_differ_in_more_than_one_option_are_no_pair(tmp_path: Path) -> None:
    assert not found_in(tmp_path, PLAIN, BOTH)


def test_other_methods_and_the_control_are_no_pair(tmp_path: Path) -> None:
    other = dataclasses.replace(NOISE, label="tree")
    assert not found_in(tmp_path, PLAIN, other)


def test_one_question_gives_no_interval(tmp_path: Path) -> None:
    (found,) = found_in(tmp_path, PLAIN, NOISE, num_questions=1)
    assert found.acceptance_ratio_ci is None and found.speed_ratio_ci is None
