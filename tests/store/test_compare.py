"""Only like is compared with like, and the machine's drift is not a method's merit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from specbench.errors import UsageError
from specbench.events import Event, GenerationFinished
from specbench.manifest import Manifest
from specbench.store.compare import Comparison, compare
from specbench.store.db import open_store
from specbench.store.ingest import ingest
from specbench.store.summary import summarise, to_json
from tests.store.synthetic import AR_S, AUTOREGRESSIVE, CHAIN, CONTROL, SLOW, make_manifest, run_events, write_run


def put(
    tmp_path: Path, manifest: Manifest, *competitors: Any, slower: float = 1.0, seed: int = 0, bug_of: str = ""
) -> None:
    def drifted(event: Event) -> Event:
        if not isinstance(event, GenerationFinished):
            return event
        if event.method == bug_of:
            event = dataclasses.replace(event, equality="bug")
        names = ("prefill_s", "decode_s", "total_s", "draft_s", "verify_s", "accept_s", "commit_s")
        return dataclasses.replace(event, **{name: getattr(event, name) * slower for name in names})

    events = (drifted(event) for event in run_events(manifest, competitors, seed=seed))
    ingest(tmp_path / "s.duckdb", write_run(tmp_path / manifest.run_id, manifest, events))


def comparison(tmp_path: Path, *run_ids: str) -> Comparison:
    with open_store(tmp_path / "s.duckdb", read_only=True) as connection:
        return compare(connection, run_ids)


def test_a_machine_twice_as_slow_changes_the_drift_and_no_speedup(tmp_path: Path) -> None:
    pair = (AUTOREGRESSIVE, CHAIN)
    put(tmp_path, make_manifest(pair, num_questions=12), *pair)
    put(tmp_path, make_manifest(pair, num_questions=12, run_id="run-b"), *pair, slower=2.0, seed=1)
    found = comparison(tmp_path, "run-a", "run-b")
    (drift,) = found.drift
    assert drift.run_id == "run-b" and drift.ratio == pytest.approx(2.0, rel=0.01)
    (between,) = found.pairs
    assert between.ratio == pytest.approx(1.0, rel=0.05) and between.tied
    assert found.num_units == 12
    json.dumps(to_json(found), allow_nan=False)


def test_methods_of_different_runs_are_ordered_and_told_apart(tmp_path: Path) -> None:
    put(tmp_path, make_manifest((AUTOREGRESSIVE, CHAIN), num_questions=12), AUTOREGRESSIVE, CHAIN)
    put(tmp_path, make_manifest((AUTOREGRESSIVE, SLOW), num_questions=12, run_id="run-b"), AUTOREGRESSIVE, SLOW)
    found = comparison(tmp_path, "run-b", "run-a")
    assert [row.method for row in found.entries] == ["draft_model", "slow"]
    (between,) = found.pairs
    assert (between.first.method, between.second.method) == ("slow", "draft_model")
    assert between.ratio < 1 and not between.tied


def test_only_questions_that_all_have_are_compared(tmp_path: Path) -> None:
    pair = (AUTOREGRESSIVE, CHAIN)
    put(tmp_path, make_manifest(pair, num_questions=12), *pair)
    put(tmp_path, make_manifest(pair, num_questions=5, run_id="run-b"), *pair)
    assert comparison(tmp_path, "run-a", "run-b").num_units == 5


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"rule": "rejection"}, "acceptance rule"),
        ({"batch_size": 2}, "batch size"),
        ({"carry": "stream"}, "carry"),
        ({"max_new_tokens": 128}, "max new tokens"),
        ({"suite.hash": "6" * 64}, "suite"),
        ({"target.weights_hash": "8" * 64}, "target weights"),
        ({"target.dtype": "bfloat16"}, "dtype"),
        ({"device.name": "another"}, "device"),
        ({"device.threads": 2}, "threads"),
        ({"sampling.temperature": 1.0}, "temperature"),
        ({"stop": ("Question:",)}, "stop strings"),
    ],
)
def test_unlike_runs_are_refused_by_the_condition_that_differs(
    tmp_path: Path, change: dict[str, Any], word: str
) -> None:
    pair = (AUTOREGRESSIVE, CHAIN)
    put(tmp_path, make_manifest(pair, num_questions=2, repeats=1), *pair)
    ((name, value),) = change.items()
    other = make_manifest(pair, num_questions=2, repeats=1, run_id="run-b")
    record, _, field = name.rpartition(".")
    if record:
        value = getattr(other, record).model_copy(update={field: value})
    put(tmp_path, other.model_copy(update={record or field: value}), *pair)
    with pytest.raises(UsageError, match=f"differ in {word}.* and ") as caught:
        comparison(tmp_path, "run-a", "run-b")
    assert "run-a" in caught.value.what and "run-b" in caught.value.what


def test_methods_of_a_run_whose_control_failed_are_shown_and_not_ranked(tmp_path: Path) -> None:
    """Compare reads the verdict that the run's own summary has."""
    trio = (AUTOREGRESSIVE, dataclasses.replace(CONTROL, verify_s=1.03 * AR_S), CHAIN)
    put(tmp_path, make_manifest(trio, num_questions=12), *trio)
    quiet = (AUTOREGRESSIVE, CHAIN)
    put(tmp_path, make_manifest(quiet, num_questions=12, run_id="run-b"), *quiet, seed=1)
    found = comparison(tmp_path, "run-a", "run-b")
    assert {entry.run_id: entry.ranked for entry in found.entries} == {"run-a": False, "run-b": True}
    assert all(entry.speedup > 1 and entry.speedup_ci for entry in found.entries)
    (note,) = found.notes
    with open_store(tmp_path / "s.duckdb", read_only=True) as connection:
        control = summarise(connection, "run-a").control
    assert control is not None and control.speedup_ci is not None
    assert f"run-a: control failed, autoregression against itself gives [{control.speedup_ci.low:.3f}" in note


def test_what_a_runs_own_table_does_not_rank_is_not_ranked_beside_other_runs(tmp_path: Path) -> None:
    """A control that knows the answers and a method whose answers are wrong would otherwise lead the comparison."""
    oracle, buggy = (dataclasses.replace(CHAIN, label=label, alpha=0.95) for label in ("oracle", "buggy"))
    four = (AUTOREGRESSIVE, CHAIN, oracle, buggy)
    for seed, run_id in enumerate(("run-a", "run-b")):
        manifest = make_manifest(four, num_questions=12, run_id=run_id)
        methods = tuple(each.model_copy(update={"is_ranked": each.label != "oracle"}) for each in manifest.methods)
        put(tmp_path, manifest.model_copy(update={"methods": methods}), *four, seed=seed, bug_of="buggy")
    found = comparison(tmp_path, "run-a", "run-b")
    assert [(row.method, row.ranked) for row in found.entries][:2] == [("draft_model", True)] * 2
    words = {row.method: row.rank_words for row in found.entries}
    assert words == {"draft_model": "", "oracle": "not ranked", "buggy": "not ranked"}
    assert all(pair.ranked is (pair.first.method == pair.second.method == "draft_model") for pair in found.pairs)
    assert len(found.notes) == 4
    assert "run-a: oracle is not ranked: a control, not a competitor" in found.notes
    assert "run-b: buggy is not ranked: 36 answers differ from the reference beyond rounding (bug)" in found.notes


def test_the_order_of_stop_strings_is_no_condition(tmp_path: Path) -> None:
    pair = (AUTOREGRESSIVE, CHAIN)
    for run_id, stop in (("run-a", ("Q:", "A:")), ("run-b", ("A:", "Q:", "Q:"))):
        put(tmp_path, make_manifest(pair, num_questions=2, run_id=run_id, stop=stop), *pair)
    assert comparison(tmp_path, "run-a", "run-b").conditions["stop"] == ["A:", "Q:"]


def test_units_of_batched_runs_are_groups(tmp_path: Path) -> None:
    pair = (AUTOREGRESSIVE, CHAIN)
    first = make_manifest(pair, num_questions=2, repeats=1, batch_size=2)
    put(tmp_path, first, *pair)
    other = make_manifest(pair, num_questions=4, repeats=1, batch_size=2, run_id="run-b")
    put(tmp_path, other.model_copy(update={"groups": other.groups[2:]}), *pair)  # the second pair of questions only
    with pytest.raises(UsageError, match="no group of questions was finished by every method"):
        comparison(tmp_path, "run-a", "run-b")


def test_one_run_is_no_comparison(tmp_path: Path) -> None:
    put(tmp_path, make_manifest((AUTOREGRESSIVE,), num_questions=1), AUTOREGRESSIVE)
    with pytest.raises(UsageError, match="two different runs"):
        comparison(tmp_path, "run-a", "run-a")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_runs_of_other_seeds_wrote_other_texts_where_they_drew(tmp_path: Path, temperature: float) -> None:
    pair = (AUTOREGRESSIVE, CHAIN)
    for run_id, seed in (("run-a", 0), ("run-b", 7), ("run-c", 0)):
        manifest = make_manifest(pair, num_questions=3, run_id=run_id)
        sampling = manifest.sampling.model_copy(update={"temperature": temperature})
        put(tmp_path, manifest.model_copy(update={"seed": seed, "sampling": sampling}), *pair)
    found = comparison(tmp_path, "run-a", "run-b", "run-c")
    told = [note for note in found.notes if "(run-a: 0, run-b: 7)" in note]
    assert [drift.cause for drift in found.drift] == [
        "the machine and other texts" if told else "the machine",
        "the machine",
    ]
    assert bool(told) is (temperature > 0)
