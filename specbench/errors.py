"""What specbench tells a user when it cannot go on: what failed, where, and what to type next.

One base class; its few kinds differ only in the exit code they carry (architecture: 0 ok, 1 a check failed,
2 usage or configuration, 3 environment, 130 interrupted). Raise deep, render once at the front end.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Torch's own type and Python's; on the CPU, from cuBLAS and cuDNN, on other devices and from the driver it is a
    RuntimeError with one of these texts. No torch."""
    if isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


class SpecbenchError(Exception):
    """A failure of the user's world (files, names, devices), never of ours (those are asserts).

    what: one sentence with the offending value. where: file, line or option. try_: what to type next.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", try_: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.try_ = try_

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.try_:
            lines.append(f"  try:   {self.try_}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, str | int]:
        """The same facts for `--json`."""
        return {
            "error": type(self).__name__,
            "what": self.what,
            "where": self.where,
            "try": self.try_,
            "exit_code": self.exit_code,
        }


class CheckFailed(SpecbenchError):
    """A run finished and what it found is not acceptable: not lossless, or below `--fail-under`."""

    exit_code = 1


class UsageError(SpecbenchError):
    """A wrong argument, option, YAML key, suite or method name."""

    exit_code = 2


class EnvironmentFailed(SpecbenchError):
    """The machine lacks something: weights, data, memory, a device, permission, disk."""

    exit_code = 3


class StoreBusy(EnvironmentFailed):
    """Another process holds the DuckDB file; journals are untouched and `results ingest` can be repeated."""


def cannot_write(path: Path, error: OSError, *, try_: str = "", if_full: str = "") -> EnvironmentFailed:
    """An OSError of a write to `path`, as the error to raise from it.

    try_: what to type next, for the caller knows which option names the place; if_full: the same for a full disk.
    """
    if error.errno in _FULL:
        what = f"the disk is full: {path} could not be written"
        remedy = if_full or try_ or "free some space, then the same command again"
    elif error.errno in _FORBIDDEN:
        what = f"no permission to write {path}"
        remedy = try_ or "choose a folder that you may write to"
    else:
        what = f"cannot write {path}: {error.strerror or error}"
        remedy = try_ or "choose another place"
    return EnvironmentFailed(what, where=str(path), try_=remedy)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`did you mean 'x'? known: a, b, c`, nearest first; the empty string when nothing is known."""
    names = sorted(known)
    if not names:
        return ""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    listing = "known: " + ", ".join(names)
    return f"did you mean {near[0]!r}? {listing}" if near else listing
