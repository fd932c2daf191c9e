"""This machine and this process, once a second; and what a run's own record says of the machine it had. No Textual."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from specbench.report import text
from specbench.store.device import DeviceLog
from specbench.store.files import holder
from specbench.store.records import RunSummary
from specbench.store.viewer_cost import ViewerCost
from specbench.tui.lines import Line, Span, bar, fit, line, sparkline, wrap

if TYPE_CHECKING:
    from specbench.manifest import DeviceRecord

_KEPT = 300
_CPUS = Path("/sys/devices/system/cpu")
_GOVERNOR = _CPUS / "cpu0/cpufreq/scaling_governor"
_CPU_INFO = Path("/proc/cpuinfo")


@dataclass
class Machine:
    """Readings of now and of the last five minutes."""

    cores: list[float] = field(default_factory=list)
    memory_used: int = 0
    memory_total: int = 1
    swap_used: int = 0
    load: float = 0.0
    own_percent: float = 0.0
    own_bytes: int = 0
    model: str = ""
    """Of the processor; empty until it was asked for."""
    mhz: float | None = None
    """Of the core that this process is on; None where it was not asked for, or cannot be read."""
    pid: int = field(default_factory=os.getpid)
    niceness: int = 0
    history: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
    own_history: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
    _process: psutil.Process = field(default_factory=psutil.Process)

    def look(self, *, is_beside_a_run: bool = False) -> None:
        """Percentages are since the last look. is_beside_a_run: of this machine, which is not disturbed for a clock."""
        self.cores = psutil.cpu_percent(percpu=True)
        memory = psutil.virtual_memory()
        self.memory_used, self.memory_total = memory.total - memory.available, memory.total
        self.swap_used = psutil.swap_memory().used
        self.load = os.getloadavg()[0]
        self.own_percent = self._process.cpu_percent()
        self.niceness = os.nice(0)
        self.own_bytes = self._process.memory_info().rss
        self.history.append(sum(self.cores) / max(1, len(self.cores)))
        self.own_history.append(self.own_percent)
        self.mhz = self._own_mhz(is_beside_a_run=is_beside_a_run)
        if not self.model and not is_beside_a_run:
            from specbench.provenance import cpu_model  # reads /proc/cpuinfo as well: once, and not beside a run

            self.model = cpu_model()

    def _own_mhz(self, *, is_beside_a_run: bool) -> float | None:
        """Its own core is awake already: asking for another one's clock would wake that. /proc/cpuinfo has every
        core's, for which kernels before 5.18 interrupt the busy ones."""
        if not hasattr(self._process, "cpu_num"):
            return None
        core = self._process.cpu_num()
        text = _text(_CPUS / f"cpu{core}" / "cpufreq/scaling_cur_freq")
        if text:
            return int(text) / 1000
        blocks = [] if is_beside_a_run else _text(_CPU_INFO).split("\n\n")
        rows = (row for block in blocks if re.match(rf"processor\s*: {core}\n", block) for row in block.splitlines())
        return next((float(row.partition(":")[2]) for row in rows if row.startswith("cpu MHz")), None)


def now_lines(machine: Machine, width: int, cost: ViewerCost | None = None, *, giving_way: str = "") -> list[Line]:
    """Cores, memory, load, and what this viewer takes of them. giving_way: whether it does, in words."""
    room = max(4, width - 26)
    found: list[Line] = []
    for number, percent in enumerate(machine.cores[:16]):
        shape = bar(percent / 100, room)
        found.append(fit(line(f"core {number:<4} {percent:>5.0f} %  ", Span(shape, "accent")), width))
    if len(machine.cores) > 16:
        found.append(line(Span(f"… and {len(machine.cores) - 16} more cores", "dim")))
    used, total = machine.memory_used / 2**30, machine.memory_total / 2**30
    shape = bar(machine.memory_used / machine.memory_total, room)
    found.append(fit(line(f"memory {used:>6.1f} GiB  ", Span(shape, "accent"), f" of {total:.1f}"), width))
    found.append(fit(line(f"swap   {machine.swap_used / 2**30:>6.1f} GiB"), width))
    found.append(fit(line(f"load   {machine.load:>6.2f}      governor {governor()}"), width))
    clock = "?" if machine.mhz is None else f"{machine.mhz:.0f}"
    found.append(
        fit(line(f"clock  {clock:>6} MHz  {machine.model or 'its name is not asked for beside a run'}"), width)
    )
    found.append(
        fit(line("all cores  ", Span(sparkline(list(machine.history), max(4, width - 12), low=0, high=100))), width)
    )
    found.append(())
    found.append(line(Span("this viewer", "bold")))
    found.append(
        line(
            f"process {machine.pid}, nice {machine.niceness}, {machine.own_percent:.1f} % of a core, "
            f"{machine.own_bytes / 2**20:.0f} MiB"
        )
    )
    found += wrap(giving_way, width, "dim") if giving_way else []
    found.append(fit(line("its share  ", Span(sparkline(list(machine.own_history), max(4, width - 12), low=0))), width))
    if cost is None:
        words = "What watching costs a run was not measured here: specbench doctor --viewer, three minutes."
        found += wrap(words, width, "dim")
    else:
        found += wrap(f"Measured: {cost.words()}.", width, "good" if cost.is_small else "warn")
    return found


def governor() -> str:
    """The CPU's clock policy; `not readable` in most virtual machines."""
    return _text(_GOVERNOR) or "not readable here"


def _text(path: Path) -> str:
    """Empty where there is no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def device_lines(device: DeviceRecord, width: int) -> list[Line]:
    """What the run ran on, by its manifest."""
    threads = text.count(device.threads, "thread")
    words = f"{device.name} ({device.kind}), {threads}, attention {device.attention}, steps as {device.execution}"
    return wrap(words, width, "bold")


def run_lines(log: DeviceLog, width: int) -> list[Line]:
    """The record the run's own sampler made, second by second."""
    samples = log.samples
    if not samples:
        return wrap("The run has no record of the machine (metrics.jsonl).", width, "dim")
    num_cpus = log.samplers[-1]["num_cpus"] or 1
    room = max(4, width - 28)

    def share(sample: dict[str, Any], name: str) -> float:
        return 100 * float(sample[name]) / (float(sample["interval_s"]) * num_cpus)

    others = [max(0.0, share(s, "busy_s") - share(s, "own_s") - share(s, "sampler_s")) for s in samples]
    own = [share(sample, "own_s") for sample in samples]
    rows: list[tuple[str, str, Sequence[float]]] = [
        ("run, % of all cores", f"{_median(own):.0f}", own),
        ("others, % of all cores", f"{_median(others):.0f}", others),
    ]
    for name, words in (
        ("cpu_mhz", "CPU MHz"), ("gpu_mhz", "GPU MHz"), ("gpu_temperature_c", "GPU °C"), ("gpu_power_w", "GPU W"),
    ):  # fmt: skip
        values = [float(sample[name]) for sample in samples if sample[name] is not None]
        if values:
            rows.append((words, f"{_median(values):.0f}", values))
    found: list[Line] = []
    for words, value, series in rows:
        found.append(fit(line(f"{words:<23}{value:>4} ", Span(sparkline(series, room, low=0.0), "accent")), width))
    seconds = sum(float(sample["interval_s"]) for sample in samples)
    found.append(line(Span(f"medians over {seconds:.0f} s", "dim")))
    reasons = sorted({reason for sample in samples for reason in sample["throttle_reasons"]})
    found.append(line(Span(f"throttled: {', '.join(reasons)}", "bad") if reasons else Span("throttled: never", "good")))
    for nice in sorted({each for each in log.niceness if each}):
        behind = "whatever else wanted a processor came first" if nice > 0 else "it came before everything else"
        found += wrap(f"the run was at niceness {nice}: {behind}", width, "warn")
    missing = log.samplers[-1]["gpu_missing"]
    if missing:
        found += wrap(f"GPU: {missing}", width, "warn")
    return found


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2] if values else 0.0


def clean_lines(summary: RunSummary, flags: Sequence[dict[str, Any]], width: int) -> list[Line]:
    """Is this measurement clean? A line a question, each with what it means. The store's figures and its own words."""
    found: list[Line] = []

    def say(good: bool | None, words: str) -> None:
        sign, style = {True: ("✓", "good"), False: ("✗", "bad"), None: ("⚠", "warn")}[good]
        rows = wrap(words, width - 2)
        found.append((Span(f"{sign} ", style), *rows[0]))
        found.extend((Span("  "), *row) for row in rows[1:])

    if summary.state == "running":
        say(None, "so far: the run is still being measured")
    control = summary.control
    if control is None:
        say(None, "no A/A control: nothing shows how still the machine was")
    elif control.passed is None:
        say(None, "A/A control: too few questions for an interval")
    else:
        interval = text.interval(control.speedup_ci)
        passed = "contains 1" if control.passed else "excludes 1: differences of that size mean nothing here"
        say(control.passed, f"A/A control {text.times(control.speedup)} {interval}, {passed}")
    for each in flags:
        if each["num_dated"] and not each["num_watched"]:
            say(None, "the machine was not watched during this run")
            continue
        groups = each["num_groups"]
        crowded, throttled = each["num_crowded_groups"], each["num_throttled_groups"]
        limit = f"{each['busy_limit']:.0%}" if each["busy_limit"] is not None else "their share"
        say(
            None if crowded else True,
            f"{crowded} of {groups} generations while other processes took more than {limit} of the CPUs",
        )
        say(None if throttled else True, f"{throttled} of {groups} generations while the machine was throttled")
    bugs = sum(row.equality.bug for row in summary.rows if row.equality is not None)
    if summary.rule == "typical":
        say(None, "the rule is lossy: answers may differ from the target's own")
    else:
        say(not bugs, f"{bugs} answers differ from the target's own without an excuse")
    failed = sum(row.num_failed for row in summary.rows)
    say(not failed, f"{text.count(failed, 'question')} failed")
    noisy = [row.method for row in summary.rows if row.too_noisy and not row.is_control]
    if noisy:
        say(None, f"too noisy for a rank: {text.listing(noisy)}")
    for note in summary.notes:
        if "control" not in note and "were measured while" not in note:
            say(None, note)
    return found


class Writers:
    """Processes that write runs. Kept between looks: a share of a core is one since the last look."""

    def __init__(self) -> None:
        self._known: dict[int, psutil.Process] = {}
        self._rows: list[str] = []

    def look(self, folders: Sequence[Path]) -> None:
        """Who writes these folders now, and what that takes."""
        seen: dict[int, psutil.Process] = {}
        self._rows = []
        for folder in folders:
            try:
                live = holder(folder)
            except (OSError, psutil.Error) as error:
                self._rows.append(f"{'?':>8}  its lock cannot be read ({error})  {folder.name}")
                continue
            if live is None:
                continue
            # Another machine's number may be that of some process here.
            words = self._taken(live.pid, seen) if live.is_here else f"on {live.host}"
            self._rows.append(f"{live.pid:>8}  {words}  {folder.name}")
        self._known = seen

    def _taken(self, pid: int, seen: dict[int, psutil.Process]) -> str:
        try:
            process = self._known.get(pid)
            is_new = process is None or not process.is_running()
            if process is None or is_new:
                process = psutil.Process(pid)
            percent = process.cpu_percent()
            seen[pid] = process
            # Since the last look: of the first there is none.
            share = "   … %" if is_new else f"{percent:>4.0f} %"
            return f"{share}  {process.memory_info().rss / 2**20:>7.0f} MiB  nice {process.nice()}"
        except psutil.Error:
            return "cannot be looked at"

    def lines(self, width: int) -> list[Line]:
        """As of the last look."""
        rows = [fit(line(row), width) for row in self._rows]
        return rows or wrap("No run is being written.", width, "dim")
