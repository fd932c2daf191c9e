"""`specbench tui ssh://HOST/PATH`: a run or training of another machine, its journal streamed here by ssh and tail. No
Textual.

Nothing is installed there, and the screen is drawn here: what is watched pays for a read of its journal and of what a
run records beside it (`tail`), and for a look at its lock and its process every few seconds (`cat`, `ps`). Nothing is
written there, and nothing there is signalled.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import re
import subprocess
import time
from pathlib import Path

from specbench import paths
from specbench.errors import EnvironmentFailed, UsageError
from specbench.store import pausing, streamed
from specbench.store.files import TRAIN_JSON, cannot_write, write_whole
from specbench.store.streamed import Place, Said
from specbench.tui.link import NO_LINK, Follower, Link

SCHEME = "ssh://"
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@-]*")
_RUN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_LOOK_EVERY_S = 5
_PATIENT_LOOKS = 3
"""So many that do not come are a silence."""
_AGAIN_S, _LONGEST_AGAIN_S = 5.0, 60.0
"""Between two tries to go on where the connection was cut: twice as long each time."""
_ELSEWHERE = "SPECBENCH_CACHE=DIR, one that you may write to"
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
        self._link = Link(place)
        name, plan = self._plan()
        lock = self._link.ask(f"exec cat {place.quoted('run.lock')}", "run.lock")
        self.store, self._held = _store_of_its_own(place)
        self._folder = paths.run_dir(self.store, place.run_id)
        self._rest = b""
        self._told = False
        self._absences = 0
        """Looks in a row that found nobody who writes it, and the journal as long as at the look before."""
        self._size = -1
        """Of the journal, at a look that found nobody."""
        self._said: Said = "unseen" if lock else ""
        self._heard_s = time.monotonic()
        self._again_s, self._pause_s = 0.0, _AGAIN_S
        self._why = ""
        """The connection was cut."""
        self._followers: list[Follower] = []
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            # Of viewers that wrote them here, where no run looks.
            pausing.forget(self._folder)
            (self._folder / name).write_bytes(plan)
            # Before the lock, which without it would name a process of this machine.
            self._mark()
            self._lock.write_bytes(lock)
            # -F: a run that has just begun has no record of its machine yet, and its methods have observed nothing.
            for each in [] if name == TRAIN_JSON else _records_of(plan):
                self._followers.append(Follower(self._link, self._folder / each, "-F"))
            self._journal = Follower(self._link, self._folder / "events.jsonl", "-f")
            self._followers.append(self._journal)
            self._watch = self._watched()
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise cannot_write(self._folder, error, try_=_ELSEWHERE) from error
            raise

    @property
    def _lock(self) -> Path:
        return self._folder / "run.lock"

    def _plan(self) -> tuple[str, bytes]:
        """The file that says what the run is, and what it holds."""
        either = f"manifest.json or {TRAIN_JSON}"
        first, _, plan = self._link.ask(_PLAN.format(folder=self.place.quoted()), either).partition(b"\n")
        name = first.decode("utf-8", errors="replace")
        # It becomes a path here.
        if name not in ("manifest.json", TRAIN_JSON):
            raise EnvironmentFailed(
                f"{self.place.host} answers with {name[:80]!r} before anything that it was asked for",
                where=self.place.folder,
                try_=f"{self.place.asks('true')}, which must print nothing: its shell greets from a start-up file",
            )
        return name, plan

    def _watched(self) -> subprocess.Popen[bytes]:
        script = _WATCH.format(folder=self.place.quoted(), seconds=_LOOK_EVERY_S)
        watch = self._link.start(script, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert watch.stdout is not None
        os.set_blocking(watch.stdout.fileno(), False)
        return watch

    def _mark(self) -> None:
        """It was heard from now: for whoever looks at the copy, in this process or another."""
        path, now = self._folder / streamed.NAME, time.time()
        copy = streamed.copy_of(self._folder)
        if copy is None or (copy.place, copy.said) != (self.place, self._said):
            write_whole(path, streamed.contents(self.place, self._said, patience_s=_patience_s()), try_=_ELSEWHERE)
        # By this machine's clock, as it is read: a shared folder's server may have another.
        os.utime(path, (now, now))

    def look(self) -> str:
        """Brings the lock here up to date, without which a run that was killed there would be live for ever, and goes
        on where the connection was cut. What has to be said of it, once; never blocks. Raises EnvironmentFailed where
        the copy cannot be written."""
        try:
            self._go_on()
            return self._look()
        except OSError as error:
            raise cannot_write(self._folder, error, try_=_ELSEWHERE) from error

    def _look(self) -> str:
        assert self._watch.stdout is not None
        try:
            self._rest += os.read(self._watch.stdout.fileno(), 1 << 16)
        except BlockingIOError:
            return ""
        *lines, self._rest = self._rest.split(b"\n")
        if not lines:
            # Not where the connection was cut: that is begun anew.
            ended = self._watch.poll() not in (None, NO_LINK) and self._journal.process.poll() is None
            return self._once("its process is not looked at any more") if ended else ""
        self._heard_s, self._pause_s, self._why = time.monotonic(), _AGAIN_S, ""
        size = (self._folder / "events.jsonl").stat().st_size
        for row in lines:
            word, _, lock = row.partition(b" ")
            is_absent = word in (b"free", b"gone")
            # The run's last word may still be on its way, by a stream of its own: without it the run would be lost.
            self._absences = self._absences + 1 if is_absent and size == self._size else 0
            self._size = size if is_absent else -1
        if word in (b"held", b"unseen"):
            self._said = "held" if word == b"held" else "unseen"
            if self._lock.read_bytes() != lock:
                self._lock.write_bytes(lock)
        elif self._absences:
            self._said = "gone"
            self._lock.write_bytes(b"")
        self._mark()
        return self._once(f"its process cannot be seen from {self.place.host}") if word == b"unseen" else ""

    def _go_on(self) -> None:
        """Where the connection was cut, not where something ended there."""
        now = time.monotonic()
        cut = [each for each in self._followers if each.process.poll() == NO_LINK]
        is_watch_cut = self._watch.poll() == NO_LINK
        if now < self._again_s or not (cut or is_watch_cut):
            return
        self._again_s, self._pause_s = now + self._pause_s, min(2 * self._pause_s, _LONGEST_AGAIN_S)
        for each in cut:
            self._why = each.last_words()
            each.go_on()
        if is_watch_cut:
            assert self._watch.stdout is not None
            self._watch.stdout.close()
            self._watch, self._rest = self._watched(), b""

    def _once(self, why: str) -> str:
        is_first, self._told = not self._told, True
        return f"whether {self.place.run_id} still runs is unknown over ssh: {why}" if is_first else ""

    def silence(self) -> str:
        """How long nothing was heard of the run's process; empty while words come, and of a run that nobody writes."""
        silent_s = time.monotonic() - self._heard_s
        if silent_s <= _patience_s() or self._said == "gone":
            return ""
        why = f" ({self._why})" if self._why else ""
        is_unknown = f"whether {self.place.run_id} still runs is unknown"
        return f"no word from {self.place.host} for {silent_s:.0f} s{why}: {is_unknown}"

    def problem(self) -> str:
        """Why nothing comes any more; empty while the stream runs, or is about to go on."""
        if self._journal.process.poll() in (None, NO_LINK):
            return ""
        why = self._journal.last_words() or "the connection was closed"
        return f"the stream from {self.place.host} has ended: {why}; specbench tui {self.place.url} begins it anew"

    def close(self) -> None:
        """What came stays, and can be opened again with --store."""
        self._link.close()
        for each in self._followers:
            each.close()
        os.close(self._held)


def _patience_s() -> float:
    return _PATIENT_LOOKS * _LOOK_EVERY_S
