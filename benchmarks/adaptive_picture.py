"""The picture of a curve of adaptive_lora (`adaptive_curve.py`): acceptance of every held-out set along the stream.

    python benchmarks/adaptive_picture.py DIR [DIR …] -o curve.png

Several folders are seeds of one curve that were run apart. The band is the 95 % bootstrap interval of the gain over the
draft model itself, answers resampled within all seeds, drawn around the mean of the seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.pictures import find_browser, photograph
from specbench.metrics import Bootstrap, percentile_interval

_COLOURS = ("#1f6feb", "#b35900", "#1a7f37", "#8250df")


class Place(NamedTuple):
    """Of all seeds together."""

    positions: float
    """Observed by then, mean over seeds."""
    rate: float
    low: float
    high: float


def read(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Checkpoints of all folders; only places that every seed has come to."""
    rows = [json.loads(line) for folder in folders for line in (folder / "curve.jsonl").read_text().splitlines()]
    seeds = {row["seed"] for row in rows}
    whole = {
        answers
        for answers in {row["answers"] for row in rows}
        if {row["seed"] for row in rows if row["answers"] == answers} == seeds
    }
    return [row for row in rows if row["answers"] in whole]


def places(rows: Sequence[dict[str, Any]], name: str) -> list[Place]:
    """The curve of one held-out set."""
    mine = [row for row in rows if row["set"] == name]
    first = _counts([row for row in mine if row["answers"] == 0])
    found = []
    for answers in sorted({row["answers"] for row in mine}):
        here = [row for row in mine if row["answers"] == answers]
        counts = np.concatenate([first, _counts(here)], axis=1)
        sums = Bootstrap(counts.shape[0], seed=0).sums(counts)
        total = counts.sum(0)
        off, on = total[0] / total[1], total[2] / total[3]
        gain = percentile_interval(sums[:, 2] / sums[:, 3] - sums[:, 0] / sums[:, 1], counts.shape[0])
        assert gain is not None, "at least two held-out answers"
        positions = float(np.mean([row["positions"] for row in here]))
        found.append(Place(positions, on, off + gain.low, off + gain.high))
    return found


def _counts(rows: Sequence[dict[str, Any]]) -> np.typing.NDArray[np.float64]:
    """Accepted and tried per answer, seeds summed: (answers, 2)."""
    return np.array([[row["accepted"], row["tried"]] for row in rows], dtype=np.float64).sum(0).T


def figure(rows: Sequence[dict[str, Any]], titles: dict[str, str]) -> go.Figure:
    """One panel a set: seeds thin, all together thick with its band, the draft model itself dashed."""
    names = list(dict.fromkeys(row["set"] for row in rows))
    made = make_subplots(rows=1, cols=len(names), subplot_titles=[titles.get(name, name) for name in names])
    for column, name in enumerate(names, start=1):
        colour = _COLOURS[(column - 1) % len(_COLOURS)]
        curve = places(rows, name)
        x = [place.positions for place in curve]
        band = [*(place.high for place in curve), *(place.low for place in reversed(curve))]
        made.add_scatter(
            x=[*x, *reversed(x)], y=band, fill="toself", mode="none", fillcolor=colour, opacity=0.18, row=1, col=column
        )
        for seed in sorted({row["seed"] for row in rows}):
            own = [row for row in rows if (row["set"], row["seed"]) == (name, seed)]
            made.add_scatter(
                x=[row["positions"] for row in own],
                y=[sum(row["accepted"]) / sum(row["tried"]) for row in own],
                mode="lines",
                line={"color": colour, "width": 1, "dash": "dot", "shape": "hv"},
                row=1,
                col=column,
            )
        made.add_scatter(
            x=x, y=[place.rate for place in curve], mode="lines+markers", line={"color": colour, "width": 3},
            row=1, col=column,
        )  # fmt: skip
        made.add_hline(y=curve[0].rate, line={"color": "#57606a", "dash": "dash", "width": 1}, row=1, col=column)
        made.update_xaxes(title_text="positions observed", row=1, col=column)
    made.update_yaxes(title_text="accepted of tried", row=1, col=1)
    made.update_layout(showlegend=False, template="plotly_white", margin={"l": 60, "r": 20, "t": 40, "b": 50})
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--title", action="append", default=[], metavar="SET=WORDS", help="of a panel")
    arguments = parser.parse_args()
    titles = dict(item.split("=", 1) for item in arguments.title)
    size = (1280, 420)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "curve.html"
        made = figure(read(arguments.folders), titles).update_layout(width=size[0], height=size[1])
        made.write_html(page, include_plotlyjs=True, config={"staticPlot": True})
        photograph(find_browser(), page, arguments.out, size=size)


if __name__ == "__main__":
    main()
