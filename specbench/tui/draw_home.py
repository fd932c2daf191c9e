"""The list of runs as lines. No Textual."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from specbench.report import text
from specbench.report.standing import Standing, rank_text, standing
from specbench.store.records import MethodRow, RunEntry, RunSummary
from specbench.tui.lines import Column, Line, Span, line, sparkline, table, wrap, wrap_last

SORTS = ("newest", "suite", "target", "state", "speed-up")
_STATES = {
    "running": ("● running", "good"),
    "finished": ("✓ finished", ""),
    "interrupted": ("‖ stopped", "warn"),
    "failed": ("✗ failed", "bad"),
    "lost": ("? lost", "bad"),
    "unknown": ("? unknown", "warn"),
    "damaged": ("✗ damaged", "bad"),
}
_SPARK = 12
_RUN_ID = re.compile(r"\d{8}-\d{6}-.+-([0-9a-f]{4})")
_WHOLE_IDS = 150
"""Columns from which on a run's whole id is shown: it is what is copied and typed."""


def state_of(entry: RunEntry) -> Span:
    """The state with a sign, so that colour is not its only carrier."""
    words, style = _STATES.get(entry.state, (entry.state, ""))
    return Span(words, style)


def headline_row(summary: RunSummary) -> MethodRow | None:
    """What stands for a run in a list: its fastest ranked method; without one, the fastest that was measured."""
    rows = [row for row in summary.rows if row.kind != "baseline" and row.speedup is not None]
    ranked = [row for row in rows if standing(row) is Standing.RANKED]
    # Without a rank the control called oracle would win every list: cards that are never ranked stay out.
    fair = [row for row in rows if row.too_noisy or row.control_failed]
    return max(ranked or fair or rows, key=lambda row: row.speedup or 0.0, default=None)


def matches(entry: RunEntry, words: str) -> bool:
    """Every word is somewhere in the row."""
    hay = " ".join((entry.run_id, entry.suite, entry.target, entry.state, entry.kind, *entry.speedups)).lower()
    return all(word in hay for word in words.lower().split())


def shown_speedup(entry: RunEntry, summary: RunSummary | None) -> float | None:
    """What the column of speed-ups says of a run; None where it has no figure to say."""
    if summary is None or entry.kind == "train" or entry.state == "running":
        return None
    row = headline_row(summary)
    return row.speedup if row is not None else None


def ordered(entries: Sequence[RunEntry], by: str, summaries: Mapping[str, RunSummary]) -> list[RunEntry]:
    """By one of SORTS; newest first among equals. summaries: as far as they have been read; by speed-up a run without
    a figure stands last."""
    match by:
        case "suite":
            return sorted(entries, key=lambda entry: entry.suite)
        case "target":
            return sorted(entries, key=lambda entry: entry.target)
        case "state":
            return sorted(entries, key=lambda entry: (entry.state != "running", entry.state))
        case "speed-up":
            figures = {entry.run_id: shown_speedup(entry, summaries.get(entry.run_id)) for entry in entries}
            return sorted(entries, key=lambda entry: -(figures[entry.run_id] or 0.0))
        case _:
            return list(entries)


def rows(
    entries: Sequence[RunEntry],
    summaries: Mapping[str, RunSummary],
    ratios: Mapping[str, Sequence[float]],
    progress: Mapping[str, str],
    width: int,
) -> tuple[list[Line], list[tuple[str, Line]]]:
    """Head and rows by run id. summaries, ratios: as far as they have been read; `…` stands for the rest.
    progress: of runs that are being written."""
    columns = [
        Column("run", grows=True),
        Column("when"),
        Column("state"),
        Column("suite", most=16),
        Column("target", drop=4),
        Column("fastest", most=15, drop=2, least=8, is_name=True),
        Column("speed-up, 95 %"),
        Column("τ", right=True, drop=3),
        Column("by question", drop=5),
    ]
    cells = [
        _cells(
            entry,
            summaries.get(entry.run_id),
            ratios.get(entry.run_id, ()),
            progress.get(entry.run_id, "…"),
            is_wide=width >= _WHOLE_IDS,
        )
        for entry in entries
    ]
    head, body = table(columns, cells, width)
    return [head], [(entry.run_id, row) for entry, row in zip(entries, body, strict=True)]


def short_id(run_id: str) -> str:
    """`1f3a` of `20260131-235959-demo-1f3a`: the rest of it stands in other columns; other ids stay whole."""
    found = _RUN_ID.fullmatch(run_id)
    return found.group(1) if found else run_id


def when(created: str) -> str:
    """`01-31 23:59`, UTC; empty where the manifest is damaged."""
    return f"{created[5:10]} {created[11:16]}" if len(created) >= 16 else ""


def _cells(
    entry: RunEntry, summary: RunSummary | None, ratios: Sequence[float], progress: str, *, is_wide: bool
) -> list[Span]:
    head = [Span(entry.run_id if is_wide else short_id(entry.run_id)), Span(when(entry.created), "dim")]
    head += [state_of(entry), Span(entry.suite), Span(entry.target)]

    def without_figures(words: str, style: str) -> list[Span]:
        return [*head, Span(""), Span(words, style), Span(""), Span("")]

    if entry.kind == "train":
        # The step it was reached at stands beside the list.
        return without_figures(entry.headline.partition(" at ")[0] or "training", "dim")
    if entry.state == "running":
        return without_figures(progress, "good")
    if summary is None:
        return without_figures("…" if entry.state not in ("damaged",) else text.NONE, "")
    row = headline_row(summary)
    if row is None:
        return without_figures("no method yet", "dim")
    where = standing(row)
    style = "" if where is Standing.RANKED else "dim"
    # Not ranked: dim, and with a sign for those who see no dim; why not stands beside the list.
    sign = "" if where is Standing.RANKED else "≈"
    return [
        *head,
        Span(sign + row.method, style),
        Span(f"{sign}{text.times(row.speedup)} {text.interval(row.speedup_ci)}", style),
        Span(text.two(row.acceptance_length)),
        Span(sparkline(list(ratios), _SPARK, low=0.0), "accent"),
    ]


def empty_lines(folder: str, width: int) -> list[Line]:
    """A store without a run: what to press."""
    found = [
        (),
        line(Span("  No runs here yet.", "bold"), Span(f"  {folder}", "dim")),
        (),
        line(Span("    b", "key"), "  measures every method on the demo: needs no download, no GPU, about a minute."),
        line(Span("    n", "key"), "  opens a form for any suite, target and methods."),
        (),
        line(Span("  Or in another terminal, while this one watches:", "dim")),
        line(Span("    specbench run demo")),
        line(Span("    specbench run mtbench --target ./my-model --limit 20")),
        (),
        line(Span("  The run goes on when this viewer is closed.", "dim")),
    ]
    return [part for row in found for part in wrap_last(row, width)]


def details(
    entry: RunEntry, summary: RunSummary | None, source: str, width: int, *, ratios: Sequence[float] = ()
) -> list[Line]:
    """What stands beside or below the list: of the run under the cursor first what the list has no room for, then its
    conditions, rows and remarks. ratios: of its headline method, a question each, as far as they have been read."""
    from specbench.report.table import conditions, remarks

    found: list[Line] = [
        line(Span(entry.run_id, "bold")),
        (state_of(entry), Span(f"  {entry.created[:16]} UTC", "dim")),
    ]
    if ratios:
        found.append(line("by question ", Span(sparkline(list(ratios), max(4, width - 12), low=0.0), "accent")))
    found.append(())
    if entry.kind == "train":
        found += wrap(f"training on {entry.suite} for {entry.target}", width)
        found += wrap(entry.headline or "no evaluation yet", width)
        found += [(), *wrap("enter opens its curves", width, "dim")]
        return found
    if entry.state == "running":
        found += wrap(f"target {entry.target}", width)
        found += wrap("enter follows it, token by token", width, "dim")
        found += wrap("x stops it; closing this viewer does not", width, "dim")
        return found
    if summary is None:
        found += wrap(f"target {entry.target}", width)
        found += wrap("being summed up …" if entry.state != "damaged" else "its manifest cannot be read", width, "dim")
        return found
    for sentence in conditions(summary)[1:]:
        found += wrap(sentence, width)
    found.append(())
    for row in sorted(summary.rows, key=lambda row: -(row.speedup or 0.0)):
        where = standing(row)
        words = f"{text.times(row.speedup):>6} {text.interval(row.speedup_ci):>14} "
        style = "" if where in (Standing.RANKED, Standing.BASELINE) else "dim"
        found.append(line(Span(words, style), Span(row.method, style)))
        if where not in (Standing.RANKED, Standing.BASELINE):
            rank = rank_text(where, rank=None, is_tied=False)
            found.append(line(Span(f"{'':>22}≈ {rank}", "dim")))
    found.append(())
    for sentence in remarks(summary):
        found += wrap(sentence, width, "bad" if "failed" in sentence else "dim")
    if source != "store":
        found += wrap(source, width, "warn")
    return found
