"""One question, several methods, one clock: what the race screen shows, without the screen. No Textual.

Live is "follow the end of the journal": the method that is being measured grows as it is written, the others replay on
their own recorded clocks beside it. Only one method ever runs on a device at a time, so nothing else would be honest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from specbench.errors import EnvironmentFailed
from specbench.manifest import Manifest, read_manifest
from specbench.store.traces import read_trace, trace_file
from specbench.tui.clock import ReplayClock
from specbench.tui.detokenise import Found, Pieces, tokenizer_of
from specbench.tui.index import Generation, RunIndex
from specbench.tui.layout import Shown
from specbench.tui.timeline import Timeline
from specbench.tui.tree import Words

MOST_LANES = 4
OPENING_BYTES = 16_000_000
"""Of a journal, read between two looks at the keyboard."""
STUCK_STEPS = 20
"""Steps in a row without an accepted token after which the pane says so."""
LaneState = Literal["queued", "live", "cut", "done", "failed"]
"""live: being measured; cut: begun when the run ended, and never to be finished in this attempt."""


class Question(NamedTuple):
    """What is raced on."""

    question_id: str
    category: str
    turn: int


@dataclass(kw_only=True)
class Lane:
    """One method on the question."""

    method: str
    position: int
    """In the plan: its symbol and colour everywhere."""
    among: tuple[str, ...] = ()
    """Every method of the run: where its name is cut it stays different from theirs."""
    state: LaneState = "queued"
    generation: Generation | None = None
    timeline: Timeline | None = None
    tokens: list[Shown] = field(default_factory=list)
    first: int = -1
    """Id of the first of them."""
    num_restarts: int = 0
    """Changes when `tokens` was made anew instead of extended."""
    pieces: Pieces = field(default_factory=lambda: Pieces(None))
    words: Words | None = None
    """Of the answer's trace, where there is one that is this answer: it knows what was rejected."""

    def ghost_at(self, seconds: float) -> str:
        """The best rejected path of the last step; gone when the answer is over."""
        if self.words is None or self.timeline is None or seconds >= self.timeline.end_s:
            return ""
        done = self.timeline.steps_at(seconds)
        return self.words.ghost(done - 1) if done else ""

    def is_stuck_at(self, seconds: float) -> bool:
        """Nothing was accepted in the last STUCK_STEPS steps that drafted something."""
        if self.timeline is None:
            return False
        done = self.timeline.steps[: self.timeline.steps_at(seconds)]
        drafted = [step for step in done[-3 * STUCK_STEPS :] if step.num_nodes][-STUCK_STEPS:]
        return len(drafted) == STUCK_STEPS and not any(step.num_accepted for step in drafted)


class Race:
    """A run's folder as a race. now: monotonic; wall: Unix time."""

    def __init__(
        self,
        folder: Path,
        *,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.folder = folder
        self.manifest: Manifest = read_manifest(folder)
        self.index = RunIndex(folder)
        self.clock = ReplayClock(now=now)
        self.is_following = False
        self.is_running = True
        """A process writes the journal; set by whoever looks at it."""
        self.found = Found(None, "the tokenizer is being read")
        self.notes: list[str] = []
        """Traces that could not be read."""
        self.num_planned = sum(len(record.question_ids) for record in self.manifest.groups)
        """Answers."""
        self._wall = wall
        self._plan = {
            (record.method, question, record.turn, record.repeat): (record.group, row)
            for record in self.manifest.groups
            for row, question in enumerate(record.question_ids)
        }
        categories = {question.question_id: question.category for question in self.manifest.questions}
        # In the order of the plan: that is the order in which answers come.
        self.questions = list(
            dict.fromkeys(
                Question(question, categories[question], record.turn)
                for record in self.manifest.groups
                for question in record.question_ids
            )
        )
        self.methods = tuple(method.label for method in self.manifest.methods)
        """In the order of the plan."""
        self._positions = {method: place for place, method in enumerate(self.methods)}
        self.place = 0
        self.repeat = 0
        self.lanes: list[Lane] = []
        self.choose(self.first_choice())

    def first_choice(self, speeds: Mapping[str, float] | None = None) -> list[str]:
        """The baseline, then the fastest by `speeds`, or the plan's first; its A/A control and methods that are never
        ranked only where room is left."""
        methods = self.manifest.methods
        known = speeds or {}
        ordered = sorted(
            methods,
            key=lambda m: (
                m.kind != "baseline" or m.is_control,
                m.is_control or not m.is_ranked,
                -known.get(m.label, 0.0),
            ),
        )
        chosen = {method.label for method in ordered[:MOST_LANES]}
        return [method.label for method in methods if method.label in chosen]

    @property
    def question(self) -> Question:
        """The one that is shown."""
        return self.questions[self.place]

    def load_tokenizer(self) -> None:
        """Half a second where the vocabulary is large: meant for a thread. Shows nothing by itself, see `retell`."""
        self.found = tokenizer_of(self.manifest)

    def retell(self) -> None:
        """All tokens again, with the tokenizer of now."""
        for lane in self.lanes:
            self._restart(lane)
        self.refresh()

    def choose(self, methods: Sequence[str]) -> None:
        """The methods that race, in this order."""
        places = self._positions
        self.lanes = [Lane(method=each, position=places[each], among=self.methods) for each in methods[:MOST_LANES]]
        self.retell()

    def go(self, place: int, *, repeat: int | None = None) -> None:
        """Another question (or repeat); the clock starts again."""
        self.place = min(max(0, place), len(self.questions) - 1)
        self.repeat = self.repeat if repeat is None else repeat % self.manifest.repeats
        for lane in self.lanes:
            self._restart(lane)
        self.refresh()
        self.clock.seek(0.0)

    def advance(self, *, limit_bytes: int = OPENING_BYTES) -> bool:
        """Read on in the journal; True where it said something new."""
        if not self.index.advance(limit_bytes=limit_bytes):
            return False
        if self.is_following:
            self._go_to_latest()
        self.refresh()
        return True

    def follow(self) -> None:
        """Show the end of the journal from now on."""
        self.is_following = True
        self._go_to_latest()
        self.refresh()

    def _go_to_latest(self) -> None:
        latest = self.index.latest
        if latest is None:
            return
        question = Question(latest.question_id, latest.category, latest.turn)
        if question in self.questions and (question != self.question or latest.repeat != self.repeat):
            self.go(self.questions.index(question), repeat=latest.repeat)

    def refresh(self) -> None:
        """Bring the lanes up to what the index knows."""
        for lane in self.lanes:
            self._refresh(lane)
        ends = [lane.timeline.end_s for lane in self.lanes if lane.timeline is not None]
        self.clock.set_duration(max(ends, default=0.0))

    def _refresh(self, lane: Lane) -> None:
        place = self._plan.get((lane.method, self.question.question_id, self.question.turn, self.repeat))
        group = self.index.groups.get(place[0]) if place is not None else None
        generation = group.rows.get(place[1]) if group is not None and place is not None else None
        if generation is None or group is None:
            lane.state = "queued"
            return
        if generation is not lane.generation:
            self._restart(lane)
            first = self.index.first_tokens.get((generation.question_id, generation.turn))
            lane.generation, lane.timeline = generation, Timeline(generation, first_token=first)
            lane.words = self._words(generation)
        assert lane.timeline is not None
        lane.timeline.extend(self.folder, group)
        self._tell(lane)
        if generation.ending is None:
            lane.state = "live" if self.is_running else "cut"
        else:
            lane.state = "failed" if generation.ending.error else "done"

    def look_for_traces(self) -> None:
        """Take in what was made since the answers were opened."""
        for lane in self.lanes:
            if lane.generation is not None and lane.words is None:
                lane.words = self._words(lane.generation)

    def _words(self, generation: Generation) -> Words | None:
        path = trace_file(self.folder, generation.group, generation.row)
        if not path.exists():
            return None
        try:
            trace = read_trace(path)
        except EnvironmentFailed as error:
            # Ghosts are an ornament here; the Tree screen says what is wrong with the file.
            self.notes.append(error.what)
            return None
        return Words(trace, self.found.tokenizer) if trace.head.matches and trace.head.drafts_match else None

    def _restart(self, lane: Lane) -> None:
        lane.generation = lane.timeline = lane.words = None
        lane.tokens, lane.pieces = [], Pieces(self.found.tokenizer)
        lane.num_restarts += 1

    def _tell(self, lane: Lane) -> None:
        assert lane.timeline is not None
        tokens = lane.timeline.tokens
        if lane.tokens and lane.first != tokens[0].id:
            # The prefill's token has become known: pieces behind it depend on it.
            lane.tokens, lane.pieces = [], Pieces(self.found.tokenizer)
            lane.num_restarts += 1
        lane.first = tokens[0].id
        for token in tokens[len(lane.tokens) :]:
            lane.tokens.append(Shown(lane.pieces.add(token.id), token.kind, token.depth))
        rest = lane.pieces.rest() if lane.timeline.generation.ending is not None else ""
        if rest:
            # The answer was cut inside a character: what there is of it belongs to its last token.
            lane.tokens[-1] = lane.tokens[-1]._replace(text=rest)
            lane.num_restarts += 1

    def live_lane(self) -> Lane | None:
        """The one that is being measured now."""
        return next((lane for lane in self.lanes if lane.state == "live"), None)

    def position(self) -> float:
        """Seconds on the race clock. Following: of the answer under way; without one, the end."""
        if not self.is_following:
            return self.clock.position()
        lane = self.live_lane()
        if lane is None or lane.timeline is None:
            return self.clock.duration
        began_s = lane.timeline.generation.began_s
        behind = self._wall() - began_s if began_s is not None else lane.timeline.end_s
        # Steps are written up to 100 ms late: the clock must not run past what is known of a run that stands still.
        return max(lane.timeline.end_s, min(behind, lane.timeline.end_s + 1.0))

    def leave_following(self) -> None:
        """From live to replay at the same moment."""
        if self.is_following:
            at = self.position()
            self.is_following = False
            self.clock.pause()
            self.clock.seek(at)

    def step(self, lane: Lane, *, forward: bool) -> None:
        """To the next or previous step of one method."""
        self.leave_following()
        self.clock.pause()
        if lane.timeline is None:
            return
        at = self.clock.position()
        to = lane.timeline.next_event(at) if forward else lane.timeline.event_before(at)
        if to is not None:
            self.clock.seek(to)
