"""The engine on a GPU, held against the hardware and against transformers: python benchmarks/gpu.py --out results/gpu

Needs torch, transformers and specbench's engine, nothing else. Models are drawn at random in published shapes on the
device. Every part writes its results as soon as it has them, so that a run cut short loses nothing; the parts that may
take longest, because they compile, come last. When the time that was given is over, the part under way is cut off, and
the table says what was left out. `--small` rehearses all of it on a CPU with toy shapes and graphs that record
operators: it shows that the script runs, never how fast.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import transformers

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import gpu_parts, gpu_peers
from benchmarks.gpu_models import PUBLISHED, Bench, free
from specbench.engine import stamps
from specbench.engine.graphs import CudaGraphs
from specbench.engine.recorded import RecordedGraphs
from specbench.lm import attention, kernel_check

WhyWrong = Callable[..., str]
"""`kernel_check.why_wrong`."""

PARTS: dict[str, Callable[[Bench, dict[str, Any]], dict[str, Any]]] = {
    "parity": gpu_parts.parity,
    "timer": gpu_parts.timer,
    "copy": gpu_parts.copy_bandwidth,
    "kernel": gpu_parts.kernel,
    "autoregressive": gpu_parts.autoregressive,
    "verify": gpu_parts.verify,
    "oracle": gpu_parts.oracle,
    "generate": gpu_peers.transformers_generate,
    "assisted": gpu_peers.assisted,
    "long": gpu_parts.long_context,
    "batch": gpu_parts.batch,
    "small_targets": gpu_parts.small_targets,
    "compiled": gpu_peers.compiled,
}
LEAST_S = 5.0
"""No part is begun for less."""


class OutOfTime(BaseException):
    """The time that was given is over. No Exception: nothing that expects failures may take it for one."""


def main() -> int:
    """Runs the parts that were asked for, in order -> 0, or 1 where a part failed."""
    start = time.perf_counter()
    args = _arguments()
    bench = _bench(args)
    args.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {"conditions": _conditions(bench)}
    failed = []
    for name in args.parts:
        began = time.perf_counter()
        left_s = args.seconds - (began - start)
        if left_s < LEAST_S:
            found[name] = {"left_out": f"{began - start:.0f} of {args.seconds:.0f} s were spent before it"}
            continue
        try:
            with at_most(left_s):
                found[name] = PARTS[name](bench, found)
        except OutOfTime:
            found[name] = {"left_out": f"cut off {left_s:.0f} s after it began: {args.seconds:.0f} s were given in all"}
            continue  # whatever it held on the device, nothing more is run there
        except Exception as error:  # noqa: BLE001 - the other parts are still worth having
            failed.append(name)
            found[name] = {"failed": f"{type(error).__name__}: {error}"}
            traceback.print_exc()
        free(bench)
        found[name]["part_s"] = round(time.perf_counter() - began, 1)
        _write(args.out, found)
        print(json.dumps({name: found[name]}), flush=True)
    found["conditions"]["script_s"] = round(time.perf_counter() - start, 1)
    _write(args.out, found)
    print(table(found))
    return 1 if failed else 0


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raises OutOfTime inside the block once it has run for so long; a call into C is waited for."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("results/gpu"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--attention", choices=["auto", "triton", "sdpa"], default="auto")
    # torch and transformers take some of the nine minutes to load.
    parser.add_argument("--seconds", type=float, default=500.0, help="for all parts together")
    parser.add_argument("--small", action="store_true", help="toy shapes on the CPU, to rehearse")
    return parser.parse_args()


def _bench(args: argparse.Namespace) -> Bench:
    if args.small:
        torch.set_num_threads(1)
        return Bench(
            device=torch.device("cpu"), dtype=torch.float32, is_small=True, attention_name=attention.SDPA,
            backend=RecordedGraphs,
        )  # fmt: skip
    device = torch.device(args.device)
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device is visible to torch. Try: python benchmarks/gpu.py --small")
    if device.index is not None:
        torch.cuda.set_device(device)
    name, note = attention_for(args.attention, device)
    missing = stamps.why_missing(device)
    return Bench(
        device=device, dtype=torch.bfloat16, is_small=False, attention_name=name, attention_note=note,
        backend=lambda why_phased=missing: CudaGraphs(device, why_phased=why_phased), why_no_timer=missing,
    )  # fmt: skip


def attention_for(asked: str, device: torch.device, *, why_wrong: WhyWrong = kernel_check.why_wrong) -> tuple[str, str]:
    """Implementation and, where `auto` could not take the kernel, why: borrowed time is not lost to a kernel that does
    not run, and nobody takes one attention's figures for the other's."""
    if asked == "triton":
        return attention.TRITON, ""
    if asked == "sdpa":
        return attention.SDPA, ""
    # Parity of texts is held in float32, on the smallest.
    for name, dtype in (*((name, torch.bfloat16) for name in PUBLISHED), ("qwen2.5-0.5b", torch.float32)):
        why = why_wrong(PUBLISHED[name], device=device, dtype=dtype)
        if why:
            return attention.SDPA, f"{name}, {dtype}: {why}"
    return attention.TRITON, ""


def _conditions(bench: Bench) -> dict[str, Any]:
    is_cuda = bench.device.type == "cuda"
    return {
        "card": torch.cuda.get_device_name(bench.device) if is_cuda else "none: a rehearsal on a CPU, no measurement",
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "dtype": str(bench.dtype).removeprefix("torch."),
        "attention": bench.attention_name,
        "attention_note": bench.attention_note,
        "why_no_timer": bench.why_no_timer,
        "is_rehearsal": bench.is_small,
        "time": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
    }


def _write(out: Path, found: dict[str, Any]) -> None:
    name = "rehearsal" if found["conditions"]["is_rehearsal"] else "gpu"
    (out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (out / f"{name}.md").write_text(table(found) + "\n", encoding="utf-8")


def table(found: dict[str, Any]) -> str:
    """What the parts found beside what is asked of the engine, as Markdown."""
    conditions = found["conditions"]
    note = f" ({conditions['attention_note']})" if conditions["attention_note"] else ""
    lines = [
        f"{conditions['card']}; torch {conditions['torch']}, transformers {conditions['transformers']}, "
        f"{conditions['dtype']}, {conditions['attention']}{note}; {conditions['time']} UTC",
        "",
        "| part | measured | asked for |",
        "|---|---|---|",
    ]
    for name, part in found.items():
        if name == "conditions":
            continue
        for kind in ("failed", "left_out"):
            if kind in part:
                lines.append(f"| {name} | {kind.replace('_', ' ')}: {part[kind]} | |")
        for row in part.get("rows", ()):
            lines.append(f"| {name}: {row['what']} | {row['measured']} | {row.get('asked', '')} |")
    return "\n".join(lines)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # All is written. What was cut off may have left threads and compilers behind that an orderly end would wait for.
    os._exit(code)
