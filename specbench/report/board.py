"""Runs -> the page's data: like-for-like scopes, one row per method in each, ranked with ties. Pure; reads no store.

Inside a run the store's paired ranks hold. Where rows of several runs share a scope there is no pairing between them:
such rows are tied when their intervals overlap.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from specbench.manifest import Manifest, MethodRecord
from specbench.metrics import Interval
from specbench.quantisation import precision
from specbench.report import text
from specbench.report.batches import Point, curves
from specbench.report.standing import Standing, is_broken, rank_text, sort_key, standing
from specbench.report.stream_words import words_of
from specbench.store.records import ExternalRow, MethodRow, RunSummary, to_json
from specbench.store.stream_records import StreamCurve

_PROVENANCE_LIMIT = 8_000
"""Characters of a run's provenance on the page; the manifest has all of it."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A run as the page needs it."""

    summary: RunSummary
    manifest: Manifest
    streams: tuple[StreamCurve, ...] = ()
    """Of a run in which a method learns."""


@dataclass(frozen=True, kw_only=True)
class _Entry:
    record: RunRecord
    row: MethodRow
    where: Standing
    failed_since: tuple[str, ...] = ()
    """Newer runs, newest first, whose row of the same competitor has no number."""


@dataclass(frozen=True, kw_only=True)
class _Place:
    rank: int | None
    tied_with: tuple[str, ...]


def build_board(records: Sequence[RunRecord], externals: Sequence[ExternalRow]) -> dict[str, Any]:
    """Everything page.js reads: `scopes` (newest first), `runs`, `methods`, `external`, `left_out`."""
    groups: dict[str, list[RunRecord]] = {}
    for record in sorted(records, key=lambda r: (r.summary.created, r.summary.run_id), reverse=True):
        groups.setdefault(_digest(_conditions_key(record)), []).append(record)
    scopes = [_scope(key, group) for key, group in groups.items()]
    _add_batches(scopes, groups)
    titles = [scope["title"] for scope in scopes]
    for scope in scopes:
        if titles.count(scope["title"]) > 1:
            scope["title"] += f" · {scope['key']}"
    labels = {row["method"] for scope in scopes for row in scope["rows"] if row["kind"] != "baseline"}
    return {
        "schema": 1,
        "scopes": scopes,
        "runs": {record.summary.run_id: _run(record) for record in records},
        "methods": sorted(labels),
        "external": [{**_clean(row), "notes": [text.printable(note) for note in row.notes]} for row in externals],
        "left_out": "",
    }


def _add_batches(scopes: Sequence[dict[str, Any]], groups: dict[str, list[RunRecord]]) -> None:
    """To every scope, the curves over all scopes that differ from it in the batch size alone."""
    families: dict[str, list[dict[str, Any]]] = {}
    for scope in scopes:
        newest = groups[scope["key"]][0]
        alike = dataclasses.replace(newest.summary, batch_size=1)
        key = _conditions_key(dataclasses.replace(newest, summary=alike))
        families.setdefault(_digest(key), []).append(scope)
    for family in families.values():
        points = [
            (row["identity"], row["method"], _point(scope["batch_size"], row))
            for scope in family
            for row in scope["rows"]
            if not row["is_control"] and not row["is_broken"]
        ]
        found = _rounded(curves(points))
        for scope in family:
            scope["batches"] = found


def _point(batch_size: int, row: dict[str, Any]) -> Point:
    is_baseline = row["kind"] == "baseline"
    return Point(
        batch_size=batch_size,
        tokens_per_s=row["tokens_per_s"],
        speedup=None if is_baseline else row["speedup"],
        speedup_ci=None if is_baseline or row["speedup_ci"] is None else Interval(*row["speedup_ci"]),
        is_disturbed=not is_baseline and row["standing"] == Standing.CONTROL_FAILED,
        is_unranked=not is_baseline and row["standing"] == Standing.UNRANKED,
    )


def _conditions_key(record: RunRecord) -> list[object]:
    """What rows must share to be ranked together: the suite's questions, then the setting."""
    asked = [(question.question_id, question.prompt_hash) for question in record.manifest.questions]
    return [record.summary.suite_hash, asked, *_setting_key(record.summary)]


def _setting_key(summary: RunSummary) -> list[object]:
    """All but the suite; also what puts suites into one figure."""
    return [
        summary.target_hash,
        summary.quantisation,
        summary.dtype,
        summary.device_kind,
        summary.device,
        summary.threads,
        summary.attention,
        summary.execution,
        summary.temperature,
        summary.top_k,
        summary.top_p,
        summary.min_p,
        summary.repetition_penalty,
        summary.rule,
        summary.batch_size,
        summary.carry,
        summary.max_new_tokens,
        summary.stop,
    ]


def _digest(key: object) -> str:
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:8]


def _scope(key: str, group: Sequence[RunRecord]) -> dict[str, Any]:
    """group: runs of equal conditions, newest first. A partial run stands only where no finished one does, alone."""
    finished = [record for record in group if record.summary.state == "finished"]
    shown = finished or list(group[:1])
    leading = _leading(shown)
    newest = leading.summary
    entries = _entries(shown)
    places = _places(entries)
    ordered = sorted(
        zip(entries, places, strict=True),
        key=lambda pair: sort_key(pair[0].where, rank=pair[1].rank, speedup=pair[0].row.speedup),
    )
    used = {entry.record.summary.run_id for entry in entries}
    suite = f"{text.printable(newest.suite)} ({text.count(newest.num_questions, 'question')})"
    return {
        "key": key,
        "setting": _digest(_setting_key(newest)),
        "suite": text.printable(newest.suite),
        "target": text.printable(newest.target),
        "num_questions": newest.num_questions,
        "batch_size": newest.batch_size,
        "title": " · ".join([suite, text.printable(newest.target), text.device(newest), *text.settings(newest)]),
        "conditions": _conditions(leading),
        "meter": text.meter(newest),
        "remarks": [r for r in (text.control(newest), *map(text.printable, newest.notes)) if r],
        "runs": [record.summary.run_id for record in shown if record.summary.run_id in used],
        "rows": [
            _row(entry, place, order, num_runs=len(used), unlike=_unlike(entry, entries))
            for order, (entry, place) in enumerate(ordered)
        ],
        # Paired inside their own run; of runs that left no row here nothing is said.
        "contrasts": [
            _rounded(to_json(each))
            for record in shown
            if record.summary.run_id in used
            for each in record.summary.contrasts
        ],
        "streams": [
            _rounded({"run_id": record.summary.run_id, **to_json(curve), "changes": _changes(curve)})
            for record in shown
            if record.summary.run_id in used
            for curve in record.streams
            if curve.points
        ],
    }


def _changes(curve: StreamCurve) -> list[dict[str, Any]]:
    return [{**to_json(change), "is_swap": change.is_swap, "words": words_of(change)} for change in curve.changes]


def _leading(shown: Sequence[RunRecord]) -> RunRecord:
    """Whose baseline, control, meter and notes stand for the scope: the newest run whose baseline has answers."""
    answered = (
        record
        for record in shown
        if any(row.kind == "baseline" and not row.is_control and _has_number(row) for row in record.summary.rows)
    )
    return next(answered, shown[0])


def _has_number(row: MethodRow) -> bool:
    return row.speedup is not None


def _entries(shown: Sequence[RunRecord]) -> list[_Entry]:
    """Of every competitor the newest row that has a number, or the newest where none has; baseline and control of the
    leading run. A newer row that measured nothing takes no older one's place.
    """
    leading = _leading(shown)
    found: dict[str, list[_Entry]] = {}
    for record in shown:
        methods = {method.label: method for method in record.manifest.methods}
        for row in record.summary.rows:
            if row.kind != "baseline" or record is leading:
                entry = _Entry(record=record, row=row, where=standing(row))
                found.setdefault(_identity(methods[row.method]), []).append(entry)
    newer = tuple(record.summary.run_id for record in shown[: shown.index(leading)])
    return [_chosen(entries, newer=newer if entries[0].row.kind == "baseline" else ()) for entries in found.values()]


def _chosen(entries: Sequence[_Entry], *, newer: tuple[str, ...]) -> _Entry:
    """One of a competitor's rows, given newest first. newer: runs before all of them that have no number either."""
    chosen = next((entry for entry in entries if _has_number(entry.row)), entries[0])
    passed_over = (entry.record.summary.run_id for entry in entries[: entries.index(chosen)])
    return dataclasses.replace(chosen, failed_since=(*newer, *passed_over))


def _identity(method: MethodRecord) -> str:
    """The same competitor in two runs: one name, the same options and weights."""
    return _digest([method.label, method.name, method.options, method.weights_hash, method.num_parameters])


def _options_of(entry: _Entry) -> dict[str, Any]:
    return dict(next(m.options for m in entry.record.manifest.methods if m.label == entry.row.method))


def _unlike(entry: _Entry, entries: Sequence[_Entry]) -> str:
    """Options by which a row differs from others of its name; '' where the name is its own."""
    namesakes = [_options_of(other) for other in entries if other.row.method == entry.row.method]
    own = _options_of(entry)
    return ", ".join(
        f"{name}={value}" for name, value in own.items() if any(other.get(name) != value for other in namesakes)
    )


def _places(entries: Sequence[_Entry]) -> list[_Place]:
    """1 + the number of ranked rows that are told apart as faster, pair by pair, and whom a row cannot be told from."""
    ranked = [entry for entry in entries if entry.where is Standing.RANKED]
    places = []
    for entry in entries:
        if entry.where is not Standing.RANKED:
            places.append(_Place(rank=None, tied_with=()))
            continue
        others = [other for other in ranked if other is not entry]
        tied = tuple(other.row.method for other in others if _is_tied(entry, other))
        faster = [o for o in others if not _is_tied(entry, o) and (o.row.speedup or 0.0) > (entry.row.speedup or 0.0)]
        places.append(_Place(rank=1 + len(faster), tied_with=tied))
    return places


def _is_tied(one: _Entry, other: _Entry) -> bool:
    if one.record is other.record:
        return other.row.method in one.row.tied_with
    a, b = _interval(one.row), _interval(other.row)
    return a.low <= b.high and b.low <= a.high


def _interval(row: MethodRow) -> Interval:
    """The baseline is 1 by definition."""
    if row.speedup_ci is None:
        assert row.kind == "baseline", "a ranked method has an interval"
        return Interval(1.0, 1.0)
    return row.speedup_ci


def _row(entry: _Entry, place: _Place, order: int, *, num_runs: int, unlike: str) -> dict[str, Any]:
    """The store's row unchanged but for rounding, and where it stands on this board."""
    row = entry.row
    method = next(m for m in entry.record.manifest.methods if m.label == row.method)
    is_said = _letters(method.title) in _letters(row.method)
    detail = [] if is_said else [text.printable(method.title)]
    detail += [text.printable(unlike)] if unlike else []
    detail += [f"{text.parameters(row.num_parameters)} parameters"] if row.num_parameters else []
    detail += [f"run {text.printable(entry.record.summary.run_id)}"] if num_runs > 1 else []
    notes = [f"tied with {text.listing(map(text.printable, place.tied_with))}"] if place.tied_with else []
    if entry.failed_since:
        newer = "a newer run of it" if len(entry.failed_since) == 1 else "newer runs of it"
        notes.append(f"{newer} failed: {text.listing(map(text.printable, entry.failed_since))}")
    return {
        **_clean(row),
        "identity": _identity(method),
        "run_id": text.printable(entry.record.summary.run_id),
        "created": entry.record.summary.created,
        "standing": entry.where.value,
        "is_broken": is_broken(row, rule=entry.record.summary.rule),
        "rank": place.rank,
        "tied_with": [text.printable(label) for label in place.tied_with],
        "rank_text": rank_text(entry.where, rank=place.rank, is_tied=bool(place.tied_with)),
        "order": order,
        "detail": " · ".join(detail),
        "notes": notes + [text.printable(note) for note in row.notes],
    }


def _letters(name: str) -> str:
    return "".join(char for char in name.lower() if char.isalnum())


def _conditions(record: RunRecord) -> list[tuple[str, str]]:
    summary, suite = record.summary, record.manifest.suite
    size = f"{text.printable(summary.model_type)}, {text.parameters(summary.num_parameters)} parameters"
    return [
        ("Suite", f"{text.printable(summary.suite)}, {text.count(summary.num_questions, 'question')}"),
        ("Suite hash", summary.suite_hash[:16]),
        ("Prompts", f"{text.printable(suite.template)} template, {text.printable(suite.source)}"),
        ("Target", f"{text.printable(summary.target)} ({size})"),
        ("Target weights", summary.target_hash[:16]),
        ("Precision", text.printable(precision(summary.dtype, summary.quantisation))),
        ("Device", f"{text.device(summary)}, {text.printable(summary.attention)} attention"),
        ("Execution", text.printable(summary.execution)),
        ("Sampling", text.sampling(summary)),
        ("Acceptance rule", summary.rule + (" (lossy)" if summary.rule == "typical" else "")),
        ("Batch size", str(summary.batch_size)),
        ("Carry", summary.carry),
        ("New tokens", f"at most {summary.max_new_tokens}"),
        ("Stop strings", text.stops(summary) or "none"),
    ]


def _run(record: RunRecord) -> dict[str, Any]:
    summary, manifest = record.summary, record.manifest
    provenance = text.printable_lines(json.dumps(manifest.provenance, indent=1, ensure_ascii=False, sort_keys=True))
    if len(provenance) > _PROVENANCE_LIMIT:
        rest = len(provenance) - _PROVENANCE_LIMIT
        provenance = f"{provenance[:_PROVENANCE_LIMIT]}\n… {rest} more characters in the run's manifest.json"
    return {
        "run_id": text.printable(summary.run_id),
        "state": summary.state,
        "created": summary.created,
        "suite": text.printable(summary.suite),
        "target": text.printable(summary.target),
        "device": text.device(summary),
        "conditions": " · ".join([text.count(summary.num_questions, "question"), *text.settings(summary)]),
        "method_list": ", ".join(text.printable(row.method) for row in summary.rows if row.kind != "baseline"),
        "command": text.printable(shlex.join(manifest.command)),
        "facts": [
            ("Made (UTC)", summary.created[:16].replace("T", " ")),
            ("Seed", str(summary.seed)),
            ("Repeats", str(summary.repeats)),
            ("Licence of the questions", text.printable(manifest.suite.licence)),
            ("Suite hash", summary.suite_hash, True),
            ("Target weights hash", summary.target_hash, True),
            ("Run", "; ".join(map(text.printable, summary.notes)), True),
        ],
        "methods": [
            {
                "label": text.printable(method.label),
                "kind": method.kind,
                "options": text.printable(", ".join(f"{key}={value}" for key, value in method.options.items())),
                "num_parameters": method.num_parameters,
                "weights_hash": method.weights_hash,
            }
            for method in manifest.methods
        ],
        "provenance": provenance,
    }


def _clean(row: MethodRow | ExternalRow) -> dict[str, Any]:
    """The row as plain JSON: six significant digits, harmless strings."""
    found = _rounded(to_json(row))
    assert isinstance(found, dict)
    return found


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, str):
        return text.printable(value)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value
