"""A run of the store as files: answers in Spec-Bench's schema, the summary, or whole tables. No torch."""

from __future__ import annotations

import csv
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import IO, Any

import duckdb

from specbench.errors import UsageError, did_you_mean
from specbench.store.answers import FAILED
from specbench.store.facts import load_run
from specbench.store.files import cannot_write
from specbench.store.ingest import RUN_TABLES
from specbench.store.pairs import fetch
from specbench.store.records import to_json
from specbench.store.summary import summarise
from specbench.store.words import count

ELSEWHERE = "-o PATH, in a folder that you may write to and on a disk with room"
_ANSWERS = """
    SELECT g.question_id, g.category, g.repeat, g.turn, g.num_steps, g.num_new_tokens, g.text, t.total_s,
        coalesce(s.accept_lengths, []) AS accept_lengths
    FROM generations AS g
    JOIN groups AS t USING (run_id, group_id)
    LEFT JOIN (
        SELECT run_id, group_id, row_index, list(num_committed - num_truncated ORDER BY step) AS accept_lengths
        FROM steps GROUP BY run_id, group_id, row_index
    ) AS s USING (run_id, group_id, row_index)
    JOIN questions AS q USING (run_id, question_id)
    WHERE run_id = ? AND g.method = ?
    ORDER BY q.position, g.repeat, g.turn
"""
_FAILED_TURNS = "SELECT question_id, repeat, turn FROM failures WHERE run_id = ? AND method = ?"


def export_answers(connection: duckdb.DuckDBPyConnection, run_id: str, method: str, out: Path) -> int:
    """Writes a method's answers in Spec-Bench's schema, a line per question, a choice per repeat; returns the lines.

    new_tokens counts ids, the prefill's included, nothing behind the stop; wall_time is end to end. A failed turn keeps
    its place as that tool writes it, with the text ERROR, but with no tokens, steps or seconds; of a choice without a
    finished turn nothing is written. Raises UsageError for an unknown method and for batch > 1, where seconds belong to
    groups and not to questions.
    """
    run = load_run(connection, run_id)
    if run["batch_size"] > 1:
        raise UsageError(
            f"{run_id} decoded {run['batch_size']} questions at a time: an answer has no seconds of its own",
            try_=f"specbench results export {run_id} --format csv",
        )
    methods = [row["method"] for row in fetch(connection, "SELECT method FROM methods WHERE run_id = ?", run_id)]
    if method not in methods:
        raise UsageError(f"no method {method!r} in {run_id}; {did_you_mean(method, methods)}")
    rows = _with_failures(fetch(connection, _ANSWERS, run_id, method), fetch(connection, _FAILED_TURNS, run_id, method))
    num_lines = 0
    with _writing(out) as file:
        for question_id, of_question in groupby(rows, key=lambda row: row["question_id"]):
            file.write(json.dumps(_answer(run, method, question_id, list(of_question)), ensure_ascii=False) + "\n")
            num_lines += 1
    return num_lines


def failed_turns(connection: duckdb.DuckDBPyConnection, run_id: str, method: str) -> str:
    """A sentence on what `export_answers` wrote of turns that failed; empty where none did."""
    number = len(fetch(connection, _FAILED_TURNS, run_id, method))
    if not number:
        return ""
    what = f"{count(number, 'turn')} of {method} failed"
    return (
        f"{what}: the text there is {FAILED}, without tokens or seconds; answers without a finished turn are left out"
    )


def export_json(connection: duckdb.DuckDBPyConnection, run_id: str, out: Path) -> None:
    """Writes the summary, the object that `specbench run --json` prints."""
    summary = to_json(summarise(connection, run_id))
    with _writing(out) as file:
        file.write(json.dumps(summary, indent=1, allow_nan=False) + "\n")


def export_csv(connection: duckdb.DuckDBPyConnection, run_id: str, out: Path) -> int:
    """Writes a line per timed group: conditions, counts and seconds, whether the machine was its own, no model text;
    returns the lines. A flag is empty where the machine was not watched."""
    load_run(connection, run_id)
    query = """
        SELECT
            g.*,
            w.others_share,
            CASE WHEN w.num_samples > 0 THEN w.is_crowded END AS is_crowded,
            CASE WHEN w.num_samples > 0 THEN w.is_throttled END AS is_throttled
        FROM timed_groups AS g
        LEFT JOIN watched_groups AS w ON w.run_id = g.run_id AND w.group_id = g.group_id
        WHERE g.run_id = ?
        ORDER BY g.group_id
    """
    rows = fetch(connection, query, run_id)
    with _writing(out) as file:
        if rows:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return len(rows)


def export_parquet(connection: duckdb.DuckDBPyConnection, run_id: str, folder: Path) -> tuple[Path, ...]:
    """Writes TABLE.parquet for every table of the run, steps included, into `folder`; returns the files."""
    load_run(connection, run_id)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error, try_=ELSEWHERE) from error
    is_of_run = duckdb.ColumnExpression("run_id") == duckdb.ConstantExpression(run_id)
    written = []
    for table in RUN_TABLES:
        path = folder / f"{table}.parquet"
        try:
            connection.table(table).filter(is_of_run).to_parquet(str(path))
        except duckdb.IOException as error:
            raise cannot_write(path, OSError(0, str(error).splitlines()[0]), try_=ELSEWHERE) from error
        written.append(path)
    return tuple(written)


def _with_failures(rows: list[dict[str, Any]], failures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """rows: finished turns in the file's order; a failed turn goes between those of its own question and repeat."""
    failed: dict[tuple[str, int], list[int]] = {}
    for each in failures:
        failed.setdefault((each["question_id"], each["repeat"]), []).append(each["turn"])
    nothing = {"text": FAILED, "num_steps": 0, "num_new_tokens": 0, "total_s": 0.0, "accept_lengths": []}
    found = []
    for key, of_choice in groupby(rows, key=lambda row: (row["question_id"], row["repeat"])):
        turns = list(of_choice)
        turns += [turns[0] | nothing | {"turn": turn} for turn in failed.get(key, [])]
        found += sorted(turns, key=lambda row: row["turn"])
    return found


def _answer(run: dict[str, Any], method: str, question_id: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    choices = []
    for repeat, of_repeat in groupby(rows, key=lambda row: row["repeat"]):
        turns = list(of_repeat)
        choices.append(
            {
                "index": repeat,
                "turns": [row["text"] for row in turns],
                "decoding_steps": [row["num_steps"] for row in turns],
                "new_tokens": [row["num_new_tokens"] for row in turns],
                "wall_time": [row["total_s"] for row in turns],
                "accept_lengths": [length for row in turns for length in row["accept_lengths"]],
            }
        )
    return {
        "question_id": int(question_id) if question_id.isdecimal() else question_id,
        "category": rows[0]["category"],
        # The same run exported twice is the same file.
        "answer_id": uuid.uuid5(uuid.NAMESPACE_OID, f"{run['run_id']}/{method}/{question_id}").hex,
        "model_id": f"{run['target']}-{method}",
        "choices": choices,
        "tstamp": datetime.fromisoformat(run["created"]).timestamp(),
    }


@contextmanager
def _writing(path: Path) -> Iterator[IO[str]]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        raise cannot_write(path, error, try_=ELSEWHERE) from error
