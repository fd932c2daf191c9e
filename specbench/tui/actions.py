"""Every key of the interface, once: bindings, footer, help and command palette are made from this table.

One key means one thing wherever it works. An action stands only in the views that can carry it out: a test asks each
view for the method. Numbers keep their places.
"""

from __future__ import annotations

from dataclasses import dataclass

from textual.binding import Binding

from specbench.tui.lines import Line, Span, width_of

EVERYWHERE = ("home", "race", "tree", "accept", "speed", "system", "train", "board", "chat", "library")
TIME = ("race",)
STEPS = ("race", "tree")


@dataclass(frozen=True, kw_only=True)
class Action:
    """Something a user can do."""

    name: str
    """The method is `action_<name>`."""
    keys: tuple[str, ...]
    """As Textual spells them; without one it is in the palette alone."""
    label: str
    """Two words at most, for the footer."""
    help: str
    """A sentence, for help and palette."""
    views: tuple[str, ...] = EVERYWHERE
    rank: int = 0
    """Place in the footer, lowest first; 0 = not there."""


def _go(name: str, key: str, label: str, help: str) -> Action:
    return Action(name=f"go_{name}", keys=(key,), label=label, help=help)


SCREENS = (
    _go("home", "1", "Home", "All runs and trainings of the store, and what to do next."),
    _go("race", "2", "Race", "Methods side by side on one question, token by token."),
    _go("tree", "3", "Tree", "One step as the tree it drafted: q, p, verdicts and the target's top-5."),
    _go("accept", "4", "Accept", "How often drafts are accepted: by depth, category and method."),
    _go("speed", "5", "Speed", "Speed-ups with their intervals, and where the time goes."),
    _go("system", "6", "System", "This machine now, and whether the run's measurement was clean."),
    _go("train", "7", "Train", "Loss, accuracy by depth and simulated acceptance of a training."),
    _go("board", "8", "Board", "Like-for-like leaderboard of every stored run."),
    _go("chat", "9", "Chat", "Talk to a target with any method; nothing said there is a measurement."),
    _go("library", "0", "Library", "Suites, methods, targets and drafters at hand."),
)

ACTIONS = (
    *SCREENS,
    Action(
        name="open", keys=("enter",), label="Open", rank=1, views=("home", "accept", "board", "library"),
        help="Open what the cursor is on.",
    ),
    Action(name="open", keys=("enter",), label="Write", rank=1, views=("chat",),
           help="Write a message; the first time, load the target."),
    Action(name="play", keys=("space",), label="Play", rank=1, views=TIME, help="Play or pause the race clock."),
    Action(
        name="mark", keys=("space",), label="Mark", rank=2, views=("board",), help="Mark a run, to compare two.",
    ),
    Action(
        name="compare", keys=("v",), label="Compare", rank=3, views=("board",),
        help="Compare the marked runs, paired by question.",
    ),
    Action(name="trace", keys=("t",), label="Tree", rank=9, views=("race",),
           help="The focused method's step as the tree it drafted."),
    Action(name="trace", keys=("t",), label="Tree", rank=3, views=("accept",),
           help="The answer under the cursor, step by step, as the trees it drafted."),
    Action(name="trace", keys=("t",), label="Trace", rank=1, views=("tree",),
           help="Replay this answer once, untimed, so that its trees can be shown."),
    Action(name="step_forward", keys=("full_stop",), label="Step", rank=2, views=STEPS,
           help="Go to the next step of the focused method."),
    Action(name="step_back", keys=("comma",), label="Back", rank=3, views=STEPS,
           help="Go back one step of the focused method."),
    Action(name="prune", keys=("h",), label="Hide", rank=5, views=("tree",),
           help="Hide or show nodes that were not reached."),
    Action(name="next", keys=("right_square_bracket",), label="Next", rank=4,
           views=("race", "tree", "accept", "speed", "train", "board"),
           help="The next one: question, run, training or scope."),
    Action(name="previous", keys=("left_square_bracket",), label="Previous", rank=0,
           views=("race", "tree", "accept", "speed", "train", "board"), help="The one before."),
    Action(name="repeat", keys=("r",), label="Repeat", views=TIME, help="Another repeat of the same question."),
    Action(name="faster", keys=("plus", "equals_sign"), label="Faster", rank=5, views=TIME, help="Play faster."),
    Action(name="slower", keys=("minus",), label="Slower", rank=6, views=TIME, help="Play slower."),
    Action(name="seek_forward", keys=("greater_than_sign",), label="+5 %", views=TIME,
           help="Jump forward by a twentieth of the race."),
    Action(name="seek_back", keys=("less_than_sign",), label="-5 %", views=TIME,
           help="Jump back by a twentieth of the race."),
    Action(name="first", keys=("g",), label="Start", views=STEPS, help="Go to the start."),
    Action(name="last", keys=("G",), label="End", views=STEPS, help="Go to the end."),
    Action(name="follow", keys=("f",), label="Follow", rank=7, views=TIME,
           help="Follow the end of the journal, as it is written."),
    Action(name="choose", keys=("o",), label="Methods", rank=8, views=TIME, help="Choose which methods race."),
    Action(name="choose", keys=("o",), label="Method", rank=6, views=("tree",), help="Choose whose answer is shown."),
    Action(name="marks", keys=("m",), label="Marks", rank=10, views=(*STEPS, "chat"),
           help="Tokens in colour, with marks, marks alone, or plain."),
    Action(name="inspect", keys=("i",), label="Inspect", rank=2, views=("system",),
           help="Ask specbench doctor about this machine; a process of its own, since it loads torch."),
    Action(name="unit", keys=("u",), label="Unit", rank=2, views=("accept",),
           help="Conditional acceptance, survival from the first draft on; where a method learns, along the stream."),
    Action(name="zoom", keys=("z",), label="Zoom", rank=11, help="Let the focused pane fill the screen, and back."),
    Action(name="filter", keys=("slash",), label="Filter", rank=4, views=("home", "library"),
           help="Show only rows that contain all of the words."),
    Action(name="sort", keys=("s",), label="Sort", rank=5, views=("home",), help="Sort by another column."),
    Action(name="new", keys=("n",), label="New run", rank=3,
           views=("home", "accept", "speed", "board", "library", "system"), help="Fill in a form and start a run."),
    Action(name="new", keys=("n",), label="New run", rank=15, views=TIME, help="Fill in a form and start a run."),
    Action(name="log_scale", keys=("l",), label="Log-y", rank=5, views=("train",),
           help="The loss on a logarithmic scale, and back."),
    Action(name="smooth", keys=("a",), label="Average", rank=6, views=("train",),
           help="The loss as an exponential mean, and back."),
    Action(name="bench", keys=("b",), label="Benchmark", rank=2, views=("home", "train"),
           help="Measure: the demo where there is no run yet, this training's drafter on Train."),
    Action(name="stop", keys=("x",), label="Stop", rank=6, views=("home",),
           help="Stop the run: after this answer, now, or by force. Asks which."),
    Action(name="stop", keys=("x",), label="Stop", rank=2, views=("chat",),
           help="End the answer under way; what there is of it stays."),
    Action(name="stop", keys=("x",), label="Stop", rank=16, views=TIME,
           help="Stop the run: after this answer, now, or by force. Asks which."),
    Action(name="resume", keys=("c",), label="Continue", rank=7, views=("home",),
           help="Continue a run or training that did not finish, or one that is paused."),
    Action(name="delete", keys=("d",), label="Delete", rank=0, views=("home",),
           help="Delete a run's folder and its rows in the store. Asks first."),
    Action(name="log", keys=("L",), label="Log", rank=0, views=("home", "race", "train"),
           help="The end of what the run printed, or of its journal."),
    Action(name="copy", keys=("y",), label="Copy", rank=12,
           help="Copy the focused pane to the clipboard and to a file, whose path is shown."),
    Action(name="export", keys=("e",), label="Export", rank=13,
           help="Write what this screen shows to files, and say where."),
    Action(name="help", keys=("question_mark", "f1"), label="Help", rank=14, help="Every key that works here."),
    Action(name="theme", keys=(), label="Theme", help="Dark, light, or the terminal's own colours."),
    Action(name="suspend", keys=("ctrl+z",), label="Suspend",
           help="Stop the viewer until fg in its shell. Runs go on."),
    Action(name="quit", keys=("ctrl+q",), label="Quit", help="Leave. Runs go on."),
)  # fmt: skip

_SPELT = {
    "full_stop": ".", "comma": ",", "right_square_bracket": "]", "left_square_bracket": "[", "plus": "+",
    "equals_sign": "=", "minus": "-", "greater_than_sign": ">", "less_than_sign": "<", "slash": "/",
    "question_mark": "?", "ctrl+p": "^p", "ctrl+q": "^q", "ctrl+z": "^z",
}  # fmt: skip
_MOST_IN_FOOTER = 10


def spelt(key: str) -> str:
    """The key as it is printed on keyboards."""
    return _SPELT.get(key, key)


def actions_of(view: str) -> list[Action]:
    """What a view can do, in the table's order."""
    return [action for action in ACTIONS if view in action.views]


def bindings_of(view: str) -> list[Binding]:
    """Textual's bindings of a view. Shown by our own footer, so none is shown by Textual's."""
    return [
        Binding(",".join(action.keys), action.name, action.label, show=False)
        for action in actions_of(view)
        if action.keys
    ]


def footer(view: str, width: int) -> Line:
    """At most ten keys in their fixed order, as many as fit; help and the palette always."""
    ranked = sorted((action for action in actions_of(view) if action.rank), key=lambda action: action.rank)
    last = (Span("  ?", "key"), Span(" Help  "), Span("^p", "key"), Span(" All "))
    found: tuple[Span, ...] = ()
    for action in [action for action in ranked if action.name != "help"][:_MOST_IN_FOOTER]:
        more = (Span(f" {spelt(action.keys[0])}", "key"), Span(f" {action.label} "))
        if width_of((*found, *more, *last)) > width:
            break
        found += more
    return (*found, Span(" " * max(0, width - width_of((*found, *last)))), *last)


def help_lines(view: str) -> list[Line]:
    """Every key that works in a view, with its sentence."""
    found: list[Line] = []
    for action in actions_of(view):
        keys = " ".join(map(spelt, action.keys)) or "^p"
        found.append((Span(f"{keys:>8}  ", "key"), Span(f"{action.label:<10} ", "bold"), Span(action.help)))
    found += [
        (),
        (Span("     tab  ", "key"), Span("Next pane  ", "bold"), Span("shift+tab goes back; arrows and j k scroll.")),
        (Span("     esc  ", "key"), Span("Back       ", "bold"), Span("Closes this, ends a zoom, clears a filter.")),
        (Span("      ^p  ", "key"), Span("Palette    ", "bold"), Span("Every action by its name.")),
    ]
    return found
