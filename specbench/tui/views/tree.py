"""Tree: one step of one answer as it was drafted and judged, from a trace; one key makes the trace."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from textual.containers import Horizontal, Vertical
from textual.widget import Widget

from specbench.errors import SpecbenchError
from specbench.manifest import Manifest, read_manifest
from specbench.store.traces import Trace, Which, find_group, read_trace, trace_file
from specbench.tui import draw_tree, sharing
from specbench.tui.detokenise import Found, tokenizer_of
from specbench.tui.draw_tree import At
from specbench.tui.lines import Line, Span, line, plain_text, wrap
from specbench.tui.tracing import Replaying, words_of
from specbench.tui.tree import ROOT, Words
from specbench.tui.views.base import View
from specbench.tui.widgets.canvas import Canvas, LineView, Rows
from specbench.tui.widgets.token_view import TokenView

_LOOK_EVERY_S = 0.5


class _Read(NamedTuple):
    """What a thread found of an answer."""

    manifest: Manifest
    found: Found
    path: Path
    trace: Trace | None
    """None where there is none yet."""


class TreeView(View):
    """The tree with a cursor, beside it the node under the cursor, below it the answer around the step."""

    view: ClassVar[str] = "tree"

    DEFAULT_CSS = """
    TreeView #body { height: 1fr; }
    TreeView #upper { height: 1fr; }
    TreeView #tree { width: 1fr; }
    TreeView #beside { width: 46; }
    TreeView #node { height: 9; }
    TreeView #top { height: 1fr; min-height: 7; }
    TreeView #cost { height: 7; }
    TreeView #around { height: 6; border: round $secondary; padding: 0 1; }
    TreeView #around:focus { border: heavy $accent; }
    TreeView #lengths { height: 1; scrollbar-size: 0 0; scrollbar-gutter: auto; padding: 0 2; }
    TreeView #strip { display: none; height: 3; scrollbar-size: 0 0; padding: 0 2; }
    TreeView.-narrow #beside { display: none; }
    TreeView.-narrow #strip { display: block; }
    TreeView.-short #around { height: 4; }
    TreeView.-empty #beside, TreeView.-empty #around { display: none; }
    TreeView.-empty #lengths, TreeView.-empty #strip { display: none; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.run_id = ""
        self.which: Which | None = None
        self.number = 0
        """Of the step that is shown."""
        self.manifest: Manifest | None = None
        self.words: Words | None = None
        self.pruned = False
        self._path: Path | None = None
        self._replaying = Replaying()
        self._from = ""

    def body(self) -> Iterable[Widget]:
        with Vertical(id="body"):
            with Horizontal(id="upper"):
                yield (tree := Rows(self._tree, title="Draft tree", id="tree", moved=self._moved))
                tree.add_class("pane")
                with Vertical(id="beside"):
                    yield Canvas(self._node, title="Node", id="node", classes="pane")
                    yield Canvas(self._top, title="The target's top-5 in its place", id="top", classes="pane")
                    yield Canvas(self._cost, title="Step cost in the timed run", id="cost", classes="pane")
            yield Canvas(self._strip, id="strip")
            yield TokenView(id="around", mode=self.main.marks)
            yield Canvas(self._lengths, id="lengths")

    def on_mount(self) -> None:
        for name in ("#strip", "#lengths"):
            self.query_one(name).can_focus = False
        self.query_one("#around", TokenView).set_title("The answer up to this step: [ … ], best rejected path ~struck~")
        self.set_class(True, "-empty")
        self.query_one("#tree").focus()
        self.poll(_LOOK_EVERY_S, self._look_at_replay)
        if self.which is not None:
            self._read()

    # --- which answer -------------------------------------------------------------------------------------------------

    def show_answer(self, run_id: str, which: Which, number: int, *, came_from: str) -> None:
        """Another screen wants this step; escape goes back there."""
        self._from = came_from
        if (run_id, which) == (self.run_id, self.which) and self.words is not None:
            self._go(number)
            return
        self._leave_run(run_id)
        self.run_id, self.which, self.number = run_id, which, number
        self.words = self._path = None
        if self.query("#tree"):
            self._read()

    def entered(self) -> None:
        if self.which is None or (self.workspace.run_id and self.workspace.run_id != self.run_id):
            self._choose_first()

    def _leave_run(self, run_id: str) -> None:
        """Nothing of another run may answer a key while this one is read, or where it cannot be."""
        if run_id != self.run_id:
            self.manifest = self._path = None

    def _choose_first(self) -> None:
        """Of the run that is open: the first answer of the first method that drafts."""
        run_id = self.workspace.run_id
        self._leave_run(run_id)
        self.run_id, self.which, self.words = run_id, None, None
        if not run_id:
            self._show()
            return

        def first() -> Which:
            manifest = read_manifest(self.workspace.folder(run_id))
            methods = sorted(manifest.methods, key=lambda method: method.kind == "baseline")
            return Which(methods[0].label, manifest.questions[0].question_id, 0, 0)

        self.in_background("first", first, self._first_found)

    def _first_found(self, which: Which) -> None:
        if self.which is None:
            self.which, self.number = which, 0
            self._read()

    def _read(self) -> None:
        assert self.which is not None
        which, folder = self.which, self.workspace.folder(self.run_id)
        known = (self.manifest, self._found) if self.manifest and self.manifest.run_id == self.run_id else None

        def read() -> _Read:
            manifest, found = known or _identify(folder)
            group, row = find_group(manifest, which)
            path = trace_file(folder, group.group, row)
            return _Read(manifest, found, path, read_trace(path) if path.exists() else None)

        self.in_background("reading", read, lambda found: self._answer_read(which, found))

    _found = Found(None, "")

    def _answer_read(self, which: Which, read: _Read) -> None:
        if which != self.which:
            return
        self.manifest, self._found, self._path = read.manifest, read.found, read.path
        self.words = None if read.trace is None else Words(read.trace, read.found.tokenizer)
        if self.words is not None:
            self.number = min(max(0, self.number), len(self.words.trace.steps) - 1)
            told = draw_tree.mismatch(self.words.trace)
            self.say(" · ".join(told), style="bad")
        self._show()

    # --- drawing ------------------------------------------------------------------------------------------------------

    @property
    def at(self) -> At | None:
        """The step that is shown; None where there is no trace, or the answer had no steps."""
        if self.words is None or not self.words.trace.steps:
            return None
        return At(self.words, self.number)

    @property
    def place(self) -> int:
        """The node under the cursor."""
        key = self.query_one("#tree", Rows).key
        return int(key) if key.lstrip("-").isdigit() else ROOT

    def _show(self) -> None:
        at = self.at
        self.set_class(at is None, "-empty")
        rows = self.query_one("#tree", Rows)
        rows.set_title("Draft tree" if at is None else f"Draft tree of step {at.number + 1}")
        rows.key = str(ROOT)
        rows.redraw()
        if at is not None:
            # Where the accepted path ends: what is asked about first.
            path = at.step.path()
            key = str(path[-1] if path else 0 if at.step.nodes else len(at.step.nodes))
            rows.select(key)
            # Once more when the pane knows how long its new content is: only then can it scroll there.
            self.call_after_refresh(self._select, key)
            self.query_one("#around", TokenView).show(at.words.around(at.number))
        self.draw_again()
        self.refresh_words()

    def _select(self, key: str) -> None:
        rows = self.query_one("#tree", Rows)
        if rows.key == key:
            rows.select(key)

    def draw_again(self) -> None:
        super().draw_again()
        self.call_after_refresh(self.query_one("#around", TokenView).redraw)

    def _moved(self) -> None:
        for name in ("#node", "#top", "#strip"):
            self.query_one(name, Canvas).redraw()

    def headline(self) -> str:
        if self.at is not None:
            parts = [draw_tree.headline(self.at), self._found.why_not]
            return " · ".join(part for part in parts if part)
        if self.which is None:
            return "no answer is chosen: 1 Home, then enter on a run"
        return f"{self.which.method} · {self.which.question_id} turn {self.which.turn + 1} · {self.run_id}"

    def _tree(self, width: int, height: int) -> tuple[Sequence[Line], Sequence[tuple[str, Line]]]:
        if self.at is not None:
            return draw_tree.tree_rows(self.at, width, pruned=self.pruned)
        return self._without(width), []

    def _without(self, width: int) -> list[Line]:
        """Why there is no tree, and the key that changes it."""
        if self.which is None:
            return [
                line("No run is open. ", Span("1", "key"), " goes Home; enter on a run, then ", Span("t", "key"), ".")
            ]
        if self.words is not None:
            return wrap("This answer ended with the prompt's own first token: it has no steps.", width)
        if self._replaying.is_making(self._path):
            return [
                *wrap(
                    "Being traced: a replay beside this viewer, seconds to load the target, then the answer again.",
                    width,
                ),
                (),
                *(line(Span(row, "dim")) for row in self._replaying.log()),
            ]
        return draw_tree.untraced_lines(self._command(), width)

    def _command(self) -> str:
        assert self.which is not None
        return shlex.join(["specbench", *words_of(self.run_id, self.which, store=self.workspace.store)])

    def _node(self, width: int, height: int) -> Sequence[Line]:
        return draw_tree.node_lines(self.at, self.place, width) if self.at is not None else []

    def _top(self, width: int, height: int) -> Sequence[Line]:
        return draw_tree.top_lines(self.at, self.place, width) if self.at is not None else []

    def _cost(self, width: int, height: int) -> Sequence[Line]:
        return draw_tree.cost_lines(self.at, width) if self.at is not None else []

    def _strip(self, width: int, height: int) -> Sequence[Line]:
        return draw_tree.strip_lines(self.at, self.place, width) if self.at is not None else []

    def _lengths(self, width: int, height: int) -> Sequence[Line]:
        return [draw_tree.lengths_line(self.at.trace, self.at.number, width)] if self.at is not None else []

    # --- making the trace ---------------------------------------------------------------------------------------------

    def action_trace(self) -> None:
        """Start the replay as a process of its own; its file is read when it ends."""
        if self.which is None or self._path is None:
            self.say("no answer is chosen: 1 goes Home", style="warn")
            return
        if self.words is not None:
            self.say("this answer is traced; specbench trace … --again makes it anew", style="warn")
            return
        folder, store = self.workspace.folder(self.run_id), self.workspace.store
        live = self.workspace.live_here(but=self.run_id)
        try:
            child = self._replaying.start(folder, self.which, self._path, store=store, live=live)
        except SpecbenchError as error:
            self.fail(error)
            return
        self.say(f"replaying in process {child.process.pid}; log {child.log}")
        self._show()

    def _look_at_replay(self) -> None:
        ended = self._replaying.ended()
        if ended is None:
            if self.is_current and self._replaying.is_making(self._path):
                self.query_one("#tree", Rows).redraw()
            return
        self.say(ended.problem, style="bad")
        if ended.problem:
            self._show()
        elif ended.path == self._path:
            self._read()

    # --- actions ------------------------------------------------------------------------------------------------------

    def _go(self, number: int) -> None:
        if self.at is None:
            self.say("there is no trace of this answer: t makes one", style="warn")
            return
        self.number = min(max(0, number), len(self.at.trace.steps) - 1)
        if self.said and not draw_tree.mismatch(self.at.trace):
            self.say("")
        self._show()

    def action_step_forward(self) -> None:
        self._go(self.number + 1)

    def action_step_back(self) -> None:
        self._go(self.number - 1)

    def action_first(self) -> None:
        self._go(0)

    def action_last(self) -> None:
        self._go(1_000_000_000)

    def _go_question(self, places: int) -> None:
        if self.manifest is None or self.which is None:
            return
        answers = [
            Which(self.which.method, question, group.turn, self.which.repeat)
            for group in self.manifest.groups
            if (group.method, group.repeat) == (self.which.method, self.which.repeat)
            for question in group.question_ids
        ]
        place = answers.index(self.which) + places
        self._go_answer(answers[min(max(0, place), len(answers) - 1)])

    def _go_answer(self, which: Which) -> None:
        if which != self.which:
            self.which, self.number, self.words, self._path = which, 0, None, None
            self.say("")
            self._read()

    def action_next(self) -> None:
        self._go_question(+1)

    def action_previous(self) -> None:
        self._go_question(-1)

    def action_choose(self) -> None:
        if self.manifest is None or self.which is None:
            self.say("no run is open: 1 goes Home", style="warn")
            return
        from specbench.tui.views.dialogs import Picking

        names = [method.label for method in self.manifest.methods]
        self.main.push_screen(Picking("Whose answer?", names, [self.which.method], most=1), self._chose)

    def _chose(self, methods: list[str] | None) -> None:
        if methods and self.which is not None:
            self._go_answer(self.which._replace(method=methods[0]))

    def action_prune(self) -> None:
        self.pruned = not self.pruned
        self.query_one("#tree", Rows).redraw()
        self.say("nodes that were not reached are hidden" if self.pruned else "every node is shown")

    def action_marks(self) -> None:
        self.main.marks = self.main.marks.next()
        self.query_one("#around", TokenView).set_mode(self.main.marks)
        self.say(f"tokens: {self.main.marks.value}")

    def key_escape(self) -> None:
        if self.maximized is None and not self.said and self._from:
            self.main.show_view(self._from)
        else:
            super().key_escape()

    def copied(self) -> str:
        if self.at is not None and self.focused is self.query_one("#tree"):
            return plain_text(draw_tree.as_text(self.at, pruned=self.pruned))
        return self.focused.text() if isinstance(self.focused, LineView) else ""

    def exports(self) -> list[Path]:
        if self.at is None:
            return super().exports()
        words = plain_text(draw_tree.as_text(self.at, pruned=self.pruned))
        return [*super().exports(), sharing.write_text(self.workspace.store, "tree", ".txt", words)]

    def explain(self) -> list[Line]:
        return draw_tree.marks_lines()


def _identify(folder: Path) -> tuple[Manifest, Found]:
    manifest = read_manifest(folder)
    return manifest, tokenizer_of(manifest)
