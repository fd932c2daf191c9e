"""A folder that is replaced whole: written beside its place, then swapped in by two renames.

Killed between the two there is no folder, but the one that was there before stands beside; `put_right` brings it back.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_BESIDE = re.compile(r"^\.(?P<name>.+)\.(?P<pid>\d+)\.(?P<kind>part|old)$")


def part_of(folder: Path) -> Path:
    """Where this process writes what is to become the folder; nothing is there."""
    part = _beside(folder, "part")
    shutil.rmtree(part, ignore_errors=True)
    return part


def swap_in(part: Path, folder: Path) -> None:
    """The written part takes the folder's place. Raises OSError; what was there before is then there again."""
    old = _beside(folder, "old")
    if folder.exists():
        # Of a process of the same number, as containers give it to each start: a rename onto it would be refused.
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    try:
        part.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def put_right(folder: Path, *, drops: bool = True) -> None:
    """After a kill: bring back the folder that was moved aside, drop what dead processes left beside it. What living
    ones are writing stays, and so does everything on a disk that refuses. drops: False for who only reads; a process of
    another machine may be writing there, and is not known to live."""
    left = [(path, kind) for path, name, kind in _left_by_the_dead(folder.parent) if name == folder.name]
    for path, kind in left:
        if kind == "old" and not folder.exists():
            try:
                path.rename(folder)
            except OSError:
                return
    for path, _ in left if drops else ():
        shutil.rmtree(path, ignore_errors=True)


def put_right_within(root: Path) -> None:
    """`put_right` for every folder that lies, or lay, in `root`."""
    for name in sorted({name for _, name, _ in _left_by_the_dead(root)}):
        put_right(root / name)


def _beside(folder: Path, kind: str) -> Path:
    return folder.with_name(f".{folder.name}.{os.getpid()}.{kind}")


def _left_by_the_dead(root: Path) -> Iterator[tuple[Path, str, str]]:
    """(path, name of the folder it was for, part or old), those last written first."""
    left: list[tuple[float, Path, re.Match[str]]] = []
    with suppress(OSError):
        for path in root.iterdir():
            found = _BESIDE.match(path.name)
            with suppress(OSError):  # one that goes meanwhile hides no other
                if found is not None and not _is_alive(int(found["pid"])):
                    left.append((path.stat().st_mtime, path, found))
    for _, path, found in sorted(left, key=lambda each: each[0], reverse=True):
        yield path, found["name"], found["kind"]


def _is_alive(pid: int) -> bool:
    """Ourselves included: what this process left beside is being written."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
