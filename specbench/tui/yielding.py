"""Giving way to a run of this machine: niceness, and the niceness of the session. No Textual.

Linux shares a processor between sessions first (autogroups, `sched(7)`): between a run and a viewer of two terminals
neither niceness nor SCHED_IDLE has any effect. Of a core that a busy process of another session wanted as well, one at
niceness 15 and one of SCHED_IDLE both got half; with its session at niceness 15 3 %, at 19 1.5 %. A session's niceness
can be taken back without privileges, which a process's own cannot: so a key is answered at full weight, and the viewer
gives way again a second later. SCHED_IDLE is not used: nothing could lift it for a key without privileges.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from specbench.store.files import holder
from specbench.tui.spawning import lower_threads

NICENESS = 15
"""Of every thread but the one that starts runs, where sessions are not weighed or the run is of the viewer's own. Not
taken back."""
SESSION_NICENESS = 19
_MOST_REFUSED = 3
"""Changes in a row; then threads give way."""
_MOST_TRIES, _BETWEEN_S = 5, 0.11
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
        # A container sees its own group as the root; the real one has no weight.
        return not (root / "cpu.weight").exists()
    return False


def set_session(niceness: int, *, of: int | str = "self", proc: Path = _PROC) -> bool:
    """A session's niceness, by one of its processes; False where it was refused (the kernel takes one change in 100
    ms)."""
    with suppress(OSError):
        (proc / str(of) / "autogroup").write_text(str(niceness), encoding="ascii")
        return True
    return False


def live_here(folder: Path) -> int:
    """The process of this machine that writes the folder; 0 where there is none, or it cannot be asked (another
    user's, a folder that is being deleted)."""
    import psutil

    with suppress(OSError, ValueError, psutil.Error):
        live = holder(folder)
        return live.pid if live is not None and live.is_here else 0
    return 0


class GivingWay:
    """Of one viewer. Begins with the first live run, ends with the last; a key lifts it."""

    def __init__(
        self,
        *,
        lower: Callable[[], None] = lambda: lower_threads(NICENESS),
        set_session: Callable[[int], bool] = set_session,
        session_of: Callable[[int | str], tuple[str, int] | None] = session_of,
        weighs_sessions: Callable[[], bool] = weighs_sessions,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._lower, self._set, self._session_of, self._weighs = lower, set_session, session_of, weighs_sessions
        self._wait = wait
        self.is_on = False
        self.is_lowered = False
        """Its threads are, which is for good."""
        self.is_lifted = False
        self._before: int | None = None
        """The session's niceness before; None where it stays as it is."""
        self._num_refused = 0

    def look(self, pids: Sequence[int]) -> bool:
        """Give way to these processes, all that are live -> whether `again` has to be called in a while."""
        if not pids:
            self.is_on = not self._restore(tries=1) and self.is_on
            return False
        own, others = self._session_of("self"), [self._session_of(pid) for pid in pids]
        # A run in the viewer's own session would be lowered with it.
        may_lower = own is not None and all(other is not None and other[0] != own[0] for other in others)
        if not self.is_on:
            self.is_on = True
            if own is not None and may_lower and self._weighs():
                # Not yet: the screen that shows the run is still being made. `again` begins it.
                self._before, self.is_lifted, self._num_refused = own[1], True, 0
                return True
            self._lower_threads()
        elif not may_lower and self._before is not None and self._restore(tries=1):
            self._lower_threads()
        return False

    def end(self) -> None:
        """The viewer is over: the shell that started it lives in the same session. Blocks, half a second at most."""
        self._restore(tries=_MOST_TRIES)
        self._before, self.is_lifted, self.is_on = None, False, False

    def _restore(self, *, tries: int) -> bool:
        """The session as it was -> whether it is. The kernel takes one change in 100 ms from all sessions together:
        where a screen would wait for it, the next look asks again."""
        if self._before is not None and not self.is_lifted:
            for left in reversed(range(tries)):
                if self._set(self._before):
                    break
                if not left:
                    return False
                self._wait(_BETWEEN_S)
        self._before, self.is_lifted = None, False
        return True

    def _lower_threads(self) -> None:
        self.is_lowered = True
        self._lower()

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
                self._lower_threads()
                self._before, self.is_lifted = None, False
        return not self.is_lifted

    def told(self) -> str:
        """In full, for the System screen."""
        if not self.is_on:
            threads = f"; its threads stay at niceness {NICENESS}" if self.is_lowered else ""
            return f"no run of this machine is live{threads}"
        if self._before is None:
            return f"gives way to a live run: its threads at niceness {NICENESS}"
        if self.is_lifted:
            return "gives way to a live run, but at full weight for a second: a key or an opening"
        return f"gives way to a live run: its session at niceness {SESSION_NICENESS}"

    def words(self) -> str:
        """For the corner of the screen."""
        return "gives way ≤ 8 fps" if self.is_on else ""
