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
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil

from specbench import provenance
from specbench.bench.competitors import BASELINE
from specbench.bench.request import RunRequest
from specbench.bench.runner import run
from specbench.errors import EnvironmentFailed, cannot_write
from specbench.manifest import GroupRecord, read_manifest
from specbench.metrics import Interval
from specbench.store.viewer_cost import ViewerCost

COLUMNS, ROWS = 120, 36
_STARTS_S = 8.0
"""Longest wait for the viewer to show something, and a second for its screen to settle."""
_CATCH_UP_S = 0.3
"""After SIGCONT, outside what is timed: the viewer looks eight times a second."""
_ELSEWHERE = "TMPDIR=DIR specbench doctor --viewer …: the run that is watched is written there, and thrown away"
_ENDS_S = 5.0
"""Longest wait for the keeper once its input has ended."""
_KEEPER = """
import os, pty, select, signal, sys
from contextlib import suppress
os.environ.update(COLUMNS=sys.argv[1], LINES=sys.argv[2], TERM="xterm-256color")
import fcntl, struct, termios
pid, master = pty.fork()
if pid == 0:
    os.execv(sys.executable, [sys.executable, "-m", "specbench", "tui", *sys.argv[3:]])
fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", int(sys.argv[2]), int(sys.argv[1]), 0, 0))
with suppress(OSError):
    os.write(1, f"{pid}\\n".encode())
    while 0 not in select.select([0, master], [], [])[0] and os.read(master, 1 << 16):
        pass
import psutil
with suppress(psutil.Error):
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
with suppress(OSError):
    os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)
"""
"""The viewer's terminal: a process that reads what the viewer draws and throws it away. Its standard input says nothing
and ends with the measuring process, however that ends; the viewer and what it started, held or not, are then killed."""


class _Viewer:
    """`specbench tui RUN` in a terminal of its own."""

    def __init__(self, results: Path, run_id: str) -> None:
        command = [sys.executable, "-c", _KEEPER, str(COLUMNS), str(ROWS), run_id, "--store", str(results)]
        # A session of its own: what a terminal sends to all of its processes is for the run, which then ends this one.
        self._keeper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        try:
            self.process = self._started()
            self._wait_until_it_rests()
        except psutil.NoSuchProcess as error:
            self.close()
            raise EnvironmentFailed(
                "the viewer ended as soon as it began", where="specbench tui", try_="specbench tui"
            ) from error
        except BaseException:
            self.close()
            raise

    def _started(self) -> psutil.Process:
        assert self._keeper.stdout is not None
        said = self._keeper.stdout.readline()
        if not said.strip().isdigit():
            raise psutil.NoSuchProcess(self._keeper.pid)
        return psutil.Process(int(said))

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
        """The viewer, what it started and its keeper are gone then."""
        with self._keeper as keeper:
            assert keeper.stdin is not None
            keeper.stdin.close()
            try:
                keeper.wait(_ENDS_S)
            except subprocess.TimeoutExpired:
                keeper.kill()


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end what is under way as Ctrl-C does, so that no viewer and no folder is left behind. One that
    is ignored (nohup) stays so. Signals reach the main thread only; elsewhere nothing is installed."""
    was = {}
    if threading.current_thread() is threading.main_thread():
        numbers = (signal.SIGTERM, signal.SIGHUP)
        was = {number: signal.getsignal(number) for number in numbers if signal.getsignal(number) == signal.SIG_DFL}

    def handle(number: int, frame: FrameType | None) -> None:
        # The first alone: a terminal that is closed sends several, and what tidies up is not to be broken off.
        for each in was:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in was:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in was.items():
            signal.signal(number, handler)


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


@contextmanager
def _scratch() -> Iterator[Path]:
    """A results folder that is thrown away. No option of a command moves it, so that what its disk refuses is remedied
    by TMPDIR. Raises EnvironmentFailed."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="specbench-viewer-")
    except OSError as error:
        raise cannot_write(Path(error.filename or "TMPDIR"), error, try_=_ELSEWHERE) from error
    with folder as name:
        try:
            yield Path(name)
        except EnvironmentFailed as error:
            if not Path(error.where).is_relative_to(name):
                raise
            raise EnvironmentFailed(error.what, where=error.where, try_=_ELSEWHERE) from error
        except OSError as error:
            place = Path(str(error.filename or ""))
            if not place.is_relative_to(name):
                raise
            raise cannot_write(place, error, try_=_ELSEWHERE) from error


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

    Raises EnvironmentFailed where the viewer does not live through it or the folder for what is temporary cannot be
    written, KeyboardInterrupt on Ctrl-C, SIGTERM and SIGHUP, and what a run raises.
    """
    with _interrupted_by_signals(), _scratch() as results:
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
        if outcome.state == "interrupted":
            raise KeyboardInterrupt  # half a measurement is none
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
