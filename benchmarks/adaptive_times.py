"""The times of runs in which a draft model learns: on against off along the stream, learning charged to it.

    specbench run benchmarks/gsm8k_stream.yaml --grid adaptive_lora.adapt=off,on --carry stream ... --store STORE
    python benchmarks/adaptive_times.py STORE/specbench.duckdb:RUN --parts 4
    python benchmarks/adaptive_times.py STORE:RUN STORE:RUN STORE:RUN --parts 8 -o stream.png      several seeds

Paired by question; seconds are of whole answers, prefill included. `charged` adds what stood between a part's answers:
taking in what they showed, and rounds of learning. Intervals: 95 %, the part's questions resampled; a round's seconds
are no question's and stay. Of several runs each has its table, and one more is of all their answers together.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.pictures import find_browser, photograph
from specbench.metrics import Bootstrap, percentile_interval

Floats = npt.NDArray[np.float64]

_ANSWERS = """
SELECT r.group_id, b.total_s, f.total_s, r.total_s, n.num_new_tokens,
       fs.num_accepted, fs.num_tried, rs.num_accepted, rs.num_tried
FROM groups r
JOIN groups f USING (run_id, unit, turn, repeat)
JOIN groups b USING (run_id, unit, turn, repeat)
JOIN generations n ON (n.run_id, n.group_id) = (f.run_id, f.group_id)
JOIN stream_acceptance fs ON (fs.run_id, fs.group_id) = (f.run_id, f.group_id)
JOIN stream_acceptance rs ON (rs.run_id, rs.group_id) = (r.run_id, r.group_id)
WHERE r.run_id = $run AND r.method = $on AND f.method = $off AND b.method = 'autoregressive'
ORDER BY r.group_id
"""


class Stream(NamedTuple):
    """Of N answers, in the order of the stream."""

    plain_N: Floats
    """Seconds of plain decoding."""
    off_N: Floats
    on_N: Floats
    tokens_N: Floats
    taken_NK: Floats
    """Accepted and tried positions, off, then on."""
    learn_N: Floats
    """Seconds behind each answer of on: what it showed is taken in, and a round of learning where one is due."""


class Part(NamedTuple):
    """One stretch of the stream. Intervals are (value, low, high)."""

    answers: int
    positions: float
    """Tried by on from the stream's beginning to the part's end: what it had to learn from. Of several streams the
    mean."""
    plain_rate: float
    """Tokens a second."""
    off_rate: float
    on_rate: float
    charged_rate: float
    """Of on, its learning in its seconds."""
    ratio: tuple[float, float, float]
    """off seconds / on seconds."""
    charged: tuple[float, float, float]
    acceptance_off: float
    acceptance_on: float
    gain: tuple[float, float, float]
    learn_s: float


def read(store: Path, run: str, *, off: str, on: str) -> Stream:
    """Raises ValueError where the run has no such rows."""
    with duckdb.connect(str(store), read_only=True) as con:
        rows = con.execute(_ANSWERS, {"run": run, "on": on, "off": off}).fetchall()
        learnt = con.execute(
            "SELECT value FROM measurements WHERE run_id = ? AND name = 'learn_s' AND method = ? ORDER BY position",
            [run, on],
        ).fetchall()
    if not rows:
        raise ValueError(f"{run} has no answers of {on} and {off}")
    if len(learnt) != len(rows):
        raise ValueError(f"{run}: {len(rows)} answers, but {len(learnt)} times between them; was one of them failed?")
    table = np.asarray(rows, dtype=np.float64)
    return Stream(*(table[:, k] for k in (1, 2, 3, 4)), table[:, 5:9], np.asarray(learnt, dtype=np.float64)[:, 0])


def parts_of(streams: Sequence[Stream], num_parts: int) -> list[Part]:
    """Equal stretches of every stream, and last the whole. Answers of several are pooled."""
    cuts = [np.linspace(0, len(stream.plain_N), num_parts + 1).astype(int) for stream in streams]
    spans = [list(itertools.pairwise(bounds)) for bounds in cuts]
    whole = [[(0, len(stream.plain_N))] for stream in streams]
    return [_part(streams, [own[place] for own in some]) for some in (spans, whole) for place in range(len(some[0]))]


def _part(streams: Sequence[Stream], spans: Sequence[tuple[int, int]]) -> Part:
    cut = [
        Stream(*(column[begin:end] for column in stream)) for stream, (begin, end) in zip(streams, spans, strict=True)
    ]
    pooled = Stream(*(np.concatenate(columns) for columns in zip(*cut, strict=True)))
    num, learn_s = len(pooled.plain_N), float(pooled.learn_N.sum())
    columns = [pooled.off_N, pooled.on_N, *pooled.taken_NK.T]
    sums_RK = Bootstrap(num, seed=0).sums(np.stack(columns, axis=1))
    own = np.asarray([column.sum() for column in columns])[None]

    def told(measure: str) -> tuple[float, float, float]:
        def of(k_RK: Floats) -> Floats:
            off, on, yes_off, tried_off, yes_on, tried_on = k_RK.T
            if measure == "gain":
                return np.asarray(yes_on / tried_on - yes_off / tried_off)
            return np.asarray(off / (on + (learn_s if measure == "charged" else 0.0)))

        interval = percentile_interval(of(sums_RK), num)
        assert interval is not None
        return (float(of(own)[0]), interval.low, interval.high)

    tokens = pooled.tokens_N.sum()
    off, on, yes_off, tried_off, yes_on, tried_on = own[0]
    positions = np.mean([stream.taken_NK[:end, 3].sum() for stream, (_, end) in zip(streams, spans, strict=True)])
    return Part(
        num, float(positions), tokens / pooled.plain_N.sum(), tokens / off, tokens / on, tokens / (on + learn_s),
        told("ratio"), told("charged"), yes_off / tried_off, yes_on / tried_on, told("gain"), learn_s,
    )  # fmt: skip


def table(parts: Sequence[Part], num_streams: int) -> str:
    """In Markdown."""
    head = "answers | positions tried | plain, tokens/s | off | on | on ÷ off | learning, s | on, charged | ÷ off"
    lines = [f"| {head} | acceptance off → on | gain |", "|---|---:|---:|---:|---:|---|---:|---:|---|---|---|"]
    begin = 0
    for place, part in enumerate(parts):
        end = begin + part.answers // num_streams
        name = "all" if place == len(parts) - 1 else f"{begin + 1} to {end}"
        begin = end
        ratio, charged = (f"{a:.3f} [{b:.3f}, {c:.3f}]" for a, b, c in (part.ratio, part.charged))
        gain = "{:+.4f} [{:+.4f}, {:+.4f}]".format(*part.gain)
        rates = f"{part.positions:.0f} | {part.plain_rate:.1f} | {part.off_rate:.1f} | {part.on_rate:.1f} | {ratio}"
        learnt = f"{part.learn_s:.1f} | {part.charged_rate:.1f} | {charged}"
        lines.append(f"| {name} | {rates} | {learnt} | {part.acceptance_off:.4f} → {part.acceptance_on:.4f} | {gain} |")
    return "\n".join(lines)


def figure(each: Sequence[Sequence[Part]], together: Sequence[Part]) -> go.Figure:
    """Speed against positions: a thin line a stream, all together thick with its band, learning charged dashed."""
    made = go.Figure()
    x = [part.positions for part in together[:-1]]
    for name, colour in (("ratio", "#1f6feb"), ("charged", "#b35900")):
        mine = [getattr(part, name) for part in together[:-1]]
        band = [*(high for _, _, high in mine), *(low for _, low, _ in reversed(mine))]
        made.add_scatter(x=[*x, *reversed(x)], y=band, fill="toself", mode="none", fillcolor=colour, opacity=0.18)
        for parts in each:
            made.add_scatter(
                x=[part.positions for part in parts[:-1]], y=[getattr(part, name)[0] for part in parts[:-1]],
                mode="lines", line={"color": colour, "width": 1, "dash": "dot"},
            )  # fmt: skip
        made.add_scatter(
            x=x, y=[value for value, _, _ in mine], mode="lines+markers", line={"color": colour, "width": 3}
        )
        words = "decoding alone" if name == "ratio" else "learning on its clock"
        made.add_annotation(
            x=x[0], y=mine[0][0], text=words, font={"color": colour}, xanchor="left", yshift=22, showarrow=False
        )
    made.add_hline(y=1.0, line={"color": "#57606a", "dash": "dash", "width": 1})
    made.update_xaxes(title_text="positions tried so far")
    made.update_yaxes(title_text="tokens/s, on ÷ off")
    return made.update_layout(showlegend=False, template="plotly_white", margin={"l": 60, "r": 20, "t": 20, "b": 50})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="STORE:RUN", help="a DuckDB file and a run of it")
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--off", default="adaptive_lora[adapt=off]")
    parser.add_argument("--on", default="adaptive_lora[adapt=on]")
    parser.add_argument("-o", "--out", type=Path, help="a picture of speed against positions")
    args = parser.parse_args()
    named = [item.rpartition(":") for item in args.runs]
    streams = [read(Path(store), run, off=args.off, on=args.on) for store, _, run in named]
    each = [parts_of([stream], args.parts) for stream in streams]
    for (_, _, run), parts in zip(named, each, strict=True):
        print(f"{run}\n\n{table(parts, 1)}\n")
    together = parts_of(streams, args.parts)
    if len(streams) > 1:
        print(f"all {len(streams)}\n\n{table(together, len(streams))}")
    if args.out is not None:
        size = (820, 420)
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder) / "stream.html"
            made = figure(each, together).update_layout(width=size[0], height=size[1])
            made.write_html(page, include_plotlyjs=True, config={"staticPlot": True})
            photograph(find_browser(), page, args.out, size=size)


if __name__ == "__main__":
    main()
