"""The process that watches the machine while a run measures: a JSON line a second on its standard output (measurement
17).

`DeviceWatch` starts it as a file, not as a module: it loads nothing of specbench, let alone torch. It runs at nice 15,
and so does its session, of which it is alone: between sessions Linux weighs these, not the processes'. It
ends by itself within a second of its standard input closing or its parent dying, however that comes about.
On a line `begin GROUP` or `end GROUP` of its standard input it reads the GPU's energy counter: an `energy` line.
First line: what is watched and what cannot be. Seconds are CPU seconds since the line before, of all cores that the run
may use together: where it is held to some (taskset, a container), the others are nobody's concern, and this process
moves there if it can.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

SCHEMA = 2
INTERVAL_S = 1.0
NICENESS = 15
_LEAST_S = 0.1
"""A last sample shorter than this says nothing: counters of CPU time tick every hundredth of a second."""
_TOP_EVERY_S = 10.0
"""Looking at every process costs a few milliseconds, so it is done seldom."""
_NUM_TOP = 5
_MOST_ASKED = 1 << 16
_CPUS = Path("/sys/devices/system/cpu")
_GPU_THROTTLING = {
    0x04: "gpu power cap",
    0x08: "gpu hardware slowdown",
    0x20: "gpu thermal, by the driver",
    0x40: "gpu thermal, by the hardware",
    0x80: "gpu power brake",
}
"""Bits of NVML's clocks event reasons that mean less speed than asked for; idleness and set clocks do not."""


def main(run_pid: int, gpu_uuid: str) -> None:
    """Sample until the run `run_pid` is over. gpu_uuid: NVML's name of the GPU in use, '' for none."""
    os.nice(NICENESS)
    if os.getsid(0) == os.getpid():
        with suppress(OSError):  # a kernel that does not weigh sessions
            Path("/proc/self/autogroup").write_text(str(NICENESS), encoding="ascii")
    # Ctrl-C is for the run, which then closes our input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gpu = _Gpu(gpu_uuid)
    machine = _Machine(run_pid)
    _write(
        {
            "e": "sampler_started",
            "schema": SCHEMA,
            "at_s": time.time(),
            "pid": os.getpid(),
            "run_pid": run_pid,
            "interval_s": INTERVAL_S,
            "run_niceness": machine.run_niceness(),
            "num_cpus": len(machine.cpus),
            "governor": _text(_CPUS / "cpu0/cpufreq/scaling_governor"),
            "gpu_missing": gpu.missing,
        }
    )
    due = time.monotonic() + INTERVAL_S
    is_over = False
    while not is_over:
        readable, _, _ = select.select([0], [], [], max(0.0, due - time.monotonic()))
        asked = os.read(0, _MOST_ASKED) if readable else None
        for line in (asked or b"").decode("ascii").splitlines():
            _tell_energy(gpu, line)
        is_over = asked == b"" or os.getppid() != run_pid
        if not is_over and time.monotonic() < due:
            continue
        # After a suspended laptop or a stopped process: the next second, not all that were missed.
        due = max(due + INTERVAL_S, time.monotonic())
        try:
            sample = machine.sample(least_s=_LEAST_S)
        except psutil.NoSuchProcess:
            return
        if sample is not None:
            gpu_sample = gpu.sample()
            sample["throttle_reasons"] += gpu_sample.pop("throttle_reasons", [])
            _write(sample | gpu_sample)


def _tell_energy(gpu: _Gpu, asked: str) -> None:
    """asked: `begin 12` or `end 12`, just before and just after group 12 was timed. Nothing for a GPU that counts no
    energy."""
    joules = gpu.energy_j()
    if joules is not None:
        edge, group = asked.split()
        _write({"e": "energy", "at_s": time.time(), "edge": edge, "group": int(group), "energy_j": joules})


class _Machine:
    """CPU, memory and processes, each reading against the one before."""

    def __init__(self, run_pid: int) -> None:
        self._run = psutil.Process(run_pid)
        self.cpus = _cpus_of(self._run)
        self._is_aside = _step_aside(self.cpus)
        self._throttling = _throttle_counters()
        self._counts = {name: read() for name, read in self._throttling.items()}
        self._last = self._clocks()
        self._processes = self._process_seconds()
        self._last_top = self._last[0]

    def run_niceness(self) -> int:
        """Of the run's first thread, which decodes: above 0 whatever else wants a processor comes first."""
        return int(self._run.nice())

    def _clocks(self) -> tuple[float, float, float, float]:
        """(monotonic, busy, own, sampler): CPU seconds so far on the run's cores, of all, the run, this process."""
        cores, run, me = psutil.cpu_times(percpu=True), self._run.cpu_times(), os.times()
        # Stolen time counts as busy: a neighbour on the same hardware had it.
        names = ("user", "nice", "system", "irq", "softirq", "steal")
        busy = sum(getattr(cores[cpu], name, 0.0) for cpu in self.cpus for name in names)
        own = run.user + run.system + run.children_user + run.children_system + self._children_s()
        return time.monotonic(), busy, own, 0.0 if self._is_aside else me.user + me.system

    def _children_s(self) -> float:
        """CPU seconds so far of the run's children that live: a round of learning beside its answers is no neighbour.
        0 where the kernel does not list them."""
        found = 0.0
        for path in Path(f"/proc/{self._run.pid}/task").glob("*/children"):
            for child in (_text(path) or "").split():
                if int(child) != os.getpid():
                    with suppress(psutil.Error):
                        times = psutil.Process(int(child)).cpu_times()
                        found += times.user + times.system
        return found

    def sample(self, *, least_s: float) -> dict[str, Any] | None:
        """One line; None where less than least_s went by. Raises psutil.NoSuchProcess when the run is gone."""
        clocks = self._clocks()
        interval_s, busy_s, own_s, sampler_s = (now - was for now, was in zip(clocks, self._last, strict=True))
        if interval_s < least_s:
            return None
        self._last = clocks
        counts = {name: read() for name, read in self._throttling.items()}
        throttled = [name for name, count in counts.items() if count > self._counts[name]]
        self._counts = counts
        return {
            "e": "sample",
            "at_s": time.time(),
            "interval_s": round(interval_s, 4),
            "busy_s": round(busy_s, 3),
            "own_s": round(own_s, 3),
            "sampler_s": round(sampler_s, 3),
            "load_average": os.getloadavg()[0],
            "available_bytes": psutil.virtual_memory().available,
            "num_threads": self._run.num_threads(),
            "cpu_mhz": self._mhz(),
            "throttle_reasons": throttled,
            "top_others": self._top_others(clocks[0]),
        }

    def _mhz(self) -> float | None:
        """Of the core that the run was last on: asking all of them would wake them."""
        if not hasattr(self._run, "cpu_num"):
            return None
        text = _text(_CPUS / f"cpu{self._run.cpu_num()}" / "cpufreq/scaling_cur_freq")
        return int(text) / 1000 if text else None

    def _top_others(self, now: float) -> list[tuple[str, float]] | None:
        """(name, CPU seconds since the last look) of the busiest other processes; None between looks."""
        if now - self._last_top < _TOP_EVERY_S:
            return None
        before, self._processes, self._last_top = self._processes, self._process_seconds(), now
        spent = [(name, seconds - before.get((pid, name), 0.0)) for (pid, name), seconds in self._processes.items()]
        busiest = sorted(spent, key=lambda item: -item[1])[:_NUM_TOP]
        return [(name, round(seconds, 2)) for name, seconds in busiest if seconds > 0]

    def _process_seconds(self) -> dict[tuple[int, str], float]:
        """CPU seconds so far of every process but the run and this one; names only, never command lines."""
        found = {}
        for process in psutil.process_iter(["pid", "name", "cpu_times"]):
            info = process.info
            if info["pid"] not in (self._run.pid, os.getpid()) and info["cpu_times"] is not None:
                found[info["pid"], info["name"] or "?"] = info["cpu_times"].user + info["cpu_times"].system
        return found


def _cpus_of(run: psutil.Process) -> list[int]:
    """The cores that the run may use."""
    every = list(range(psutil.cpu_count() or 1))
    if not hasattr(run, "cpu_affinity"):
        return every
    return [cpu for cpu in run.cpu_affinity() if cpu in every] or every


def _step_aside(cpus: list[int]) -> bool:
    """Off these cores, where there are others and they may be used; this process was started on the run's."""
    others = set(range(psutil.cpu_count() or 1)) - set(cpus)
    if not others or not hasattr(os, "sched_setaffinity"):
        return False
    try:
        os.sched_setaffinity(0, others)
    except OSError:
        return False
    return True


def _throttle_counters() -> dict[str, Callable[[], int]]:
    """Counters that rise when the CPU is slowed down, as far as this machine has them."""
    counters: dict[str, Callable[[], int]] = {}
    heat = _CPUS / "cpu0/thermal_throttle/package_throttle_count"
    if _text(heat):
        counters["cpu thermal"] = lambda: int(_text(heat) or 0)
    group = next((line[3:] for line in (_text(Path("/proc/self/cgroup")) or "").splitlines() if line[:3] == "0::"), "/")
    root = Path("/sys/fs/cgroup")
    for quota in (root / group.lstrip("/") / "cpu.stat", root / "cpu.stat", root / "cpu/cpu.stat"):
        if "nr_throttled" in (_text(quota) or ""):
            counters["cpu quota"] = lambda quota=quota: _field(_text(quota) or "", "nr_throttled")  # type: ignore[misc]
            break
    return counters


class _Gpu:
    """NVML where the machine and the Python have it; `missing` says what is in the way."""

    def __init__(self, uuid: str) -> None:
        self.missing: str | None = None
        self._handle: Any = None
        if not uuid:
            return
        try:
            import pynvml  # an extra that most machines lack: its absence is said, never an error
        except ImportError:
            self.missing = "pynvml is not installed (pip install nvidia-ml-py)"
            return
        self._nvml: Any = pynvml
        try:
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        except pynvml.NVMLError as error:
            self.missing = f"NVML does not answer: {error}"

    def sample(self) -> dict[str, Any]:
        """Clocks, heat, power, processes; None for what this GPU does not tell. Empty without a GPU."""
        if self._handle is None:
            return {}
        nvml = self._nvml
        milliwatts = self._ask("nvmlDeviceGetPowerUsage")
        processes = self._ask("nvmlDeviceGetComputeRunningProcesses")
        use = self._ask("nvmlDeviceGetUtilizationRates")
        events = self._ask("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons")
        return {
            "gpu_mhz": self._ask("nvmlDeviceGetClockInfo", argument=nvml.NVML_CLOCK_SM),
            "gpu_memory_mhz": self._ask("nvmlDeviceGetClockInfo", argument=nvml.NVML_CLOCK_MEM),
            "gpu_temperature_c": self._ask("nvmlDeviceGetTemperature", argument=nvml.NVML_TEMPERATURE_GPU),
            "gpu_power_w": None if milliwatts is None else milliwatts / 1000,
            "gpu_use": None if use is None else use.gpu / 100,
            "num_gpu_processes": None if processes is None else len(processes),
            "throttle_reasons": [name for bit, name in _GPU_THROTTLING.items() if (events or 0) & bit],
        }

    def energy_j(self) -> float | None:
        """Joules of the whole card since its driver was loaded; None where NVML does not count them (before Volta)."""
        if self._handle is None or not hasattr(self._nvml, "nvmlDeviceGetTotalEnergyConsumption"):
            return None
        millijoules = self._ask("nvmlDeviceGetTotalEnergyConsumption")
        return None if millijoules is None else millijoules / 1000

    def _ask(self, *names: str, argument: int | None = None) -> Any:
        """The first of these functions that this NVML has; None where the GPU does not support it."""
        function = next(found for name in names if (found := getattr(self._nvml, name, None)) is not None)
        try:
            return function(self._handle) if argument is None else function(self._handle, argument)
        except self._nvml.NVMLError:
            return None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def _field(table: str, name: str) -> int:
    """The number behind `name` in lines of `name number`."""
    return next((int(line.split()[1]) for line in table.splitlines() if line.startswith(name + " ")), 0)


def _write(line: dict[str, Any]) -> None:
    """In one piece: what was written is in the kernel, and a reader never sees half of it."""
    os.write(1, (json.dumps(line, separators=(",", ":")) + "\n").encode("ascii"))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
    # The run waits for this process, and at its niceness taking an interpreter down lasts: 0.3 s beside other work.
    os._exit(0)
