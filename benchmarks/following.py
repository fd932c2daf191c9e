"""(h) What `specbench tui` takes of a machine while a run is live: processor time, wake-ups and bytes drawn on Race,
Home, Accept and Speed; with --keys how long a key waits where every core is busy.

A process writes a journal as a run does, at the pace its steps claim; the viewer is the command itself in a
pseudo-terminal of 120x36, driven by keys. For the shares it is kept from stepping aside, so that it is never starved:
what it takes is what it needs. Processor time says what watching may cost at most, not what it costs: that is
`specbench doctor --viewer`.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import common
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from specbench.events import GenerationStarted, Steps
from specbench.manifest import write_manifest
from specbench.store.journal import Journal
from tests.store import synthetic

_COLUMNS, _ROWS = 120, 36
_ANSWER = 128
"""Tokens."""
_VIEWER = """
import sys
import specbench.tui.app as app
from specbench.tui.yielding import GivingWay
if sys.argv.pop(1) == "needs":
    app.GivingWay = lambda: GivingWay(lower=lambda: None, set_session=lambda niceness: True)
from specbench.cli.entry import main
sys.argv[0] = "specbench"
main()
"""
_BUSY = "while True: pass"
_SCREENS = (("2", "Race"), ("1", "Home"), ("4", "Accept"), ("5", "Speed"), ("2", "Race again"))


def write_live(folder: Path, rate: float) -> None:
    """Write a run until killed. rate: tokens a second of plain decoding; the drafting methods are faster."""
    manifest = synthetic.make_manifest(run_id=folder.name, num_questions=80, num_turns=2)
    manifest = manifest.model_copy(update={"target": manifest.target.model_copy(update={"name": "demo"})})
    folder.mkdir(parents=True)
    write_manifest(folder, manifest)
    scale = 1 / (rate * synthetic.AR_S)
    by_label = {competitor.label: competitor for competitor in synthetic.COMPETITORS}
    with Journal(folder) as journal:
        events = synthetic.run_events(manifest, num_tokens=_ANSWER)
        for event in events:
            if isinstance(event, GenerationStarted):
                break
            journal.write(event)
        for record in manifest.groups:
            for event in synthetic.group_events(manifest, record, by_label[record.method], num_tokens=_ANSWER):
                if isinstance(event, GenerationStarted):
                    began = time.time()
                    journal.write(GenerationStarted(**(vars(event) | {"began_s": began})))
                elif isinstance(event, Steps):
                    for row in event.rows:
                        seconds = (scale * each for each in row[-4:])
                        late = began + scale * row.end_s - time.time()
                        if late > 0:
                            time.sleep(late)
                        journal.steps(record.group, [row._replace(end_s=scale * row.end_s)._replace(
                            **dict(zip(row._fields[-4:], seconds, strict=True)))])  # fmt: skip
                else:
                    names = ("prefill_s", "decode_s", "total_s", "draft_s", "verify_s", "accept_s", "commit_s")
                    changed = {name: scale * getattr(event, name) for name in names}
                    journal.write(type(event)(**(vars(event) | changed)))


class _Terminal:
    """The viewer in a pseudo-terminal; a thread reads away what it draws."""

    def __init__(self, words: list[str]) -> None:
        self.num_bytes = 0
        self._last = b""
        self.pid, self._file = pty.fork()
        if self.pid == 0:
            os.environ.update(COLUMNS=str(_COLUMNS), LINES=str(_ROWS), TERM="xterm-256color", COLORTERM="truecolor")
            os.execv(words[0], words)
        fcntl.ioctl(self._file, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
        self._drawn = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._file, 1 << 16)
            except OSError:
                return
            with self._drawn:
                self.num_bytes += len(data)
                self._last = (self._last + data)[-100_000:]
                self._drawn.notify_all()

    def press(self, keys: str) -> None:
        """Keys as a terminal sends them; what was drawn before is forgotten."""
        with self._drawn:
            self._last = b""
        os.write(self._file, keys.encode())

    def wait_for(self, words: str, *, seconds: float = 60.0) -> float:
        """Seconds until it is drawn."""
        start = time.perf_counter()
        with self._drawn:
            if not self._drawn.wait_for(lambda: words.encode() in self._last, timeout=seconds):
                sys.exit(f"{words!r} was not drawn within {seconds} s:\n{self._last[-3000:]!r}")
        return time.perf_counter() - start

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._file)


class _Reading(NamedTuple):
    wall_s: float
    viewer_s: float
    reader_s: float
    wakes: int
    num_bytes: int


def _read(terminal: _Terminal) -> _Reading:
    viewer = psutil.Process(terminal.pid)
    children = viewer.children(recursive=True)
    return _Reading(
        time.perf_counter(),
        sum(viewer.cpu_times()[:2]),
        sum(sum(each.cpu_times()[:2]) for each in children) + sum(viewer.cpu_times()[2:4]),
        sum(
            int(row.split()[1])
            for task in Path(f"/proc/{terminal.pid}/task").iterdir()
            for row in (task / "status").read_text().splitlines()
            if row.startswith("voluntary_ctxt")
        ),
        terminal.num_bytes,
    )


@contextmanager
def _live_run(rate: float) -> Iterator[Path]:
    """A results folder in which a process writes a run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "runs" / "20260101-000000-demo-0001"
        words = [sys.executable, __file__, "--write", str(folder), "--rate", str(rate)]
        writer = subprocess.Popen(words, start_new_session=True)
        try:
            while not (folder / "events.jsonl").exists():
                time.sleep(0.05)
            time.sleep(2.0)
            yield Path(name)
        finally:
            writer.kill()
            writer.wait()


def _viewer(store: Path, how: str) -> _Terminal:
    run = next((store / "runs").iterdir()).name
    words = [sys.executable, "-c", _VIEWER, how, "tui", run, "--store", str(store)]
    terminal = _Terminal(words)
    terminal.wait_for("LIVE")
    return terminal


def shares(args: argparse.Namespace) -> list[list[str]]:
    """A row per screen: what the viewer took a second of a live run."""
    rows = []
    with _live_run(args.rate) as store:
        terminal = _viewer(store, "needs")
        try:
            for key, screen in _SCREENS:
                terminal.press(key)
                terminal.wait_for(f"[{key} {screen.split()[0]}]")
                time.sleep(args.settle)
                before = _read(terminal)
                time.sleep(args.seconds)
                now = _Reading(*(b - a for a, b in zip(before, _read(terminal), strict=True)))
                rows.append(
                    [
                        screen,
                        f"{100 * now.viewer_s / now.wall_s:.1f} %",
                        f"{100 * now.reader_s / now.wall_s:.1f} %",
                        f"{now.wakes / now.wall_s:.0f}",
                        f"{now.num_bytes / now.wall_s / 1000:.1f}",
                    ]
                )
                common.note(" ".join(rows[-1]))
        finally:
            terminal.close()
    return rows


def keys(args: argparse.Namespace) -> list[list[str]]:
    """How long `?` and `esc` wait on Race, with so many busy processes on the cores that the viewer may use."""
    found: dict[str, list[float]] = {"help drawn": [], "back on Race": []}
    with _live_run(args.rate) as store:
        terminal = _viewer(store, "steps aside")
        busy = [
            subprocess.Popen([sys.executable, "-c", _BUSY], start_new_session=True)
            for _ in range(args.keys * len(os.sched_getaffinity(0)))
        ]
        try:
            time.sleep(args.settle)
            for _ in range(15):
                terminal.press("?")
                found["help drawn"].append(terminal.wait_for("Keys on Race"))
                time.sleep(1.0)
                terminal.press("\x1b")
                found["back on Race"].append(terminal.wait_for("Race clock"))
                time.sleep(1.7)
        finally:
            for process in busy:
                process.kill()
                process.wait()
            terminal.close()
    return [
        [what, f"{1e3 * sorted(times)[len(times) // 2]:.0f}", f"{1e3 * max(times):.0f}"]
        for what, times in found.items()
    ]


def main() -> None:
    made = common.parser(__doc__ or "", with_models=False)
    made.add_argument("--rate", type=float, default=300, help="tokens a second of plain decoding")
    made.add_argument("--seconds", type=float, default=20, help="measured on each screen")
    made.add_argument("--settle", type=float, default=4)
    made.add_argument("--keys", type=int, default=0, help="measure key latency beside so many busy processes a core")
    made.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    args = made.parse_args()
    facts = {"rate": args.rate, "seconds": args.seconds, "cores": len(os.sched_getaffinity(0))}
    if args.write:
        write_live(args.write, args.rate)
    elif args.keys:
        common.write("keys", args, ["key", "ms, median of 15", "worst"], keys(args), **facts, busy_a_core=args.keys)
    else:
        columns = ["screen", "viewer, of a core", "reader, of a core", "wake-ups/s", "kB/s drawn"]
        common.write("following", args, columns, shares(args), **facts)


if __name__ == "__main__":
    main()
