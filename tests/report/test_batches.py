"""Throughput against the batch size: what is read of a run, and where a method stops paying."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import batches

    return batches


def _row(
    name: str, interval: tuple[float, float] | None, *, kind: str = "chain", control: bool = False
) -> dict[str, Any]:
    return {
        "name": name,
        "kind": kind,
        "is_control": control,
        "tokens_per_s": 100.0,
        "speedup": 1.0 if interval is None else sum(interval) / 2,
        "speedup_ci": None if interval is None else list(interval),
    }


def _body(size: int, control: tuple[float, float], **methods: tuple[float, float]) -> dict[str, Any]:
    rows = [_row(name, interval) for name, interval in methods.items()]
    rows += [_row("autoregressive", None, kind="baseline")]
    rows += [_row("autoregressive#2", control, kind="baseline", control=True)]
    return {"run_id": f"run-{size}", "batch_size": size, "rows": rows}


def test_a_method_stops_paying_at_the_first_size_from_which_its_interval_reaches_1(batches: Any) -> None:
    good, bad = (0.98, 1.02), (1.01, 1.05)
    sizes = [
        batches.read(_body(1, good, early=(1.2, 1.4), late=(1.2, 1.4), never=(0.8, 0.9), dip=(1.1, 1.2))),
        batches.read(_body(2, good, early=(0.9, 1.1), late=(1.1, 1.2), never=(0.9, 1.1), dip=(0.9, 1.1))),
        batches.read(_body(4, bad, early=(2.0, 3.0), late=(0.5, 0.6), never=(2.0, 3.0), dip=(1.1, 1.2))),
        batches.read(_body(8, good, early=(0.6, 0.7), late=(1.1, 1.2), never=(0.6, 0.7), dip=(1.1, 1.2))),
    ]
    told = {name: batches.crossover(sizes, name) for name in sizes[0].cells}
    assert told == {"early": "at 2", "late": "pays up to 8", "never": "never pays", "dip": "pays up to 8"}
    assert [size.is_sound for size in sizes] == [True, True, False, True], "a failed control decides nothing"
    assert batches.crossover([sizes[2]], "late") == "not known"
    assert "autoregressive" not in sizes[0].cells and sizes[0].cells["early"].words == "100 · 1.30 [1.20, 1.40]"


def test_too_few_questions_are_an_error(batches: Any) -> None:
    body = _body(1, (0.9, 1.1))
    body["rows"].append(_row("lstm", None))
    with pytest.raises(ValueError, match="run-1: too few questions"):
        batches.read(body)
