"""Targets at hand: embedded, in the hub's cache, and those that runs had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specbench.tui.views.library import items


def _target(folder: Path, *, weights: int = 1_500_000_000) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(weights)  # a hole: no disk is used
    return folder


def test_targets_are_those_of_the_cache_and_of_this_stores_runs(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    _target(cache / "models--org--some-model" / "snapshots" / "abc")
    _target(cache / "models--org--empty" / "snapshots" / "abc", weights=0)
    (cache / "models--org--torn" / "snapshots" / "abc").mkdir(parents=True)
    (cache / "models--org--torn" / "snapshots" / "abc" / "config.json").write_text("{")
    mine = _target(tmp_path / "mine")
    for name, target in (("a", mine), ("b", mine), ("c", tmp_path / "gone")):
        folder = store / "runs" / f"run-{name}"
        folder.mkdir()
        (folder / "manifest.json").write_text(json.dumps({"provenance": {"request": {"target": str(target)}}}))
    found = {item.name: item for item in items(store) if item.kind == "target"}
    assert found["org/some-model"].state == "downloaded" and "1.5 GB" in found["org/some-model"].about
    assert found["org/empty"].state == "no weights" and found["org/torn"].state == "unreadable"
    assert found["mine"].state == "here" and "2 runs" in found["mine"].about
    assert found["gone"].state == "gone" and found["demo"].state == "embedded"
