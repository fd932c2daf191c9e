"""The check-up names what is wrong, what it means and what to type; it never raises."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from specbench import doctor, paths, provenance
from specbench.findings import Finding
from tests.test_registry import make_method


def named(findings: list[Finding], name: str) -> list[Finding]:
    return [each for each in findings if each.name == name]


def test_every_finding_that_is_not_ok_says_what_follows_or_what_to_do(tmp_path: Path) -> None:
    for each in doctor.examine(store=tmp_path):
        assert each.state == "ok" or each.consequence or each.remedy, each


def test_versions_memory_threads_store_and_suites_are_looked_at(tmp_path: Path) -> None:
    names = {each.name for each in doctor.examine(store=tmp_path)}
    looked_at = {"specbench", "packages", "cpu", "threads", "load", "governor", "memory", "methods", "suites", "store"}
    assert looked_at <= names


def test_places_are_told_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`results` alone left open in which folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPECBENCH_RESULTS", raising=False)
    [store] = [each for each in doctor.examine() if each.name == "store"]
    assert store.what.startswith(str(tmp_path / "results"))


@pytest.mark.parametrize(
    ("governor", "state"), [("performance", "ok"), (None, "ok"), ("powersave", "warning"), ("schedutil", "warning")]
)
def test_a_governor_that_moves_the_clock_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, governor: str | None, state: str
) -> None:
    monkeypatch.setattr(provenance, "governor", lambda: governor)
    [found] = named(doctor.examine(), "governor")
    assert found.state == state


def test_a_busy_machine_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "load_average", lambda: 1000.0)
    [found] = named(doctor.examine(), "load")
    assert found.state == "warning" and "--threads 1" in found.remedy


def test_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    tight = SimpleNamespace(available=1 << 20, total=1 << 30)
    monkeypatch.setattr(doctor.psutil, "virtual_memory", lambda: tight)
    [found] = named(doctor.examine(), "memory")
    assert found.state == "warning"


def test_missing_embedded_weights_are_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(paths, "DEMO_MODELS", {"demo": tmp_path})
    [found] = named(doctor.examine(), "demo")
    assert found.state == "failed"


def test_a_broken_method_and_a_folder_without_methods_are_named(tmp_path: Path) -> None:
    make_method(tmp_path, "torn", card="name: [")
    assert any("torn" in each.what for each in doctor.examine(methods_dirs=[tmp_path]) if each.state == "warning")
    (tmp_path / "none").mkdir()
    [found] = named(doctor.examine(methods_dirs=[tmp_path / "none"]), "methods")
    assert found.state == "failed" and "no method in" in found.what


def test_a_data_folder_that_is_not_there_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It ended the whole examination before."""
    monkeypatch.setenv("SPECBENCH_DATA", str(tmp_path / "gone"))
    [found] = named(doctor.examine(store=tmp_path), "suites")
    assert found.state == "failed" and "gone" in found.what and "SPECBENCH_DATA" in found.what


def test_a_damaged_store_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "specbench.duckdb").write_text("not a database")
    [found] = named(doctor.examine(store=tmp_path), "store")
    assert found.state == "warning" and "specbench.duckdb" in found.what


def test_the_command_exits_3_when_something_is_missing_and_0_otherwise(
    specbench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for state, code in (("ok", 0), ("warning", 0), ("failed", 3)):
        finding = Finding(name="a", state=state, what="seen", consequence="so", remedy="do")  # type: ignore[arg-type]
        monkeypatch.setattr(doctor, "examine", lambda finding=finding, **_: [finding])
        ran = specbench("doctor")
        assert ran.code == code and "seen" in ran.out
        assert json.loads(specbench("doctor", "--json").out)["fit"] is (code == 0)
