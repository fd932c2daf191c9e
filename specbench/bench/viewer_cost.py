"""What watching a run costs it: plain decoding with the viewer beside it, against plain decoding without.

The A/A control of an ordinary run is the pair: the viewer follows the run on its Race screen all the time, and is held
(SIGSTOP) while the baseline is timed. What it has missed it reads before the next timed generation begins.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from specbench import provenance
from specbench.bench.competitors import BASELINE
from specbench.bench.request import RunRequest
from specbench.bench.runner import run
from specbench.errors import EnvironmentFailed
from specbench.manifest import GroupRecord, read_manifest
from specbench.metrics import Interval
from specbench.store.viewer_cost import ViewerCost

COLUMNS, ROWS = 120, 36
_STARTS_S = 8.0
"""Longest wait for the viewer to show something, and a second for its screen to settle."""
_CATCH_UP_S = 0.3
"""After SIGCONT, outside what is timed: the viewer looks eight times a second."""
_KEEPER = """
import os, pty, sys
os.environ.update(COLUMNS=sys.argv[1], LINES=sys.argv[2], TERM="xterm-256color")
import fcntl, struct, termios
pid, master = pty.fork()
if pid == 0:
    os.execv(sys.executable, [sys.executable, "-m", "specbench", "tui", *sys.argv[3:]])
fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", int(sys.argv[2]), int(sys.argv[1]), 0, 0))
os.write(1, f"{pid}\\n".encode())
try:
    while os.read(master, 1 << 16):
        pass
except OSError:
    pass
os.waitpid(pid, 0)
"""
"""The viewer's terminal: a process that reads what the viewer draws and throws it away."""


class _Viewer:
    """`specbench tui RUN` in a terminal of its own."""

    def __init__(self, results: Path, run_id: str) -> None:
        command = [sys.executable, "-c", _KEEPER, str(COLUMNS), str(ROWS), run_id, "--store", str(results)]
        self._keeper = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert self._keeper.stdout is not None
        said = self._keeper.stdout.readline()
        try:
            if not said.strip().isdigit():
                raise psutil.NoSuchProcess(self._keeper.pid)
            self.process = psutil.Process(int(said))
            self._wait_until_it_rests()
        except psutil.NoSuchProcess as error:
            self._end_keeper()
            raise EnvironmentFailed(
                "the viewer ended as soon as it began", where="specbench tui", try_="specbench tui"
            ) from error

    def _wait_until_it_rests(self) -> None:
        end = time.monotonic() + _STARTS_S
        while time.monotonic() < end:
            if self.process.cpu_percent(interval=1.0) < 10:
                return

    def resume(self) -> None:
        """Let it catch up, then watch."""
        self._send(signal.SIGCONT)
        time.sleep(_CATCH_UP_S)

    def hold(self) -> None:
        """Not a cycle until `resume`."""
        self._send(signal.SIGSTOP)

    def _send(self, number: signal.Signals) -> None:
        # One that is gone is told by `group_done`.
        with suppress(psutil.NoSuchProcess):
            for process in self._family():
                process.send_signal(number)

    def _family(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def close(self) -> None:
        with suppress(psutil.Error):
            for process in self._family():
                process.kill()
        self._end_keeper()

    def _end_keeper(self) -> None:
        self._keeper.kill()
        self._keeper.wait()
        if self._keeper.stdout is not None:
            self._keeper.stdout.close()


class _Turns:
    """A `bench.Progress`: before each timed generation the viewer is let go or held."""

    def __init__(self, results: Path, *, say: Callable[[str], None]) -> None:
        self._results = results
        self._say = say
        self._left: list[GroupRecord] = []
        self.viewer: _Viewer | None = None
        self.is_watching = False

    def plan(self, *, num_groups: int, num_done: int, title: str) -> None:
        (folder,) = (self._results / "runs").iterdir()
        self._left = list(read_manifest(folder).groups)
        self._say(f"{num_groups} generations of {title}, watched and unwatched in turn")
        self.viewer = _Viewer(self._results, folder.name)
        self._prepare()

    def group_done(self, *, method: str, question: str, seconds: float, num_tokens: int, failed: bool) -> None:
        if self.viewer is None:
            return  # the reference pass
        if not self.viewer.process.is_running():
            raise EnvironmentFailed("the viewer ended while it watched", where="specbench tui", try_="specbench tui")
        self._left.pop(0)
        self._prepare()

    def say(self, text: str) -> None:
        self._say(text)

    def _prepare(self) -> None:
        """For the group that is timed next."""
        assert self.viewer is not None
        if not self._left:
            return
        self.is_watching = self._left[0].method != BASELINE
        if self.is_watching:
            self.viewer.resume()
        else:
            self.viewer.hold()
            time.sleep(_CATCH_UP_S)  # the same pause for both


def measure_viewer(
    *,
    suite: str = "demo",
    target: str | None = None,
    limit: int | None = None,
    repeats: int = 12,
    threads: int = 1,
    max_new_tokens: int | None = None,
    data: tuple[Path, ...] = (),
    say: Callable[[str], None] = lambda text: None,
) -> ViewerCost:
    """Run the pair on this machine, three minutes on the embedded target; the run itself is thrown away.

    Answers of a tenth of a second, as the embedded target's are, differ by a quarter among themselves: a target that
    takes longer, and more questions, tell the cost more narrowly.

    Raises EnvironmentFailed where the viewer does not live through it, and what a run raises.
    """
    with tempfile.TemporaryDirectory(prefix="specbench-viewer-") as name:
        results = Path(name)
        turns = _Turns(results, say=say)
        try:
            outcome = run(
                RunRequest(
                    suite=suite, target=target, methods=(BASELINE,), limit=limit, repeats=repeats, threads=threads,
                    max_new_tokens=max_new_tokens, data=data, store=results,
                ),
                turns,
            )  # fmt: skip
        finally:
            if turns.viewer is not None:
                turns.viewer.close()
        control = outcome.summary.control if outcome.summary is not None else None
        if outcome.summary is None or control is None or control.speedup is None or control.speedup_ci is None:
            raise EnvironmentFailed("too few questions were finished to say anything", try_="specbench doctor --viewer")
        low, high = control.speedup_ci
        return ViewerCost(
            slowdown=1 / control.speedup - 1,
            slowdown_ci=Interval(1 / high - 1, 1 / low - 1),
            num_questions=outcome.summary.num_questions,
            repeats=outcome.summary.repeats,
            num_cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
            device=outcome.summary.device,
            suite=outcome.summary.suite,
            target=outcome.summary.target,
            columns=COLUMNS,
            rows=ROWS,
            version=provenance.versions()["specbench"] or "",
            created=outcome.summary.created,
        )
