"""The copy of a run that lies on another machine, while a viewer streams it here and afterwards: what it is a copy of,
and what was last heard of its process. No torch, no DuckDB.

The file in the copy's folder is what tells it from a run of this machine: its lock was copied with it, and the process
that the lock names is another machine's, whatever numbers and names are the same here.
"""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from specbench.errors import UsageError

NAME = "streamed.json"
Said = Literal["", "held", "unseen", "gone"]
"""Nothing yet; the process is there; it cannot be looked at from there, or was not yet; nobody writes the run."""


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

    @property
    def ssh(self) -> str:
        """As it is typed in a shell here."""
        return shlex.join(["ssh", *(["-p", self.port] if self.port else []), self.host])

    @property
    def url(self) -> str:
        """As it is typed in a shell here, behind `specbench tui`."""
        port = f":{self.port}" if self.port else ""
        return shlex.quote(f"ssh://{self.host}{port}/{self.folder.removeprefix('/')}")

    def quoted(self, name: str = "") -> str:
        """The folder, or a file in it, for a Bourne shell there. A home there begins with its ~ unquoted."""
        start = "~/" if self.folder.startswith("~/") else ""
        return start + shlex.quote(self.folder.removeprefix(start) + (f"/{name}" if name else ""))

    def asks(self, command: str) -> str:
        """The line that has the command carried out there, for a shell here. command: as the shell there reads it."""
        # A word at a time where nothing needs quoting: the line is read before it is typed.
        is_plain = all(shlex.quote(word) == word for word in command.split(" "))
        return f"{self.ssh} {command if is_plain else shlex.quote(command)}"

    def goes_on(self, command: str) -> str:
        """What continues the run there. command: `run` or `train`."""
        store, _, parent = self.folder.rpartition("/")[0].rpartition("/")
        start = "~/" if store.startswith("~/") else ""
        where = f" --store {start}{shlex.quote(store.removeprefix(start))}" if parent == "runs" and store else ""
        return f"specbench {command} --resume {self.run_id}{where}"


class Copy(NamedTuple):
    """What a folder is a copy of, and what is known of the run's process."""

    place: Place
    said: Said
    is_fresh: bool
    """It was heard from not long ago."""


def contents(place: Place, said: Said, *, patience_s: float) -> str:
    """Of the file. Its time is when the machine was last heard from; patience_s: for so long it counts as heard."""
    return json.dumps({**place._asdict(), "said": said, "patience_s": patience_s})


def copy_of(folder: Path) -> Copy | None:
    """None for a run of this machine or of a shared folder. A damaged file makes it a copy all the same, of which
    nothing is known."""
    path = folder / NAME
    try:
        heard_s, written = path.stat().st_mtime, json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        return Copy(Place("?", "", f"?/{folder.name}"), "", is_fresh=False)
    try:
        place, said = Place(*(str(written[name]) for name in Place._fields)), written["said"]
        is_fresh = abs(time.time() - heard_s) <= float(written["patience_s"])
    except (ValueError, KeyError, TypeError):
        return Copy(Place("?", "", f"?/{folder.name}"), "", is_fresh=False)
    return Copy(place, said if said in get_args(Said) else "", is_fresh)


def refuse_to_write(folder: Path, command: str) -> None:
    """Raises UsageError where the folder is a copy: what was measured here would be joined to what another machine
    measured. command: `run` or `train`."""
    copy = copy_of(folder)
    if copy is not None:
        raise UsageError(
            f"{folder.name} is a run of {copy.place.host}, streamed here: it is continued there",
            where=str(folder),
            try_=f"{copy.place.ssh}, then {copy.place.goes_on(command)}",
        )
