"""An experiment on a tiny target: every cell once, on from where it was killed, the report equal to the cells."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from training.small import METHODS, Quiet, make_written

from specbench.cli import main
from specbench.data.documents import Documents
from specbench.store.cells import Cell, read_cells
from specbench.store.journal import run_state
from specbench.store.training import read_training
from specbench.training import experiment as experiment_module
from specbench.training import experiment_data
from specbench.training.command import Ran
from specbench.training.experiment import Outcome, carry_out, folder_of, known_cells
from specbench.training.experiment_file import ExperimentFile, read_experiment
from specbench.training.experiment_plan import Machine, Plan, make_plan
from tests.conftest import Ran as Command


def _plan(target: Path, store: Path, **changed: Any) -> Plan:
    body: dict[str, Any] = {
        "name": "small",
        "method": "shallow",
        "target": str(target),
        "train": {
            "dataset": "memory",
            "learn": "gt",
            "max_length": 48,
            "batch_size": 4,
            "lr": 0.03,
            "eval_every": 3,
            "save_every": 2,
            "eval_documents": 4,
            "eval_prompts": 2,
            "eval_new_tokens": 6,
            "assistant_only": [True, False],
        },
        "evaluate": {"dataset": "memory", "eval_prompts": [2, 3]},
        "budget": {"max_steps": 6},
    }
    machine = Machine(store=store, methods_dirs=(METHODS,), device="cpu", threads=1)
    return make_plan(ExperimentFile.model_validate({**body, **changed}), machine)


def _no_command(words: Sequence[str]) -> Ran:
    raise AssertionError(f"nothing is timed here: {words}")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, target: Path) -> Documents:
    return make_written(target, 36)


@pytest.fixture
def in_memory(written: Documents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment_data, "read_documents", lambda request, lm, progress: written)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """What `train` was called with: the id that is resumed, None for a new one."""
    import specbench.training as room

    seen: list[str | None] = []
    real = room.train

    def counted(request: Any, progress: Any, *, corpus: Any) -> Any:
        seen.append(request.resume)
        return real(request, progress, corpus=corpus)

    monkeypatch.setattr(room, "train", counted)
    return seen


class Finished(NamedTuple):
    plan: Plan
    outcome: Outcome


@pytest.fixture(scope="module")
def finished(target: Path, tmp_path_factory: pytest.TempPathFactory, written: Documents) -> Finished:
    """An experiment that nothing disturbed."""
    plan = _plan(target, tmp_path_factory.mktemp("finished"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment_data, "read_documents", lambda request, lm, progress: written)
        return Finished(plan, carry_out(plan, Quiet(), _no_command))


def test_every_cell_is_made_once_and_the_page_says_what_the_cells_say(
    target: Path, finished: Finished, trainings: list[str | None]
) -> None:
    from specbench.report.experiment_page import make_matrix, render_experiment, tables_of

    plan, outcome = finished
    assert not outcome.interrupted and not outcome.failed
    assert [cell.kind for cell in outcome.cells] == ["training"] * 2 + ["evaluation"] * 4
    assert carry_out(plan, Quiet(), _no_command) == outcome and trainings == []
    table = tables_of(outcome.cells)[0]
    assert table.columns == ("training", "memory, eval_prompts=2", "memory, eval_prompts=3")
    assert [row[0] for row in table.rows] == ["assistant_only=true", "assistant_only=false"]
    taus = [cell.figures["tau"] for cell in outcome.cells if cell.kind == "evaluation"]
    assert [float(text) for row in table.rows for text in row[1:]] == pytest.approx(taus, abs=1e-3)
    page = render_experiment("small", "Small", str(target), outcome.cells)
    assert "https://" not in page.split("<script>")[0]
    figures = json.loads(page.split("const FIGURES = ")[1].split(";\n")[0])
    traces = [trace for figure in figures if figure[2] == "share of labels" for trace in figure[1]]
    matrix = make_matrix(outcome.cells)
    found = [[hits[0] for hits in row.measures[at][0].figures["accuracy"]] for at in (0, 1) for row in matrix.rows]
    assert [trace["y"] for trace in traces] == found
    first = outcome.cells[0].figures
    assert plan.machine.store is not None
    training = read_training(plan.machine.store / "runs" / first["run_id"])
    assert first["tokens"] == training.steps[-1].num_tokens and len(first["curve"]) == 2
    assert set(training.steps[-1].parts) == set(training.evals[-1].parts) == {"first"}
    assert 0 < training.steps[-1].parts["first"] < training.steps[-1].loss


def test_an_evaluation_sees_no_document_that_was_learnt(target: Path, tmp_path: Path, in_memory: None) -> None:
    plan = _plan(target, tmp_path)
    library = experiment_data.Library(Quiet())
    corpus = library.corpus(plan.trainings[0])
    whole = library.corpus(plan.trainings[1])
    evaluated = library.evaluated(plan.measures[0])  # type: ignore[arg-type]
    parts = [{document.prompt for document in each} for each in (corpus.train, corpus.held_out, evaluated)]
    assert all(parts) and not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    assert library.num_learnt(plan.measures[0], plan.trainings[0]) == 0  # type: ignore[arg-type]
    assert whole.train.learn_N.all() and not corpus.train.learn_N.all()
    assert (whole.train.tokens_N == corpus.train.tokens_N).all()
    halves = _plan(target, tmp_path, train={**plan.experiment.train, "share": [0.5, 1.0], "assistant_only": True})
    less, more = ({document.ids for document in library.corpus(each).train} for each in halves.trainings)
    assert less < more and len(less) == round(len(more) / 2)


def test_killed_in_the_middle_it_goes_on_without_repeating(
    target: Path, tmp_path: Path, in_memory: None, trainings: list[str | None], finished: Finished
) -> None:
    plan = _plan(target, tmp_path)

    class Impatient(Quiet):
        """Breaks the second training off behind its saved step 2."""

        def step(self, *, step: int, share: float, loss: float, tokens_per_s: float, eta_s: float | None) -> None:
            if len(trainings) == 2 and step == 4:
                raise KeyboardInterrupt

    broken = carry_out(plan, Impatient(), _no_command)
    assert broken.interrupted
    assert [cell.state for cell in broken.cells] == ["finished", "open", "finished", "finished", "open", "open"]
    folder = folder_of(plan.machine.store, "small")
    with (folder / "cells.jsonl").open("a") as file:
        file.write('{"schema":1,"kind":"trai')  # torn, and no last word of the run: what a kill leaves
    journal = max((tmp_path / "runs").iterdir()) / "events.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:-1]))
    assert run_state(journal.parent) == "lost"
    assert known_cells(plan) == broken.cells
    outcome = carry_out(plan, Quiet(), _no_command)
    assert not outcome.interrupted and {cell.state for cell in outcome.cells} == {"finished"}
    assert len(trainings) == 3 and trainings[2] is not None and "train_shallow" in trainings[2]
    taus = [[cell.figures.get("tau") for cell in each.cells] for each in (outcome, finished.outcome)]
    assert taus[0] == taus[1], "interrupted or not, the figures are the same"
    # Killed behind a training's last line, before the cell's own: the finished run is taken, not made again.
    lines = (folder / "cells.jsonl").read_text().splitlines(keepends=True)
    (folder / "cells.jsonl").write_text("".join(line for line in lines if '"kind":"training"' not in line))
    assert [cell.figures for cell in carry_out(plan, Quiet(), _no_command).cells] == [
        cell.figures for cell in outcome.cells
    ]
    assert len(trainings) == 3


def test_a_cell_that_fails_is_recorded_and_the_rest_goes_on(target: Path, tmp_path: Path, in_memory: None) -> None:
    train = {**_plan(target, tmp_path).experiment.train, "assistant_only": True, "shallow.explode_at": [1, 0]}
    plan = _plan(target, tmp_path, train=train, evaluate={"dataset": "memory"})
    outcome = carry_out(plan, Quiet(), _no_command)
    assert [cell.state for cell in outcome.cells] == ["failed", "finished", "open", "finished"]
    assert "not a number at step 1" in outcome.failed[0].error
    assert read_cells(folder_of(tmp_path, "small"))[outcome.failed[0].cell_id].error == outcome.failed[0].error


def test_a_timed_run_gets_the_drafter_and_its_answer_becomes_a_cell(
    target: Path, tmp_path: Path, in_memory: None
) -> None:
    asked: list[Sequence[str]] = []

    def run(words: Sequence[str]) -> Ran:
        asked.append(words)
        row = {"name": "shallow", "method": "shallow", "speedup": 1.25, "speedup_ci": [1.1, 1.4], "lossless": True}
        return Ran(0, json.dumps({"run_id": "a-run", "rows": [row]}))

    train = {**_plan(target, tmp_path).experiment.train, "assistant_only": True}
    changed = {"train": train, "evaluate": {"dataset": "memory"}, "bench": {"suite": "demo", "limit": 2}}
    plan = _plan(target, tmp_path, **changed)
    outcome = carry_out(plan, Quiet(), run)
    [words] = asked
    drafter = folder_of(tmp_path, "small") / "drafters" / outcome.cells[0].cell_id
    assert list(words[:2]) == ["run", "demo"] and f"shallow.weights={drafter}" in words and "--limit" in words
    assert outcome.cells[-1].figures["speedup"] == 1.25
    other = _plan(target, tmp_path, **{**changed, "bench": {"suite": "mtbench"}})
    broken = carry_out(other, Quiet(), lambda _: Ran(3, "{}"))
    assert "exit code 3" in broken.failed[0].error


def test_ctrl_c_in_a_timed_run_that_finishes_all_the_same_keeps_its_cell(
    target: Path, tmp_path: Path, in_memory: None
) -> None:
    plan = _plan(target, tmp_path, evaluate={"dataset": "memory"}, bench={"suite": "demo", "limit": 2})
    row = {"name": "shallow", "method": "shallow", "speedup": 1.25, "speedup_ci": [1.1, 1.4], "lossless": True}
    ran = Ran(0, json.dumps({"run_id": "a-run", "rows": [row]}), was_interrupted=True)
    outcome = carry_out(plan, Quiet(), lambda _: ran)
    assert outcome.interrupted
    states = [(cell.kind, cell.state) for cell in outcome.cells if cell.kind != "evaluation"]
    assert sorted(states) == [("bench", "finished"), ("bench", "open"), ("training", "finished"), ("training", "open")]


def test_names_cannot_break_the_page_or_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from specbench.cli.experiment import _print_tables
    from specbench.report.experiment_page import render_experiment

    evil = "</script><img src=x onerror=alert(1)>\x1b[2J"
    shared: dict[str, Any] = {"training_id": "t", "method": "m", "seed": 0, "axes": {"dataset": evil}, "options": {}}
    cells = [
        Cell(kind="training", cell_id="t", measure={}, state="finished", figures={"curve": []}, **shared),
        Cell(
            kind="evaluation", cell_id="e", measure={"dataset": evil}, state="finished",
            figures={"tau": 2.0, "accuracy": [[0.5]]}, **shared,
        ),
        Cell(kind="evaluation", cell_id="f", measure={"dataset": "b"}, state="failed", error=evil, **shared),
    ]  # fmt: skip
    page = render_experiment(evil, evil, evil, cells)
    assert "<img" not in page.split("<script>")[0] and "\x1b" not in page
    assert "<img" not in page.split("const FIGURES")[1] and "</script><img" not in page
    _print_tables(cells)
    assert "\x1b" not in capsys.readouterr().out


def test_ctrl_c_ends_with_130_and_the_finished_cells_as_json(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"name: mine\nmethod: shallow\ntarget: {target}\ntrain: {{dataset: memory}}\n")

    def interrupted(plan: Plan, progress: Any, run: Any) -> Outcome:
        return Outcome(cells=plan.cells, interrupted=True)

    monkeypatch.setattr(experiment_module, "carry_out", interrupted)
    with pytest.raises(SystemExit) as ended:
        line = ["experiment", str(file), "--methods-dir", str(METHODS), "--store", str(tmp_path / "results"), "--json"]
        main([*line, "-o", str(tmp_path / "page.html")])
    captured = capsys.readouterr()
    assert ended.value.code == 130 and "goes on" in captured.err
    assert json.loads(captured.out)["state"] == "interrupted"
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


_SMALL: dict[str, Any] = {
    "max_length": 48, "batch_size": 4, "eval_every": 1, "eval_documents": 4, "eval_prompts": 2, "eval_new_tokens": 6,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "learns", "measured", "rows"),
    [
        (
            "redrafter-paper", {"redrafter.depth": 2}, {"redrafter.beam_width": 2},
            [f"learn={learn}, assistant_only={only}" for learn in ("gt", "kd", "seq") for only in ("true", "false")],
        ),
        (
            "ctc-ablation", {"ctc.labels": 2}, {},
            [f"loss={loss}, module={module}" for loss in ("ce", "ctc") for module in ("linear", "layer")],
        ),
    ],
)  # fmt: skip
def test_a_packaged_experiment_ends_in_a_page_with_every_cell(
    specbench: Callable[..., Command], target: Path, tmp_path: Path, in_memory: None,
    name: str, learns: dict[str, Any], measured: dict[str, Any], rows: list[str],
) -> None:  # fmt: skip
    """Its own axes, on a tiny target and for two steps each."""
    body = read_experiment(name).model_dump(exclude_none=True, exclude={"demo"})
    body["train"] |= {**_SMALL, **learns}
    body["evaluate"] |= {"eval_prompts": 2, "eval_new_tokens": 6, **measured}
    file, page = tmp_path / "mine.yaml", tmp_path / "page.html"
    file.write_text(yaml.safe_dump({**body, "target": str(target), "budget": {"max_steps": 2}}, sort_keys=False))
    words = ("--train-on", "memory", "--evaluate-on", "memory", "--device", "cpu", "--threads", "1")
    ran = specbench("experiment", str(file), *words, "--store", str(tmp_path), "-o", str(page), "--json")
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    evaluated = [cell for cell in told["cells"] if cell["kind"] == "evaluation"]
    assert told["state"] == "finished" and all(cell["figures"]["tau"] >= 1 for cell in evaluated)
    text = page.read_text()
    assert text.startswith("<!doctype html>") and body["title"] in text
    assert all(f">{row}<" in text for row in rows) and len(evaluated) % len(rows) == 0
    assert all(f">{cell['figures']['tau']:.3f}<" in text for cell in evaluated)


def test_help_and_dry_run_load_no_torch(tmp_path: Path) -> None:
    script = (
        "import sys; from specbench.cli import main\n"
        "try: main(['experiment', *sys.argv[1:]])\n"
        "except SystemExit as ended: assert not ended.code, ended.code\n"
        "sys.exit(', '.join({'torch', 'accelerate', 'duckdb', 'plotly'} & set(sys.modules)) or None)"
    )
    dry = ("ctc-ablation", "--dry-run", "--store", str(tmp_path / "none"))
    for words, shown in (("--help",), "--evaluate-on"), (dry, "4 trainings (4 left, at most 1,228,800 tokens), 8"):
        done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert shown in done.stdout
    assert not (tmp_path / "none").exists()
