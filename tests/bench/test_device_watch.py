"""The process beside a run: it writes, it is polite, it dies with its run, and its own failures are only said."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from specbench import paths
from specbench.api import Silent
from specbench.bench import device_sampler, device_watch, machine
from specbench.bench.device_watch import DeviceWatch
from specbench.bench.runner import run
from specbench.manifest import read_manifest
from specbench.report.table import to_text
from specbench.store.device import metrics_file, read_device
from tests.bench.runs import request_for
from tests.helpers import has_ended

REPOSITORY = Path(__file__).resolve().parents[2]


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in metrics_file(folder).read_text().splitlines()]


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if is_so():
            return
        time.sleep(0.02)
    raise AssertionError(f"no {what} within 20 s")


def wait_for(folder: Path, text: str) -> None:
    wait_until(lambda: metrics_file(folder).exists() and text in metrics_file(folder).read_text(), text)


def test_it_writes_what_it_watches_once_a_second_and_stops_with_the_run(tmp_path: Path) -> None:
    said: list[str] = []
    with DeviceWatch(tmp_path, gpu_uuid="", say=said.append) as watch:
        process = watch._process
        assert process is not None
        wait_for(tmp_path, '"e":"sample"')
        assert psutil.Process(process.pid).nice() == 15
    assert process.poll() == 0 and said == []
    header, *samples = lines_of(tmp_path)
    assert header["e"] == "sampler_started" and header["run_pid"] == os.getpid() and header["gpu_missing"] is None
    assert header["run_niceness"] == os.nice(0)
    assert samples and all(sample["e"] == "sample" for sample in samples)
    assert samples[0]["interval_s"] == pytest.approx(1.0, abs=0.5)
    assert all(0 <= sample["own_s"] <= sample["interval_s"] * header["num_cpus"] + 0.1 for sample in samples)
    log = read_device(tmp_path)
    assert len(log.samplers) == 1 and len(log.samples) == len(samples)


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two cores to be held to one"
)
def test_a_run_that_is_held_to_a_core_is_not_crowded_by_what_others_do_elsewhere(tmp_path: Path) -> None:
    every = os.sched_getaffinity(0)
    ours, theirs = sorted(every)[:2]
    held = f"os.sched_setaffinity(0, {{{theirs}}})"
    burn = f"import os, time\n{held}\nend = time.time() + 30\nwhile time.time() < end: pass"
    other = subprocess.Popen([sys.executable, "-c", burn])
    os.sched_setaffinity(0, {ours})
    try:
        with DeviceWatch(tmp_path, gpu_uuid="", say=lambda text: None) as watch:
            assert watch._process is not None
            wait_for(tmp_path, '"e":"sample"')
            assert ours not in psutil.Process(watch._process.pid).cpu_affinity()
    finally:
        os.sched_setaffinity(0, every)
        other.kill()
        other.wait()
    header, *samples = lines_of(tmp_path)
    assert header["num_cpus"] == 1
    assert all(sample["busy_s"] <= sample["interval_s"] + 0.1 for sample in samples), "the core next door is not summed"
    assert all(sample["sampler_s"] == 0 for sample in samples)


WORKING = """
import os, time
print(os.getpid(), flush=True)
end = time.monotonic() + 3
while time.monotonic() < end:
    pass
"""


def _sampled_beside(folder: Path, words: list[str]) -> dict[str, Any]:
    """The first sample of a second in which a process computes."""
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    try:
        with DeviceWatch(folder, gpu_uuid="", say=print):
            wait_for(folder, '"e":"sample"')
    finally:
        os.kill(pid, signal.SIGKILL)
        process.wait()
    return read_device(folder).samples[0]


def test_the_work_of_another_process_is_not_the_runs(tmp_path: Path) -> None:
    """A neighbour that computes shows as others' seconds; this process, which waits, has next to none."""
    # A grandchild, whose parent is gone: nobody's business here.
    sample = _sampled_beside(tmp_path, ["sh", "-c", f"{sys.executable} -c '{WORKING}' & exec sleep 0.1"])
    assert sample["busy_s"] - sample["own_s"] - sample["sampler_s"] > 0.3 * sample["interval_s"]
    assert sample["own_s"] < 0.5 * sample["interval_s"]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="only Linux lists a process's children")
def test_what_a_child_of_the_run_computes_is_the_runs(tmp_path: Path) -> None:
    """A round of learning beside the answers must not make them look disturbed."""
    sample = _sampled_beside(tmp_path, [sys.executable, "-c", WORKING])
    assert sample["own_s"] > 0.3 * sample["interval_s"]


PARENT = """
import sys, time
from pathlib import Path
from specbench.bench.device_watch import DeviceWatch
with DeviceWatch(Path(sys.argv[1]), gpu_uuid="", say=print) as watch:
    print(watch._process.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_a_killed_run_takes_its_sampler_along(tmp_path: Path, sent: signal.Signals) -> None:
    """Killed outright, or stopped and then killed: it ends by itself, at its next look."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert parent.stdout is not None
    sampler = psutil.Process(int(parent.stdout.readline()))
    wait_for(tmp_path, "sampler_started")
    parent.send_signal(sent)
    if sent is not signal.SIGKILL:
        assert sampler.is_running()
        parent.kill()
    parent.wait()
    before = len(lines_of(tmp_path))
    # As long as a loaded machine may take to let it run, at niceness 15; its own looks are what is counted.
    wait_until(lambda: has_ended(sampler), "its end")
    assert len(lines_of(tmp_path)) <= before + 2


def test_a_resumed_run_appends_behind_the_last_whole_line(tmp_path: Path) -> None:
    for _ in range(2):
        with DeviceWatch(tmp_path, gpu_uuid="", say=print):
            wait_for(tmp_path, "sampler_started")
        with metrics_file(tmp_path).open("a") as file:
            file.write('{"e":"sample","at_s":17')  # what a kill may leave
    log = read_device(tmp_path)
    assert len(log.samplers) == 2
    assert metrics_file(tmp_path).read_text().count("sampler_started") == 2


def test_a_sampler_that_cannot_start_is_said_and_stops_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with DeviceWatch(tmp_path / "missing", gpu_uuid="", say=said.append):
        pass
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with DeviceWatch(tmp_path, gpu_uuid="", say=said.append):
        pass
    assert len(said) == 2 and all("machine's state is not recorded" in line for line in said)


def test_a_sampler_that_breaks_is_said_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("raise OSError(28, 'No space left on device')")
    monkeypatch.setattr(device_watch, "SAMPLER", broken)
    said: list[str] = []
    with DeviceWatch(tmp_path, gpu_uuid="", say=said.append):
        pass
    assert len(said) == 1 and "No space left on device" in said[0]


def test_the_sampler_loads_nothing_of_specbench() -> None:
    code = f"import runpy, sys; runpy.run_path({str(device_watch.SAMPLER)!r}, run_name='x');"
    code += "print(sorted(m for m in sys.modules if m.split('.')[0] in ('specbench', 'torch', 'numpy', 'pydantic')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


class NvmlError(Exception):
    pass


def fake_nvml(**functions: Any) -> types.ModuleType:
    """A pynvml with one GPU that tells its SM clock, heat and power, and nothing about its processes."""
    module = types.ModuleType("pynvml")

    def refuses(*_: Any) -> None:
        raise NvmlError("Not Supported")

    vars(module).update(
        NVMLError=NvmlError,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetClockInfo=lambda _, kind: {1: 1410, 2: 2619}[kind],
        nvmlDeviceGetTemperature=lambda *_: 71,
        nvmlDeviceGetPowerUsage=lambda _: 640_500,
        nvmlDeviceGetComputeRunningProcesses=refuses,
        nvmlDeviceGetUtilizationRates=refuses,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda _: 0x01 | 0x04 | 0x40,
    )
    vars(module).update(functions)
    return module


def test_a_gpu_tells_clocks_heat_power_and_why_it_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle (bit 0) is no throttling; what the GPU does not support is None, never a guess."""
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    gpu = device_sampler._Gpu("GPU-1")
    assert gpu.missing is None
    assert gpu.sample() == {
        "gpu_mhz": 1410,
        "gpu_memory_mhz": 2619,
        "gpu_temperature_c": 71,
        "gpu_power_w": 640.5,
        "gpu_use": None,
        "num_gpu_processes": None,
        "throttle_reasons": ["gpu power cap", "gpu thermal, by the hardware"],
    }


def test_without_nvml_the_header_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise NvmlError("Driver Not Loaded")

    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "nvidia-ml-py" in (device_sampler._Gpu("GPU-1").missing or "")
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(nvmlInit=fails))
    gpu = device_sampler._Gpu("GPU-1")
    assert "Driver Not Loaded" in (gpu.missing or "") and gpu.sample() == {}
    assert device_sampler._Gpu("").missing is None  # no GPU in use: nothing is missing


# --- energy --------------------------------------------------------------------------------------------------------

COUNTING = """
import time
NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
class NVMLError(Exception): pass
def nothing(*_): raise NVMLError("Not Supported")
nvmlDeviceGetPowerUsage = nvmlDeviceGetComputeRunningProcesses = nvmlDeviceGetUtilizationRates = nothing
nvmlDeviceGetCurrentClocksEventReasons = nvmlDeviceGetClockInfo = nvmlDeviceGetTemperature = nothing
def nvmlInit(): pass
def nvmlDeviceGetHandleByUUID(uuid): return uuid
def nvmlDeviceGetTotalEnergyConsumption(_): return int(100_000 * time.time())  # millijoules: 100 W
"""
"""A pynvml whose card draws 100 W and tells nothing else."""


@pytest.fixture
def counting_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found by the sampler's own process."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "pynvml.py").write_text(COUNTING)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")


@pytest.mark.usefixtures("counting_gpu")
def test_energy_is_read_at_the_edges_of_a_group_and_lines_of_state_go_on(tmp_path: Path) -> None:
    with DeviceWatch(tmp_path, gpu_uuid="GPU-1", say=print) as watch:
        wait_for(tmp_path, "sampler_started")
        for group in (3, 4):
            watch.mark("begin", group)
            time.sleep(0.4)
            watch.mark("end", group)
        watch.mark("begin", 5)  # never ended: a failed group
        wait_for(tmp_path, '"e":"sample"')
    log = read_device(tmp_path)
    assert set(log.energy) == {3, 4} and log.samples
    for row in log.energy.values():
        assert row["window_s"] == pytest.approx(0.4, abs=0.3)
        assert row["joules"] == pytest.approx(100 * row["window_s"], rel=0.05)


def test_without_a_gpu_or_a_counter_nothing_is_said_of_energy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with DeviceWatch(tmp_path, gpu_uuid="", say=print) as watch:
        wait_for(tmp_path, "sampler_started")
        watch.mark("begin", 0)
        watch.mark("end", 0)
    assert "energy" not in metrics_file(tmp_path).read_text()

    def refuses(_: Any) -> None:
        raise NvmlError("Not Supported")

    for more in ({}, {"nvmlDeviceGetTotalEnergyConsumption": refuses}):
        monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(**more))
        assert device_sampler._Gpu("GPU-1").energy_j() is None
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(nvmlDeviceGetTotalEnergyConsumption=lambda _: 12_345))
    assert device_sampler._Gpu("GPU-1").energy_j() == 12.345


def test_a_sampler_that_stands_still_or_is_gone_never_holds_up_a_run(tmp_path: Path) -> None:
    """Its pipe is full after some thousand marks; the rest are dropped."""
    with DeviceWatch(tmp_path, gpu_uuid="GPU-1", say=print) as watch:
        process = watch._process
        assert process is not None
        wait_for(tmp_path, "sampler_started")
        process.send_signal(signal.SIGSTOP)
        for group in range(20_000):
            watch.mark("begin", group)
        process.kill()
        process.wait()
        watch.mark("end", 0)


@pytest.mark.usefixtures("counting_gpu")
def test_a_run_with_a_counting_gpu_has_its_energy_around_every_group(
    tiny_suite: Path, tiny_target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything but the card is real. Whether a reading came in time to be counted is the machine's load to say, and
    the views' to decide (tests/store/test_device.py)."""
    monkeypatch.setattr(machine, "gpu_uuid", lambda _: "GPU-1")
    store = tmp_path / "results"
    outcome = run(request_for(tiny_suite, tiny_target, store, repeats=1), Silent())
    folder = paths.run_dir(store, outcome.run_id)
    energy = read_device(folder).energy
    assert set(energy) == {record.group for record in read_manifest(folder).groups}
    assert all(row["joules"] == pytest.approx(100 * row["window_s"], abs=0.5) for row in energy.values())


def test_a_run_without_one_shows_no_energy(tiny_suite: Path, tiny_target: Path, tmp_path: Path) -> None:
    summary = run(request_for(tiny_suite, tiny_target, tmp_path / "results", repeats=1), Silent()).summary
    assert summary is not None and all(row.joules_per_token is None for row in summary.rows)
    assert "J/tok" not in to_text(summary)
