"""Questions to another machine by ssh, and files that come from there. No Textual."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import IO

from specbench.errors import EnvironmentFailed
from specbench.store.journal import end_of_whole_lines
from specbench.store.streamed import Place

_PATIENCE_S = 30
_END_S = 2.0
_SHELL = "exec sh -s"
"""The command of every question: what is asked is given on stdin, so that the login shell there reads none of it. csh
ends a quoted text at the end of its line and replaces what stands behind an exclamation mark."""
_OPTIONS = (
    # A link that died in silence ends its ssh, after a quarter of a minute, and is begun anew.
    *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3"),
    # Without a terminal nobody could type a password, and the screen must not wait for one.
    *("-o", "BatchMode=yes"),
)
NO_LINK = 255
"""ssh's own exit code; any other is of what ran there."""


class Link:
    """To the machine of one run."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._started: list[subprocess.Popen[bytes]] = []

    def _words(self) -> list[str]:
        port = ["-p", self.place.port] if self.place.port else []
        return ["ssh", *_OPTIONS, *port, self.place.host, _SHELL]

    def ask(self, script: str, what: str) -> bytes:
        """What the script prints there. what: the file that it prints. Raises EnvironmentFailed with what ssh said."""
        place = self.place
        try:
            done = subprocess.run(
                self._words(), input=os.fsencode(script), capture_output=True, timeout=_PATIENCE_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise EnvironmentFailed(
                f"{place.host} did not answer in {_PATIENCE_S} s",
                where=place.folder,
                try_=f"{place.asks('true')}, which must come back by itself",
            ) from error
        except OSError as error:
            raise EnvironmentFailed(
                f"{place.host} cannot be asked: ssh does not start here ({error.strerror or error})",
                try_=f"install OpenSSH's client, then {place.asks('true')}",
            ) from error
        if done.returncode:
            raise EnvironmentFailed(
                f"{place.host} gives no {what} of {place.run_id}: {_last_line(done.stderr) or 'it said nothing'}",
                where=place.folder,
                try_=f"{place.asks(f'ls {place.quoted()}')}; a key or an agent must answer for the password",
            )
        return done.stdout

    def start(self, script: str, *, stdout: IO[bytes] | int, stderr: IO[bytes] | int) -> subprocess.Popen[bytes]:
        """The script there, for as long as it takes. Raises OSError."""
        with tempfile.TemporaryFile() as given:
            given.write(os.fsencode(script))
            given.seek(0)
            process = subprocess.Popen(self._words(), stdin=given, stdout=stdout, stderr=stderr, start_new_session=True)
        self._started.append(process)
        return process

    def close(self) -> None:
        """Ends what was started."""
        for process in self._started:
            process.terminate()
        for process in self._started:
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:  # stopped, or waiting for a file system that does not answer
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()


class Follower:
    """A file there that comes into a file here, from its first byte on."""

    def __init__(self, link: Link, here: Path, how: str) -> None:
        """how: tail's -f, or -F for a file that is not there yet. Raises OSError."""
        self._link, self._here, self._how = link, here, how
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - as long as it follows
        # A new file, not the old one emptied: a viewer that was killed leaves processes which write on into theirs.
        here.unlink(missing_ok=True)
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._here.open("a+b") as file:
            # What was written last may be a torn line, which its writer cuts off when it goes on.
            end = end_of_whole_lines(file.fileno())
            file.truncate(end)
            script = f"exec tail -c +{end + 1} {self._how} {self._link.place.quoted(self._here.name)}"
            return self._link.start(script, stdout=file, stderr=self._complaints)

    def go_on(self) -> None:
        """From where the connection was cut. Raises OSError."""
        self.process = self._start()

    def last_words(self) -> str:
        """What ssh, or tail, complained of last, once it has ended."""
        self._complaints.seek(0)
        return _last_line(self._complaints.read())

    def close(self) -> None:
        """What came stays."""
        self._complaints.close()


def _last_line(said: bytes) -> str:
    lines = said.decode("utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else ""
