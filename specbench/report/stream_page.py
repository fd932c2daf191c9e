"""Acceptance along a stream, for one run: an offline HTML page with the swaps marked, and lines for a terminal."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specbench.report.figures import Figure, line, render_figures
from specbench.report.stream_words import words_of
from specbench.report.text import printable
from specbench.report.training_page import spark
from specbench.store.files import write_whole
from specbench.store.records import RunSummary
from specbench.store.stream_records import AdapterChange, StreamCurve

_X = "drafted positions tried, in one repeat"
CAPTION = (
    "Accepted of tried drafted positions; each point pools consecutive answers of all repeats, its interval is over "
    "their questions. Questions differ along the stream: what learning changed is the difference from a row that does "
    "not learn."
)


def figures_of(curves: Sequence[StreamCurve]) -> list[Figure]:
    """All rows in one chart, then of each that learns: gains on held-out positions, acceptance by version."""
    together = [_acceptance(curve) for curve in curves if curve.points]
    for curve in curves:
        # Rounds that a resumed run went through again stand there once.
        swaps = [change for change in curve.changes if change.is_swap and not change.is_regrown]
        together += [_marks(curve, swaps)] if swaps else []
    found = [Figure("Acceptance along the stream", "accepted of tried", together, x=_X)]
    for curve in curves:
        judged = [change for change in curve.changes if change.gain_ci is not None and not change.is_regrown]
        if judged:
            found.append(Figure(f"{curve.method}: gain on held-out positions", "gain", [_gains(judged)], x=_X))
        if len(curve.versions) > 1:
            traces = [
                line("accepted", _numbers(curve), [each.acceptance for each in curve.versions], dots=True),
                line("sum min(p, q)", _numbers(curve), [each.overlap for each in curve.versions], dots=True),
            ]
            # Versions of several repeats and domains do not follow from each other: no line joins them.
            for trace in traces:
                trace["mode"] = "markers"
            found.append(
                Figure(f"{curve.method}: by adapter version", "share", traces, x="version (0: the draft model)")
            )
    return found


def _numbers(curve: StreamCurve) -> list[float]:
    return [float(each.version) for each in curve.versions]


def _acceptance(curve: StreamCurve) -> dict[str, Any]:
    points = curve.points
    trace = line(curve.method, [(p.since + p.until) / 2 for p in points], [p.acceptance for p in points], dots=True)
    above = [0.0 if p.acceptance_ci is None else p.acceptance_ci.high - p.acceptance for p in points]
    below = [0.0 if p.acceptance_ci is None else p.acceptance - p.acceptance_ci.low for p in points]
    trace["error_y"] = {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1}
    return trace


def _marks(curve: StreamCurve, changes: Sequence[AdapterChange]) -> dict[str, Any]:
    """Where another adapter came into use: diamonds at the foot of the chart."""
    low = min((p.acceptance_ci.low if p.acceptance_ci else p.acceptance) for p in curve.points) if curve.points else 0.0
    trace = line(f"{curve.method}: swaps", [float(change.at) for change in changes], [low] * len(changes))
    trace["mode"] = "markers"
    trace["marker"] = {"symbol": "diamond-tall", "size": 11}
    trace["hovertext"] = [html.escape(words_of(change)) for change in changes]
    return trace


def _gains(judged: Sequence[AdapterChange]) -> dict[str, Any]:
    gains = [_gain(change) or 0.0 for change in judged]
    trace = line("after - before", [float(change.at) for change in judged], list(gains))
    trace["mode"] = "markers"
    intervals = [change.gain_ci for change in judged if change.gain_ci is not None]
    above = [interval.high - gain for interval, gain in zip(intervals, gains, strict=True)]
    below = [gain - interval.low for interval, gain in zip(intervals, gains, strict=True)]
    trace["error_y"] = {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1}
    trace["hovertext"] = [html.escape(words_of(change)) for change in judged]
    return trace


def _gain(change: AdapterChange) -> float | None:
    return None if change.before is None or change.after is None else change.after - change.before


def write_stream_page(summary: RunSummary, curves: Sequence[StreamCurve], out: Path) -> Path:
    """The page as one HTML file. Raises EnvironmentFailed where it cannot be written."""
    remedy = "specbench results plot RUN -o FILE, in a folder that can be written and on a disk with room"
    write_whole(out, render_streams(summary, curves), try_=remedy)
    return out


def render_streams(summary: RunSummary, curves: Sequence[StreamCurve]) -> str:
    """The page as text; nothing in it is fetched."""
    facts = [
        ("suite", f"{summary.suite}, {summary.num_questions} questions"),
        ("target", f"{summary.target}, {summary.dtype}"),
        ("what is drawn", CAPTION),
    ]
    head = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(printable(text))}</dd>" for name, text in facts)
    rows = "".join(
        f"<tr><td>{html.escape(printable(curve.method))}</td>"
        f'<td style="text-align:left">{html.escape(words_of(change))}</td></tr>'
        for curve in curves
        for change in curve.changes
    )
    heads = '<th>method</th><th style="text-align:left">what became of its adapter</th>'
    table = f'<div class="wide"><table><tr>{heads}</tr>{rows}</table></div>'
    return render_figures(summary.run_id, f"<dl>{head}</dl>" + (table if rows else ""), figures_of(curves))


def lines_of(curves: Sequence[StreamCurve], *, width: int = 48) -> list[str]:
    """The curves for a terminal, and every change."""
    found = []
    for curve in curves:
        values = [point.acceptance for point in curve.points]
        if values:
            ends = f"{values[0]:.3f} → {values[-1]:.3f}"
            found.append(f"{printable(curve.method)}  {spark(values, width=width)}  {ends} accepted of tried")
        found += [f"  {words_of(change)}" for change in curve.changes]
    return found
