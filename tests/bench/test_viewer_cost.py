"""What the viewer costs a run: measured in turns, kept beside the runs, told wherever it matters."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from specbench import doctor
from specbench.api import Silent
from specbench.bench import viewer_cost
from specbench.bench.runner import run
from specbench.bench.viewer_cost import measure_viewer
from specbench.errors import EnvironmentFailed
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


def test_the_viewer_watches_the_control_and_is_held_during_the_baseline(
    tiny_suite: Path, tiny_target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the viewer tells in which state each timed generation found it."""
    seen: list[tuple[str, bool]] = []

    class Stand:
        def __init__(self, results: Path, run_id: str) -> None:
            self.process = self
            self.watches = True
            assert (results / "runs" / run_id).is_dir()

        def is_running(self) -> bool:
            return True

        def resume(self) -> None:
            self.watches = True

        def hold(self) -> None:
            self.watches = False

        def close(self) -> None:
            seen.append(("closed", self.watches))

    class Turns(viewer_cost._Turns):
        def group_done(self, *, method: str, **given: Any) -> None:
            assert self.viewer is not None
            seen.append((method, self.viewer.watches))  # type: ignore[attr-defined]
            super().group_done(method=method, **given)

    monkeypatch.setattr(viewer_cost, "_Viewer", Stand)
    monkeypatch.setattr(viewer_cost, "_Turns", Turns)
    monkeypatch.setattr(viewer_cost, "_CATCH_UP_S", 0.0)
    cost = measure_viewer(suite=str(tiny_suite), target=str(tiny_target), repeats=2, max_new_tokens=12)
    assert {pair for pair in seen if pair[0] != "closed"} == {("autoregressive", False), ("autoregressive#2", True)}
    assert seen[-1][0] == "closed"
    assert (cost.suite, cost.target) == (tiny_suite.stem, tiny_target.name) and f"on {tiny_target.name}" in cost.words()
    low, high = cost.slowdown_ci
    assert low <= cost.slowdown <= high and cost.repeats == 2


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


def test_the_real_viewer_lives_through_it() -> None:
    said: list[str] = []
    cost = measure_viewer(limit=2, repeats=1, max_new_tokens=16, say=said.append)
    assert cost.num_questions == 2 and cost.columns == 120
    assert any("watched and unwatched in turn" in text for text in said)
