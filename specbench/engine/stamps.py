"""Phase times of captured steps: the device's own clock, written where a phase ends, read with the step's tokens.

A captured step makes no call on the host, so the host's clock sees nothing of it. One thread writes the GPU's global
timer (nanoseconds; its resolution is `resolution_ns`) into a slot of the step's output. On a CPU the same operator
writes the monotonic clock, so that captured steps are rehearsed there with their times.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable

import torch
from torch import Tensor

NUM_STAMPS = 5
"""Before the draft, and after draft, verify, accept and commit."""


@torch.library.custom_op("specbench::stamp", mutates_args={"slots"}, device_types="cpu")
def stamp(slots: Tensor, index: int) -> None:
    """slots[index] = now, in nanoseconds of a clock that only ever goes forward. slots: int64."""
    slots[index] = time.perf_counter_ns()


@stamp.register_kernel("cuda")
def _stamp_on_cuda(slots: Tensor, index: int) -> None:
    from specbench.engine.stamp_kernel import write_timer

    write_timer[(1,)](slots, index)


class StampClock:
    """Marks are nanoseconds already read."""

    def mark(self) -> int:
        return time.perf_counter_ns()

    def seconds(self, start: int, end: int) -> float:
        return (end - start) * 1e-9

    def finish(self) -> None:
        return


def why_missing(device: torch.device) -> str:
    """Why no kernel reads this device's timer; '' where one does, which is tried."""
    if device.type != "cuda":
        return ""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed, and without it no kernel reads the device's timer"
    try:
        slots = torch.zeros(2, dtype=torch.int64, device=device)
        for index in range(2):
            stamp(slots, index)
        first, second = slots.tolist()
    # A compiler, a driver and a card that no test has seen: whatever they raise, there is no timer then.
    except Exception as fault:  # noqa: BLE001
        said = str(fault).strip().splitlines()
        return f"the device's timer cannot be read: {type(fault).__name__}: {said[0] if said else 'no message'}"
    if not 0 < first <= second:
        return f"the device's timer does not go forward: {first} ns, then {second} ns"
    return ""


def resolution_ns(
    device: torch.device, *, num: int = 2000, repeated: Callable[[Callable[[], None]], None] | None = None
) -> dict[str, float]:
    """What the timer is worth: the smallest step between two different stamps and the mean cost of one, both in
    nanoseconds, from `num` stamps in a row.

    repeated: runs what it is given without the host in between (a captured graph, replayed). Without it the host
    launches every stamp, and on a GPU what is found is the interval between launches.
    """
    slots = torch.zeros(num, dtype=torch.int64, device=device)

    def stamp_all() -> None:
        for index in range(num):
            stamp(slots, index)

    if repeated is None:
        stamp_all()
    else:
        repeated(stamp_all)
    differences = slots.diff().tolist()
    positive = [each for each in differences if each > 0]
    return {"smallest_ns": float(min(positive, default=0)), "mean_ns": sum(differences) / max(len(differences), 1)}
