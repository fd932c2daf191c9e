"""The parts of a training that need no target: order of the data, budget, rate, journal, store, page."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from training.small import Quiet, make_corpus, make_documents, make_request

from specbench.events import CheckpointSaved, TrainEval, TrainStep, from_line, to_line
from specbench.report.training_page import lines_of, render_training, spark
from specbench.store.db import open_store
from specbench.store.listing import list_runs
from specbench.store.training import ingest_training, read_training
from specbench.training import train
from specbench.training.budget import Budget, Done, rate
from specbench.training.corpus import Order, Place, Rows, share_of


def test_every_epoch_reads_every_row_once_in_another_order() -> None:
    order = Order(rows=Rows(make_documents(30).pack(48, seed=0)), batch_size=4)
    epochs = []
    place = Place(0, 0)
    for epoch in range(2):
        read: list[int] = []
        while place.epoch == epoch:
            read += order.batch(place)
            place = order.after(place)
        assert sorted(read) == list(range(len(order.rows)))
        epochs.append(read)
    assert epochs[0] != epochs[1]
    assert order.epochs(Place(1, 0)) == 1.0


def test_processes_share_a_batch_without_overlap_and_in_equal_numbers() -> None:
    shares = [list(share_of(list(range(7)), process=p, num_processes=3, micro_batch=2)) for p in range(3)]
    assert [[len(rows) for rows in share] for share in shares] == [[2, 1]] * 3
    read = [row for share in shares for rows in share for row in rows if row is not None]
    assert sorted(read) == list(range(7))


def test_a_row_of_padding_is_no_document() -> None:
    rows = Rows(make_documents(6).pack(48, seed=0))
    batch = rows.batch([0, None], torch.device("cpu"), trim=True)
    assert batch.tokens_BT.shape == (2, int(rows.num_tokens_of[0]))
    assert (batch.document_BT[1] == -1).all() and not batch.learn_BT[1].any()
    assert int((batch.document_BT[0] >= 0).sum()) == rows.num_tokens_of[0]
    documents = rows.packed.documents
    assert batch.tokens_BT[0].tolist() == [token for number in rows.documents_of(0) for token in documents[number].ids]


def test_the_budget_ends_with_the_first_limit() -> None:
    budget = Budget(max_steps=10, max_tokens=100, max_minutes=1)
    assert budget.reached(Done(steps=9, tokens=99, seconds=59)) is None
    assert budget.reached(Done(steps=5, tokens=100)) == "max_tokens"
    assert budget.reached(Done(steps=5, seconds=60)) == "max_minutes"
    assert budget.share(Done(steps=5, tokens=80)) == 0.8


def test_the_rate_rises_then_falls_as_its_name_says() -> None:
    assert rate("cosine", 0.05, warmup=0.1) == pytest.approx(0.5)
    assert rate("cosine", 0.1, warmup=0.1) == 1.0
    assert rate("cosine", 0.55, warmup=0.1) == pytest.approx(0.5)
    assert rate("linear", 0.75, warmup=0.5) == pytest.approx(0.5)
    assert rate("constant", 0.99, warmup=0.0) == 1.0
    assert rate("cosine", 1.0, warmup=0.0) == pytest.approx(0.0, abs=1e-12)


def test_training_events_survive_the_journal() -> None:
    step = TrainStep(
        step=3, epoch=0.5, num_tokens=7, seconds=1.25, num_anchors=5, loss=0.1 + 0.2, lr=1e-3, grad_norm=math.pi
    )
    evaluated = TrainEval(
        step=3, num=(5, 4), loss=(1.5, 2.5), correct=((3, 4), (1, 2)), whole=(5, 4), right=(3, 1), num_steps=10,
        num_new_tokens=15, accepted_at=(4, 1), proposed_at=(10, 9), seconds=0.5, is_best=True,
    )  # fmt: skip
    for event in (step, evaluated, CheckpointSaved(step=3, what="best")):
        assert from_line(to_line(event)) == event


def test_a_training_is_listed_stored_and_drawn(target: Path, tmp_path: Path) -> None:
    outcome = train(make_request(target, tmp_path), Quiet(), corpus=make_corpus())
    folder = tmp_path / "runs" / outcome.run_id
    [entry] = list_runs(tmp_path).runs
    assert (entry.run_id, entry.kind, entry.state, entry.suite) == (outcome.run_id, "train", "finished", "memory")
    assert entry.headline.startswith("τ ")
    for _ in range(2):  # ingesting again replaces
        ingest_training(tmp_path / "specbench.duckdb", folder)
    training = read_training(folder)
    assert [step.step for step in training.steps] == list(range(1, 13))
    with open_store(tmp_path / "specbench.duckdb", read_only=True) as connection:
        rows = connection.execute("SELECT count(*), max(step) FROM train_steps").fetchall()
        tau = connection.execute("SELECT acceptance_length FROM train_figures WHERE is_best ORDER BY step").fetchall()
        depths = connection.execute("SELECT depth, accuracy FROM train_depths WHERE step = 12").fetchall()
    assert rows == [(12, 12)]
    assert tau[-1][0] == outcome.best["tau"]
    last = training.evals[-1]
    assert dict(depths) == {d: last.correct[d][0] / last.num[d] for d in range(2)}
    page = render_training(training)
    before_library = page[: page.index("<script>")]
    assert outcome.run_id in before_library and "default-src 'none'" in before_library and "src=" not in before_library
    assert any(line.startswith("loss") for line in lines_of(training))


def test_a_page_cannot_be_closed_by_a_name(target: Path, tmp_path: Path) -> None:
    outcome = train(make_request(target, tmp_path, max_steps=1, eval_every=1), Quiet(), corpus=make_corpus())
    training = read_training(tmp_path / "runs" / outcome.run_id)
    training.record["target"]["name"] = "</script><img src=x onerror=alert(1)>"
    page = render_training(training)
    assert "<img src=x" not in page and "&lt;img src=x" in page


def test_a_sparkline_shows_the_shape() -> None:
    assert spark([0, 1, 2, 3], width=8) == "▁▃▆█"
    assert len(spark(np.arange(100).tolist(), width=10)) == 10
    assert spark([2.0, 2.0], width=4) == "▁▁"


def test_a_dry_run_prints_bytes_tokens_and_time_and_writes_nothing(target: Path, tmp_path: Path) -> None:
    outcome = train(make_request(target, tmp_path, dry_run=True), Quiet(), corpus=make_corpus())
    assert outcome.plan is not None and outcome.state == "planned"
    assert outcome.plan.parameters["total"] == 2 * 16 * 4096
    assert outcome.plan.parameter_bytes == 4 * 2 * 16 * 4096
    assert outcome.plan.steps == 12 and outcome.plan.estimated_s is not None
    assert not (tmp_path / "runs").exists()
    assert any("bytes" in line for line in outcome.plan.lines())


def test_tensorboard_gets_a_real_event_file(target: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # 1 s, only here

    request = make_request(target, tmp_path, report_to=("tensorboard",))
    outcome = train(request, Quiet(), corpus=make_corpus())
    files = list((tmp_path / "runs" / outcome.run_id).rglob("events.out.tfevents.*"))
    # The writer puts the hyperparameters into a file of their own, in a folder below that of the curves.
    top = min(files, key=lambda file: len(file.parts))
    found = EventAccumulator(str(top))
    found.Reload()
    assert len(found.Scalars("loss")) == 12 and len(found.Scalars("eval/tau")) == 2
