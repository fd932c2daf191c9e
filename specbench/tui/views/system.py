"""System: this machine now, the machine the run had, and whether its measurement is clean."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual.containers import Grid
from textual.widget import Widget

from specbench import paths
from specbench.errors import EnvironmentFailed, SpecbenchError
from specbench.store.device import DeviceLog, read_device
from specbench.store.viewer_cost import ViewerCost, read_viewer_cost
from specbench.tui import machine, sharing
from specbench.tui.lines import Line, Span, line, wrap
from specbench.tui.views.base import View
from specbench.tui.widgets.canvas import Canvas

if TYPE_CHECKING:
    from specbench.manifest import DeviceRecord
    from specbench.tui.figures import Summed

_LOOK_EVERY_S = 1.0
_DOCTOR_S = 120.0


def _read_device(folder: Path) -> tuple[DeviceLog, DeviceRecord | None]:
    """The record of the machine, and what the manifest says of the device, None where it cannot be read. Raises
    EnvironmentFailed."""
    from specbench.manifest import read_manifest  # 0.15 s of pydantic, in the thread that asks

    log = read_device(folder)
    try:
        return log, read_manifest(folder).device
    except SpecbenchError:
        return log, None  # Home and the summary say what is wrong with it


class SystemView(View):
    """Four panes; only the first moves, once a second."""

    view: ClassVar[str] = "system"

    DEFAULT_CSS = """
    SystemView #body { grid-size: 2 2; grid-columns: 1fr 1fr; }
    SystemView.-narrow #body { grid-size: 1 4; grid-rows: 8; overflow-y: auto; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.machine = machine.Machine()
        self.record: DeviceLog | None = None
        self.device: DeviceRecord | None = None
        self.summed: Summed | None = None
        self.cost: ViewerCost | None = None
        self.why_not = self.why_no_record = ""
        """There are no figures of the run that is open, no record of its machine."""
        self._asked = ""
        self._writers = machine.Writers()

    def body(self) -> Iterable[Widget]:
        with Grid(id="body"):
            yield Canvas(self._now, title="This machine now", id="now", classes="pane")
            yield Canvas(self._clean, title="Is this measurement clean?", id="clean", classes="pane")
            yield Canvas(self._recorded, title="The machine during the run", id="recorded", classes="pane")
            yield Canvas(self._processes, title="Runs being written", id="processes", classes="pane")

    def on_mount(self) -> None:
        self.query_one("#now").focus()
        self.poll(_LOOK_EVERY_S, self.look)
        self.look()

    def entered(self) -> None:
        with suppress(EnvironmentFailed):  # `specbench doctor` names a damaged one
            self.cost = read_viewer_cost(paths.results_dir(self.workspace.store))
        run_id = self.workspace.run_id
        if not run_id:
            return
        if run_id != self._asked:
            self._asked, self.record, self.device, self.summed, self.why_not = run_id, None, None, None, ""
        # A verdict is of what had been measured by then, and a reading that failed is no verdict.
        if self.record is None or not self.workspace.is_as_of_now(run_id, self.summed):
            folder = self.workspace.folder(run_id)
            self.why_no_record = ""
            self.in_background("device", lambda: _read_device(folder), self._device_read, failed=self._no_record)
            self.in_background(
                "summing", lambda: self.workspace.summed(run_id), self._summed_up, failed=self._not_summed
            )

    def look(self) -> None:
        """A reading a second, while the screen is shown."""
        if not self.is_current:
            return
        self.machine.look(is_beside_a_run=self.main.is_beside_a_run)
        self._writers.look(self.workspace.being_written())
        for name in ("#now", "#processes"):
            self.query_one(name, Canvas).redraw()

    def _device_read(self, found: tuple[DeviceLog, DeviceRecord | None]) -> None:
        self.record, self.device = found
        self.query_one("#recorded", Canvas).redraw()

    def _no_record(self, error: SpecbenchError) -> None:
        self.record, self.device, self.why_no_record = None, None, error.what
        self.query_one("#recorded", Canvas).redraw()

    def _summed_up(self, found: Summed) -> None:
        self.summed, self.why_not = found, ""
        self.query_one("#clean", Canvas).redraw()

    def _not_summed(self, error: SpecbenchError) -> None:
        # What stood there was of an earlier state of the run.
        self.summed, self.why_not = None, error.what
        self.query_one("#clean", Canvas).redraw()

    def headline(self) -> str:
        run_id = self.workspace.run_id
        return f"{run_id} and this machine" if run_id else "this machine; a run opened on Home adds its own record"

    def _now(self, width: int, height: int) -> Sequence[Line]:
        told = "; ".join(filter(None, (self.main.giving_way.told(), self.main.aside.told())))
        return machine.now_lines(self.machine, width, self.cost, giving_way=told)

    def _clean(self, width: int, height: int) -> Sequence[Line]:
        if self.summed is not None:
            return machine.clean_lines(self.summed.summary, self.summed.flags, width)
        if self.why_not:
            return wrap(f"not known: {self.why_not}. Coming back here asks again.", width, "warn")
        if self.workspace.run_id:
            return wrap("being summed up …", width, "dim")
        return [
            *wrap("No run is open: 1 Home, then enter on one.", width),
            (),
            line(Span("i", "key"), " asks specbench doctor about this machine."),
        ]

    def _recorded(self, width: int, height: int) -> Sequence[Line]:
        if self.record is not None:
            device = [] if self.device is None else machine.device_lines(self.device, width)
            return [*device, *machine.run_lines(self.record, width)]
        if self.why_no_record:
            return wrap(f"not known: {self.why_no_record}", width, "warn")
        return wrap("reading …" if self.workspace.run_id else "No run is open.", width, "dim")

    def _processes(self, width: int, height: int) -> Sequence[Line]:
        return self._writers.lines(width)

    def action_inspect(self) -> None:
        """`specbench doctor` as a process: it loads torch, which this one must not."""
        live = self.workspace.live_here()
        if live:
            self.say(f"{live} runs on this machine: specbench doctor beside it would slow it", style="warn")
            return
        self.say("specbench doctor is looking; it loads torch and takes some seconds", style="")
        self.in_background("doctor", self._ask_doctor, self._doctor_said)

    def _ask_doctor(self) -> list[dict[str, Any]]:
        words = [sys.executable, "-m", "specbench", "doctor", "--json"]
        words += [] if self.workspace.store is None else ["--store", str(self.workspace.store)]
        try:
            done = subprocess.run(words, capture_output=True, timeout=_DOCTOR_S, stdin=subprocess.DEVNULL, check=False)
            found: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
        except (subprocess.TimeoutExpired, OSError, ValueError, KeyError) as error:
            raise EnvironmentFailed(f"specbench doctor gave no answer: {error}", try_="specbench doctor") from error
        return found

    def _doctor_said(self, findings: list[dict[str, Any]]) -> None:
        from specbench.tui.views.dialogs import Reading

        signs = {"ok": ("✓", "good"), "warning": ("⚠", "warn"), "failed": ("✗", "bad")}
        rows: list[Line] = []
        for each in findings:
            sign, style = signs[each["state"]]
            rows.append(line(Span(f"{sign} ", style), Span(each["name"], "bold"), f"  {each['what']}"))
            rows += [line(Span(f"    {each[key]}", "dim")) for key in ("consequence", "remedy") if each[key]]
        self.say("")
        self.main.push_screen(Reading("specbench doctor", rows, topic="doctor"))

    def exports(self) -> list[Path]:
        words = "\n\n".join(canvas.text() for canvas in self.query(Canvas))
        return [*super().exports(), sharing.write_text(self.workspace.store, "system", ".txt", words)]
