"""The engine on a GPU, held against the hardware and against transformers: python benchmarks/gpu.py --out results/gpu

Needs torch, transformers, Triton and what specbench's engine loads besides (numpy, psutil, PyYAML, rich). Models are
drawn at random in published shapes on the device. Every part writes its results as soon as it has them, so that a run
cut short loses nothing; a later call with the same --out adds its parts to what is there (--missing: those that are
not). A part that would not fit into what is left of the time is left out; when the time is over, the one under way is
cut off; the table says so. `--small` rehearses all of it on a CPU with toy shapes and graphs that record operators: it
shows that the script runs, never how fast.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    # Read once, by the first attention that torch runs; whatever this starts inherits it (`leave_cudnn_out` says why).
    os.environ.setdefault("TORCH_CUDNN_SDPA_DEPRIORITIZED", "1")

import torch
import transformers

from benchmarks import gpu_checks, gpu_parts, gpu_peers
from benchmarks.gpu_models import BIG, PUBLISHED, Bench, free
from benchmarks.gpu_table import found_before, record, table, write
from specbench.engine import stamps
from specbench.engine.graphs import CudaGraphs
from specbench.engine.recorded import RecordedGraphs
from specbench.lm import attention, kernel_check
from specbench.provenance import version_of

WhyWrong = Callable[..., str]
"""`kernel_check.why_wrong`."""


class Part(NamedTuple):
    """One of what is checked or timed. seconds: what it may take on an H200, a guess that decides whether it is begun.
    needs_copy: holds bytes against this call's copy. is_shared: on the target that such parts share."""

    run: Callable[[Bench, dict[str, Any]], dict[str, Any]]
    seconds: float
    needs_copy: bool = False
    is_shared: bool = False


PARTS = {
    "parity": Part(gpu_checks.parity, 25),
    "timer": Part(gpu_checks.timer, 12),
    "copy": Part(gpu_checks.copy_bandwidth, 3),
    "assisted": Part(gpu_peers.assisted, 40),
    "compiled": Part(gpu_peers.compiled, 70, needs_copy=True, is_shared=True),
    "long": Part(gpu_parts.long_context, 50, needs_copy=True, is_shared=True),
    "oracle": Part(gpu_parts.oracle, 30, is_shared=True),
    "verify": Part(gpu_parts.verify, 22, is_shared=True),
    "generate": Part(gpu_peers.transformers_generate, 22, is_shared=True),
    "batch": Part(gpu_parts.batch, 32),
    "small_targets": Part(gpu_parts.small_targets, 25, needs_copy=True),
    "kernel": Part(gpu_checks.kernel, 10, needs_copy=True),
    "whole": Part(gpu_peers.whole, 60, is_shared=True),
}
"""In the order in which they are run. What is asked of the engine comes first; parts on the shared target stand
together, or it would be compiled again; the last is what torch takes longest to compile."""
COMPILING_S = 20.0
"""Of the shared target, for the first part of a call that takes it; a guess as well."""
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
    conditions = _conditions(bench)
    found: dict[str, Any] = {"conditions": conditions, **found_before(args.out, conditions)}
    asked = [name for name in args.parts if not (args.missing and "rows" in found.get(name, {}))]
    failed = []
    for name in to_run(asked):
        began = time.perf_counter()
        left_s, needed_s = args.seconds - (began - start), needed(PARTS[name], bench)
        if left_s < needed_s:
            why = f"it may take {needed_s:.0f} s, and {left_s:.0f} of {args.seconds:.0f} s were left"
            record(found, name, {"left_out": why})
            write(args.out, found, list(PARTS))
            print(json.dumps({name: {"left_out": why}}), flush=True)
            continue
        is_cut = False
        try:
            with at_most(left_s):
                part = PARTS[name].run(bench, found)
        except OutOfTime:
            is_cut = True
            part = {"left_out": f"cut off {left_s:.0f} s after it began: {args.seconds:.0f} s were given in all"}
        except Exception as error:  # noqa: BLE001 - the other parts are still worth having
            failed.append(name)
            part = {"failed": f"{type(error).__name__}: {error}"}
            traceback.print_exc()
        if not is_cut:  # whatever it held on the device, nothing more is run there
            free(bench)
        part |= {"part_s": round(time.perf_counter() - began, 1), "time": conditions["time"]}
        if PARTS[name].needs_copy:
            part["copy_bytes_per_s"] = found.get("copy", {}).get("bytes_per_s")
        record(found, name, part)
        write(args.out, found, list(PARTS))
        print(json.dumps({name: part}), flush=True)
    conditions["script_s"] = round(time.perf_counter() - start, 1)
    write(args.out, found, list(PARTS))
    print(table(found))
    return 1 if failed else 0


def to_run(asked: list[str]) -> list[str]:
    """In the order of PARTS, with the copy where one of them needs it: that of another call may be of another card."""
    names = set(asked)
    if any(PARTS[name].needs_copy for name in names):
        names.add("copy")
    return [name for name in PARTS if name in names]


def needed(part: Part, bench: Bench) -> float:
    """Seconds that must be left for a part to be begun."""
    if bench.is_small:
        return LEAST_S
    return part.seconds + (COMPILING_S if part.is_shared and not bench.kept else 0.0)


@contextmanager
def at_most(seconds: float, *, again_s: float = 2.0) -> Iterator[None]:
    """Raises OutOfTime inside the block once it has run for so long; a call into C is waited for. Again and again:
    raised inside a finaliser or a callback of the compiler's, it is printed there and gone."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, again_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("results/gpu"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--missing", action="store_true", help="only those of them that --out has no figures of")
    parser.add_argument("--device", help="cuda, or one of several: cuda:1")
    parser.add_argument("--attention", choices=["auto", "triton", "sdpa"], default="auto")
    # torch and transformers take some of the nine minutes to load.
    parser.add_argument("--seconds", type=float, default=510.0, help="for all parts together")
    parser.add_argument("--small", action="store_true", help="toy shapes on the CPU, to rehearse")
    args = parser.parse_args(words)
    if args.small:
        # Graphs that record operators cannot replay what Triton's interpreter does.
        for option, value in (("--attention", args.attention), ("--device", args.device)):
            if value not in (None, "auto", "sdpa", "cpu"):
                parser.error(
                    f"--small rehearses on a CPU with torch's attention, not with {option} {value}: leave that out, "
                    f"or leave out --small where there is a GPU"
                )
    return args


def _bench(args: argparse.Namespace) -> Bench:
    if args.small:
        torch.set_num_threads(1)
        return Bench(
            device=torch.device("cpu"), dtype=torch.float32, is_small=True, attention_name=attention.SDPA,
            backend=RecordedGraphs,
        )  # fmt: skip
    device = torch.device(args.device or "cuda")
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device is visible to torch. Try: python benchmarks/gpu.py --small")
    if device.index is not None:
        torch.cuda.set_device(device)
    attention.leave_cudnn_out(device)
    chosen = attention_for(args.attention, device)
    missing = stamps.why_missing(device)
    return Bench(
        device=device, dtype=torch.bfloat16, is_small=False, attention_name=chosen.name,
        attention_float32=chosen.float32, attention_note=chosen.note,
        backend=lambda why_phased=missing: CudaGraphs(device, why_phased=why_phased), why_no_timer=missing,
    )  # fmt: skip


class Attention(NamedTuple):
    """The implementation of the run's dtype, that of models in float32, and why one of them is not Triton's."""

    name: str
    float32: str
    note: str = ""


def attention_for(asked: str, device: torch.device, *, why_wrong: WhyWrong = kernel_check.why_wrong) -> Attention:
    """What `auto` takes, and why where that is not the kernel: borrowed time is not lost to a kernel that does not run,
    and nobody takes one attention's figures for the other's. Texts are compared in float32, on the smallest target: a
    kernel that fails there alone is left out there alone."""
    if asked == "triton":
        return Attention(attention.TRITON, attention.TRITON)
    if asked == "sdpa":
        return Attention(attention.SDPA, attention.SDPA)
    picked = dict.fromkeys((torch.bfloat16, torch.float32), attention.TRITON)
    notes = []
    for name, dtype, most_nodes in (
        # Large trees once, in the shapes that verify them.
        *((name, torch.bfloat16, 128 if name == BIG else 16) for name in PUBLISHED),
        ("qwen2.5-0.5b", torch.float32, 16),
    ):
        if picked[dtype] == attention.TRITON:
            why = why_wrong(PUBLISHED[name], device=device, dtype=dtype, most_nodes=most_nodes)
            if why:
                picked[dtype] = attention.SDPA
                notes.append(f"{name}, {dtype}: {why}")
    return Attention(*picked.values(), note="; ".join(notes))


def _conditions(bench: Bench) -> dict[str, Any]:
    is_cuda = bench.device.type == "cuda"
    return {
        "card": torch.cuda.get_device_name(bench.device) if is_cuda else "none: a rehearsal on a CPU, no measurement",
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "triton": version_of("triton"),
        "python": platform.python_version(),
        "dtype": str(bench.dtype).removeprefix("torch."),
        "attention": bench.attention_name,
        "attention_float32": bench.attention_for(torch.float32),
        "cudnn_attention": torch.backends.cuda.cudnn_sdp_enabled(),
        "attention_note": bench.attention_note,
        "why_no_timer": bench.why_no_timer,
        "is_rehearsal": bench.is_small,
        "time": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
    }


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    # All is written. What was cut off may have left threads and compilers behind that an orderly end would wait for.
    os._exit(code)
