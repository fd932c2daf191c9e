"""The times of a run in which a draft model learns: on against off along the stream, learning charged to it.

    specbench run benchmarks/gsm8k_stream.yaml --grid adaptive_lora.adapt=off,on --carry stream ... --store STORE
    python benchmarks/adaptive_times.py STORE RUN --parts 4

Paired by question; seconds are of whole answers, prefill included. `charged` adds what stood between a part's answers:
taking in what they showed, and rounds of learning. Intervals: 95 %, the part's questions resampled; a round's seconds
are no question's and stay.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import NamedTuple

import duckdb
import numpy as np
import numpy.typing as npt

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


def parts_of(stream: Stream, num_parts: int) -> list[Part]:
    """Equal stretches, and last the whole."""
    bounds = np.linspace(0, len(stream.plain_N), num_parts + 1).astype(int)
    spans = list(itertools.pairwise(bounds))
    return [_part(stream, begin, end) for begin, end in [*spans, (0, len(stream.plain_N))]]


def _part(stream: Stream, begin: int, end: int) -> Part:
    cut = slice(begin, end)
    learn_s = float(stream.learn_N[cut].sum())
    columns = [stream.off_N[cut], stream.on_N[cut], *stream.taken_NK[cut].T]
    sums_RK = Bootstrap(end - begin, seed=0).sums(np.stack(columns, axis=1))
    own = np.asarray([column.sum() for column in columns])[None]

    def told(measure: str) -> tuple[float, float, float]:
        def of(k_RK: Floats) -> Floats:
            off, on, yes_off, tried_off, yes_on, tried_on = k_RK.T
            if measure == "gain":
                return np.asarray(yes_on / tried_on - yes_off / tried_off)
            return np.asarray(off / (on + (learn_s if measure == "charged" else 0.0)))

        interval = percentile_interval(of(sums_RK))
        assert interval is not None
        return (float(of(own)[0]), interval.low, interval.high)

    tokens = stream.tokens_N[cut].sum()
    off, on, yes_off, tried_off, yes_on, tried_on = own[0]
    return Part(
        end - begin, tokens / stream.plain_N[cut].sum(), tokens / off, tokens / on, tokens / (on + learn_s),
        told("ratio"), told("charged"), yes_off / tried_off, yes_on / tried_on, told("gain"), learn_s,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, help="the DuckDB file")
    parser.add_argument("run")
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--off", default="adaptive_lora[adapt=off]")
    parser.add_argument("--on", default="adaptive_lora[adapt=on]")
    args = parser.parse_args()
    found = parts_of(read(args.store, args.run, off=args.off, on=args.on), args.parts)
    print("| answers | plain, tokens/s | off | on | on ÷ off | learning, s | on, charged | ÷ off | acceptance | gain |")
    print("|---|---:|---:|---:|---|---:|---:|---|---|---|")
    begin = 0
    for place, part in enumerate(found):
        name = "all" if place == len(found) - 1 else f"{begin + 1} to {begin + part.answers}"
        begin += part.answers
        ratio, charged = (f"{a:.3f} [{b:.3f}, {c:.3f}]" for a, b, c in (part.ratio, part.charged))
        gain = "{:+.4f} [{:+.4f}, {:+.4f}]".format(*part.gain)
        rates = f"{part.plain_rate:.1f} | {part.off_rate:.1f} | {part.on_rate:.1f} | {ratio}"
        learnt = f"{part.learn_s:.1f} | {part.charged_rate:.1f} | {charged}"
        print(f"| {name} | {rates} | {learnt} | {part.acceptance_off:.4f} → {part.acceptance_on:.4f} | {gain} |")


if __name__ == "__main__":
    main()
