"""`specbench tui ssh://HOST/PATH`: a run of another machine, its journal streamed here by ssh and tail. No Textual.

Nothing is installed or started there but `cat` and `tail`, and the screen is drawn here: what is watched pays for one
read of its journal.
"""

from __future__ import annotations

import hashlib
import re
import shlex
import subprocess
import tempfile
from typing import NamedTuple

from specbench import paths
from specbench.errors import EnvironmentFailed, UsageError
from specbench.store.files import cannot_write

SCHEME = "ssh://"
_PATIENCE_S = 30
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]*")
_RUN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class Place(NamedTuple):
    """Where a run lies."""

    host: str
    port: str
    """Empty: ssh's own choice."""
    folder: str
    """The run's, absolute or below ~."""

    @property
    def run_id(self) -> str:
        """The folder's name."""
        return self.folder.rpartition("/")[2]


def parse(url: str) -> Place:
    """`ssh://[USER@]HOST[:PORT]/PATH/TO/runs/RUN_ID`; `/~/` begins at the home there. Raises UsageError."""
    host, slash, path = url.removeprefix(SCHEME).partition("/")
    host, _, port = host.partition(":")
    folder = path.rstrip("/") if path.startswith("~/") else f"/{path.rstrip('/')}"
    run_id = folder.rpartition("/")[2]
    # What begins with a dash would be an option of ssh; a name with a slash or a dot in front, a path of ours.
    if not (slash and _HOST.fullmatch(host) and _RUN.fullmatch(run_id) and (not port or port.isdigit())):
        raise UsageError(
            f"{url!r} names no run on another machine",
            where="RUN",
            try_="specbench tui ssh://HOST/home/me/results/runs/RUN_ID, or ssh://HOST/~/results/runs/RUN_ID",
        )
    return Place(host, port, folder)


class Stream:
    """A run's journal on its way here. store: where the viewer finds it."""

    def __init__(self, place: Place) -> None:
        """Copies manifest and lock, then starts to stream. Raises EnvironmentFailed with what ssh said."""
        self.place = place
        key = hashlib.sha256("\x1e".join(place).encode()).hexdigest()[:12]
        self.store = paths.cache_dir() / "remote" / f"{place.host.replace('@', '-')}-{key}"
        folder = paths.run_dir(self.store, place.run_id)
        manifest = self._cat("manifest.json")
        lock = self._cat("run.lock")
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the stream
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "manifest.json").write_bytes(manifest)
            (folder / "run.lock").write_bytes(lock)
            with (folder / "events.jsonl").open("wb") as file:
                self._process = subprocess.Popen(
                    self._words(f"exec tail -c +1 -f {self._quoted('events.jsonl')}"),
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=self._complaints,
                    start_new_session=True,
                )
        except OSError as error:
            raise cannot_write(folder, error, try_="SPECBENCH_CACHE=DIR, one that you may write to") from error

    def _words(self, command: str) -> list[str]:
        # Without a terminal nobody could type a password, and the screen must not wait for one.
        port = ["-p", self.place.port] if self.place.port else []
        return ["ssh", "-o", "BatchMode=yes", *port, self.place.host, command]

    def _quoted(self, name: str) -> str:
        folder = self.place.folder
        start = "~/" if folder.startswith("~/") else ""
        return start + shlex.quote(f"{folder.removeprefix(start)}/{name}")

    def _cat(self, name: str) -> bytes:
        try:
            done = subprocess.run(
                self._words(f"cat {self._quoted(name)}"),
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=_PATIENCE_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EnvironmentFailed(f"{self.place.host} cannot be asked: {error}", try_="ssh HOST true") from error
        if done.returncode:
            said = done.stderr.decode("utf-8", errors="replace").strip().splitlines()
            raise EnvironmentFailed(
                f"{self.place.host} gives no {name} of {self.place.run_id}: {said[-1] if said else 'it said nothing'}",
                where=self.place.folder,
                try_=f"ssh {self.place.host} ls {self.place.folder}; a key or an agent must answer for the password",
            )
        return done.stdout

    def problem(self) -> str:
        """Why nothing comes any more; empty while the stream runs."""
        if self._process.poll() is None:
            return ""
        self._complaints.seek(0)
        said = self._complaints.read().decode("utf-8", errors="replace").strip().splitlines()
        return f"the stream from {self.place.host} has ended: {said[-1] if said else 'the connection was closed'}"

    def close(self) -> None:
        """What came stays, and can be opened again with --store."""
        self._process.terminate()
        self._process.wait()
        self._complaints.close()
