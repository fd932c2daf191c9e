"""Several runs beside each other: only like with like, paired by question, each against its own baseline. No torch.

Two runs never share a clock: machines drift. What is compared is therefore each run's own speed-up per question, and
the drift of the baselines is shown beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import duckdb
import numpy as np

from specbench.errors import UsageError
from specbench.metrics import Bootstrap, FloatArray, Interval, log_ratio_intervals, percentile_interval
from specbench.store.control import REMEDY, failure
from specbench.store.eligibility import Eligibility, eligibility_of
from specbench.store.facts import Facts, load_run
from specbench.store.pairs import PairTable
from specbench.store.words import unit

CONDITIONS = {
    "suite_hash": "suite (hash of its rendered questions)",
    "target_hash": "target weights",
    "dtype": "dtype",
    "quantisation": "quantisation",
    "device": "device",
    "threads": "threads",
    "attention": "attention implementation",
    "execution": "execution (operators or graphs)",
    "temperature": "temperature",
    "top_k": "top-k",
    "top_p": "top-p",
    "min_p": "min-p",
    "repetition_penalty": "repetition penalty",
    "rule": "acceptance rule",
    "batch_size": "batch size",
    "carry": "carry",
    "max_new_tokens": "max new tokens",
    "stop": "stop strings",
}
"""Columns of `runs` that must agree, with the word a user knows them by."""


class Entry(NamedTuple):
    """A method of one of the runs."""

    run_id: str
    method: str


@dataclass(frozen=True, kw_only=True)
class EntryRow:
    """A method's speed-up over the questions that every compared run has."""

    run_id: str
    method: str
    speedup: float
    """Geometric mean over the shared questions, against its own run's baseline."""
    speedup_ci: Interval | None
    ranked: bool
    """As its run's own table has it: where that gives no rank, the place in this order says nothing."""
    reasons: tuple[str, ...]
    """Why not, each with its class first (`too noisy here: …`); empty where ranked."""

    @property
    def rank_words(self) -> str:
        """`control failed`, `not ranked`, `too noisy here`, …; empty where ranked."""
        return self.reasons[0].partition(":")[0] if self.reasons else ""


@dataclass(frozen=True, kw_only=True)
class PairRow:
    """Two entries, question by question: speed-up of the first / speed-up of the second."""

    first: Entry
    second: Entry
    ratio: float
    ratio_ci: Interval | None
    tied: bool
    """The interval of the log-ratio contains 0 (or there is none)."""
    ranked: bool
    """Both entries are."""


@dataclass(frozen=True, kw_only=True)
class Drift:
    """A run's baseline seconds per token / the first run's, question by question: no method's doing."""

    run_id: str
    ratio: float
    ratio_ci: Interval | None
    cause: str
    """`the machine`, or `the machine and other texts` where the runs drew with different seeds."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What `specbench results compare` shows."""

    run_ids: tuple[str, ...]
    conditions: dict[str, Any]
    """The conditions all runs share."""
    num_units: int
    """Questions (groups at batch > 1) that every entry finished, over the same turns."""
    entries: tuple[EntryRow, ...]
    """Those that are ranked first, fastest first."""
    pairs: tuple[PairRow, ...]
    drift: tuple[Drift, ...]
    """Of every run but the first."""
    notes: tuple[str, ...]
    """Why entries are not ranked or left out; a failed control is said once a run."""


def compare(connection: duckdb.DuckDBPyConnection, run_ids: Sequence[str]) -> Comparison:
    """Paired comparison of like-for-like runs.

    Raises UsageError naming the condition that differs, an unknown run, or that no question is shared.
    """
    chosen = list(dict.fromkeys(run_ids))
    if len(chosen) < 2:
        raise UsageError("a comparison needs two different runs", try_="specbench results ls")
    runs = [load_run(connection, run_id) for run_id in chosen]
    _check_alike(runs)
    found: dict[Entry, Eligibility] = {}
    tables: list[PairTable] = []
    notes: list[str] = []
    for run in runs:
        facts = Facts(connection, run)
        of_run = _eligible(facts)
        # Of a method that finished nothing no question would be left to compare by.
        finished = [method for method in of_run if facts.speedups[method].num_units] if facts.speedups else []
        found |= {Entry(run["run_id"], method): of_run[method] for method in finished}
        tables.append(facts.pairs.select(methods=[facts.pairs.methods.index(m) for m in (facts.baseline, *finished)]))
        notes += _notes(run["run_id"], facts, of_run, finished)
    entries = list(found)
    if not entries:
        raise UsageError("these runs hold no method beside the baseline", try_="specbench results ls")
    logs_UK, base_UR = _shared_units(tables)
    if not len(logs_UK):
        raise UsageError(
            f"no {unit(runs[0]['batch_size'])} was finished by every method of {', '.join(chosen)}",
            try_="specbench results ls",
        )
    bootstrap = Bootstrap(len(logs_UK), seed=runs[0]["seed"])
    rows = [
        EntryRow(
            run_id=entry.run_id,
            method=entry.method,
            speedup=ratio,
            speedup_ci=interval,
            ranked=found[entry].ranked,
            reasons=found[entry].reasons,
        )
        for entry, (ratio, interval) in zip(entries, _ratios(logs_UK, bootstrap), strict=True)
    ]
    drifts = _ratios(base_UR[:, 1:] - base_UR[:, :1], bootstrap)
    return Comparison(
        run_ids=tuple(chosen),
        conditions={name: runs[0][name] for name in ("suite", "target", *CONDITIONS)},
        num_units=len(logs_UK),
        entries=tuple(sorted(rows, key=lambda row: (not row.ranked, -row.speedup))),
        pairs=tuple(_pairs(found, logs_UK, bootstrap)),
        drift=tuple(
            Drift(
                run_id=run["run_id"],
                ratio=ratio,
                ratio_ci=interval,
                cause="the machine and other texts" if _draws_otherwise(runs[0], run) else "the machine",
            )
            for run, (ratio, interval) in zip(runs[1:], drifts, strict=True)
        ),
        notes=(*_seed_notes(runs), *notes),
    )


def _check_alike(runs: Sequence[dict[str, Any]]) -> None:
    first = runs[0]
    for other in runs[1:]:
        for column, word in CONDITIONS.items():
            if first[column] != other[column]:
                raise UsageError(
                    f"{first['run_id']} and {other['run_id']} cannot be compared: they differ in {word} "
                    f"({_shown(first[column])} and {_shown(other[column])})",
                    try_="choose runs made under the same conditions: specbench results ls",
                )


def _draws_otherwise(first: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """At temperature 0 a seed orders methods and resamples, and changes no text."""
    return bool(first["temperature"] > 0 and first["seed"] != other["seed"])


def _seed_notes(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    others = [run for run in runs[1:] if _draws_otherwise(runs[0], run)]
    if not others:
        return []
    seeds = ", ".join(f"{run['run_id']}: {run['seed']}" for run in (runs[0], *others))
    return [
        f"different seeds at temperature {runs[0]['temperature']:g} ({seeds}): the answers are other texts, and what "
        "differs between these runs is theirs as well as the methods' and the machine's"
    ]


def _shown(value: Any) -> str:
    return (", ".join(map(repr, value)) or "none") if isinstance(value, list) else str(value)


def _eligible(facts: Facts) -> dict[str, Eligibility]:
    """Every method that is neither baseline nor control. Raises UsageError where there is no baseline."""
    if facts.baseline is None:
        raise UsageError(
            f"{facts.run['run_id']} has no autoregressive baseline to compare by", try_="specbench results ls"
        )
    return {each["method"]: eligibility_of(facts, each) for each in facts.methods if each["kind"] != "baseline"}


def _notes(run_id: str, facts: Facts, of_run: Mapping[str, Eligibility], finished: Sequence[str]) -> list[str]:
    notes = []
    if why := failure(facts.control):
        notes.append(f"{run_id}: control failed, {why}; its methods are not ranked. To get ranks, {REMEDY}")
    for method, each in of_run.items():
        if method not in finished:
            notes.append(f"{run_id}: {method} is left out of this comparison; {'; '.join(each.reasons)}")
        elif each.reasons and not each.control_failed:
            notes.append(f"{run_id}: {method} is {each.reasons[0]}")
    return notes


class _Logs(NamedTuple):
    """Units that every method of every run finished over the same turns, in one order."""

    speedups_UK: FloatArray
    """log speed-up, one column per method, run after run."""
    base_UR: FloatArray
    """log of the baseline's seconds per token, one column per run."""


def _shared_units(tables: Sequence[PairTable]) -> _Logs:
    """tables: a run each, the baseline in column 0."""
    mixes = [dict(zip(table.units, table.mixes, strict=True)) for table in tables]
    # A run whose baseline failed a second turn has the first one alone: another question, though of the same name.
    shared = [unit for unit, mix in mixes[0].items() if all(other.get(unit) == mix for other in mixes[1:])]
    logs, bases = [], []
    for table in tables:
        place = {unit: index for index, unit in enumerate(table.units)}
        part = table.select(units=[place[unit] for unit in shared])
        logs.append(part.select(methods=range(1, len(part.methods))).logs_UK())
        bases.append(np.log(part.seconds_UK / part.tokens_UK)[:, :1])
    logs_UK, base_UR = np.concatenate(logs, axis=1), np.concatenate(bases, axis=1)
    whole_U = ~np.isnan(logs_UK).any(axis=1)
    return _Logs(logs_UK[whole_U], base_UR[whole_U])


def _ratios(logs_UK: FloatArray, bootstrap: Bootstrap) -> list[tuple[float, Interval | None]]:
    if logs_UK.shape[1] == 0:
        return []
    means_RK = bootstrap.means(logs_UK)
    return [
        (
            float(np.exp(logs_UK[:, k].mean())),
            _exp(percentile_interval(means_RK[:, k], len(logs_UK)) if len(logs_UK) > 1 else None),
        )
        for k in range(logs_UK.shape[1])
    ]


def _pairs(found: Mapping[Entry, Eligibility], logs_UK: FloatArray, bootstrap: Bootstrap) -> list[PairRow]:
    entries = list(found)
    return [
        PairRow(
            first=entries[a],
            second=entries[b],
            ratio=float(np.exp((logs_UK[:, a] - logs_UK[:, b]).mean())),
            ratio_ci=_exp(interval),
            tied=interval is None or interval.contains(0.0),
            ranked=found[entries[a]].ranked and found[entries[b]].ranked,
        )
        for (a, b), interval in log_ratio_intervals(logs_UK, bootstrap).items()
    ]


def _exp(interval: Interval | None) -> Interval | None:
    return Interval(float(np.exp(interval.low)), float(np.exp(interval.high))) if interval else None
