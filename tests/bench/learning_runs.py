"""A small request of a method that learns along its run."""

from __future__ import annotations

from pathlib import Path

from specbench.bench.request import RunRequest, Setting

SMALL = {
    "after_positions": 20,
    "steps": 8,
    "visits": 0,
    "lr_rise": 0,
    "lr": 0.01,
    "batch": 4,
    "min_held_out": 2,
    "top_k": 16,
    "round_s": 0,
}


def learning_request(suite: Path, target: Path, draft: Path, store: Path, **changes: object) -> RunRequest:
    settings = {"model": str(draft), "num_tokens": 3, **SMALL}
    values = {
        "suite": str(suite),
        "target": str(target),
        "methods": ("adaptive_lora",),
        "settings": tuple(Setting("adaptive_lora", name, str(value)) for name, value in settings.items()),
        "max_new_tokens": 16,
        "temperature": 1.0,
        "repeats": 2,
        "threads": 1,
        "store": store,
        **changes,
    }
    return RunRequest(**values)  # type: ignore[arg-type]
