"""An adapter store on disk: observed answers, numbered versions with lineage, and which of them is drafted with.

    STORE/observed.rows            see row_file
    STORE/versions/0001/           an adapter; never changed, never renumbered
    STORE/active.json              {"": [1, 3]}: per domain the versions drafted with so far, the last one active
    STORE/lock                     held while a process adapts here

A base weights hash is written with the first version; adapters of another base are refused.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from specbench.adapt import adapter as files
from specbench.adapt.adapter import Adapter
from specbench.errors import EnvironmentFailed, UsageError, cannot_write

if TYPE_CHECKING:
    from specbench.adapt.row_file import RowFile

_ELSEWHERE = "another adapter store, on a disk with room and in a folder that you may write to: --store DIR"
_ACTIVE, _LOCK, VERSIONS = "active.json", "lock", "versions"
MAX_BYTES = 256 << 20
"""Cap of the observed answers unless said otherwise."""


class AdapterStore:
    """One folder. Reading needs no lock; whoever adapts (collects, learns, activates) holds `writing`."""

    def __init__(self, folder: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self.folder = folder
        self._max_bytes = max_bytes

    @cached_property
    def rows(self) -> RowFile:
        """The observed answers."""
        from specbench.adapt.row_file import RowFile  # 2 s of torch, which a list of versions does without

        return RowFile(self.folder, max_bytes=self._max_bytes)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Raises UsageError while another process adapts here; a dead process holds nothing."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise cannot_write(self.folder, error, try_=_ELSEWHERE) from error
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                who = os.pread(file, 200, 0).decode("utf-8", errors="replace") or "unknown"
                raise UsageError(
                    f"process {who} is adapting here already",
                    where=str(self.folder),
                    try_="wait for it, or name another store: two would learn past each other",
                ) from None
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()} on {socket.gethostname()}".encode(), 0)
            self.rows.mend()
            yield
        finally:
            os.close(file)

    # --- versions ----------------------------------------------------------------------------------------------------

    def numbers(self) -> list[int]:
        """All versions, oldest first."""
        folder = self.folder / VERSIONS
        return sorted(int(each.name) for each in folder.glob("[0-9]*") if each.name.isdigit() and each.is_dir())

    def path(self, number: int) -> Path:
        """A version's folder. Raises UsageError where there is none."""
        folder = self.folder / VERSIONS / f"{number:04d}"
        if not folder.is_dir():
            known = ", ".join(map(str, self.numbers())) or "none"
            raise UsageError(
                f"no adapter version {number} here", where=str(self.folder), try_=f"specbench adapt ls: {known}"
            )
        return folder

    def add(self, adapter: Adapter) -> int:
        """Keep an adapter as the next version -> its number. Raises UsageError for one of another base."""
        numbers = self.numbers()
        if numbers:
            first = files.read_lineage(self.path(numbers[0]))
            if first.base_hash != adapter.lineage.base_hash:
                raise UsageError(
                    f"this store's adapters belong to {first.base} (weights {first.base_hash[:12]}), the new one to "
                    f"{adapter.lineage.base} (weights {adapter.lineage.base_hash[:12]})",
                    where=str(self.folder),
                    try_="name another store for another draft model",
                )
        number = numbers[-1] + 1 if numbers else 1
        lineage = adapter.lineage
        if not lineage.created:
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            lineage = replace(lineage, created=now)
        files.save(self.folder / VERSIONS / f"{number:04d}", replace(adapter, lineage=lineage))
        return number

    def load(self, number: int, *, base_hash: str | None = None) -> Adapter:
        """See `adapter.load`."""
        return files.load(self.path(number), base_hash=base_hash)

    # --- which one is drafted with -----------------------------------------------------------------------------------

    def history(self) -> dict[str, list[int]]:
        """Per domain the versions drafted with, the active one last; 0 is the base itself."""
        path = self.folder / _ACTIVE
        try:
            body = json.loads(path.read_text(encoding="utf-8"))
            return {str(domain): [int(number) for number in numbers] for domain, numbers in body.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise EnvironmentFailed(
                f"{_ACTIVE} cannot be read: {error}",
                where=str(path),
                try_="specbench adapt activate VERSION writes it anew",
            ) from error

    def active(self, domain: str = "") -> int:
        """The version drafted with; 0 = the base. A domain without one of its own drafts with that of all."""
        history = self.history()
        numbers = history.get(domain) or history.get("")
        return numbers[-1] if numbers else 0

    def activate(self, number: int, domain: str = "") -> None:
        """Draft with this version from now on; 0 = the base. Raises UsageError where it does not exist."""
        if number:
            self.path(number)
        try:
            history = self.history()
        except EnvironmentFailed:
            history = {}
        # A domain's way back leads to what it drafted with until now: that of all.
        numbers = history.setdefault(domain, [(history.get("") or [0])[-1]])
        # The active one again is no step, and no step back would lead anywhere.
        if numbers[-1:] != [number]:
            numbers.append(number)
        self._write(history)

    def rollback(self, domain: str = "") -> int:
        """Draft with the version before the active one -> its number. Raises UsageError where there is none."""
        history = self.history()
        numbers = history.get(domain, [])
        # Until activating the active one was no step, it was written down as one.
        while numbers[-2:-1] and numbers[-1] == numbers[-2]:
            numbers.pop()
        if len(numbers) < 2:
            raise UsageError(
                "there is nothing to roll back to: no adapter was activated here",
                where=str(self.folder),
                try_="specbench adapt ls",
            )
        numbers.pop()
        self._write(history)
        return numbers[-1]

    def purge_versions(self) -> None:
        """Delete every version and what was learnt beyond them; nothing is drafted with."""
        from specbench.adapt import candidate  # 2 s of torch, as in `rows`

        candidate.purge(self.folder)
        shutil.rmtree(self.folder / VERSIONS, ignore_errors=True)
        (self.folder / _ACTIVE).unlink(missing_ok=True)

    def _write(self, history: dict[str, list[int]]) -> None:
        part = self.folder / f".{_ACTIVE}.{os.getpid()}.part"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(history) + "\n", encoding="utf-8")
            part.replace(self.folder / _ACTIVE)
        except OSError as error:
            with suppress(OSError):
                part.unlink()
            raise cannot_write(self.folder / _ACTIVE, error, try_=_ELSEWHERE) from error
