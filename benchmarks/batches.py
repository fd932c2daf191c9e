"""(i) Throughput of every method against the batch size, and where drafting stops paying.

    python benchmarks/batches.py --sizes 1,2,4,8,16 --out results/benchmarks --store DIR -- gsm8k --limit 48 --repeats 2

What stands behind `--` is said to `specbench run`, once for every size. Each run is paired and interleaved in itself;
runs stand one after the other, so that speed-ups may be compared between sizes, tokens a second with care. A method
pays as long as the lower end of its interval lies above 1; a run whose A/A control failed decides nothing.
Resumable: a size whose finished run lies in the store is not run again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import common


class Cell(NamedTuple):
    """One method at one size."""

    tokens_per_s: float
    speedup: float
    low: float
    high: float

    @property
    def words(self) -> str:
        return f"{self.tokens_per_s:,.0f} · {self.speedup:.2f} [{self.low:.2f}, {self.high:.2f}]"


class Size(NamedTuple):
    """All methods at one size."""

    batch_size: int
    run_id: str
    control: tuple[float, float]
    cells: dict[str, Cell]
    plain: float
    """Tokens a second of the baseline."""

    @property
    def is_sound(self) -> bool:
        """Whether its A/A control contains 1."""
        return self.control[0] <= 1 <= self.control[1]


def read(body: dict[str, Any]) -> Size:
    """A run's `--json`. Raises ValueError where a row has no interval: too few questions."""
    rows = body["rows"]
    if any(row["speedup_ci"] is None for row in rows if row["kind"] != "baseline" or row["is_control"]):
        raise ValueError(f"{body['run_id']}: too few questions for an interval")
    [control] = [row for row in rows if row["is_control"]]
    [plain] = [row for row in rows if row["kind"] == "baseline" and not row["is_control"]]
    cells = {
        row["name"]: Cell(row["tokens_per_s"], row["speedup"], *row["speedup_ci"])
        for row in rows
        if row["kind"] != "baseline"
    }
    return Size(body["batch_size"], body["run_id"], tuple(control["speedup_ci"]), cells, plain["tokens_per_s"])


def crossover(sizes: list[Size], name: str) -> str:
    """The first size from which a method no longer pays, of those that were sound."""
    pays = {size.batch_size: size.cells[name].low > 1 for size in sizes if size.is_sound and name in size.cells}
    if not pays:
        return "not known"
    lasting = [size for size in pays if not any(paid for later, paid in pays.items() if later >= size)]
    if not lasting:
        return f"pays up to {max(pays)}"
    return f"at {min(lasting)}" if min(lasting) > min(pays) else "never pays"


def main() -> None:
    here = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    words = sys.argv[here + 1 :]
    parser = common.parser(__doc__ or "", with_models=False)
    parser.add_argument("--sizes", default="1,2,4,8,16")
    parser.add_argument("--store", type=Path, required=True)
    args = parser.parse_args(sys.argv[1:here])
    if not words:
        parser.error("-- and the words of specbench run are missing: -- gsm8k --limit 48")
    sizes = []
    for number in map(int, args.sizes.split(",")):
        done = args.store / f"batch-{number}.json"
        if not done.exists():
            command = [*words, "--batch-size", str(number), "--threads", str(args.threads), "--json"]
            common.note(f"specbench run {' '.join(command)}")
            ran = subprocess.run(
                [sys.executable, "-m", "specbench", "run", *command, "--store", str(args.store / str(number))],
                stdout=subprocess.PIPE,
                check=True,
            )
            done.write_bytes(ran.stdout)
        body = json.loads(done.read_bytes())
        sizes.append(read(body))
    names = list(dict.fromkeys(name for size in sizes for name in size.cells))
    rows: list[list[str]] = [["autoregressive", *(f"{size.plain:,.0f}" for size in sizes), ""]]
    for name in names:
        found = [size.cells[name].words if name in size.cells else "–" for size in sizes]
        rows.append([name, *found, crossover(sizes, name)])
    rows.append(["A/A", *(f"[{low:.2f}, {high:.2f}]" for low, high in (size.control for size in sizes)), ""])
    common.write(
        "batches",
        args,
        ["tokens/s · speed-up", *(f"B = {size.batch_size}" for size in sizes), "stops paying"],
        rows,
        suite=body["suite"],
        questions=body["num_questions"],
        target=body["target"],
        runs=", ".join(size.run_id for size in sizes),
    )


if __name__ == "__main__":
    main()
