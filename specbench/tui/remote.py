"""`specbench tui ssh://HOST/PATH`: a run or training of another machine, its journal streamed here by ssh and tail. No
Textual.

Nothing is installed there, and the screen is drawn here: what is watched pays for a read of its journal and of what a
run records beside it (`tail`), and for a look at its lock and its process every few seconds (`cat`, `ps`).
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import IO

from specbench import paths
from specbench.errors import EnvironmentFailed, UsageError
from specbench.store.files import TRAIN_JSON, cannot_write
from specbench.store.streamed import Place

SCHEME = "ssh://"
_PATIENCE_S = 30
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]*")
_RUN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_LOOK_EVERY_S = 5
_ELSEWHERE = "SPECBENCH_CACHE=DIR, one that you may write to"
_SHELL = "exec sh -s"
"""The command of every question: what is asked is given on stdin, so that the login shell there reads none of it. csh
ends a quoted text at the end of its line and replaces what stands behind an exclamation mark."""
_PLAN = f"""name=manifest.json
[ -e {{folder}}/{TRAIN_JSON} ] && name={TRAIN_JSON}
echo "$name"
exec cat {{folder}}/"$name\""""
"""What says what the run is: its file's name on a line, then the file."""
# A line a look, so that it ends with the connection: held, free, gone (nobody let go of it, and its process is not
# there), or unseen (written from a third machine, or there is no ps to ask); then the lock as it stands.
_WATCH = """cd {folder} || exit 1
while :; do
  lock=$(cat run.lock 2>/dev/null)
  pid=$(printf %s "$lock" | sed -n 's/.*"pid": *\\([0-9][0-9]*\\).*/\\1/p')
  host=$(printf %s "$lock" | sed -n 's/.*"host": *"\\([^"]*\\)".*/\\1/p')
  if [ -z "$pid" ]; then said=free
  elif [ "$host" != "$(uname -n)" ] || [ -z "$(ps -o stat= -p $$ 2>/dev/null)" ]; then said=unseen
  else case "$(ps -o stat= -p "$pid")" in ''|Z*) said=gone ;; *) said=held ;; esac
  fi
  printf '%s %s\\n' "$said" "$lock" || exit 0
  sleep {seconds}
done"""


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


def _records_of(manifest: bytes) -> list[str]:
    """The files beside a run's journal that its figures are made of. What methods that learn observed is some kilobytes
    an answer, less than the journal; a damaged manifest is told of by the screen that reads it."""
    found = ["metrics.jsonl"]
    try:
        options = [item for each in json.loads(manifest)["methods"] for item in each["options"].items()]
    except (ValueError, KeyError, TypeError, AttributeError):
        return found
    is_learning = any(key.rpartition(".")[2] == "adapt" and value is True for key, value in options)
    return [*found, "observed.jsonl"] if is_learning else found


def _store_of_its_own(place: Place) -> tuple[Path, int]:
    """(the first store for this run that no other viewer streams into, the file that keeps others out until it is
    closed). The kernel lets go of it however this process ends, so that viewers one after the other share a store."""
    key = hashlib.sha256("\x1e".join(place).encode()).hexdigest()[:12]
    first = paths.cache_dir() / "remote" / f"{place.host.replace('@', '-')}-{key}"
    try:
        for number in itertools.count(1):
            store = first if number == 1 else first.with_name(f"{first.name}-{number}")
            store.mkdir(parents=True, exist_ok=True)
            held = os.open(store / "viewer.lock", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(held)
            except BaseException:
                os.close(held)
                raise
            else:
                return store, held
    except OSError as error:
        raise cannot_write(first, error, try_=_ELSEWHERE) from error
    raise AssertionError("there is always a next number")


class Stream:
    """A run's journal on its way here. store: where the viewer finds it."""

    def __init__(self, place: Place) -> None:
        """Copies lock and manifest (train.json, of a training), then starts to stream. Raises EnvironmentFailed with
        what ssh said."""
        self.place = place
        name, plan = self._plan()
        lock = self._ask(f"exec cat {self.place.quoted('run.lock')}", "run.lock")
        self.store, self._held = _store_of_its_own(place)
        folder = paths.run_dir(self.store, place.run_id)
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the stream
        self._lock = folder / "run.lock"
        self._rest = b""
        self._told = False
        self._absences = 0
        """Looks in a row that found nobody who writes it."""
        self._started: list[subprocess.Popen[bytes]] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(plan)
            self._lock.write_bytes(lock)
            # -F: a run that has just begun has no record of its machine yet, and its methods have observed nothing.
            for each in [] if name == TRAIN_JSON else _records_of(plan):
                self._follow(folder, each, "-F", complaints=subprocess.DEVNULL)
            self._process = self._follow(folder, "events.jsonl", "-f", complaints=self._complaints)
            watch = _WATCH.format(folder=self.place.quoted(), seconds=_LOOK_EVERY_S)
            self._watch = self._start(watch, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            assert self._watch.stdout is not None
            os.set_blocking(self._watch.stdout.fileno(), False)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise cannot_write(folder, error, try_=_ELSEWHERE) from error
            raise

    def _plan(self) -> tuple[str, bytes]:
        """The file that says what the run is, and what it holds."""
        either = f"manifest.json or {TRAIN_JSON}"
        first, _, plan = self._ask(_PLAN.format(folder=self.place.quoted()), either).partition(b"\n")
        name = first.decode("utf-8", errors="replace")
        # It becomes a path here.
        if name not in ("manifest.json", TRAIN_JSON):
            raise EnvironmentFailed(
                f"{self.place.host} answers with {name[:80]!r} before anything that it was asked for",
                where=self.place.folder,
                try_=f"{self.place.asks('true')}, which must print nothing: its shell greets from a start-up file",
            )
        return name, plan

    def _follow(self, folder: Path, name: str, how: str, *, complaints: IO[bytes] | int) -> subprocess.Popen[bytes]:
        """From its first byte on into a file of that name here."""
        # A new file, not the old one emptied: a viewer that was killed leaves processes which write on into theirs.
        (folder / name).unlink(missing_ok=True)
        with (folder / name).open("wb") as file:
            return self._start(f"exec tail -c +1 {how} {self.place.quoted(name)}", stdout=file, stderr=complaints)

    def _start(self, script: str, *, stdout: IO[bytes] | int, stderr: IO[bytes] | int) -> subprocess.Popen[bytes]:
        """The script there, for as long as it takes."""
        with tempfile.TemporaryFile() as given:
            given.write(os.fsencode(script))
            given.seek(0)
            process = subprocess.Popen(self._words(), stdin=given, stdout=stdout, stderr=stderr, start_new_session=True)
        self._started.append(process)
        return process

    def _words(self) -> list[str]:
        # Without a terminal nobody could type a password, and the screen must not wait for one.
        port = ["-p", self.place.port] if self.place.port else []
        return ["ssh", "-o", "BatchMode=yes", *port, self.place.host, _SHELL]

    def _ask(self, script: str, what: str) -> bytes:
        """What the script prints there. what: the file that it prints."""
        try:
            done = subprocess.run(
                self._words(), input=os.fsencode(script), capture_output=True, timeout=_PATIENCE_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise EnvironmentFailed(
                f"{self.place.host} did not answer in {_PATIENCE_S} s",
                where=self.place.folder,
                try_=f"{self.place.asks('true')}, which must come back by itself",
            ) from error
        except OSError as error:
            raise EnvironmentFailed(
                f"{self.place.host} cannot be asked: ssh does not start here ({error.strerror or error})",
                try_=f"install OpenSSH's client, then {self.place.asks('true')}",
            ) from error
        if done.returncode:
            said = done.stderr.decode("utf-8", errors="replace").strip().splitlines()
            raise EnvironmentFailed(
                f"{self.place.host} gives no {what} of {self.place.run_id}: {said[-1] if said else 'it said nothing'}",
                where=self.place.folder,
                try_=f"{self.place.asks(f'ls {self.place.quoted()}')}; a key or an agent must answer for the password",
            )
        return done.stdout

    def look(self) -> str:
        """Brings the lock here up to date, without which a run that was killed there would be live for ever. What has
        to be said of it, once; never blocks. Raises EnvironmentFailed where the copy cannot be written."""
        assert self._watch.stdout is not None
        try:
            self._rest += os.read(self._watch.stdout.fileno(), 1 << 16)
        except BlockingIOError:
            return ""
        *lines, self._rest = self._rest.split(b"\n")
        if not lines:
            ended = self._watch.poll() is not None and self._process.poll() is None
            return self._once("its process is not looked at any more") if ended else ""
        for row in lines:
            said, _, lock = row.partition(b" ")
            self._absences = self._absences + 1 if said in (b"free", b"gone") else 0
        if self._absences == 1:
            # The run's last word may still be on its way, by a stream of its own: without it the run would be lost.
            return ""
        text = b"" if self._absences else lock
        try:
            if self._lock.read_bytes() != text:
                self._lock.write_bytes(text)
        except OSError as error:
            raise cannot_write(self._lock, error, try_=_ELSEWHERE) from error
        return self._once(f"its process cannot be seen from {self.place.host}") if said == b"unseen" else ""

    def _once(self, why: str) -> str:
        is_first, self._told = not self._told, True
        return f"whether {self.place.run_id} still runs is unknown over ssh: {why}" if is_first else ""

    def problem(self) -> str:
        """Why nothing comes any more; empty while the stream runs."""
        if self._process.poll() is None:
            return ""
        self._complaints.seek(0)
        said = self._complaints.read().decode("utf-8", errors="replace").strip().splitlines()
        return f"the stream from {self.place.host} has ended: {said[-1] if said else 'the connection was closed'}"

    def close(self) -> None:
        """What came stays, and can be opened again with --store."""
        for process in self._started:
            process.terminate()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._complaints.close()
        os.close(self._held)
