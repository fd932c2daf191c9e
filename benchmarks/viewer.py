"""(g) What `specbench tui` costs: a journal of a million steps opened and sought in, four panes replayed at 4,000
tokens a second together, the processor time of a screen where nothing moves, the memory of the viewer.

The app runs in a pseudo-terminal of 120x36, where drawing is as real as on a screen. Wall clock depends on who else
wants the processor; processor time beside it does not.
"""

from __future__ import annotations

import json
import os
import pty
import sys
import tempfile
import time
from pathlib import Path

import common

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.store import synthetic

_VIEWER = """
import asyncio, json, random, sys, time
from pathlib import Path
import psutil
from specbench.tui.app import SpecbenchApp
from specbench.tui.views.race import RaceView

store, out, rate = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
process = psutil.Process()
found = {"frames": 0}

def now():
    times = process.cpu_times()
    return time.perf_counter(), times.user + times.system

class Counting(SpecbenchApp):
    def _display(self, screen, renderable):
        found["frames"] += 1
        super()._display(screen, renderable)

    def on_ready(self):
        self.run_worker(self.measure())

    async def measure(self):
        run = sorted((store / "runs").iterdir())[0].name
        start, cpu = now()
        self.open_run(run)
        while not (isinstance(self.screen, RaceView) and self.screen.race is not None):
            await asyncio.sleep(0.02)
        view, race = self.screen, self.screen.race
        found["open_s"], found["open_cpu_s"] = (b - a for a, b in zip((start, cpu), now()))
        rng, walls, cpus = random.Random(0), [], []
        race.clock.pause()
        for _ in range(30):
            start, cpu = now()
            race.go(rng.randrange(len(race.questions)), repeat=rng.randrange(3))
            race.clock.seek(rng.random() * race.clock.duration)
            view.draw_now()
            a, b = now()
            walls.append(a - start), cpus.append(b - cpu)
            await asyncio.sleep(0.05)
        found["seek_s"], found["seek_cpu_s"] = sorted(walls), sorted(cpus)
        # A second of the clock is so many tokens of all panes together that `rate` come in a second of ours.
        await asyncio.sleep(1.0)
        num = sum(len(lane.tokens) for lane in race.lanes)
        race.clock.speed = rate * race.clock.duration / num
        found["speed"], frames = race.clock.speed, found["frames"]
        start, cpu = now()
        replayed = 0
        while time.perf_counter() - start < 8:
            race.clock.seek(0)
            race.clock.play()
            view.keep_pace()  # as the key does: nothing ticks where nothing moves
            while race.clock.is_playing and time.perf_counter() - start < 8:
                await asyncio.sleep(0.02)
            replayed += sum(lane.timeline.tokens_at(race.clock.position()) for lane in race.lanes)
        a, b = now()
        found["replay_s"], found["replay_cpu_s"] = a - start, b - cpu
        found["replayed"], found["replay_frames"] = replayed, found["frames"] - frames
        race.clock.speed = 1.0
        race.clock.pause()
        view.keep_pace()
        view.draw_now()
        await asyncio.sleep(2.0)
        start, cpu = now()
        await asyncio.sleep(15.0)
        a, b = now()
        found["idle_share"] = (b - cpu) / (a - start)
        found["rss_bytes"] = process.memory_info().rss
        self.show_view("home")
        await asyncio.sleep(3.0)
        start, cpu = now()
        await asyncio.sleep(10.0)
        a, b = now()
        found["idle_home_share"] = (b - cpu) / (a - start)
        out.write_text(json.dumps(found))
        self.exit()

Counting(store, theme="dark").run()
"""


def in_terminal(words: list[str], *, width: int = 120, height: int = 36) -> bytes:
    """Run a command in a pseudo-terminal and read away what it draws -> the end of it."""
    os.environ.update({"COLUMNS": str(width), "LINES": str(height), "TERM": "xterm-256color", "COLORTERM": "truecolor"})
    last = b""
    pid, file = pty.fork()
    if pid == 0:
        os.execv(words[0], words)
    while True:
        try:
            data = os.read(file, 1 << 16)
            if not data:
                break
            last = (last + data)[-20_000:]
        except OSError:
            break
    os.waitpid(pid, 0)
    return last


def main() -> None:
    made = common.parser(__doc__ or "", with_models=False)
    made.add_argument("--steps", type=int, default=1_000_000)
    made.add_argument("--rate", type=float, default=4_000, help="tokens a second, all panes together")
    args = made.parse_args()
    with tempfile.TemporaryDirectory() as name:
        start = time.perf_counter()
        run = Path(name) / "runs" / "20260101-000000-demo-0001"
        synthetic.write_big(run, num_steps=args.steps, run_id=run.name)
        common.note(f"journal written in {time.perf_counter() - start:.0f} s")
        out = Path(name) / "found.json"
        last = in_terminal([sys.executable, "-c", _VIEWER, name, str(out), str(args.rate)])
        if not out.exists():
            sys.exit(f"the viewer ended before it had measured:\n{last.decode(errors='replace')}")
        found = json.loads(out.read_text())
    middle = len(found["seek_s"]) // 2
    frames, seconds, cpu = found["replay_frames"], found["replay_s"], found["replay_cpu_s"]
    rows = [
        [f"journal of {args.steps:,} steps opened, s", f"{found['open_s']:.2f}", f"{found['open_cpu_s']:.2f}"],
        ["seek, ms, median", f"{1e3 * found['seek_s'][middle]:.0f}", f"{1e3 * found['seek_cpu_s'][middle]:.0f}"],
        ["seek, ms, worst of 30", f"{1e3 * found['seek_s'][-1]:.0f}", f"{1e3 * found['seek_cpu_s'][-1]:.0f}"],
        [
            f"frames/s, four panes, {found['replayed'] / seconds:,.0f} tok/s",
            f"{frames / seconds:.1f}",
            f"{frames / cpu:.1f}",
        ],
        ["idle Race, share of a core", "", f"{100 * found['idle_share']:.1f} %"],
        ["idle Home, share of a core", "", f"{100 * found['idle_home_share']:.1f} %"],
        ["viewer's memory, MB", "", f"{found['rss_bytes'] / 1e6:.0f}"],
    ]
    common.write("viewer", args, ["what", "wall clock", "processor time"], rows)


if __name__ == "__main__":
    main()
