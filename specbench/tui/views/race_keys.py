"""What the keys of the race do: time, questions, methods, marks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from textual.widget import Widget

from specbench.store.journal import MAY_GROW
from specbench.tui import draw_race, sharing
from specbench.tui.race import MOST_LANES, Lane, Race
from specbench.tui.views.base import View
from specbench.tui.widgets.canvas import LineView
from specbench.tui.widgets.lane_pane import LanePane
from specbench.tui.widgets.token_view import TokenView

if TYPE_CHECKING:
    from specbench.tui.sofar import MethodSoFar


class RaceKeys(View):
    """The actions; RaceView shows what they did."""

    race: Race | None
    figures: dict[str, MethodSoFar]
    state: str
    opened: str
    """The run that is shown or being opened."""
    wanted: tuple[str, int, Sequence[str]] | None
    """Asked for while the run was still being opened."""

    def draw_now(self) -> None:
        """Everything to the moment of now."""
        raise NotImplementedError

    def draw_methods(self) -> None:
        """Panes and boxes for the methods that race now."""
        raise NotImplementedError

    # --- actions ------------------------------------------------------------------------------------------------------

    def _focused_lane(self) -> Lane | None:
        if self.race is None:
            return None
        focused = self.focused
        for number, lane in enumerate(self.race.lanes):
            if focused is not None and self.query_one(f"#lane{number}") in focused.ancestors_with_self:
                return lane
        return next((lane for lane in self.race.lanes if lane.timeline is not None), None)

    def _with_race(self) -> Race | None:
        if self.race is None:
            self.say("no run is open: 1 goes Home", style="warn")
        elif self.said:
            self.say("")
        return self.race

    def action_play(self) -> None:
        race = self._with_race()
        if race is None:
            return
        if race.is_following:
            race.leave_following()
        elif race.clock.is_playing:
            race.clock.pause()
        else:
            race.clock.play()
        self.draw_now()

    def _step(self, *, forward: bool) -> None:
        race, lane = self._with_race(), self._focused_lane()
        if race is not None and lane is not None:
            race.step(lane, forward=forward)
            self.draw_now()

    def action_step_forward(self) -> None:
        self._step(forward=True)

    def action_step_back(self) -> None:
        self._step(forward=False)

    def _seek(self, seconds: float) -> None:
        race = self._with_race()
        if race is not None:
            race.leave_following()
            race.clock.seek(seconds)
            self.draw_now()

    def action_seek_forward(self) -> None:
        if self.race is not None:
            self._seek(self.race.position() + self.race.clock.duration / 20)

    def action_seek_back(self) -> None:
        if self.race is not None:
            self._seek(self.race.position() - self.race.clock.duration / 20)

    def action_first(self) -> None:
        self._seek(0.0)

    def action_last(self) -> None:
        if self.race is not None:
            self._seek(self.race.clock.duration)

    def _speed(self, places: int) -> None:
        race = self._with_race()
        if race is not None:
            race.clock.change_speed(places)
            self.draw_now()

    def action_faster(self) -> None:
        self._speed(+1)

    def action_slower(self) -> None:
        self._speed(-1)

    def _go(self, place: int, *, repeat: int | None = None) -> None:
        race = self._with_race()
        if race is not None:
            race.is_following = False
            race.go(place, repeat=repeat)
            race.clock.play()
            self.draw_now()

    def action_next(self) -> None:
        if self.race is not None:
            self._go(self.race.place + 1)

    def action_previous(self) -> None:
        if self.race is not None:
            self._go(self.race.place - 1)

    def action_repeat(self) -> None:
        if self.race is not None:
            self._go(self.race.place, repeat=self.race.repeat + 1)

    def show_question(self, question_id: str, turn: int, methods: Sequence[str]) -> None:
        """Opened from another screen on one answer."""
        if self.race is None:
            self.wanted = (question_id, turn, methods)
            return
        place = next(
            (n for n, q in enumerate(self.race.questions) if (q.question_id, q.turn) == (question_id, turn)), None
        )
        if place is not None:
            self.race.choose(list(dict.fromkeys(methods))[:MOST_LANES])
            self.draw_methods()
            self._go(place)

    def action_follow(self) -> None:
        race = self._with_race()
        if race is not None:
            race.follow()
            if self.state not in MAY_GROW:
                race.leave_following()
                self.say(f"the run is {self.state}: its journal grows no more; space replays", style="warn")
            self.draw_now()

    def action_choose(self) -> None:
        race = self._with_race()
        if race is None:
            return
        from specbench.tui.views.dialogs import Picking

        names = [method.label for method in race.manifest.methods]
        picked = [lane.method for lane in race.lanes]
        self.main.push_screen(Picking("Which methods race?", names, picked, most=MOST_LANES), self._chose)

    def _chose(self, methods: list[str] | None) -> None:
        race = self.race
        if methods and race is not None:
            self.attempt(lambda: race.choose(methods))
            self.draw_methods()

    def action_trace(self) -> None:
        race, lane = self._with_race(), self._focused_lane()
        if race is None or lane is None:
            return
        from specbench.store.traces import Which
        from specbench.tui.views.tree import TreeView

        race.leave_following()
        race.clock.pause()
        number = lane.timeline.steps_at(race.position()) - 1 if lane.timeline is not None else 0
        tree = self.main.view("tree")
        assert isinstance(tree, TreeView)
        which = Which(lane.method, race.question.question_id, race.question.turn, race.repeat)
        tree.show_answer(self.opened, which, max(0, number), came_from="race")
        self.main.show_view("tree")

    def action_marks(self) -> None:
        self.main.marks = self.main.marks.next()
        for number in range(MOST_LANES):
            self.query_one(f"#lane{number}", LanePane).tokens.set_mode(self.main.marks)
        self.say(f"tokens: {self.main.marks.value}")

    def action_stop(self) -> None:
        if self._with_race() is not None:
            from specbench.tui.views.stopping import ask_how_to_stop

            ask_how_to_stop(self, self.opened)

    def action_log(self) -> None:
        if self.opened:
            from specbench.tui.views.stopping import show_log

            show_log(self, self.opened)

    def zoomable(self, focused: Widget) -> Widget:
        return focused.parent if isinstance(focused.parent, LanePane) else focused

    def copied(self) -> str:
        focused = self.focused
        if isinstance(focused, TokenView):
            return focused.answer()
        return focused.text() if isinstance(focused, LineView) else ""

    def exports(self) -> list[Path]:
        if self.race is None:
            return super().exports()
        answers = {
            lane.method: self.query_one(f"#lane{number}", LanePane).tokens.answer()
            for number, lane in enumerate(self.race.lanes)
        }
        words = draw_race.export_text(self.race, self.race.position(), self.figures, answers)
        return [*super().exports(), sharing.write_text(self.workspace.store, "race", ".txt", words)]
