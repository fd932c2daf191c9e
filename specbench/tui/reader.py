"""The reader: a process beside the viewer that holds DuckDB and sums up, so that the screen never waits for either.

In a thread of the viewer, summing up a long journal would stop its keys for seconds (one interpreter lock), and DuckDB
with pyarrow would be most of its memory. Beside a live run of this machine the reader is as nice as can be; without one
it is as heavy as the viewer began, since a key waits for it. It ends when its standard input does.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from typing import Any, BinaryIO, Protocol

from specbench.errors import EnvironmentFailed, SpecbenchError
from specbench.tui import spawning
from specbench.tui.yielding import NICENESS, session_of, set_session

IDLE_S = 20.0


class Asking(Protocol):
    """Something that does a job of figures.py."""

    def ask(self, job: str, *values: Any) -> Any:
        """The job's result; raises the SpecbenchError it raised."""
        ...

    def rest(self) -> None:
        """Called now and then: nothing may be wanted for a while."""
        ...

    def give_way(self, is_beside: bool) -> None:
        """Called now and then: whether a run of this machine is live."""
        ...

    def pids(self) -> list[int]:
        """Processes that work for the viewer now."""
        ...

    def close(self) -> None:
        """No more jobs."""
        ...


class HereReader:
    """Does the jobs in this process: for tests, and nothing else."""

    def ask(self, job: str, *values: Any) -> Any:
        from specbench.tui.figures import JOBS

        return JOBS[job](*values)

    def rest(self) -> None:
        pass

    def give_way(self, is_beside: bool) -> None:
        pass

    def pids(self) -> list[int]:
        return []

    def close(self) -> None:
        pass


class Reader:
    """Starts its process with the first job. Jobs wait for each other: they would only share one processor anyway."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the viewer
        self._lock = threading.Lock()
        self._last_job_s = 0.0
        self._gives_way = True
        """Until it is known that nothing is live."""
        self._weight: int | None = None
        """Of its session, as it was set last; None: not yet, or refused."""

    def ask(self, job: str, *values: Any) -> Any:
        """Blocks; meant for a thread."""
        with self._lock:
            self._last_job_s = time.monotonic()
            process = self._started()
            assert process.stdin is not None and process.stdout is not None
            try:
                pickle.dump((job, values), process.stdin)
                process.stdin.flush()
                # From our own child, which nobody else can write to.
                failed, found = pickle.load(process.stdout)  # noqa: S301
            except (OSError, EOFError, pickle.UnpicklingError) as error:
                self._process = None
                raise EnvironmentFailed(
                    f"the process that reads the store ended in the middle of {job}: {self._last_words()}",
                    try_="the same again; if it happens twice: specbench results ls, and specbench doctor",
                ) from error
        if failed:
            assert isinstance(found, SpecbenchError)
            raise found
        return found

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            # Not multiprocessing: spawning from inside Textual fails (it holds stderr, Textual #3593).
            # As heavy as the viewer was before it gave way: what has to be given way to is told beside it.
            niceness = self._weight = NICENESS if self._gives_way else 0
            self._process = spawning.popen(
                [sys.executable, "-m", "specbench.tui.reader", str(niceness)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                start_new_session=True,
            )
        return self._process

    def _last_words(self) -> str:
        self._complaints.seek(0)
        lines = self._complaints.read().decode("utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def give_way(self, is_beside: bool) -> None:
        """Also in the middle of a job. Niceness of a process is not taken back, its session's is: where the kernel
        weighs no sessions it stays nice until it has rested."""
        self._gives_way = is_beside
        process, wanted = self._process, NICENESS if is_beside else 0
        if process is None or process.poll() is not None or wanted == self._weight:
            return
        if is_beside:
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
        # Refused where another session changed within 100 ms: then by the next call.
        is_set = set_session(wanted, of=process.pid) or session_of(process.pid) is None
        self._weight = wanted if is_set else None

    def rest(self) -> None:
        """End the process where it has had nothing to do for a while: it holds more memory than the viewer. The next
        job starts another."""
        if time.monotonic() - self._last_job_s > IDLE_S and self._lock.acquire(blocking=False):
            try:
                self.close()
            finally:
                self._lock.release()

    def pids(self) -> list[int]:
        """One or none."""
        process = self._process
        return [process.pid] if process is not None and process.poll() is None else []

    def close(self) -> None:
        """Its input ends, and so does it."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Jobs in, (failed, result) out, until the input ends. A defect ends the process: the asker says so."""
    from specbench.tui.figures import JOBS

    while True:
        try:
            job, values = pickle.load(source)  # noqa: S301 - from our own parent
        except EOFError:
            return
        answer: tuple[bool, Any]
        try:
            answer = (False, JOBS[job](*values))
        except SpecbenchError as error:
            # Its cause stays here: Exception's pickling takes the arguments and the attributes, no more.
            answer = (True, error)
        pickle.dump(answer, sink)
        sink.flush()


def main() -> None:
    """`python -m specbench.tui.reader`: for Reader alone."""
    niceness = int(sys.argv[1])
    os.nice(max(0, niceness - os.nice(0)))
    if niceness:
        # Its session is its own, and what counts where the kernel weighs sessions.
        set_session(niceness)
    # Whatever a library prints must not stand between two answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
