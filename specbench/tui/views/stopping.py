"""Ending a run from the viewer, and reading what it left: shared by Home and Race."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from specbench.errors import SpecbenchError, UsageError
from specbench.store import pausing
from specbench.store.files import holder, is_training, named_holder
from specbench.store.journal import MAY_GROW, run_state
from specbench.store.streamed import Copy, copy_of
from specbench.tui import children
from specbench.tui.index import RunIndex
from specbench.tui.lines import Line, Span, line
from specbench.tui.views.dialogs import Choice, Option, Reading

if TYPE_CHECKING:
    from specbench.tui.views.base import View

_LOOK_EVERY_S = 0.1


def ask_how_to_stop(view: View, run_id: str) -> None:
    """Says what each way does before anything is done."""
    folder = view.workspace.folder(run_id)
    live = holder(folder) if folder.exists() else None
    copy = copy_of(folder)
    if copy is not None and run_state(folder) in MAY_GROW:
        title = f"{run_id} runs on {copy.place.host}"
        view.main.push_screen(Reading(title, _what_to_type_there(copy, folder), topic="stop"))
        return
    if live is None:
        view.say(f"{run_id} is not running", style="warn")
        return
    options = [Option("", "Let it run")]
    if not is_training(folder):
        if pausing.is_asked(folder):
            other = view.workspace.live_here(but=run_id)
            beside = f"beside {other}, which runs on this machine: both would be slower"
            waits = "it waits between two answers, or is about to"
            options.append(Option("go", "Go on", help=beside if other else waits))
        else:
            options.append(Option("pause", "Pause", help="after this answer the process waits; c lets it go on"))
        if folder in view.main.ending:
            options.append(Option("not after", "Do not end after this answer", help="what was asked for is called off"))
        else:
            options.append(Option("after", "End after this answer", help="c continues it; nothing is measured twice"))
    options += [
        Option("now", "Now, keep the data", help="the answer under way is measured again when it is continued"),
        Option("kill", "Kill process", help=f"{live.pid} on {live.host}, at once; what is in the journal stays"),
    ]
    view.main.push_screen(Choice(f"Stop {run_id}?", options), lambda how: _stop(view, run_id, how or ""))


def _what_to_type_there(copy: Copy, folder: Path) -> list[Line]:
    """Of a run of another machine: from here its journal is read, and nothing reaches its process."""
    place = copy.place
    rows = ["It is read here and nothing more. To pause or stop it, type on a shell here:", ""]
    ways: list[tuple[str, str]] = []
    if not is_training(folder):
        ways.append(("wait after this answer", place.asks(f"touch {place.quoted('pause')}")))
        ways.append(("go on", place.asks(f"rm {place.quoted('pause')}")))
    writer = named_holder(folder)
    if writer is not None:
        # Where it cannot be seen from there, it is of a third machine that shares the folder.
        there, on = (place.asks, "") if copy.said == "held" else (str, f", in a shell on {writer.host}")
        ways.append((f"stop now, keep the data{on}", there(f"kill -INT {writer.pid}")))
        ways.append((f"kill at once, keep the journal{on}", there(f"kill -KILL {writer.pid}")))
    ways.append(
        (f"continue it after that: {place.ssh}, then", place.goes_on("train" if is_training(folder) else "run"))
    )
    for way, command in ways:
        rows += [f"{way}:", f"    {command}", ""]
    return [line(row) for row in rows[:-1]]


def _stop(view: View, run_id: str, how: str) -> None:
    folder = view.workspace.folder(run_id)
    try:
        match how:
            case "now":
                _call_off(view, folder)
                view.say(f"asked process {children.interrupt(folder)} to stop; c continues the run")
            case "kill":
                _call_off(view, folder)
                pid = children.kill(folder)
                view.main.end_is_known(pid)
                view.say(f"killed process {pid}; the run is lost, c continues it", style="warn")
            case "pause":
                pausing.ask(folder)
                view.say("it waits when this answer has ended; c lets it go on", style="good")
            case "go":
                pausing.let_go(folder)
                view.say("it goes on")
            case "after":
                _stop_after_answer(view, run_id)
            case "not after":
                _call_off(view, folder)
                view.say(f"{run_id} goes on after this answer")
            case _:
                pass
    except SpecbenchError as error:
        view.fail(error)


def _call_off(view: View, folder: Path) -> None:
    """No end after this answer any more, where one was waited for."""
    timer = view.main.ending.pop(folder, None)
    if timer is not None:
        timer.stop()


def _stop_after_answer(view: View, run_id: str) -> None:
    """The journal is watched, and the signal sent when an answer has ended. What the next one had begun by then is
    measured again."""
    folder = view.workspace.folder(run_id)
    if pausing.is_waiting(folder):
        # Between two answers already, and none would come for as long as it is paused.
        view.say(f"stopped process {children.interrupt(folder)}, which was paused; c continues the run")
        return
    index = RunIndex(folder)
    index.advance()
    before = sum(row.ending is not None for row in index.generations())

    def look() -> None:
        try:
            index.advance()
            ended = sum(row.ending is not None for row in index.generations())
            if ended > before or pausing.is_waiting(folder):
                _call_off(view, folder)
                view.say(f"stopped process {children.interrupt(folder)} after an answer; c continues the run")
            elif run_state(folder) != "running":
                _call_off(view, folder)
                view.say(f"{run_id} ended by itself")
        except SpecbenchError as error:
            _call_off(view, folder)
            view.fail(error)

    # On the app: the view may be left while the answer takes its time.
    view.main.ending[folder] = view.main.set_interval(_LOOK_EVERY_S, look)
    view.say("waiting for this answer to end; keep the viewer open until then, x calls it off")


def log_lines(view: View, run_id: str) -> list[Line]:
    """What the run printed, where a viewer started it; else the end of its journal."""
    folder = view.workspace.folder(run_id)
    if not (folder / "events.jsonl").exists():
        raise UsageError(f"{run_id} has no journal", where=str(folder), try_="choose another run")
    index = RunIndex(folder)
    index.advance()
    state = run_state(folder)
    found: list[Line] = [line(Span(f"{run_id} is {state}", "bad" if state in ("lost", "failed") else "bold"))]
    if state == "lost":
        found.append(line("Its process is gone and wrote no last word: killed, or the machine went down."))
        found.append(line("What had finished is kept; c on Home continues it."))
    log = None
    # A journal's own time that is none belongs to no log.
    with suppress(ValueError):
        if index.started is not None:
            began_s = datetime.fromisoformat(index.started.time).timestamp()
            log = children.log_of(view.workspace.store, index.started.pid, began_s)
    found.append(())
    if log is not None:
        found.append(line(Span(f"end of {log}", "bold")))
        found += [line(row) for row in children.end_of(log)[-60:]]
        found.append(())
    else:
        found.append(line(Span("It was started from a shell, which has what it printed.", "dim")))
    found.append(line(Span(f"end of {folder / 'events.jsonl'}", "bold")))
    found += [line(row) for row in list(index.recent)[-20:]]
    return found


def show_log(view: View, run_id: str) -> None:
    """The log as a screen to read; in a thread, since a long journal takes its time."""

    def show(found: list[Line]) -> None:
        if view.is_current:  # nobody else's screen is covered by it
            view.main.push_screen(Reading(f"Log of {run_id}", found, topic="log"))

    view.in_background("log", lambda: log_lines(view, run_id), show)
