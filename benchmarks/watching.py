"""(d) What recording costs the recorded: the journal alone, fine enough to see half a per cent, and then everything
that watches a run, on and off in turn.

The viewer here is a stand-in: a process that reads the journal as often and draws nothing. What `specbench tui` itself
costs a run, `specbench doctor --viewer` measures.

`journal`: the step stream of real generations, pushed through recorder and journal again and again, and the seconds
that the engine's own clock finds in live ones. `watching`: short generations, the sides in a new random order for
every prompt, each against the unrecorded one beside it; the median of the paired ratios with a 95 % bootstrap interval
over pairs. "off again" is the control: its interval shows what this machine can resolve.
"""

from __future__ import annotations

import gc
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import common
import numpy as np
import torch

from specbench import registry
from specbench.api import load
from specbench.bench.device_watch import DeviceWatch
from specbench.engine import decode, recorder
from specbench.engine.answer import GroupResult, StepSink
from specbench.engine.clock import clock_for
from specbench.engine.decode import Engine
from specbench.method import Request
from specbench.sampling import Sampling
from specbench.store.journal import Journal

VIEWER = """
import os, sys, time
os.nice(15)
from pathlib import Path
from specbench.store.journal import read_events
offset, folder = 0, Path(sys.argv[1])
while True:
    for line in read_events(folder, offset=offset):
        offset = line.next_offset
    time.sleep(0.125)
"""
REPLAYS = 400
"""Times the recorded stream goes through; the least of each cost is reported beside the median."""
RESAMPLES = 10_000


class Reading(NamedTuple):
    """One generation."""

    wall_s: float
    cpu_s: float
    journal_s: float
    num_steps: int


class Capture(recorder.Recorder):
    """Keeps the arguments of every `step`, to push the same ones again."""

    last: Capture

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.stream: list[tuple[Any, ...]] = []
        Capture.last = self

    def step(self, *args: Any) -> None:
        self.stream.append(args)
        super().step(*args)


def main() -> None:
    parser = common.parser(__doc__ or "")
    parser.set_defaults(max_new_tokens=256, limit=4, rounds=30)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lm = load(args.target)
    texts = common.prompts(lm, args)
    engine = Engine(lm, sampling=Sampling(), max_len=max(len(prompt) for prompt in texts) + args.max_new_tokens)
    drafter = registry.load("autoregressive")({}, engine.view())

    def generate(place: int, sink: StepSink | None) -> GroupResult:
        # No stop ids: every generation is as long, so that its ratio to another is one of seconds alone.
        return engine.generate(
            drafter, [Request(key=place, prompt=texts[place], max_new_tokens=args.max_new_tokens)], sink=sink
        )

    def timed(place: int, sink: StepSink | None) -> Reading:
        gc.collect()
        gc.disable()
        try:
            cpu = time.process_time()
            result = generate(place, sink)
            cpu = time.process_time() - cpu
        finally:
            gc.enable()
        return Reading(result.total_s, cpu, result.journal_s, len(result.generations[0].steps))

    target = args.target.rstrip("/").rsplit("/", 1)[-1]
    with tempfile.TemporaryDirectory() as name, Journal(Path(name)) as journal:
        folder = Path(name)
        viewer = subprocess.Popen([sys.executable, "-c", VIEWER, str(folder)])
        try:
            with DeviceWatch(folder, gpu_uuid="", say=print) as watch:
                assert watch._process is not None
                readings = _in_turn(timed, journal, viewer, watch._process, len(texts), rounds=args.rounds)
        finally:
            viewer.send_signal(signal.SIGCONT)
            viewer.kill()
            viewer.wait()
        step_s = statistics.median(r.wall_s / r.num_steps for r in readings["off"])
        in_vivo = [r.journal_s / r.num_steps for r in readings["journal"]]
        stream = _captured(lambda: generate(0, None))
        rows = _replayed(stream, engine, journal, steps_per_flush=max(1, round(recorder.FLUSH_S / step_s)))
    share = lambda seconds: f"{100 * seconds / step_s:.3f} %"  # noqa: E731
    table = [["one step of the target, journal off", f"{step_s * 1e6:.1f}", "100 %"]]
    table += [
        [f"{what}, {statistic}", f"{seconds * 1e6:.2f}", share(seconds)]
        for what, values in [*rows.items(), ("the engine's own clock, live generations", in_vivo)]
        for statistic, seconds in (("median", statistics.median(values)), ("least", min(values)))
    ]
    facts = {"target": target, "tokens": args.max_new_tokens, "rounds": args.rounds}
    common.write("journal", args, ["recording", "µs a step", "of a step"], table, **facts, replays=REPLAYS)
    print()
    common.write(
        "watching",
        args,
        ["recording", "ms a token", "÷ off, wall clock", "÷ off, CPU of the run"],
        [
            [
                side,
                f"{statistics.median(r.wall_s for r in found) / args.max_new_tokens * 1e3:.3f}",
                _paired([r.wall_s for r in found], [r.wall_s for r in readings["off"]]),
                _paired([r.cpu_s for r in found], [r.cpu_s for r in readings["off"]]),
            ]
            for side, found in readings.items()
        ],
        **facts,
        pairs=len(readings["off"]),
        viewer="a stand-in: a process at nice 15 that reads the journal 8 times a second and draws nothing",
    )


def _in_turn(
    timed: Callable[[int, StepSink | None], Reading],
    journal: Journal,
    viewer: subprocess.Popen[bytes],
    sampler: subprocess.Popen[bytes],
    num_prompts: int,
    *,
    rounds: int,
) -> dict[str, list[Reading]]:
    """Readings by side, paired by index. Watchers are stopped and continued: starting them would cost a second each."""
    sink: StepSink = lambda rows: journal.steps(0, rows)  # noqa: E731
    watchers: dict[str, list[subprocess.Popen[bytes]]] = {
        "off": [],
        "off again": [],
        "journal": [],
        "journal + sampler": [sampler],
        "journal + viewer": [viewer],
    }
    time.sleep(1.0)  # both have loaded what they need
    for process in (viewer, sampler):
        process.send_signal(signal.SIGSTOP)
    readings: dict[str, list[Reading]] = {side: [] for side in watchers}
    order, chance = list(watchers), random.Random(0)
    for index in range(rounds + 1):
        for place in range(num_prompts):
            chance.shuffle(order)
            for side in order:
                for process in watchers[side]:
                    process.send_signal(signal.SIGCONT)
                try:
                    found = timed(place, None if side.startswith("off") else sink)
                finally:
                    for process in watchers[side]:
                        process.send_signal(signal.SIGSTOP)
                if index > 0:
                    readings[side].append(found)
    sampler.send_signal(signal.SIGCONT)
    return readings


def _captured(generate: Callable[[], GroupResult]) -> Capture:
    decode.Recorder, plain = Capture, decode.Recorder  # type: ignore[misc]
    try:
        generate()
    finally:
        decode.Recorder = plain  # type: ignore[misc]
    return Capture.last


def _replayed(capture: Capture, engine: Engine, journal: Journal, *, steps_per_flush: int) -> dict[str, list[float]]:
    """Seconds a step: the captured stream through recorder and journal, flushed after as many steps as in life."""
    found: dict[str, list[float]] = {}
    sides: dict[str, StepSink | None] = {
        "rows made, no sink": None,
        "rows made, encoded and written": lambda rows: journal.steps(0, rows),
    }
    clock = clock_for(engine.lm.device)
    for _ in range(REPLAYS):
        for what, sink in sides.items():
            again = recorder.Recorder(clock, sink, num_rows=1)
            again.begin(capture._begin_mark, now_s=time.perf_counter())
            wall, cpu = time.perf_counter(), time.process_time()
            for index, arguments in enumerate(capture.stream, start=1):
                if index % steps_per_flush == 0:
                    again._last_flush = journal._last_flush = 0.0
                again.step(*arguments)
            again.finish()
            journal.flush()
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            found.setdefault(f"{what}, wall clock", []).append(wall / len(capture.stream))
            found.setdefault(f"{what}, CPU", []).append(cpu / len(capture.stream))
    return found


def _paired(top: Sequence[float], bottom: Sequence[float]) -> str:
    """Median of the ratios and its 95 % bootstrap interval over pairs."""
    ratios = np.array(top) / np.array(bottom)
    draws = np.random.default_rng(0).integers(0, len(ratios), size=(RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(ratios[draws], axis=1), [0.025, 0.975])
    return f"{np.median(ratios):.4f} [{low:.4f}, {high:.4f}]"


if __name__ == "__main__":
    main()
