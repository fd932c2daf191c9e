"""A page of charts, of a training or an experiment: one offline HTML file with its data and its chart library in it."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any, NamedTuple

from specbench import __version__
from specbench.report.page import embed_json
from specbench.report.text import printable

_HEIGHT = 300
_STYLE = """
:root { color-scheme: light dark }
body { margin: 0 auto; max-width: 70rem; padding: 1rem; font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.25rem; margin: 0 } h2 { font-size: 1rem; margin: 1.5rem 0 0 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem } dt { opacity: .7 } dd { margin: 0 }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .8rem .2rem 0; text-align: right; border-bottom: 1px solid #8884 }
th:first-child, td:first-child { text-align: left } th { font-weight: 600 }
"""
_DRAW = """
const text = matchMedia("(prefers-color-scheme: dark)").matches ? "#ddd" : "#222";
for (const [name, traces, axis, x] of FIGURES) {
  Plotly.newPlot(name, traces, {
    height: 300, margin: { l: 60, r: 12, t: 30, b: 40 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: text }, legend: { orientation: "h", y: 1, yanchor: "bottom" },
    xaxis: { title: { text: x }, gridcolor: "#8884" },
    yaxis: { title: { text: axis }, gridcolor: "#8884" },
  }, { displayModeBar: false, responsive: true });
}
"""


class Figure(NamedTuple):
    """One chart: its name on the page, the vertical axis' unit, plotly's traces, the horizontal axis' unit."""

    title: str
    axis: str
    traces: list[dict[str, Any]]
    x: str = "step"


def render_figures(title: str, facts: str, figures: Sequence[Figure]) -> str:
    """The page as text; nothing in it is fetched. facts: HTML between title and charts, its texts escaped already."""
    from plotly.offline import get_plotlyjs  # 0.1 s, only for a page with figures

    data = embed_json([[f"figure-{at}", chart.traces, chart.axis, chart.x] for at, chart in enumerate(figures)])
    sections = "".join(
        f'<h2>{html.escape(printable(chart.title))}</h2><div id="figure-{at}" style="height:{_HEIGHT}px"></div>'
        for at, chart in enumerate(figures)
    )
    name = html.escape(printable(title))
    policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="generator" content="specbench {html.escape(__version__)}"><link rel="icon" href="data:,">\n'
        f"<title>{name}</title><style>{_STYLE}</style></head><body>\n"
        f"<h1>{name}</h1>{facts}{sections}\n"
        f"<script>{get_plotlyjs()}</script>\n<script>const FIGURES = {data};\n{_DRAW}</script></body></html>\n"
    )


def line(name: str, x: Sequence[float], y: Sequence[float | None], *, dots: bool = False) -> dict[str, Any]:
    """A trace. name: as it is to be read; plotly would take `<b>` in it for markup."""
    mode = "lines+markers" if dots else "lines"
    return {"type": "scatter", "mode": mode, "name": html.escape(printable(name)), "x": list(x), "y": list(y)}
