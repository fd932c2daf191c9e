"""The Chat screen, spoken to by a process that only pretends: what it shows, and what its keys send."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from specbench.bench.competitors import competitors
from specbench.bench.request import RunRequest, parse_grid, parse_setting, parse_variant
from specbench.bench.resume import request_as_json
from specbench.cli import options
from specbench.manifest import MethodRecord, read_manifest
from specbench.tui.app import SpecbenchApp
from specbench.tui.talking import words_for
from specbench.tui.views import chat as module
from specbench.tui.views.chat import ChatView
from specbench.tui.widgets.canvas import Canvas
from specbench.tui.widgets.chat_log import ChatLog
from tests.tui.screens import RUN, SIZES, WIDE, an_app, drive, screen_text, settled

SETTINGS = {"method": "redrafter", "temperature": 0.0, "max_new_tokens": 256}
STATE = {
    "target": "tiny", "settings": SETTINGS, "pace": {"step_s": 0.02, "num_steps": 32}, "notes": [], "num_messages": 0,
}  # fmt: skip
FIGURES = {
    "num_tokens": 5, "num_steps": 2, "num_drafted": 6, "num_accepted": 2, "prefill_s": 0.1, "decode_s": 0.04,
    "draft_s": 0.01, "verify_s": 0.02, "acceptance_length": 2.0, "tokens_per_s": 100.0, "times_pace": 2.0,
    "lengths": [2, 0], "accepted_at": [1, 1], "asked_at": [2, 1],
}  # fmt: skip
ANSWER = [
    ["Hello", "plain", 0],
    [" wide", "drafted", 1],
    [" world", "drafted", 2],
    ["!", "bonus", 0],
    ["\n", "bonus", 0],
]


class Pretending:
    """Says what a test hands it; remembers what it was told."""

    last: Pretending

    def __init__(self, words: list[str]) -> None:
        self.words, self.command = words, "specbench chat"
        self.sent: list[Any] = []
        self.says: list[dict[str, Any]] = [{"e": "ready", **STATE}]
        self.is_over = False
        Pretending.last = self

    def read(self) -> list[dict[str, Any]]:
        says, self.says = self.says, []
        return says

    def send(self, line: str) -> None:
        self.sent.append(line)

    def stop(self) -> None:
        self.sent.append(None)

    def last_words(self) -> str:
        return "✗ out of memory"

    def close(self) -> None:
        self.is_over = True

    def answer(self) -> None:
        self.says += [
            {"e": "tokens", "tokens": ANSWER, "figures": FIGURES},
            {"e": "ended", "rest": "", "finish_reason": "length", "figures": FIGURES},
            {"e": "changed", **STATE, "num_messages": 2},
            {"e": "idle"},
        ]


@pytest.fixture(autouse=True)
def _pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Talking", Pretending)


async def _begin(app: SpecbenchApp, pilot: Any) -> ChatView:
    await pilot.press("9")
    await settled(pilot, lambda: isinstance(app.screen, ChatView))
    assert isinstance(app.screen, ChatView)
    assert "Nobody is listening yet" in screen_text(app)
    await pilot.press("enter")
    view = app.screen
    await settled(pilot, lambda: view.is_ready and view.focused is view.query_one("#message"))
    return view


@pytest.mark.parametrize("size", SIZES)
def test_a_message_goes_out_and_its_answer_is_marked_token_by_token(store: Path, size: tuple[int, int]) -> None:
    async def body() -> None:
        app = an_app(store)
        async with app.run_test(size=size) as pilot:
            view = await _begin(app, pilot)
            await pilot.press("h", "i", "1", "enter")
            assert Pretending.last.sent == ["hi1"] and view.is_answering
            Pretending.last.answer()
            await settled(pilot, lambda: not view.is_answering)
            text = screen_text(app)
            assert "you" in text and "hi1" in text and "redrafter" in text
            assert "Hello wide¹ world²!◆⏎◆" in text
            assert "τ 2.00" in text and "2.00× plain (est.)" in text
            if size == WIDE:
                assert "accepted    2 of 6" in view.query_one("#reply", Canvas).text()
                assert "method=redrafter" in view.query_one("#settings", Canvas).text()

    drive(body)


def test_escape_leaves_the_line_so_that_letters_are_keys_again(store: Path) -> None:
    async def body() -> None:
        app = an_app(store)
        async with app.run_test(size=WIDE) as pilot:
            view = await _begin(app, pilot)
            await pilot.press("a", "enter", "escape", "x")
            assert Pretending.last.sent == ["a", None]
            Pretending.last.answer()
            await settled(pilot, lambda: not view.is_answering)
            await pilot.press("x")
            assert "nothing is being answered" in view.said
            await pilot.press("y")
            assert "copied" in view.said
            before = app.marks
            await pilot.press("m")
            assert app.marks is before.next()
            await pilot.press("enter")
            assert view.focused is view.query_one("#message")

    drive(body)


def test_nothing_is_said_to_a_target_while_a_run_is_live_on_this_machine(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run may have begun after the conversation; what only looks is still heard."""

    async def body() -> None:
        app = an_app(store)
        async with app.run_test(size=WIDE) as pilot:
            view = await _begin(app, pilot)
            monkeypatch.setattr(app.workspace, "live_here", lambda: "run-x")
            await pilot.press("a", "enter")
            assert Pretending.last.sent == [] and "run-x runs on this machine" in view.said
            await pilot.press("home", *"/stats", "delete", "enter")
            assert Pretending.last.sent == ["/stats"]

    drive(body)


def test_a_stop_of_what_cannot_be_stopped_says_so_at_once(store: Path) -> None:
    """A round of learning ends before anything else is heard."""

    async def body() -> None:
        app = an_app(store)
        async with app.run_test(size=WIDE) as pilot:
            view = await _begin(app, pilot)
            await pilot.press(*"/train", "enter", "escape", "x")
            assert Pretending.last.sent == ["/train", None] and "is finished first" in view.said

    drive(body)


def test_a_second_message_waits_for_the_answer(store: Path) -> None:
    async def body() -> None:
        app = an_app(store)
        async with app.run_test(size=WIDE) as pilot:
            view = await _begin(app, pilot)
            await pilot.press("a", "enter", "b", "enter")
            assert Pretending.last.sent == ["a"] and "still busy" in view.said

    drive(body)


def test_what_the_process_remarks_is_shown_and_its_death_too(store: Path) -> None:
    async def body() -> None:
        app = an_app(store)
        async with app.run_test(size=WIDE) as pilot:
            view = await _begin(app, pilot)
            await pilot.press("a", "enter")
            Pretending.last.says.append(
                {"e": "note", "text": "⚠ none of 9 drafted tokens was accepted", "style": "warn"}
            )
            await settled(pilot, lambda: "none of 9" in screen_text(app))
            Pretending.last.is_over = True
            await settled(pilot, lambda: view.talking is None)
            assert "out of memory" in screen_text(app)
            await pilot.press("enter")
            await settled(pilot, lambda: view.is_ready)

    drive(body)


def test_hostile_answers_reach_no_terminal_raw(store: Path) -> None:
    async def body() -> None:
        app = an_app(store)
        async with app.run_test(size=(80, 24)) as pilot:
            view = await _begin(app, pilot)
            await pilot.press("a", "enter")
            hostile = ["\x1b[31m", "[bold]x[/]", "\u202e", "\ud800", "日本語" * 400, "a" * 10_000, "\u0301" * 500]
            tokens = [[text, "drafted", 1 + place % 9] for place, text in enumerate(hostile)]
            Pretending.last.says.append({"e": "tokens", "tokens": tokens, "figures": FIGURES})
            await settled(pilot, lambda: bool(view.figures))
            await pilot.resize_terminal(120, 36)
            await pilot.pause()
            text = view.query_one("#log", ChatLog).text()
            assert "\x1b" not in text and "\u202e" not in text and "\ud800" not in text

    drive(body)


def test_a_run_that_is_open_gives_its_target_method_and_options(store: Path) -> None:
    manifest = read_manifest(store / "runs" / RUN)
    request = {"target": "/models/x", "threads": 2, "device": "auto"}
    asked = manifest.model_copy(update={"provenance": {"request": request}})
    assert words_for(asked, store=None) == [
        "chat", "--target", "/models/x", "--method", "draft_model", "--set", "draft_model.depth=4", "--threads", "2",
    ]  # fmt: skip
    assert words_for(None, store=Path("/s"))[:5] == ["chat", "--target", "demo", "--method", "prompt_lookup"]


@pytest.mark.parametrize(
    "given",
    [
        {"settings": ("hybrid.threshold=0", "hybrid.inner=ctc", "ctc.weights=trained/best"), "methods": "hybrid"},
        {"grid": ("hybrid.max_tokens=3,4",), "settings": ("draft_model.model=demo-draft",), "methods": "hybrid"},
        {"variants": ("eagle=ctc:weights=trained/best,beams=3",), "methods": "ctc"},
        {"grid": ("ctc.weights=other/best,trained/best",), "settings": ("ctc.beams=3",), "methods": "ctc"},
    ],
    ids=["wrapped", "grid", "variant", "paths"],
)
def test_the_conversation_is_under_the_options_that_the_row_was_measured_with(
    store: Path, tmp_path: Path, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the command line makes of the words is what the plan made of the run's own, seen from another folder."""
    for name in ("trained", "other"):
        (tmp_path / "there" / name / "best").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    request = RunRequest(
        suite="demo",
        target="some-target",
        methods=(given["methods"],),
        settings=tuple(map(parse_setting, given.get("settings", ()))),
        grid=tuple(map(parse_grid, given.get("grid", ()))),
        variants=tuple(map(parse_variant, given.get("variants", ()))),
    )
    first = next(each for each in competitors(request) if each.card.kind != "baseline")
    row = MethodRecord(
        label=first.label, name=first.card.name, title="", kind=first.card.kind, options=first.options, num_parameters=0
    )
    manifest = read_manifest(store / "runs" / RUN).model_copy(
        update={"methods": (row,), "provenance": {"request": request_as_json(request)}}
    )
    monkeypatch.chdir(tmp_path / "here")
    words = words_for(manifest, store=None)
    said = options.settings([word for before, word in itertools.pairwise(words) if before == "--set"])
    found = options.chosen(said, first.card.name, target_is_demo=False, methods_dirs=(), named_by="--method")
    where = str(tmp_path / "there")
    in_full = {
        name: f"{where}/{value}" if isinstance(value, str) and value.endswith("/best") else value
        for name, value in first.options.items()
    }
    assert found.recorded_options == in_full and found.name == first.choice.name


def test_talking_beside_a_run_that_is_measured_is_refused(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "holder", lambda folder: object())  # on whatever machine

    async def body() -> None:
        app = an_app(store, RUN)
        async with app.run_test(size=WIDE) as pilot:
            await settled(pilot, lambda: app.workspace.run_id == RUN)
            await pilot.press("9")
            await settled(pilot, lambda: isinstance(app.screen, ChatView))
            view = app.screen
            assert isinstance(view, ChatView)
            await pilot.press("enter")
            assert view.talking is None and "would slow it" in view.said

    drive(body)
