"""What the viewer costs a run: measured in turns, kept beside the runs, told wherever it matters."""

from __future__ import annotations

import dataclasses
import errno
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from specbench import doctor
from specbench.api import Silent
from specbench.bench import viewer_cost
from specbench.bench.request import RunRequest
from specbench.bench.runner import run
from specbench.bench.viewer_cost import measure_viewer
from specbench.errors import EnvironmentFailed, cannot_write
from specbench.metrics import Interval
from specbench.store.viewer_cost import ViewerCost, file_of, read_viewer_cost, write_viewer_cost
from tests.bench.runs import request_for
from tests.conftest import Ran

COST = ViewerCost(
    slowdown=0.004, slowdown_ci=Interval(-0.003, 0.011), num_questions=80, repeats=3, num_cpus=2, device="Example CPU",
    columns=120, rows=36, version="0.1.0", created="2026-11-21T00:00:00Z",
)  # fmt: skip


def test_what_was_measured_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_viewer_cost(tmp_path) is None, "nobody measured it"
    write_viewer_cost(tmp_path / "results", COST)
    assert read_viewer_cost(tmp_path / "results") == COST
    assert "+0.40% (95 % interval -0.30% to +1.10%" in COST.words()


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 99}', '{"schema": 1}', '{"schema": 1, "slowdown_ci": 3}'])
def test_a_damaged_figure_is_named_and_never_taken_for_none(tmp_path: Path, text: str) -> None:
    file_of(tmp_path).write_text(text)
    with pytest.raises(EnvironmentFailed, match="viewer"):
        read_viewer_cost(tmp_path)
    [found] = [each for each in doctor.examine(store=tmp_path) if each.name == "viewer"]
    assert found.state == "warning" and "doctor --viewer" in found.remedy


def test_the_doctor_warns_where_the_interval_ends_above_two_per_cent(tmp_path: Path) -> None:
    for high, state in ((0.011, "ok"), (0.05, "warning")):
        write_viewer_cost(tmp_path, dataclasses.replace(COST, slowdown_ci=Interval(-0.003, high)))
        [found] = [each for each in doctor._store(tmp_path) if each.name == "viewer"]
        assert found.state == state and "Race screen" in found.what


def test_a_run_stores_what_watching_costs_on_its_machine(tiny_suite: Path, tiny_target: Path, tmp_path: Path) -> None:
    write_viewer_cost(tmp_path, COST)
    asked = request_for(tiny_suite, tiny_target, tmp_path, methods=("autoregressive",), repeats=1)
    outcome = run(asked, Silent())
    events = (tmp_path / "runs" / outcome.run_id / "events.jsonl").read_text(encoding="utf-8").splitlines()
    [stored] = [each for each in map(json.loads, events) if each.get("name") == "viewer_slowdown"]
    assert (stored["value"], stored["unit"], stored["detail"]) == (0.004, "share", COST.words())


class Stand:
    """Stands in for the viewer, and knows in which state a timed generation finds it."""

    def __init__(self, results: Path, run_id: str) -> None:
        self.process = self
        self.watches, self.is_closed = True, False
        assert (results / "runs" / run_id).is_dir()

    def is_running(self) -> bool:
        return True

    def resume(self) -> None:
        self.watches = True

    def hold(self) -> None:
        self.watches = False

    def close(self) -> None:
        self.is_closed = True


def test_the_viewer_watches_the_control_and_is_held_during_the_baseline(
    tiny_suite: Path, tiny_target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, bool]] = []
    stands: list[Stand] = []

    def stand(results: Path, run_id: str) -> Stand:
        stands.append(Stand(results, run_id))
        return stands[0]

    class Turns(viewer_cost._Turns):
        def group_done(self, *, method: str, **given: Any) -> None:
            assert self.viewer is not None
            seen.append((method, self.viewer.watches))  # type: ignore[attr-defined]
            super().group_done(method=method, **given)

    monkeypatch.setattr(viewer_cost, "_Viewer", stand)
    monkeypatch.setattr(viewer_cost, "_Turns", Turns)
    monkeypatch.setattr(viewer_cost, "_CATCH_UP_S", 0.0)
    cost = measure_viewer(suite=str(tiny_suite), target=str(tiny_target), repeats=2, max_new_tokens=12)
    assert set(seen) == {("autoregressive", False), ("autoregressive#2", True)}
    assert [each.is_closed for each in stands] == [True]
    assert (cost.suite, cost.target) == (tiny_suite.stem, tiny_target.name) and f"on {tiny_target.name}" in cost.words()
    low, high = cost.slowdown_ci
    assert low <= cost.slowdown <= high and cost.repeats == 2


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def number(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    """Heeded as in a terminal: tests that run under nohup ignore SIGHUP, and so would what they measure."""
    ends: signal.Signals = request.param
    was = signal.signal(ends, signal.default_int_handler if ends == signal.SIGINT else signal.SIG_DFL)
    yield ends
    signal.signal(ends, was)


def test_what_ends_a_measurement_leaves_no_viewer_no_folder_and_no_figure(
    tiny_suite: Path, tiny_target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """A closed terminal left the viewer running and a folder in TMPDIR; Ctrl-C kept what half the questions came to."""
    was = signal.getsignal(number)
    num_done = 0
    stands: list[Stand] = []

    def stand(results: Path, run_id: str) -> Stand:
        assert results.is_relative_to(tmp_path)
        stands.append(Stand(results, run_id))
        return stands[0]

    class Turns(viewer_cost._Turns):
        def group_done(self, **given: Any) -> None:
            nonlocal num_done
            super().group_done(**given)
            num_done += self.viewer is not None
            if num_done == 10:
                assert signal.getsignal(number) != signal.SIG_DFL, "it would end this very process"
                signal.raise_signal(number)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(viewer_cost, "_Viewer", stand)
    monkeypatch.setattr(viewer_cost, "_Turns", Turns)
    monkeypatch.setattr(viewer_cost, "_CATCH_UP_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        measure_viewer(suite=str(tiny_suite), target=str(tiny_target), repeats=4, max_new_tokens=12)
    assert [each.is_closed for each in stands] == [True] and list(tmp_path.glob("specbench-viewer-*")) == []
    assert signal.getsignal(number) == was


@pytest.mark.parametrize("is_held", [False, True])
def test_the_keeper_ends_the_viewer_when_its_input_ends(tmp_path: Path, is_held: bool) -> None:
    """Its input ends with the process that measures, however that ends; the viewer may be held just then."""
    package = tmp_path / "specbench"
    package.mkdir()
    (package / "__init__.py").write_text("")
    child = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"
    (package / "__main__.py").write_text(f"{child}\nprint('begun', flush=True)\nimport time; time.sleep(60)\n")
    with subprocess.Popen(
        [sys.executable, "-c", viewer_cost._KEEPER, "80", "24", "RUN"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path,
    ) as keeper:  # fmt: skip
        assert keeper.stdin is not None and keeper.stdout is not None
        viewer = psutil.Process(int(keeper.stdout.readline()))
        deadline = time.monotonic() + 20
        while not (children := viewer.children()) and time.monotonic() < deadline:
            time.sleep(0.02)
        if is_held:
            for process in (viewer, *children):
                process.suspend()
        keeper.stdin.close()
        try:
            assert keeper.wait(20) == 0
            gone, alive = psutil.wait_procs([viewer, *children], timeout=5)
            assert len(gone) == 2 and not alive
        finally:
            for process in (*children, viewer):
                with suppress(psutil.Error):
                    process.kill()
            keeper.kill()


def test_a_viewer_that_dies_at_its_start_is_an_error_and_leaves_no_process(tmp_path: Path) -> None:
    """The run it is to open is not there."""
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with pytest.raises(EnvironmentFailed, match="as soon as it began"):
        viewer_cost._Viewer(tmp_path, "no-such-run")
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before


def test_the_doctor_measures_on_what_it_is_told_and_refuses_it_without_the_viewer(
    specbench: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def measured(**given: Any) -> ViewerCost:
        asked.append(given)
        return COST

    monkeypatch.setattr(viewer_cost, "measure_viewer", measured)
    words = ("--target", "T", "--suite", "gsm8k", "--limit", "9", "--repeats", "2", "--data", str(tmp_path))
    assert specbench("doctor", "--viewer", *words, "--store", str(tmp_path)).code == 0
    [given] = asked
    wanted = {"target": "T", "suite": "gsm8k", "limit": 9, "repeats": 2, "data": (tmp_path,)}
    assert {name: given[name] for name in wanted} == wanted and read_viewer_cost(tmp_path) == COST
    refused = specbench("doctor", "--target", "T", "--store", str(tmp_path))
    assert refused.code == 2 and "doctor --viewer" in refused.err and len(asked) == 1


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_measured(
    specbench: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three minutes went by before it was said."""
    monkeypatch.setattr(viewer_cost, "measure_viewer", lambda **given: pytest.fail("it measured"))
    (tmp_path / "file").write_text("")
    refused = specbench("doctor", "--viewer", "--store", str(tmp_path / "file" / "results"))
    assert refused.code == 3 and str(tmp_path / "file") in refused.err and "--store DIR" in refused.err


def test_what_was_measured_is_said_though_it_cannot_be_kept(
    specbench: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(viewer_cost, "measure_viewer", lambda **given: COST)
    file_of(tmp_path).mkdir()
    ran = specbench("doctor", "--viewer", "--store", str(tmp_path))
    assert ran.code == 3 and COST.words() in ran.err


@pytest.mark.parametrize("how", ["as the run words it", "bare"])
def test_a_full_folder_for_what_is_temporary_is_remedied_by_tmpdir(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--store DIR` does not move it."""

    def refuses(request: RunRequest, progress: Any) -> None:
        assert request.store is not None
        full = OSError(errno.ENOSPC, "No space left on device", str(request.store / "runs"))
        raise cannot_write(request.store / "runs", full, try_="--store DIR") if how != "bare" else full

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(viewer_cost, "run", refuses)
    with pytest.raises(EnvironmentFailed, match="disk is full") as raised:
        measure_viewer()
    assert raised.value.try_.startswith("TMPDIR=DIR ") and "--store" not in raised.value.try_
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(EnvironmentFailed) as raised:
        measure_viewer()
    assert raised.value.try_.startswith("TMPDIR=DIR ")


def test_the_real_viewer_lives_through_it() -> None:
    said: list[str] = []
    cost = measure_viewer(limit=2, repeats=1, max_new_tokens=16, say=said.append)
    assert cost.num_questions == 2 and cost.columns == 120
    assert any("watched and unwatched in turn" in text for text in said)
