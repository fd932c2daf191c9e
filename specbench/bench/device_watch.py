"""Starts and stops the process that watches the machine (device_sampler.py); the run itself never looks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal

from specbench.store.device import metrics_file
from specbench.store.journal import end_of_whole_lines

SAMPLER = Path(__file__).with_name("device_sampler.py")
_PATIENCE_S = 3.0


class DeviceWatch:
    """A context manager around the timed part of a run. Whatever goes wrong here is said, and the run goes on.

    gpu_uuid: NVML's name of the GPU in use, '' for none. say: where a failure is told.
    """

    def __init__(self, folder: Path, *, gpu_uuid: str, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._gpu_uuid = gpu_uuid
        self._say = say
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> DeviceWatch:
        try:
            output = _open_for_append(metrics_file(self._folder))
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", str(SAMPLER), str(os.getpid()), self._gpu_uuid],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                )
                assert self._process.stdin is not None
                # A sampler that does not read must never hold up a run.
                os.set_blocking(self._process.stdin.fileno(), False)
            finally:
                os.close(output)
        except OSError as error:
            self._say(f"the machine's state is not recorded: {error}")
        return self

    def mark(self, edge: Literal["begin", "end"], group: int) -> None:
        """A group's timed region is about to begin, or has ended: the sampler reads the GPU's energy counter. One write
        to a pipe, outside the region; nothing without a GPU."""
        if self._process is None or self._process.stdin is None or not self._gpu_uuid:
            return
        try:
            os.write(self._process.stdin.fileno(), f"{edge} {group}\n".encode("ascii"))
        except OSError:
            # The sampler is gone, which is told at the end, or too far behind to say anything about this group.
            return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is None:
            return
        try:
            # Closes its standard input, which is how it learns that the run is over.
            _, complaint = self._process.communicate(timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            _, complaint = self._process.communicate()
        if self._process.returncode:
            lines = complaint.decode("utf-8", errors="replace").strip().splitlines()
            self._say(f"the machine's state was not recorded to the end: {lines[-1] if lines else 'it was killed'}")


def _open_for_append(path: Path) -> int:
    """Behind the last whole line: a run that was killed may have left half of one."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.ftruncate(file, end_of_whole_lines(file))
    except OSError:
        os.close(file)
        raise
    return file
