"""Other people's answer files beside measured runs: imported, marked external, never ranked with them. No torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from specbench.errors import UsageError, did_you_mean
from specbench.metrics import Bootstrap, Speedup, speedups
from specbench.store.answers import AnswerFile, AnswerTurn, read_answers
from specbench.store.db import BUSY_S, insert_table, open_store, transaction
from specbench.store.pairs import fetch
from specbench.store.records import ExternalRow
from specbench.store.words import count

_SEED = 0
"""Of the bootstrap: an answer file has no seed of its own."""
_CAVEAT = (
    "external: that tool's own counting and timing, baseline of another session; not comparable with measured rows"
)


def import_answers(
    store: Path,
    path: Path,
    *,
    baseline: Path | None,
    suite: str,
    method: str,
    target: str,
    timeout_s: float = BUSY_S,
) -> ExternalRow:
    """Reads an answer file, and the plain-decoding file beside it, into the store; the same import again replaces it.

    Raises UsageError for rows that are none and for a method's file without token counts, EnvironmentFailed otherwise.
    """
    answers = read_answers(path)
    turns, notes = _method_turns(answers)
    rows = [(turn, False, False) for turn in turns]
    notes = [*answers.notes, *notes]
    plain: AnswerFile | None = None
    if baseline is not None:
        plain = read_answers(baseline)
        told = [turn for turn in plain.turns if turn.num_new_tokens or turn.num_steps]
        rows.extend((turn, True, turn.num_new_tokens == 0) for turn in told)
        notes.extend([*plain.notes, *_baseline_notes(answers, plain, told)])
    names = [answers.sha256, plain.sha256 if plain else "", suite, method, target]
    import_id = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
    with open_store(store, timeout_s=timeout_s) as connection:
        with transaction(connection):
            for table in ("external_imports", "external_turns"):
                connection.execute(f"DELETE FROM {table} WHERE import_id = ?", [import_id])
            connection.execute(
                "INSERT INTO external_imports VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    import_id,
                    datetime.now(UTC).isoformat(timespec="seconds"),
                    suite,
                    target,
                    method,
                    answers.model_id,
                    answers.name,
                    answers.sha256,
                    plain.name if plain else None,
                    plain.sha256 if plain else None,
                    [*notes, _CAVEAT],
                ],
            )
            insert_table(connection, "external_turns", _table(import_id, rows))
        return next(row for row in external_rows(connection) if row.import_id == import_id)


def external_rows(connection: duckdb.DuckDBPyConnection) -> tuple[ExternalRow, ...]:
    """Every import, by suite, target and method."""
    imports = fetch(connection, "SELECT * FROM external_imports ORDER BY suite, target, method, import_id")
    totals = {(row["import_id"], row["is_baseline"]): row for row in fetch(connection, "SELECT * FROM external_totals")}
    found = []
    for row in imports:
        import_id = row["import_id"]
        own, base = totals[import_id, False], totals.get((import_id, True))
        # Stores hold baselines of nothing but empty answers from before those were left out.
        base_rate = (base["tokens_per_s"] or None) if base else None
        paired = _speedup(connection, import_id)
        found.append(
            ExternalRow(
                **{name: row[name] for name in ("import_id", "suite", "target", "method", "model_id", "source")},
                **{name: own[name] for name in ("num_questions", "num_turns", "num_new_tokens", "num_steps")},
                tokens_per_s=own["tokens_per_s"],
                tokens_per_step=own["tokens_per_step"],
                base_tokens_per_s=base_rate,
                speedup=paired.geometric_mean if paired else None,
                speedup_ci=paired.interval if paired else None,
                speedup_total=own["tokens_per_s"] / base_rate if base_rate else None,
                num_paired_questions=paired.num_units if paired else 0,
                ranked=False,
                notes=tuple(row["notes"]),
            )
        )
    return tuple(found)


def remove_import(connection: duckdb.DuckDBPyConnection, import_id: str) -> None:
    """Forgets an import; its file is untouched. Raises UsageError where there is none of this id."""
    known = [row["import_id"] for row in fetch(connection, "SELECT import_id FROM external_imports ORDER BY import_id")]
    if import_id not in known:
        nearest = did_you_mean(import_id, known)
        raise UsageError(
            f"no import {import_id!r} in this store" + (f"; {nearest}" if nearest else ""),
            where="--remove",
            try_="specbench results ls, which names the imported files with their ids",
        )
    for table in ("external_imports", "external_turns"):
        connection.execute(f"DELETE FROM {table} WHERE import_id = ?", [import_id])


def _method_turns(answers: AnswerFile) -> tuple[Sequence[AnswerTurn], list[str]]:
    """Turns with a count: nothing else than tokens per step tells how many tokens a step of a method made."""
    counted = [turn for turn in answers.turns if turn.num_new_tokens > 0]
    if not counted:
        raise UsageError(
            f"{answers.name} records new_tokens = 0 everywhere: its steps do not tell how many tokens they made",
            where=answers.name,
            try_="if it is plain decoding, give it as --baseline beside a method's file",
        )
    missing = len(answers.turns) - len(counted)
    are = "records no tokens and is" if missing == 1 else "record no tokens and are"
    return counted, [f"{answers.name}: {count(missing, 'turn')} {are} left out"] if missing else []


def _baseline_notes(answers: AnswerFile, plain: AnswerFile, told: Sequence[AnswerTurn]) -> list[str]:
    """told: the baseline's turns that record tokens or steps."""
    notes = []
    if empty := len(plain.turns) - len(told):
        are = "records neither tokens nor steps and is" if empty == 1 else "record neither tokens nor steps and are"
        notes.append(f"{plain.name}: {count(empty, 'turn')} {are} left out")
    uncounted = sum(turn.num_new_tokens == 0 for turn in told)
    if uncounted:
        record = "turn records" if uncounted == 1 else "turns record"
        notes.append(f"{plain.name}: {uncounted} {record} new_tokens = 0; counted as one token per step")
    ours, theirs = set(answers.question_ids()), {turn.question_id for turn in told}
    if ours != theirs:
        notes.append(
            f"incomplete: {count(len(ours), 'question')} answered, {len(theirs)} in the baseline, "
            f"{len(ours & theirs)} in both; the paired speed-up is over those, tokens/s over each whole file"
        )
    return notes


def _table(import_id: str, rows: Sequence[tuple[AnswerTurn, bool, bool]]) -> pa.Table:
    return pa.table(
        {
            "import_id": [import_id] * len(rows),
            "is_baseline": [is_baseline for _, is_baseline, _ in rows],
            "question_id": [turn.question_id for turn, _, _ in rows],
            "category": [turn.category for turn, _, _ in rows],
            "choice": [turn.choice for turn, _, _ in rows],
            "turn": [turn.turn for turn, _, _ in rows],
            "num_steps": [turn.num_steps for turn, _, _ in rows],
            "num_new_tokens": [turn.num_steps if estimated else turn.num_new_tokens for turn, _, estimated in rows],
            "tokens_are_estimated": [estimated for _, _, estimated in rows],
            "wall_s": [turn.wall_s for turn, _, _ in rows],
            "text": [turn.text for turn, _, _ in rows],
        }
    )


def _speedup(connection: duckdb.DuckDBPyConnection, import_id: str) -> Speedup | None:
    rows = fetch(connection, "SELECT * FROM external_pairs WHERE import_id = ? ORDER BY question_id", import_id)
    if not rows:
        return None

    def column(name: str) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        return np.array([[row[name]] for row in rows], dtype=np.float64)

    return speedups(
        seconds_UK=column("wall_s"),
        tokens_UK=column("num_new_tokens"),
        base_seconds_UK=column("base_wall_s"),
        base_tokens_UK=column("base_num_new_tokens"),
        bootstrap=Bootstrap(len(rows), seed=_SEED),
    )[0]
