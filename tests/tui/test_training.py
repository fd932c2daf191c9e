"""Trainings on the Train screen, and what stands on Home beside them."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from specbench.events import SCHEMA, RunFinished, RunStarted, TrainEval, TrainStep, to_line
from specbench.quantisation import Quantisation
from specbench.store.ingest import ingest
from specbench.training.command import use_command
from specbench.training.defaults import settle
from specbench.training.request import TrainRequest
from specbench.tui import children, draw_train, form
from specbench.tui.figures import Course
from specbench.tui.lines import plain
from specbench.tui.views.board import BoardView
from specbench.tui.views.dialogs import Reading
from specbench.tui.views.home import HomeView
from specbench.tui.views.launch import LaunchForm
from specbench.tui.views.train import TrainView
from specbench.tui.widgets.canvas import Canvas, Rows
from tests.store.synthetic import make_manifest, run_events, write_run
from tests.tui.screens import RUN, SIZES, WIDE, an_app, append, drive, screen_text, settled

TRAINING = "20260104-train-chain"


def write_training(store: Path, *, num_steps: int = 200) -> Path:
    """A training's folder: a falling loss, two evaluations, the second the better."""
    folder = store / "runs" / TRAINING
    (folder / "best").mkdir(parents=True)
    (folder / "best" / "config.json").write_text("{}", encoding="utf-8")
    record = {
        "schema_version": SCHEMA,
        "kind": "train",
        "run_id": TRAINING,
        "created": "2026-01-04T00:00:00+00:00",
        "method": "redrafter",
        "target": {"name": "tiny", "weights_hash": "7" * 64},
        "dataset": {"name": "answers", "hash": "8" * 64},
        "plan": {"steps": num_steps, "parameters": {"total": 1000}},
        "request": {"target": "demo", "seed": 0},
    }
    (folder / "train.json").write_text(json.dumps(record), encoding="utf-8")
    events: list[object] = [RunStarted(schema=SCHEMA, run_id=TRAINING, time="t", pid=1, resumed=False)]
    events += [
        TrainStep(
            step=n, epoch=n / 100, num_tokens=1000 * n, seconds=0.5 * n, num_anchors=900, loss=8 / (1 + n / 20),
            lr=1e-3, grad_norm=2.0,
        )
        for n in range(1, num_steps + 1)
    ]  # fmt: skip
    for step, hits, tokens in ((100, 40, 150), (200, 60, 200)):
        events.append(
            TrainEval(
                step=step, num=(100, 100), loss=(200.0, 300.0), correct=((hits, 80), (hits - 10, 70)), whole=(100, 90),
                right=(hits, 20), num_steps=100, num_new_tokens=tokens, accepted_at=(50, 20), proposed_at=(100, 90),
                seconds=1.0, is_best=True,
            )
        )  # fmt: skip
    events.append(RunFinished(state="finished", time="t"))
    with (folder / "events.jsonl").open("w", encoding="ascii") as file:
        file.writelines(to_line(event) + "\n" for event in events)  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize("size", SIZES)
def test_train_draws_curves_accuracies_and_simulated_acceptance(store: Path, size: tuple[int, int]) -> None:
    async def body() -> None:
        write_training(store)
        app = an_app(store, TRAINING)
        async with app.run_test(size=size) as pilot:
            await settled(pilot, lambda: isinstance(app.screen, TrainView) and app.screen.training is not None)
            view = app.screen
            assert "mean of the last 50" in view.query_one("#loss", Canvas).text()
            accuracy = view.query_one("#accuracy", Canvas).text()
            assert "0.600" in accuracy and "0.500" in accuracy and "★" in accuracy
            assert "τ 2.00" in view.query_one("#tau", Canvas).text()
            assert "2000" in view.query_one("#health", Canvas).text()

    drive(body)


def test_b_fills_the_form_in_for_the_drafter_that_was_kept(store: Path) -> None:
    async def body() -> None:
        folder = write_training(store)
        app = an_app(store, TRAINING)
        async with app.run_test(size=WIDE) as pilot:
            await settled(pilot, lambda: isinstance(app.screen, TrainView) and app.screen.training is not None)
            await pilot.press("b")
            await pilot.pause()
            form = app.screen
            assert isinstance(form, LaunchForm)
            assert f"redrafter.weights={folder / 'best'}" in " ".join(form.checked.words)
            assert form.checked.problem == ""

    drive(body)


@pytest.mark.parametrize("target", ["demo", "some/target"])
def test_b_asks_for_what_the_training_says_at_its_end(tmp_path: Path, target: str) -> None:
    """Another suite, quantisation or methods folder would measure something else under the same drafter's name."""
    best, own = tmp_path / "a store" / "best", tmp_path / "my methods"
    (own / "mine").mkdir(parents=True)
    card = "name: mine\ntitle: Mine\npaper: ''\nkind: chain\nsummary: Copies.\n"
    (own / "mine" / "method.yaml").write_text(card, encoding="utf-8")
    (own / "mine" / "drafter.py").write_text("", encoding="utf-8")
    quantisation: Quantisation = "none" if target == "demo" else "int8"
    asked = settle(TrainRequest(
        method="redrafter", dataset="d", target=target, quantisation=quantisation, methods_dirs=(own,)
    ))  # fmt: skip
    request = {"target": target, "quantisation": quantisation, "methods_dirs": [str(own)]}
    record = {"method": "redrafter", "target": {"name": "x"}, "request": request}
    values = draw_train.bench_values(Course("t", record, "finished", "", (), (), None), str(best))
    if target == "demo":
        assert values.pop("target") == "demo", "which is what that suite takes where none is said"
    found = form.check(values, store=None)
    assert found.problem == "" and sorted(found.words) == sorted(shlex.split(use_command(asked, best))[1:])


def test_a_training_is_a_row_of_home_and_enter_opens_its_curves(store: Path) -> None:
    async def body() -> None:
        write_training(store)
        app = an_app(store)
        async with app.run_test(size=WIDE) as pilot:
            await settled(pilot, lambda: "training" in screen_text(app))
            app.screen.query_one("#runs", Rows).select(TRAINING)
            await pilot.press("enter")
            await settled(pilot, lambda: isinstance(app.screen, TrainView))

    drive(body)


@pytest.mark.parametrize("ended", ["? lost", "✗ failed", "✗ failed training"])
def test_a_run_that_did_not_finish_is_continued_by_the_command_that_made_it(
    store: Path, ended: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """c on a run that was killed, or failed on a full disk: `run --resume`, as a process of its own."""
    run_id = TRAINING if "training" in ended else RUN
    folder = write_training(store) if "training" in ended else store / "runs" / RUN
    journal = folder / "events.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:-1]))
    if ended != "? lost":
        append(folder, RunFinished(state="failed", time="t"))
    asked: list[list[str]] = []
    real = subprocess.Popen

    def popen(words: list[str], **options: object) -> object:
        asked.append(words)
        return real(["true"], **options)  # type: ignore[call-overload]

    monkeypatch.setattr(children.subprocess, "Popen", popen)

    async def body() -> None:
        app = an_app(store)
        async with app.run_test(size=WIDE) as pilot:
            await settled(pilot, lambda: ended.removesuffix(" training") in screen_text(app))
            app.screen.query_one("#runs", Rows).select(run_id)
            await pilot.press("c")
            await pilot.pause()
            command = "train" if "training" in ended else "run"
            assert asked[0][1:] == ["-m", "specbench", command, "--resume", run_id, "--store", str(store)]

    drive(body)


def test_two_marked_runs_are_compared_question_by_question(store: Path) -> None:
    async def body() -> None:
        manifest = make_manifest(run_id="20260105-demo-run-b", num_questions=6, num_turns=2, repeats=2)
        folder = write_run(store / "runs" / manifest.run_id, manifest, run_events(manifest, seed=1))
        ingest(store / "specbench.duckdb", folder)
        app = an_app(store)
        async with app.run_test(size=WIDE) as pilot:
            await pilot.press("8")
            await settled(pilot, lambda: isinstance(app.screen, BoardView) and app.screen.read is not None)
            view = app.screen
            assert isinstance(view, BoardView)
            view.marked = [RUN, manifest.run_id]
            await pilot.press("v")
            await settled(pilot, lambda: isinstance(app.screen, Reading))
            assert isinstance(app.screen, Reading)
            assert "first / second, question by question" in app.screen.text()
            assert "that is the machine" in " ".join(app.screen.text().split())

    drive(body)


def test_an_unknown_run_is_said_on_the_list(store: Path) -> None:
    async def body() -> None:
        app = an_app(store, "nothing-like-it")
        async with app.run_test(size=WIDE) as pilot:
            await settled(
                pilot, lambda: isinstance(app.screen, HomeView) and "no run 'nothing-like-it'" in app.screen.said
            )

    drive(body)


def test_the_loss_is_drawn_on_a_log_scale_where_equal_ratios_are_equal_heights() -> None:
    """1000, 100, 10, 1: a straight line down, which a plain scale would press to the floor."""
    values = [1000.0, 100.0, 10.0, 1.0]
    plain_rows = [plain(row) for row in draw_train.chart("loss", values, [1, 2, 3, 4], 29, 9)]
    log_rows = [plain(row) for row in draw_train.chart("loss", values, [1, 2, 3, 4], 29, 9, is_log=True)]

    def first_column(row: str) -> int:
        return next((place for place, char in enumerate(row[9:]) if "\u2801" <= char <= "\u28ff"), -1)

    falls = [first_column(row) for row in log_rows[:-1]]
    assert falls == sorted(falls) and falls[-1] > falls[0]
    assert sum(first_column(row) >= 0 for row in log_rows) == 8 == sum(first_column(row) >= 0 for row in plain_rows)
    assert "1e+03" in log_rows[0] and log_rows[7].split("┤")[0].strip() == "1"
    assert "no logarithm" in plain(draw_train.chart("loss", [1.0, 0.0], [1, 2], 60, 9, is_log=True)[0])


def test_the_exponential_mean_begins_with_the_first_value_and_forgets_it() -> None:
    assert draw_train.smoothed([3.0, 3.0, 3.0]) == pytest.approx([3.0, 3.0, 3.0])
    found = draw_train.smoothed([10.0] + [0.0] * 400)
    assert found[0] == pytest.approx(10.0) and found[1] == pytest.approx(10.0 * 0.98 / 1.98)
    assert 0 < found[-1] < 0.01
