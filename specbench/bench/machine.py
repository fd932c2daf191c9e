"""Readings of the machine that stand beside the numbers: copy bandwidth, memory, load."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

_COPIES = 4
"""In a row on a device: one alone would be measured with its launch."""


def copy_bandwidth(device: torch.device, *, size_bytes: int | None = None, rounds: int = 5) -> float:
    """Bytes/s of a plain copy, read + write counted, best of `rounds`: the roof of the baseline meter (measurement 11).

    size_bytes: None chooses what outgrows every cache (`copy_size`). The threads are those of the run.
    """
    if size_bytes is None:
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
        size_bytes = copy_size(free)
    source = torch.ones(size_bytes // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    best = min(_copy_s(source, target) for _ in range(rounds + 1))
    return 2 * source.numel() * source.element_size() / best


def copy_size(free_bytes: int | None) -> int:
    """Bytes of one copy. On the CPU (None) 256 MiB; on a GPU, where those take a few launches' time and caches hold a
    fifth of them, 2 GiB, or the eighth of free memory that a small card can spare."""
    if free_bytes is None:
        return 256 << 20
    return max(1 << 20, min(2 << 30, free_bytes // 8)) // 4 * 4


def _copy_s(source: torch.Tensor, target: torch.Tensor) -> float:
    """Seconds of a copy: on a GPU by its own events, between which nothing waits for the host."""
    device = source.device
    _wait(device)
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record(torch.cuda.current_stream(device))
        for _ in range(_COPIES):
            target.copy_(source)
        end.record(torch.cuda.current_stream(device))
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3 / _COPIES
    began = time.perf_counter()
    target.copy_(source)
    _wait(device)
    return time.perf_counter() - began


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
