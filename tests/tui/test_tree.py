"""The Tree screen: a step as the tree that was drafted; the key that makes a trace; ghosts in the race."""

from __future__ import annotations

from pathlib import Path

import pytest

from specbench.store.traces import Law, Node, TracedStep, Which, trace_file
from specbench.tui import children, draw_figures, draw_tree
from specbench.tui.app import SpecbenchApp
from specbench.tui.draw_tree import At
from specbench.tui.lines import plain_text, width_of
from specbench.tui.tree import ROOT, Words, rows_of
from specbench.tui.views.accept import AcceptView
from specbench.tui.views.race import RaceView
from specbench.tui.views.tree import TreeView
from specbench.tui.widgets.canvas import Canvas, Rows
from specbench.tui.widgets.token_view import TokenView
from tests.store.traced import write_traced
from tests.tui.screens import RUN, SIZES, WIDE, an_app, drive, screen_text, settled

WHICH = Which("tree", "81", 0, 0)


def _step(nodes: list[Node], *, bonus: int = 9, num_truncated: int = 0) -> TracedStep:
    laws = tuple(Law(bonus, ((bonus, 0.9),)) for _ in range(len(nodes) + 1))
    accepted = sum(node.verdict in ("accepted", "cut") for node in nodes)
    return TracedStep(
        step=0,
        nodes=tuple(nodes),
        laws=laws,
        bonus=bonus,
        num_accepted=accepted,
        num_truncated=num_truncated,
        cost=None,
    )


def _shape(step: TracedStep, *, pruned: bool = False) -> list[str]:
    names = {ROOT: "root", len(step.nodes): "bonus"}
    return [row.lead + names.get(row.place, str(row.place)) for row in rows_of(step, pruned=pruned)]


def test_branches_go_right_and_chains_go_down() -> None:
    """Two children of the root; a chain below the first, which is accepted once."""
    nodes = [
        Node(1, -1, 0.5, 0.6, "accepted"), Node(2, -1, 0.3, 0.1, "rejected"), Node(3, 0, 0.5, 0.1, "rejected"),
        Node(4, 2, 0.5, 0.1, "unreached"), Node(5, 3, 0.5, 0.1, "unreached"),
    ]  # fmt: skip
    assert _shape(_step(nodes)) == ["root", "├─0", "│ ├─2", "│ │ │ 3", "│ │ │ 4", "│ └─bonus", "└─1"]
    assert _shape(_step(nodes), pruned=True) == ["root", "├─0", "│ ├─2", "│ └─bonus", "└─1"]


def test_a_step_without_a_draft_is_the_bonus_alone() -> None:
    assert _shape(_step([])) == ["root", "│ bonus"]


def test_a_chain_of_a_thousand_is_drawn_in_one_column() -> None:
    """Depth must not become recursion, nor push the tokens off the screen."""
    nodes = [Node(n, n - 1, None, 0.5, "accepted") for n in range(1000)]
    leads = {row.lead for row in rows_of(_step(nodes))}
    assert leads == {"", "│ "}


def test_ghosts_are_the_first_rejected_path_to_its_end() -> None:
    nodes = [
        Node(1, -1, 0.5, 0.6, "accepted"), Node(2, 0, 0.5, 0.1, "rejected"), Node(3, 0, 0.4, 0.1, "rejected"),
        Node(4, 1, 0.5, 0.1, "unreached"), Node(5, 2, 0.5, 0.1, "unreached"),
    ]  # fmt: skip
    assert _step(nodes).ghosts() == [1, 3]
    assert _step(nodes, num_truncated=1).kept() == [1]


@pytest.mark.parametrize("width", [30, 54, 72, 118])
def test_rows_fit_their_pane_and_say_verdicts_without_colour(store: Path, width: int) -> None:
    trace = write_traced(store / "runs" / RUN, WHICH, siblings=3)
    at = At(Words(trace, None), 3)
    head, rows = draw_tree.tree_rows(at, width, pruned=False)
    assert all(width_of(row) <= width for row in [*head, *(row for _, row in rows)])
    text = plain_text(row for _, row in rows)
    assert "✗" in text and "◆" in text
    assert ("rejected" in text) == (width >= 54)
    for place, _ in rows:
        for row in (*draw_tree.node_lines(at, int(place), width), *draw_tree.top_lines(at, int(place), width)):
            assert width_of(row) <= width


def test_shares_never_round_to_nothing_or_to_all() -> None:
    assert [draw_tree.share(value) for value in (None, 0.001, 0.02, 0.5, 0.999)] == ["–", "<.01", ".02", ".50", "1.0"]


async def _open_tree(app: SpecbenchApp, pilot: object) -> TreeView:
    await settled(pilot, lambda: isinstance(app.screen, TreeView) and app.screen.which is not None)
    assert isinstance(app.screen, TreeView)
    return app.screen


async def _to_tree(app: SpecbenchApp, pilot: object) -> TreeView:
    """From the race, at the second step of the tree method's lane."""
    await settled(pilot, lambda: isinstance(app.screen, RaceView) and app.screen.race is not None)
    race = app.screen
    assert isinstance(race, RaceView) and race.race is not None
    race.race.choose(["tree"])
    race.draw_methods()
    await pilot.press("g", "full_stop", "full_stop", "full_stop", "t")  # type: ignore[attr-defined]
    return await _open_tree(app, pilot)


@pytest.mark.parametrize("size", SIZES)
def test_t_opens_the_step_under_the_race_clock_and_keys_walk_through_the_answer(
    store: Path, size: tuple[int, int]
) -> None:
    trace = write_traced(store / "runs" / RUN, WHICH, siblings=3)

    async def body() -> None:
        app = an_app(store, RUN)
        async with app.run_test(size=size) as pilot:
            view = await _to_tree(app, pilot)
            await settled(pilot, lambda: view.at is not None)
            assert view.number == 1
            text = screen_text(app)
            assert "step 2/" in text and "[3 Tree]" in text and "◆" in text and "top-5" in text
            await pilot.press("full_stop")
            assert view.number == 2 and f"[ ⟨{trace.head.tokens[1]}⟩" not in screen_text(app)
            await pilot.press("G")
            assert view.number == len(trace.steps) - 1
            await pilot.press("g", "comma")
            assert view.number == 0
            rows = view.query_one("#tree", Rows)
            before = rows.key
            await pilot.press("down")
            assert rows.key != before
            await pilot.press("h")
            assert view.pruned
            await pilot.press("y")
            assert "copied" in view.said
            await pilot.press("escape", "escape")
            await settled(pilot, lambda: isinstance(app.screen, RaceView))

    drive(body)


def test_the_node_under_the_cursor_is_explained_with_the_targets_top_five(store: Path) -> None:
    write_traced(store / "runs" / RUN, WHICH, siblings=3)

    async def body() -> None:
        app = an_app(store, RUN)
        async with app.run_test(size=WIDE) as pilot:
            view = await _to_tree(app, pilot)
            await settled(pilot, lambda: view.at is not None)
            assert view.at is not None
            rows = view.query_one("#tree", Rows)
            rejected = next(n for n, node in enumerate(view.at.step.nodes) if node.verdict == "rejected")
            rows.select(str(rejected))
            await pilot.pause()
            assert "the target's first choice here is" in view.query_one("#node", Canvas).text()
            assert "▸" in view.query_one("#top", Canvas).text()
            assert "verify" in view.query_one("#cost", Canvas).text()
            assert "~" in view.query_one("#around", TokenView).text()

    drive(body)


def test_one_key_starts_the_replay_as_a_process_and_its_file_is_opened(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test's process writes the file that `specbench trace` would."""
    asked: list[list[str]] = []
    real = children.subprocess.Popen

    def popen(words: list[str], **options: object) -> object:
        asked.append(words)
        assert options["start_new_session"] is True
        write_traced(store / "runs" / RUN, WHICH, siblings=3)
        return real(["true"], **options)  # type: ignore[call-overload]

    async def body() -> None:
        app = an_app(store, RUN)
        async with app.run_test(size=WIDE) as pilot:
            view = await _to_tree(app, pilot)
            await settled(pilot, lambda: view._path is not None)
            assert "This answer has no trace yet" in screen_text(app)
            assert "specbench trace" in screen_text(app)
            monkeypatch.setattr(children.subprocess, "Popen", popen)
            await pilot.press("t")
            await settled(pilot, lambda: view.at is not None)
            words = ["trace", RUN, "81", "--method", "tree", "--turn", "1", "--repeat", "1", "--store", str(store)]
            assert asked[0][1:] == ["-m", "specbench", *words]

    drive(body)


def test_a_replay_that_fails_says_why_and_where_its_log_is(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = children.subprocess.Popen

    def popen(words: list[str], **options: object) -> object:
        return real(["sh", "-c", "echo '✗ no target here'; exit 3"], **options)  # type: ignore[call-overload]

    async def body() -> None:
        app = an_app(store, RUN)
        async with app.run_test(size=WIDE) as pilot:
            view = await _to_tree(app, pilot)
            await settled(pilot, lambda: view._path is not None)
            monkeypatch.setattr(children.subprocess, "Popen", popen)
            await pilot.press("t")
            await settled(pilot, lambda: "the replay failed (exit 3): ✗ no target here" in view.said)
            assert str(store / "logs") in view.said

    drive(body)


def test_a_replay_that_is_another_answer_is_said_in_red_words(store: Path) -> None:
    write_traced(store / "runs" / RUN, WHICH, matches=False)

    async def body() -> None:
        app = an_app(store, RUN)
        async with app.run_test(size=WIDE) as pilot:
            view = await _to_tree(app, pilot)
            await settled(pilot, lambda: view.at is not None)
            assert "another answer than the timed run's" in view.said and "torch (1.0 then" in view.said
            await pilot.press("full_stop")
            assert "another answer" in view.said

    drive(body)


def test_a_damaged_trace_is_an_error_on_the_screen(store: Path) -> None:
    path = trace_file(store / "runs" / RUN, 3, 0)
    path.parent.mkdir()
    for group in range(60):
        path.with_name(f"{group}-0.jsonl").write_text("nonsense\n")

    async def body() -> None:
        app = an_app(store, RUN)
        async with app.run_test(size=WIDE) as pilot:
            view = await _to_tree(app, pilot)
            await settled(pilot, lambda: "the trace is damaged" in view.said)

    drive(body)


def test_rejected_tokens_appear_in_the_race_where_there_is_a_trace_and_never_in_the_answer(store: Path) -> None:
    write_traced(store / "runs" / RUN, WHICH, siblings=3)

    async def body() -> None:
        app = an_app(store, RUN)
        async with app.run_test(size=WIDE) as pilot:
            await settled(pilot, lambda: isinstance(app.screen, RaceView) and app.screen.race is not None)
            race = app.screen
            assert isinstance(race, RaceView) and race.race is not None
            race.race.choose(["tree", "draft_model"])
            race.draw_methods()
            lane = race.race.lanes[0]
            assert lane.words is not None and race.race.lanes[1].words is None and lane.timeline is not None
            place = next(n for n, step in enumerate(lane.words.trace.steps) if step.ghosts())
            race.race.clock.pause()
            race.race.clock.seek(lane.timeline.steps[place].end_s)
            race.draw_now()
            await pilot.pause()
            pane = race.query_one("#lane0 TokenView", TokenView)
            assert "~⟨10" in screen_text(app)
            assert "~" not in pane.answer()
            race.race.clock.seek(race.race.clock.duration)
            race.draw_now()
            await pilot.pause()
            assert "~" not in screen_text(app)

    drive(body)


def test_accept_opens_the_trees_of_a_worst_answer(store: Path) -> None:
    async def body() -> None:
        app = an_app(store, RUN)
        async with app.run_test(size=WIDE) as pilot:
            await settled(pilot, lambda: isinstance(app.screen, RaceView) and app.screen.race is not None)
            await pilot.press("4")
            await settled(pilot, lambda: isinstance(app.screen, AcceptView) and app.screen.summed is not None)
            assert isinstance(app.screen, AcceptView)
            which = draw_figures.answer_of(app.screen.query_one("#worst", Rows).key)
            await pilot.press("t")
            view = await _open_tree(app, pilot)
            assert view.which == which

    drive(body)


def test_tree_without_a_run_says_where_to_find_one(tmp_path: Path) -> None:
    async def body() -> None:
        app = an_app(tmp_path)
        async with app.run_test(size=WIDE) as pilot:
            await pilot.press("3")
            await settled(pilot, lambda: "No run is open" in screen_text(app))
            for key in ("t", "full_stop", "comma", "g", "G", "h", "o", "right_square_bracket", "e", "y", "m"):
                await pilot.press(key)

    drive(body)


@pytest.mark.parametrize("text", ["\x1b[31mred", "\u202ertl", "\ud800", "[bold]x[/]", "日\n語", "  two", "\ufe0f", ""])
def test_hostile_tokens_are_shown_harmless_in_the_tree(text: str) -> None:
    shown = draw_tree.token_text(text)
    assert shown.isprintable() and not shown.startswith(" ") and bool(shown) == bool(text)
