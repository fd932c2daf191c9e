"""Readings of the machine that stand beside the numbers: copy bandwidth, memory, load."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch


def copy_bandwidth(device: torch.device, *, size_bytes: int = 256 << 20, rounds: int = 5) -> float:
    """Bytes/s of a plain copy, read + write counted, best of `rounds`: the roof of the baseline meter (measurement 11).

    256 MiB outgrows every cache; the threads are those of the run.
    """
    source = torch.ones(size_bytes // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(rounds + 1):
        _wait(device)
        start = time.perf_counter()
        target.copy_(source)
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size_bytes / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def gpu_uuid(device: torch.device) -> str:
    """NVML's name of a CUDA device (its index there may be another); '' for other devices."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else ""


def rss_bytes() -> int:
    """Resident memory of this process."""
    return int(psutil.Process(os.getpid()).memory_info().rss)


def load_average() -> float:
    """One-minute load average; 0.0 where the system has none."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


@contextmanager
def settled_heap() -> Iterator[None]:
    """What is loaded by now stays: collections between groups look at new objects only (0.3 s each otherwise,
    measured)."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def without_collection() -> Iterator[None]:
    """No garbage collection inside a timed region, for every method alike."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
