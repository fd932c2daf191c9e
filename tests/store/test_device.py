"""The machine's state beside the numbers: found by time, flagged in views and notes, and no reason to drop anything."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from specbench.errors import EnvironmentFailed
from specbench.events import Event, GenerationStarted
from specbench.store.db import STORE_SCHEMA, open_store
from specbench.store.device import metrics_file, read_device
from specbench.store.export import export_csv
from specbench.store.ingest import ingest
from specbench.store.pairs import fetch
from specbench.store.summary import RunSummary, summarise
from tests.store.synthetic import AUTOREGRESSIVE, CHAIN, make_manifest, run_events, write_run

PAIR = (AUTOREGRESSIVE, CHAIN)
HEADER = {"e": "sampler_started", "schema": 1, "at_s": 1000.0, "pid": 2, "run_pid": 1, "interval_s": 1.0, "num_cpus": 4}
HEADER |= {"governor": None, "gpu_missing": None}


def sample(at_s: float, *, others_s: float = 0.0, throttled: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    """The second before at_s on four CPUs, one of which the run has to itself."""
    return {
        "e": "sample",
        "at_s": at_s,
        "interval_s": 1.0,
        "busy_s": 1.0 + others_s + 0.01,
        "own_s": 1.0,
        "sampler_s": 0.01,
        "load_average": 1.0,
        "available_bytes": 1 << 30,
        "num_threads": 3,
        "cpu_mhz": None,
        "throttle_reasons": list(throttled),
        "top_others": None,
        **more,
    }


def dated(events: Iterator[Event]) -> Iterator[Event]:
    """Group g begins at second 1000 + 10 g; none takes a second."""
    for event in events:
        is_start = isinstance(event, GenerationStarted)
        yield dataclasses.replace(event, began_s=1000.0 + 10 * event.group) if is_start else event  # type: ignore[attr-defined,type-var]


def summary_of(tmp_path: Path, *lines: dict[str, Any] | str, is_dated: bool = True, **plan: Any) -> RunSummary:
    """A run of three questions, one repeat: groups 0 .. 5, autoregressive and chain in turn."""
    manifest = make_manifest(PAIR, **({"num_questions": 3, "repeats": 1} | plan))
    events = run_events(manifest, PAIR)
    folder = write_run(tmp_path / "run-a", manifest, dated(events) if is_dated else events)
    if lines:
        texts = [line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines]
        metrics_file(folder).write_text("".join(texts))
    ingest(tmp_path / "s.duckdb", folder)
    with open_store(tmp_path / "s.duckdb", read_only=True) as connection:
        return summarise(connection, "run-a")


def view(tmp_path: Path, query: str) -> list[dict[str, Any]]:
    with open_store(tmp_path / "s.duckdb", read_only=True) as connection:
        return fetch(connection, query)


def test_questions_measured_beside_others_or_throttled_are_flagged_and_kept(tmp_path: Path) -> None:
    """Others take 0.8 of 4 CPUs (a fifth) while group 1 runs, 0.3 (under a tenth) in group 2; group 4 is throttled."""
    calm = summary_of(tmp_path)
    summary = summary_of(
        tmp_path,
        HEADER,
        sample(1000.5),
        sample(1010.5, others_s=0.8),
        sample(1020.5, others_s=0.3),
        sample(1030.5),
        sample(1035.0, others_s=4.0),  # between groups: nobody's
        sample(1040.5, throttled=("cpu quota", "gpu thermal, by the hardware")),
        sample(1050.5),
    )
    flags = view(tmp_path, "SELECT * FROM watched_groups ORDER BY group_id")
    assert [row["is_crowded"] for row in flags] == [False, True, False, False, False, False]
    assert [row["is_throttled"] for row in flags] == [False, False, False, False, True, False]
    assert flags[1]["others_share"] == pytest.approx(0.2) and flags[2]["others_share"] == pytest.approx(0.075)
    assert (
        "1 of 3 questions (1 of 6 timed generations) were measured while other processes took more than 10% of the CPUs"
        in summary.notes
    )
    assert any(note.startswith("1 of 3 questions") and note.endswith("throttled") for note in summary.notes)
    assert summary.rows == calm.rows


def test_the_exported_groups_say_which_were_measured_on_a_machine_that_was_not_the_runs_own(tmp_path: Path) -> None:
    def exported() -> list[tuple[str, str, str]]:
        with open_store(tmp_path / "s.duckdb", read_only=True) as connection:
            export_csv(connection, "run-a", tmp_path / "a.csv")
        with (tmp_path / "a.csv").open(newline="") as file:
            return [(row["unit"], row["is_throttled"], row["is_crowded"]) for row in csv.DictReader(file)]

    summary_of(tmp_path)
    assert all(row[1:] == ("", "") for row in exported()), "nobody watched"
    summary_of(tmp_path, HEADER, sample(1000.5, throttled=("cpu quota",)), sample(1010.5, others_s=0.8))
    rows = exported()
    assert [row[1:] for row in rows[:2]] == [("True", "False"), ("False", "True")]
    assert rows[0][0] == "81" and rows[5][1:] == ("", ""), "seen in no sample"


def test_a_long_group_is_judged_by_the_mean_of_its_seconds(tmp_path: Path) -> None:
    """One busy second among calm ones is no busy question: a group that takes 40 ms touches two samples here."""
    summary_of(tmp_path, HEADER, sample(1000.01, others_s=0.6), sample(1001.01, others_s=0.0))
    (first, *_) = view(tmp_path, "SELECT * FROM watched_groups ORDER BY group_id")
    assert first["num_samples"] == 2 and first["others_share"] == pytest.approx(0.075) and not first["is_crowded"]


def test_an_unwatched_run_says_so_and_one_of_an_older_journal_does_not(tmp_path: Path) -> None:
    """Without times there is nothing to find: the note would stand on every old run and tell nobody anything."""
    assert any("was not watched" in note for note in summary_of(tmp_path).notes)
    assert not any("watched" in note for note in summary_of(tmp_path, is_dated=False).notes)


def test_a_gpu_that_could_not_be_watched_is_named_with_the_reason_once(tmp_path: Path) -> None:
    blind = HEADER | {"gpu_missing": "pynvml is not installed (pip install nvidia-ml-py)"}
    summary = summary_of(tmp_path, blind, sample(1000.5), blind)
    (note,) = [note for note in summary.notes if "GPU" in note]
    assert "pip install nvidia-ml-py" in note


def test_what_a_gpu_tells_arrives(tmp_path: Path) -> None:
    of_gpu = {"gpu_mhz": 1410, "gpu_memory_mhz": 2619, "gpu_temperature_c": 71, "gpu_power_w": 640.5}
    of_gpu |= {"gpu_use": 0.98, "num_gpu_processes": 2}
    summary_of(tmp_path, HEADER, sample(1000.5, **of_gpu, top_others=[["python", 9.5]]), sample(1001.5))
    first, second = view(tmp_path, "SELECT * FROM device_sample ORDER BY at_s")
    assert {name: first[name] for name in of_gpu} == of_gpu and json.loads(first["top_others"]) == [["python", 9.5]]
    assert all(second[name] is None for name in of_gpu)


def test_samples_are_rebuilt_from_the_run_s_folder(tmp_path: Path) -> None:
    """Ingesting again replaces them; a file without samples leaves none behind."""
    summary_of(tmp_path, HEADER, sample(1000.5), sample(1001.5))
    query = "SELECT count(*) AS num FROM device_sample"
    assert view(tmp_path, query) == [{"num": 2}]
    ingest(tmp_path / "s.duckdb", tmp_path / "run-a")
    assert view(tmp_path, query) == [{"num": 2}]
    metrics_file(tmp_path / "run-a").unlink()
    ingest(tmp_path / "s.duckdb", tmp_path / "run-a")
    assert view(tmp_path, query) == [{"num": 0}]


def test_a_torn_last_line_is_passed_over_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    lines = [json.dumps(HEADER), json.dumps(sample(1.0)), '{"e":"sample","at_']
    metrics_file(tmp_path).write_text("\n".join(lines))
    assert len(read_device(tmp_path).samples) == 1
    metrics_file(tmp_path).write_text("\n".join([*lines, json.dumps(sample(2.0)), ""]))
    with pytest.raises(EnvironmentFailed, match="line 3") as caught:
        read_device(tmp_path)
    assert caught.value.where.endswith("metrics.jsonl:3") and "no measurement" in caught.value.try_


@pytest.mark.parametrize(
    ("line", "said"), [(HEADER | {"schema": 3}, "newer specbench"), ({"e": "from_the_future"}, "from_the_future")]
)
def test_a_newer_record_is_refused(tmp_path: Path, line: dict[str, Any], said: str) -> None:
    metrics_file(tmp_path).write_text(json.dumps(line) + "\n")
    with pytest.raises(EnvironmentFailed, match=said):
        read_device(tmp_path)


def test_a_store_of_the_first_schema_is_brought_up_to_date_by_reading_it(tmp_path: Path) -> None:
    """Its runs stay, its tables gain what they lack; nothing has to be ingested again."""
    before = summary_of(tmp_path, is_dated=False)
    with open_store(tmp_path / "s.duckdb") as connection:
        for row in fetch(connection, "SELECT view_name FROM duckdb_views() WHERE NOT internal"):
            connection.execute(f"DROP VIEW {row['view_name']}")
        connection.execute("ALTER TABLE groups DROP COLUMN began_s")
        connection.execute("ALTER TABLE runs DROP COLUMN execution")
        connection.execute("ALTER TABLE measurements DROP COLUMN detail")
        connection.execute("DROP TABLE device_sample")
        connection.execute("DROP TABLE device_sampler")
        connection.execute("DROP TABLE group_energy")
        connection.execute("UPDATE meta SET value = '1' WHERE key = 'schema_version'")
        connection.execute("DELETE FROM meta WHERE key = 'views_hash'")
    with open_store(tmp_path / "s.duckdb", read_only=True) as connection:
        assert summarise(connection, "run-a") == before
        (version,) = fetch(connection, "SELECT value FROM meta WHERE key = 'schema_version'")
    assert version["value"] == str(STORE_SCHEMA)


def energy(edge: str, group: int, at_s: float, joules: float) -> dict[str, Any]:
    return {"e": "energy", "edge": edge, "group": group, "at_s": at_s, "energy_j": joules}


def test_joules_per_token_come_from_readings_at_a_groups_own_edges(tmp_path: Path) -> None:
    """Group 0 (autoregressive) drew 30 J. Group 2's reading came seconds late and belongs to something else; group 4
    was begun by a run that was killed; group 1 (the chain) never ended."""
    (tmp_path / "plain").mkdir()
    plain = summary_of(tmp_path / "plain", HEADER)
    assert all(row.joules_per_token is None for row in plain.rows)
    timed = {row["group_id"]: row for row in view(tmp_path / "plain", "SELECT * FROM timed_groups")}
    lines = [
        HEADER,
        energy("begin", 0, 1000.0, 500.0),
        energy("end", 0, 1000.01 + timed[0]["total_s"], 530.0),
        energy("begin", 1, 1010.0, 530.0),
        energy("begin", 2, 1020.0, 540.0),
        energy("end", 2, 1027.0, 900.0),
        energy("begin", 4, 1040.0, 900.0),
        HEADER,
        energy("end", 4, 1041.0, 950.0),
    ]
    found = {row.method: row for row in summary_of(tmp_path / "run-a", *lines).rows}
    assert found["autoregressive"].joules_per_token == pytest.approx(30.0 / timed[0]["num_new_tokens"])
    assert found["draft_model"].joules_per_token is None
