"""Giving way: to whom, by what, and not while a key waits."""

from __future__ import annotations

from pathlib import Path

import pytest

from specbench.tui.yielding import NICENESS, SESSION_NICENESS, GivingWay, session_of, weighs_sessions


class _Kernel:
    """Sessions as the kernel keeps them."""

    def __init__(self, sessions: dict[int | str, tuple[str, int]], *, weighs: bool = True, refuses: int = 0) -> None:
        self.sessions, self.weighs, self.refuses = sessions, weighs, refuses
        self.is_lowered = False
        self.num_waits = 0

    def wait(self, seconds: float) -> None:
        self.num_waits += 1

    def set_session(self, niceness: int) -> bool:
        if self.refuses:
            self.refuses -= 1
            return False
        self.sessions["self"] = (self.sessions["self"][0], niceness)
        return True

    def lower(self) -> None:
        self.is_lowered = True

    def way(self) -> GivingWay:
        return GivingWay(
            lower=self.lower,
            set_session=self.set_session,
            session_of=self.sessions.get,
            weighs_sessions=lambda: self.weighs,
            wait=self.wait,
        )

    @property
    def niceness(self) -> int:
        return self.sessions["self"][1]


def test_the_session_gives_way_to_a_run_of_another_one_and_is_given_back() -> None:
    """The process itself stays as it was: a run that is started from here must not inherit niceness."""
    kernel = _Kernel({"self": ("/autogroup-1", 3), 7: ("/autogroup-2", 0)})
    way = kernel.way()
    assert way.look([7])
    assert kernel.niceness == 3, "first the screen is made"
    assert way.again()
    assert kernel.niceness == SESSION_NICENESS and not kernel.is_lowered and way.words()
    way.end()
    assert kernel.niceness == 3 and not way.words()


@pytest.mark.parametrize(
    "kernel",
    [
        _Kernel({"self": ("/autogroup-1", 0), 7: ("/autogroup-1", 0)}),
        _Kernel({"self": ("/autogroup-1", 0), 7: ("/autogroup-2", 0)}, weighs=False),
        _Kernel({"self": ("/autogroup-1", 0), 7: ("/autogroup-2", 0)}, refuses=9),
    ],
    ids=["same session", "sessions are not weighed", "refused"],
)
def test_threads_give_way_where_the_session_cannot(kernel: _Kernel) -> None:
    """Lowering the run's own session would lower the run."""
    way = kernel.way()
    way.look([7])
    for _ in range(5):
        way.again()
    assert kernel.is_lowered and kernel.niceness == 0
    assert not way.lift(), "there is nothing that could be taken back"


def test_a_run_of_the_viewers_own_session_is_not_lowered_though_another_was_live_first() -> None:
    kernel = _Kernel({"self": ("/autogroup-1", 0), 7: ("/autogroup-2", 0), 8: ("/autogroup-1", 0)})
    way = kernel.way()
    assert way.look([7]) and way.again() and kernel.niceness == SESSION_NICENESS
    way.look([7, 8])
    assert kernel.niceness == 0 and kernel.is_lowered and not way.lift()
    way.look([])
    assert "its threads stay at niceness" in way.told() and not way.words()


def test_the_session_is_given_back_though_the_kernel_refuses_at_first() -> None:
    """At the viewer's end it waits for the kernel, with a screen it asks again at the next look."""
    for is_over in (True, False):
        kernel = _Kernel({"self": ("/autogroup-1", 0), 7: ("/autogroup-2", 0)})
        way = kernel.way()
        assert way.look([7]) and way.again()
        kernel.refuses = 3
        if is_over:
            way.end()
        else:
            for _ in range(3):
                assert not way.look([])
                assert kernel.niceness == SESSION_NICENESS and way.is_on and not kernel.num_waits
            way.look([])
        assert kernel.niceness == 0 and way.told() == "no run of this machine is live"
        assert kernel.num_waits == (3 if is_over else 0)


def test_a_run_of_the_viewers_session_waits_for_a_look_that_is_not_refused() -> None:
    kernel = _Kernel({"self": ("/autogroup-1", 0), 7: ("/autogroup-2", 0), 8: ("/autogroup-1", 0)})
    way = kernel.way()
    assert way.look([7]) and way.again()
    kernel.refuses = 1
    way.look([7, 8])
    assert kernel.niceness == SESSION_NICENESS and not kernel.is_lowered
    way.look([7, 8])
    assert kernel.niceness == 0 and kernel.is_lowered


def test_a_key_lifts_it_and_it_comes_back_once_the_kernel_takes_it() -> None:
    kernel = _Kernel({"self": ("/autogroup-1", 0), 7: ("/autogroup-2", 0)})
    way = kernel.way()
    assert way.look([7])
    assert way.again()
    assert way.lift() and kernel.niceness == 0
    assert not way.lift(), "the second key within the second finds it lifted"
    kernel.refuses = 1
    assert not way.again() and kernel.niceness == 0
    assert way.again() and kernel.niceness == SESSION_NICENESS


def test_sessions_are_weighed_outside_control_groups_of_processor_time_only(tmp_path: Path) -> None:
    enabled, cgroup = tmp_path / "enabled", tmp_path / "cgroup"

    def weighs(switch: str, groups: str, control: str = "") -> bool:
        enabled.write_text(switch, encoding="ascii")
        cgroup.write_text(groups, encoding="ascii")
        (tmp_path / "cgroup.subtree_control").write_text(control, encoding="ascii")
        return weighs_sessions(enabled=enabled, cgroup=cgroup, root=tmp_path)

    assert weighs("1\n", "0::/\n") and not weighs("0\n", "0::/\n")
    assert weighs("1\n", "1:cpu,cpuacct:/\n0::/x\n") and not weighs("1\n", "1:cpu,cpuacct:/docker/x\n0::/\n")
    assert weighs("1\n", "0::/user.slice/x\n", "memory pids") and not weighs("1\n", "0::/user.slice/x\n", "cpu memory")
    (tmp_path / "cpu.weight").touch()
    assert not weighs("1\n", "0::/\n"), "a container's own group looks like the root"
    assert not weighs_sessions(enabled=tmp_path / "none", cgroup=cgroup, root=tmp_path)


def test_the_session_is_read_as_the_kernel_writes_it(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "autogroup").write_text("/autogroup-34 nice -5\n", encoding="ascii")
    assert session_of(7, proc=tmp_path) == ("/autogroup-34", -5)
    assert session_of(8, proc=tmp_path) is None
    assert NICENESS < SESSION_NICENESS
