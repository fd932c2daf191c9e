"""`metrics.jsonl`: the machine's state once a second during a run (measurement 17) and the GPU's energy around every
timed group, as rows for the store.

Its writer is bench/device_sampler.py, a process of its own; a resumed run appends. No torch, no DuckDB.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from specbench.errors import EnvironmentFailed

SCHEMA = 2
_OF_GPU = ("gpu_mhz", "gpu_memory_mhz", "gpu_temperature_c", "gpu_power_w", "gpu_use", "num_gpu_processes")
_OF_EVERY = (
    "at_s", "interval_s", "busy_s", "own_s", "sampler_s", "load_average", "available_bytes", "num_threads", "cpu_mhz",
    "throttle_reasons",
)  # fmt: skip


def metrics_file(folder: Path) -> Path:
    """The file in a run folder."""
    return folder / "metrics.jsonl"


class DeviceLog(NamedTuple):
    """Rows without their run_id; all empty where nothing was recorded."""

    samplers: list[dict[str, Any]]
    """Of table `device_sampler`: one per start of the run."""
    samples: list[dict[str, Any]]
    """Of table `device_sample`."""
    energy: dict[int, dict[str, Any]]
    """Of table `group_energy`, by group: what was read last, of a group that was timed again after a kill."""
    niceness: list[int | None]
    """The run's own at each of its starts; None: recorded by an older specbench, which did not look."""


def read_device(folder: Path) -> DeviceLog:
    """Every whole line; a torn last one may still be growing.

    Raises EnvironmentFailed naming file and line where one in the middle is damaged or the file is newer.
    """
    log = DeviceLog([], [], {}, [])
    begun: dict[int, dict[str, Any]] = {}
    path = metrics_file(folder)
    try:
        lines = path.read_text(encoding="ascii", errors="replace").split("\n")
    except FileNotFoundError:
        return log
    for number, line in enumerate(lines[:-1], start=1):
        try:
            _take(log, begun, json.loads(line))
        except (ValueError, KeyError, IndexError) as error:
            raise EnvironmentFailed(
                f"line {number} of the machine's record cannot be read: {error!r}",
                where=f"{path}:{number}",
                try_="delete that line: a second of the machine's state is lost, no measurement",
            ) from error
    return log


def _take(log: DeviceLog, begun: dict[int, dict[str, Any]], body: dict[str, Any]) -> None:
    """begun: the readings at the beginning of groups that have not ended."""
    if body["e"] == "sampler_started":
        begun.clear()
        if body["schema"] > SCHEMA:
            raise ValueError(f"written by a newer specbench (schema {body['schema']}, this one reads {SCHEMA})")
        log.niceness.append(body.get("run_niceness"))
        log.samplers.append(
            {name: body[name] for name in ("at_s", "interval_s", "num_cpus", "governor", "gpu_missing")}
        )
    elif body["e"] == "sample":
        row = {name: body[name] for name in _OF_EVERY} | {name: body.get(name) for name in _OF_GPU}
        top = body["top_others"]
        row |= {"num_cpus": log.samplers[-1]["num_cpus"], "top_others": None if top is None else json.dumps(top)}
        log.samples.append(row)
    elif body["e"] == "energy":
        group = body["group"]
        if body["edge"] == "begin":
            begun[group] = body
        elif group in begun:
            since = begun.pop(group)
            log.energy[group] = {
                "group_id": group,
                "joules": body["energy_j"] - since["energy_j"],
                "window_s": body["at_s"] - since["at_s"],
            }
    else:
        raise ValueError(f"unknown line {body['e']!r}")
