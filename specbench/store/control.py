"""The A/A control of a run: autoregression twice under two names (measurement 7). The one place that judges it.

Its interval must contain 1. Where it does not, the machine gave two equal things different speeds, and a rank made of
differences of that size would be noise: no method of the run is ranked. Speed-ups and intervals stay shown. No torch.
"""

from __future__ import annotations

from specbench.metrics import Speedup
from specbench.store.records import Control

REMEDY = "measure again on a quiet machine, or with more questions or --repeats"


def judge(method: str, found: Speedup | None) -> Control:
    """found: the control's speed-up against the baseline; None where nothing was paired."""
    if found is None or found.num_units == 0:
        return Control(method=method, speedup=None, speedup_ci=None, passed=None)
    passed = found.interval.contains(1.0) if found.interval is not None else None
    return Control(method=method, speedup=found.geometric_mean, speedup_ci=found.interval, passed=passed)


def failure(control: Control | None) -> str:
    """`autoregression against itself gives [1.020, 1.041], which excludes 1`; empty where the control did not fail."""
    if control is None or control.passed is not False or control.speedup_ci is None:
        return ""
    low, high = control.speedup_ci
    return f"autoregression against itself gives [{low:.3f}, {high:.3f}], which excludes 1"
