"""Giving way to a run of this machine: niceness, and the niceness of the session. No Textual.

Linux shares a processor between sessions first (autogroups, `sched(7)`): between a run and a viewer of two terminals
neither niceness nor SCHED_IDLE has any effect. Of a core that a busy process of another session wanted as well, one at
niceness 15 and one of SCHED_IDLE both got half; with its session at niceness 15 3 %, at 19 1.5 %. A session's niceness
can be taken back without privileges, which a process's own cannot: so a key is answered at full weight, and the viewer
gives way again a second later. SCHED_IDLE is not used: nothing could lift it for a key without privileges.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from specbench.store.files import holder

NICENESS = 15
"""Of every thread, where sessions are not weighed or the run is of the viewer's own. Not taken back, and inherited by
runs that are started from here."""
SESSION_NICENESS = 19
_MOST_REFUSED = 3
"""Changes in a row; then threads give way."""
_ENABLED = Path("/proc/sys/kernel/sched_autogroup_enabled")
_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


def session_of(pid: int | str, *, proc: Path = _PROC) -> tuple[str, int] | None:
    """(name, niceness) of the session's group; None where the kernel does not weigh sessions."""
    with suppress(OSError, ValueError):
        name, _, niceness = (proc / str(pid) / "autogroup").read_text(encoding="ascii").partition(" nice ")
        return name, int(niceness)
    return None


def weighs_sessions(
    *, enabled: Path = _ENABLED, cgroup: Path = _PROC / "self" / "cgroup", root: Path = _CGROUPS
) -> bool:
    """Whether the kernel shares processors between sessions first: not within a control group of processor time."""
    with suppress(OSError):
        if enabled.read_text(encoding="ascii").strip() != "1":
            return False
        for line in cgroup.read_text(encoding="utf-8").splitlines():
            number, controllers, place = line.split(":", 2)
            if "cpu" in controllers.split(","):
                return place == "/"
            if number == "0" and place != "/":
                return "cpu" not in (root / "cgroup.subtree_control").read_text(encoding="ascii").split()
        return True
    return False


def set_session(niceness: int, *, proc: Path = _PROC) -> bool:
    """This session's niceness; False where it was refused (the kernel takes one change in 100 ms)."""
    with suppress(OSError):
        (proc / "self" / "autogroup").write_text(str(niceness), encoding="ascii")
        return True
    return False


def lower_threads(niceness: int = NICENESS) -> None:
    """Every thread of this process: one that was started before keeps its own niceness on Linux."""
    tasks = Path("/proc/self/task")
    for task in [int(each.name) for each in tasks.iterdir()] if tasks.exists() else [0]:
        with suppress(OSError):
            if os.getpriority(os.PRIO_PROCESS, task) < niceness:
                os.setpriority(os.PRIO_PROCESS, task, niceness)


def live_here(folder: Path) -> int:
    """The process of this machine that writes the folder; 0 where there is none."""
    import socket

    live = holder(folder)
    return live.pid if live is not None and live.host == socket.gethostname() else 0


class GivingWay:
    """Of one viewer. Begins with the first live run, ends with the last; a key lifts it."""

    def __init__(
        self,
        *,
        lower: Callable[[], None] = lower_threads,
        set_session: Callable[[int], bool] = set_session,
        session_of: Callable[[int | str], tuple[str, int] | None] = session_of,
        weighs_sessions: Callable[[], bool] = weighs_sessions,
    ) -> None:
        self._lower, self._set, self._session_of, self._weighs = lower, set_session, session_of, weighs_sessions
        self.is_on = False
        self.is_lifted = False
        self._before: int | None = None
        """The session's niceness before; None where it stays as it is."""
        self._num_refused = 0

    def begin(self, pid: int) -> None:
        """Give way to this process from now on."""
        if self.is_on:
            return
        self.is_on = True
        own, other = self._session_of("self"), self._session_of(pid)
        # A run in the viewer's own session would be lowered with it.
        if self._weighs() and own is not None and other is not None and own[0] != other[0]:
            # Not yet: the screen that shows the run is still being made. `again` begins it.
            self._before, self.is_lifted, self._num_refused = own[1], True, 0
        else:
            self._lower()

    def end(self) -> None:
        """The run is over, or the viewer: the shell that started it lives in the same session."""
        if self._before is not None:
            self._set(self._before)
        self.is_on = self.is_lifted = False
        self._before = None

    def lift(self) -> bool:
        """For a key; True where there is something to put back with `again`."""
        if self._before is None or self.is_lifted:
            return False
        self.is_lifted = self._set(self._before)
        return self.is_lifted

    def again(self) -> bool:
        """The key is answered. False where the kernel has to be asked once more."""
        if self.is_lifted and self._before is not None:
            self.is_lifted = not self._set(max(self._before, SESSION_NICENESS))
            self._num_refused = self._num_refused + 1 if self.is_lifted else 0
            if self._num_refused > _MOST_REFUSED:
                self._lower()
                self._before, self.is_lifted = None, False
        return not self.is_lifted

    def told(self) -> str:
        """In full, for the System screen."""
        if not self.is_on:
            return "at full weight: no run of this machine is live"
        if self._before is None:
            return f"gives way to a live run: its threads at niceness {NICENESS}"
        lifted = ", lifted for a key" if self.is_lifted else ""
        return f"gives way to a live run: its session at niceness {SESSION_NICENESS}{lifted}"

    def words(self) -> str:
        """For the corner of the screen."""
        return "gives way ≤ 8 fps" if self.is_on else ""
