"""`specbench methods`: cards as a table and as JSON, a broken one as a row, a check's verdict as exit code."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specbench.findings import Finding
from tests.test_registry import make_method


def test_the_shipped_methods_are_listed_and_ready_for_the_embedded_target(specbench: Callable[..., Any]) -> None:
    found = {row["name"]: row for row in json.loads(specbench("methods", "--json").out)}
    for name in ("autoregressive", "prompt_lookup", "draft_model", "oracle"):
        assert found[name]["error"] is None and found[name]["missing_on_demo"] is None


def test_a_broken_method_is_a_row_not_a_crash(specbench: Callable[..., Any], tmp_path: Path) -> None:
    make_method(tmp_path, "torn", card="name: [")
    ran = specbench("methods", "ls", "--methods-dir", str(tmp_path))
    assert ran.code == 0 and "not YAML" in ran.out and "autoregressive" in ran.out


def test_show_names_every_option_with_default_and_range(specbench: Callable[..., Any], tmp_path: Path) -> None:
    make_method(tmp_path, "mine")
    out = specbench("methods", "show", "mine", "--methods-dir", str(tmp_path)).out
    for said in ("mine.length", "≥ 1, ≤ 16", "chain, tree", "must be said", "demo-draft"):
        assert said in out
    card = json.loads(specbench("methods", "show", "mine", "--methods-dir", str(tmp_path), "--json").out)["card"]
    assert card["options"]["length"]["default"] == 4


@pytest.mark.parametrize("name", ["suffix", "hybrid"])
def test_methods_that_draft_on_the_host_say_so_in_their_card(specbench: Callable[..., Any], name: str) -> None:
    out = specbench("methods", "show", name).out
    assert "committed ids on the host once per step" in out and "node bucket of what was found" in out


def test_an_unknown_method_names_the_nearest(specbench: Callable[..., Any]) -> None:
    ran = specbench("methods", "show", "prompt_lokup")
    assert ran.code == 2 and "did you mean 'prompt_lookup'" in ran.err


class FakeConformance(types.ModuleType):
    """Stands in for the real checks, which load torch."""

    def __init__(self, *states: str) -> None:
        super().__init__("specbench.conformance")
        self.states = states
        self.asked: dict[str, Any] = {}

    def check_method(self, name: str, **words: Any) -> list[Finding]:
        self.asked = {"name": name, **words}
        return [
            Finding(name=f"promise {number}", state=state, what="seen", remedy="" if state == "ok" else "mend it")  # type: ignore[arg-type]
            for number, state in enumerate(self.states)
        ]


@pytest.mark.parametrize(("states", "code"), [(("ok", "ok"), 0), (("ok", "warning"), 0), (("ok", "failed"), 1)])
def test_check_exits_1_when_a_promise_is_broken(
    specbench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, states: tuple[str, ...], code: int
) -> None:
    fake = FakeConformance(*states)
    monkeypatch.setitem(sys.modules, "specbench.conformance", fake)
    ran = specbench("methods", "check", "draft_model", "--set", "draft_model.num_tokens=3")
    assert ran.code == code
    assert ("✗ promise 1" in ran.out) == (code == 1)
    assert fake.asked["name"] == "draft_model" and fake.asked["target"] == "demo"
    assert (fake.asked["options"]["num_tokens"], fake.asked["options"]["model"]) == (3, "demo-draft")


def test_check_of_a_method_that_is_not_ready_says_what_to_set(specbench: Callable[..., Any]) -> None:
    ran = specbench("methods", "check", "draft_model", "--target", "org/other")
    assert ran.code == 2 and "--set draft_model.model=…" in ran.err


def test_check_refuses_settings_of_another_method(specbench: Callable[..., Any]) -> None:
    ran = specbench("methods", "check", "draft_model", "--set", "prompt_lookup.num_tokens=3")
    assert ran.code == 2 and "--set draft_model.num_tokens=3" in ran.err
