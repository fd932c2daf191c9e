"""Observed positions and rounds of learning: beside the journal, in the store, and gone when they are purged."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from specbench.errors import EnvironmentFailed
from specbench.events import AdapterRound, Event, GenerationFinished, RunFinished
from specbench.store.db import STORE_SCHEMA, open_store
from specbench.store.ingest import ingest
from specbench.store.invariants import InvariantViolation
from specbench.store.observed import ObservedAnswer, ObservedLog, observed_file, read_observed
from specbench.store.pairs import fetch
from specbench.store.purging import purge_observed, runs_that_filled
from tests.store.synthetic import AUTOREGRESSIVE, CHAIN, make_manifest, run_events, write_run

PAIR = (AUTOREGRESSIVE, CHAIN)
NUM_PROMPT = 20


def a_round(group: int, **changes: Any) -> AdapterRound:
    """Of CHAIN, promoted."""
    values: dict[str, Any] = {
        "group": group, "method": CHAIN.label, "domain": "", "outcome": "promoted", "why": "it is better",
        "version": 1, "previous": 0, "seconds": 2.5, "num_steps": 8, "num_positions": 40, "num_held_out": 4,
        "acceptance_before": 0.5, "acceptance_after": 0.6, "gain_low": 0.02, "gain_high": 0.18, "is_concurrent": False,
        "width_before": 0.03, "width_after": 0.04,
    }  # fmt: skip
    return AdapterRound(**(values | changes))


def learning_events(manifest: Any, rounds: dict[int, list[AdapterRound]]) -> Iterator[Event]:
    """A run with rounds after some of its groups."""
    for event in run_events(manifest, PAIR):
        yield event
        if isinstance(event, GenerationFinished):
            yield from rounds.get(event.group, [])


def answer(group: int, *, version: int = 0, num: int = 4, **changes: Any) -> ObservedAnswer:
    """Positions 21, 22, ...; every other one accepted; overlaps 0.1, 0.2, ..."""
    values: dict[str, Any] = {
        "group": group, "row": 0, "domain": "", "version": version, "position": list(range(21, 21 + num)),
        "depth": [1 + place % 2 for place in range(num)], "accepted": [place % 2 for place in range(num)],
        "overlap": [round(0.1 * (place + 1), 5) for place in range(num)],
    }  # fmt: skip
    return ObservedAnswer(**(values | changes))


def learning_run(tmp_path: Path, *answers: ObservedAnswer, rounds: dict[int, list[AdapterRound]] | None = None) -> Path:
    """Three questions, two repeats: the chain's groups are 1, 3 (question 1), 5, 7, 9, 11. -> the run's folder."""
    manifest = make_manifest(PAIR, num_questions=3, repeats=2)
    folder = write_run(tmp_path / "runs" / "run-a", manifest, learning_events(manifest, rounds or {}))
    log = ObservedLog(folder)
    log.append(answers)
    assert log.warning == ""
    return folder


def ingested(folder: Path, query: str) -> list[dict[str, Any]]:
    store = folder.parent.parent / "specbench.duckdb"
    ingest(store, folder)
    with open_store(store, read_only=True) as connection:
        return fetch(connection, query)


def test_acceptance_against_positions_seen_by_version_is_one_query(tmp_path: Path) -> None:
    """Groups 1 and 5 are repeat 0, version 0 then 1; group 3 is repeat 1, which begins again at place 0."""
    folder = learning_run(tmp_path, answer(1, num=4), answer(3, num=2), answer(5, version=1, num=6))
    rows = ingested(
        folder,
        "SELECT repeat, version, min(place) AS first, max(place) AS last, count(*) AS num, "
        "count(*) FILTER (is_accepted) AS accepted, avg(overlap) AS overlap, any_value(question_id) AS question "
        "FROM observed_positions WHERE method = 'draft_model' GROUP BY repeat, version ORDER BY repeat, version",
    )
    names = ("repeat", "version", "first", "last", "num", "accepted", "question")
    assert [tuple(row[name] for name in names) for row in rows] == [
        (0, 0, 0, 3, 4, 2, "81"), (0, 1, 4, 9, 6, 3, "82"), (1, 0, 0, 1, 2, 1, "81"),
    ]  # fmt: skip
    assert rows[0]["overlap"] == pytest.approx(0.25)
    versions = ingested(folder, "SELECT * FROM adapter_versions ORDER BY version")
    assert [(each["version"], each["num_positions"], each["num_accepted"]) for each in versions] == [
        (0, 6, 3),
        (1, 6, 3),
    ]


def test_rounds_arrive_with_lineage_and_interval(tmp_path: Path) -> None:
    kept = a_round(
        5, outcome="kept", version=1, previous=1, acceptance_before=None, acceptance_after=None,
        gain_low=None, gain_high=None, width_before=None, width_after=None, num_held_out=0,
    )  # fmt: skip
    rows = ingested(learning_run(tmp_path, rounds={1: [a_round(1)], 5: [kept]}), "SELECT * FROM adapter_rounds")
    assert [(row["position"], row["group_id"], row["outcome"], row["previous"], row["version"]) for row in rows] == [
        (0, 1, "promoted", 0, 1), (1, 5, "kept", 1, 1),
    ]  # fmt: skip
    assert (rows[0]["gain_low"], rows[0]["gain_high"], rows[0]["seconds"]) == (0.02, 0.18, 2.5)
    assert (rows[0]["width_before"], rows[0]["width_after"]) == (0.03, 0.04)
    assert rows[1]["acceptance_after"] is rows[1]["width_after"] is None and not rows[0]["is_regrown"]


def test_tried_positions_of_a_stream_are_those_of_its_steps(tmp_path: Path) -> None:
    """Beside sums over the journal's steps: the accepted ones and the first rejection, as far as text was kept."""
    manifest = make_manifest(PAIR, num_questions=3, repeats=2)
    wanted: dict[int, list[int]] = {}
    for event in run_events(manifest, PAIR):
        if event.kind == "steps":
            for row in event.rows:  # type: ignore[attr-defined]
                sums = wanted.setdefault(event.group, [0, 0])  # type: ignore[attr-defined]
                kept = row.num_committed - row.num_truncated
                tried = kept if row.num_truncated else min(row.num_accepted + 1, row.depth)
                sums[0] += tried
                sums[1] += kept if row.num_truncated else row.num_accepted
    rows = ingested(learning_run(tmp_path), "SELECT * FROM stream_acceptance ORDER BY repeat, since")
    assert {row["method"] for row in rows} == {"draft_model"}
    assert {row["group_id"]: [row["num_tried"], row["num_accepted"]] for row in rows} == {
        group: sums for group, sums in wanted.items() if sums[0]
    }
    of_first = [row for row in rows if row["repeat"] == 0]
    assert [row["since"] for row in of_first] == [sum(each["num_tried"] for each in of_first[:n]) for n in range(3)]


def test_a_group_measured_again_keeps_its_last_positions_and_an_unfinished_one_none(tmp_path: Path) -> None:
    folder = learning_run(tmp_path, answer(1, num=6), answer(1, num=2), answer(99, num=3))
    assert ingested(folder, "SELECT count(*) AS num FROM observed") == [{"num": 2}]
    assert ingested(folder, "SELECT count(*) AS num FROM observed") == [{"num": 2}], "ingested twice is once"


def test_a_position_outside_its_answer_is_a_bug_of_ours(tmp_path: Path) -> None:
    with pytest.raises(InvariantViolation, match="observed position is not in its answer"):
        ingested(learning_run(tmp_path, answer(1, position=[21, 22, 23, 99])), "SELECT 1")


def test_a_torn_end_is_cut_off_by_the_next_writer_and_damage_inside_is_named(tmp_path: Path) -> None:
    log = ObservedLog(tmp_path)
    log.append([answer(1)])
    with observed_file(tmp_path).open("a") as file:
        file.write('{"group":3,"row":0,"dom')
    assert len(read_observed(tmp_path)) == 1, "it may still be growing"
    ObservedLog(tmp_path).append([answer(5)])
    assert [each.group for each in read_observed(tmp_path)] == [1, 5]
    whole = observed_file(tmp_path).read_text()
    for damage in ('{"group":1}\n', "no json\n", json.dumps(answer(1)._asdict() | {"depth": [1]}) + "\n"):
        observed_file(tmp_path).write_text(damage + whole)
        with pytest.raises(EnvironmentFailed, match="line 1 of what was observed"):
            read_observed(tmp_path)


def test_a_disk_that_refuses_ends_the_record_and_leaves_it_readable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = ObservedLog(tmp_path)
    log.append([answer(1)])
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[: len(data) // 2]))
    log.append([answer(3)])
    monkeypatch.undo()
    assert "disk is full" in log.warning and "the run goes on" in log.warning
    log.append([answer(5)])
    assert [each.group for each in read_observed(tmp_path)] == [1]


def test_purging_takes_the_positions_and_nothing_else(tmp_path: Path) -> None:
    folder = learning_run(tmp_path, answer(1), rounds={1: [a_round(1)]})
    store = tmp_path / "specbench.duckdb"
    assert ingested(folder, "SELECT count(*) AS num FROM observed") == [{"num": 4}]
    assert purge_observed(store, folder) == 4 and purge_observed(store, folder) == 0
    assert not observed_file(folder).exists()
    assert ingested(folder, "SELECT count(*) AS num FROM observed") == [{"num": 0}]
    assert ingested(folder, "SELECT count(*) AS num FROM adapter_rounds") == [{"num": 1}]


def test_the_runs_of_an_adapter_store_are_found(tmp_path: Path) -> None:
    """The one it lies in, and those that named it; a damaged manifest is nobody's."""
    folder = learning_run(tmp_path)
    own = folder / "adapters" / "draft_model"
    own.mkdir(parents=True)
    assert runs_that_filled(own, None) == [folder]
    shared = tmp_path / "shared"
    assert runs_that_filled(shared, tmp_path) == []
    body = json.loads((folder / "manifest.json").read_text())
    body["methods"][1]["options"]["store"] = str(tmp_path / "elsewhere" / ".." / "shared")
    (folder / "manifest.json").write_text(json.dumps(body))
    assert runs_that_filled(shared, tmp_path) == [folder]
    (folder / "manifest.json").write_text("{")
    assert runs_that_filled(shared, tmp_path) == []


def test_a_store_of_schema_four_gains_the_tables(tmp_path: Path) -> None:
    """Its runs stay; ingesting again fills what its journals say."""
    folder = learning_run(tmp_path, answer(1), rounds={1: [a_round(1)]})
    ingested(folder, "SELECT 1")
    store = tmp_path / "specbench.duckdb"
    with open_store(store) as connection:
        for name in ("observed_positions", "adapter_versions", "stream_acceptance"):
            connection.execute(f"DROP VIEW IF EXISTS {name}")
        connection.execute("DROP TABLE observed")
        connection.execute("DROP TABLE adapter_rounds")
        connection.execute("UPDATE meta SET value = '4' WHERE key = 'schema_version'")
        connection.execute("DELETE FROM meta WHERE key = 'views_hash'")
    with open_store(store, read_only=True) as connection:
        assert fetch(connection, "SELECT count(*) AS num FROM observed_positions") == [{"num": 0}]
        assert fetch(connection, "SELECT count(*) AS num FROM generations")[0]["num"] > 0
        (version,) = fetch(connection, "SELECT value FROM meta WHERE key = 'schema_version'")
    assert version["value"] == str(STORE_SCHEMA) == "7"
    assert ingested(folder, "SELECT count(*) AS num FROM observed") == [{"num": 4}]


def test_a_store_of_schema_five_gains_the_widths(tmp_path: Path) -> None:
    folder = learning_run(tmp_path, rounds={1: [a_round(1)]})
    ingested(folder, "SELECT 1")
    store = tmp_path / "specbench.duckdb"
    with open_store(store) as connection:
        for name in ("width_before", "width_after"):
            connection.execute(f"ALTER TABLE adapter_rounds DROP COLUMN {name}")
        connection.execute("UPDATE meta SET value = '5' WHERE key = 'schema_version'")
    with open_store(store, read_only=True) as connection:
        assert fetch(connection, "SELECT width_after FROM adapter_rounds") == [{"width_after": None}]
    assert ingested(folder, "SELECT width_after FROM adapter_rounds") == [{"width_after": 0.04}]


def test_a_round_survives_the_journal(tmp_path: Path) -> None:
    from specbench.events import from_line, to_line

    event = a_round(3, domain="maths", is_regrown=True)
    assert from_line(to_line(event)) == event
    assert isinstance(from_line(to_line(RunFinished(state="finished", time="t"))), RunFinished)


def test_positions_of_a_run_that_was_never_ingested_are_counted_as_well(tmp_path: Path) -> None:
    folder = learning_run(tmp_path, answer(1))
    assert purge_observed(tmp_path / "none.duckdb", folder) == 4 and not observed_file(folder).exists()
