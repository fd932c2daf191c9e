"""What a training computes: independent of how a batch is cut, resumed or distributed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training.small import METHODS, Quiet, make_corpus, make_documents, make_request, make_written

from specbench import checkpoint
from specbench.errors import EnvironmentFailed, UsageError
from specbench.store.training import read_training
from specbench.training import TrainRequest, features, train
from specbench.training.corpus import Corpus

WORKER = Path(__file__).resolve().parent / "worker.py"
REPOSITORY = WORKER.parents[2]


def _losses(store: Path, run_id: str) -> list[float]:
    return [step.loss for step in read_training(store / "runs" / run_id).steps]


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(checkpoint.load(folder, method="shallow").state)


def _resume(store: Path, run_id: str) -> TrainRequest:
    return TrainRequest(resume=run_id, store=store, methods_dirs=(METHODS,))


def _shorter(target: Path, folder: Path) -> Path:
    """The same target, built for 12 tokens."""
    copy = Path(shutil.copytree(target, folder / "short"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 12}))
    return copy


def _start(
    target: Path, store: Path, *more: dict[str, Any], environment: dict[str, str] | None = None, **changed: Any
) -> Any:
    """A training in a process of its own; more: those behind it."""
    return subprocess.Popen(
        [sys.executable, str(WORKER), str(target), str(store), json.dumps([changed, *more])],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait(is_so: Callable[[], bool], process: Any) -> None:
    deadline = time.monotonic() + 120
    while not is_so():
        if process.poll() is not None:
            pytest.fail(f"the worker ended early: {process.communicate()[1][-2000:]}")
        assert time.monotonic() < deadline, "the worker did not get there in time"
        time.sleep(0.05)


@pytest.mark.parametrize("learn", ["gt", "kd", "seq"])
def test_every_way_to_learn_lowers_the_loss(target: Path, tmp_path: Path, learn: str) -> None:
    progress = Quiet()
    outcome = train(make_request(target, tmp_path, learn=learn, max_steps=8), progress, corpus=make_corpus())
    assert outcome.state == "finished"
    assert progress.losses[-1] < 0.9 * progress.losses[0]
    assert outcome.folder is not None and outcome.best["tau"] >= 1


@pytest.mark.parametrize("loss", ["tv", "lk"])
def test_acceptance_aware_losses_are_an_option(target: Path, tmp_path: Path, loss: str) -> None:
    progress = Quiet()
    train(make_request(target, tmp_path, learn="kd", loss=loss, max_steps=6), progress, corpus=make_corpus())
    assert progress.losses[-1] < progress.losses[0]


def test_cutting_a_batch_into_micro_batches_changes_nothing(target: Path, tmp_path: Path) -> None:
    found = {}
    for micro_batch in (4, 1, 3):
        request = make_request(target, tmp_path, learn="kd", micro_batch=micro_batch, max_steps=6, lr=1e-3)
        outcome = train(request, Quiet(), corpus=make_corpus())
        assert outcome.folder is not None
        found[micro_batch] = (_losses(tmp_path, outcome.run_id), _weights(outcome.folder))
    for micro_batch in (1, 3):
        assert found[micro_batch][0] == pytest.approx(found[4][0], rel=1e-6)
        for name, tensor in found[4][1].items():
            torch.testing.assert_close(found[micro_batch][1][name], tensor, rtol=0, atol=1e-6)


def _pair(target: Path, store: Path, *trainings: dict[str, Any]) -> list[str]:
    """The ids of these trainings, one behind the other in the same two processes over gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        first, *others = trainings
        processes.append(_start(target, store, *others, environment=environment, **first))
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs[0][1][-3000:] + outputs[1][1][-3000:]
    [told] = {tuple(output.strip().splitlines()[-len(trainings) - 1 :]) for output, _ in outputs}
    assert told[-1] == "loaded:", "the runner loads no screen, no store and no page"
    return list(told[:-1])


def test_two_processes_train_what_one_does_and_resume_to_the_same_losses(target: Path, tmp_path: Path) -> None:
    """Under DDP, and under FSDP, where each holds half of the weights."""
    # 10 rows in batches of 4: the last batch of an epoch has 2; --batch-size 3 leaves one process a row of padding.
    changed = {"max_steps": 6, "batch_size": 3, "micro_batch": 1, "learn": "kd", "lr": 1e-3}
    # Dropout: each process has a random stream of its own to take up again.
    dropped: dict[str, Any] = {"max_steps": 8, "save_every": 3, "options": {"dropout": 0.3}}
    kinds: list[dict[str, Any]] = [{}, {"fsdp": True}]
    each = (changed, dropped, {**dropped, "interrupt_at": 4}, {"resume": "last"})
    two = tmp_path / "two"
    run_ids = _pair(target, two, *({**training, **kind} for kind in kinds for training in each))
    for whole, stopped, resumed in zip(run_ids[1::4], run_ids[2::4], run_ids[3::4], strict=True):
        assert resumed == stopped and read_training(two / "runs" / stopped).state == "finished"
        events = (two / "runs" / stopped / "events.jsonl").read_text()
        assert '"interrupted"' in events, "it was stopped in between"
        assert _losses(two, stopped) == _losses(two, whole) and len(_losses(two, whole)) == 8
        for name, tensor in _weights(two / "runs" / whole / "best").items():
            assert torch.equal(_weights(two / "runs" / stopped / "best")[name], tensor)
    alone = train(make_request(target, tmp_path / "one", **changed), Quiet(), corpus=make_corpus())
    for run_id in run_ids[::4]:
        assert _losses(two, run_id) == pytest.approx(_losses(tmp_path / "one", alone.run_id), rel=1e-6)
        for name, tensor in _weights(tmp_path / "one" / "runs" / alone.run_id / "best").items():
            torch.testing.assert_close(_weights(two / "runs" / run_id / "best")[name], tensor, rtol=0, atol=1e-6)
        record = json.loads((two / "runs" / run_id / "train.json").read_text())
        assert record["device"]["processes"] == 2


def test_a_killed_training_resumes_to_the_same_losses_bit_for_bit(target: Path, tmp_path: Path) -> None:
    """Mid-epoch, with dropout, behind a state that is two steps old: nothing of it may show."""
    options = {"dropout": 0.3}
    whole = train(make_request(target, tmp_path / "whole", options=options), Quiet(), corpus=make_corpus())
    store = tmp_path / "killed"
    process = _start(target, store, options={**options, "sleep_s": 0.1})

    def _is_there() -> bool:
        # Step 6 is evaluated; 4 was the last saved state.
        return any(read_training(folder.parent).evals for folder in store.glob("runs/*/train.json"))

    _wait(_is_there, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    [folder] = (store / "runs").iterdir()
    interrupted = read_training(folder)
    assert interrupted.state == "lost" and 6 <= interrupted.steps[-1].step < 12
    resumed = train(_resume(store, folder.name), Quiet(), corpus=make_corpus())
    assert resumed.run_id == folder.name and resumed.state == "finished" and resumed.steps == 12
    assert _losses(store, folder.name) == _losses(tmp_path / "whole", whole.run_id)
    assert whole.folder is not None and resumed.folder is not None
    for name, tensor in _weights(whole.folder).items():
        assert torch.equal(_weights(resumed.folder)[name], tensor)
    assert {**resumed.best} == {**whole.best}


class _Interrupting(Quiet):
    """Presses Ctrl-C in the middle of a training."""

    def step(self, *, step: int, share: float, loss: float, tokens_per_s: float, eta_s: float | None) -> None:
        super().step(step=step, share=share, loss=loss, tokens_per_s=tokens_per_s, eta_s=eta_s)
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupted_training_saves_itself_and_goes_on(target: Path, tmp_path: Path) -> None:
    options = {"dropout": 0.3}
    whole = train(make_request(target, tmp_path / "whole", options=options), Quiet(), corpus=make_corpus())
    stopped = train(make_request(target, tmp_path, options=options), _Interrupting(), corpus=make_corpus())
    assert stopped.state == "interrupted" and stopped.folder is None
    folder = tmp_path / "runs" / stopped.run_id
    assert read_training(folder).state == "interrupted"
    assert [each.name for each in (folder / "state").iterdir()] == [f"{stopped.steps:08d}"]
    finished = train(_resume(tmp_path, stopped.run_id), Quiet(), corpus=make_corpus())
    assert finished.state == "finished"
    assert _losses(tmp_path, stopped.run_id) == _losses(tmp_path / "whole", whole.run_id)


def test_resuming_is_refused_where_documents_target_or_method_changed(target: Path, tmp_path: Path) -> None:
    from training.small import make_target

    stopped = train(make_request(target, tmp_path), _Interrupting(), corpus=make_corpus())
    request = _resume(tmp_path, stopped.run_id)
    with pytest.raises(EnvironmentFailed, match=r"the documents .* changed"):
        train(request, Quiet(), corpus=make_corpus(seed=9))
    folder = tmp_path / "runs" / stopped.run_id
    record = json.loads((folder / "train.json").read_text())
    other = make_target(tmp_path / "wide", hidden_size=32)
    changed = {**record, "request": {**record["request"], "target": str(other)}}
    (folder / "train.json").write_text(json.dumps(changed))
    with pytest.raises(EnvironmentFailed, match=r"hidden size \(16 then, 32 now\)"):
        train(request, Quiet(), corpus=make_corpus())
    (folder / "train.json").write_text(json.dumps(record))
    [state] = (folder / "state").glob("*/state.json")
    state.write_text(state.read_text().replace('"method": "shallow"', '"method": "lstm"'))
    with pytest.raises(UsageError, match="is of method 'lstm', not 'shallow'"):
        train(request, Quiet(), corpus=make_corpus())


def test_options_cannot_be_changed_on_resume() -> None:
    with pytest.raises(UsageError, match="--lr cannot be changed"):
        TrainRequest(resume="some-run", lr=1e-2)


def test_cached_states_train_the_same(target: Path, tmp_path: Path) -> None:
    online = train(make_request(target, tmp_path, learn="kd", max_steps=6), Quiet(), corpus=make_corpus())
    progress = Quiet()
    cached = train(
        make_request(target, tmp_path, learn="kd", max_steps=6, cache_states=True), progress, corpus=make_corpus()
    )
    assert _losses(tmp_path, cached.run_id) == pytest.approx(_losses(tmp_path, online.run_id), rel=1e-5)
    assert any(line.startswith("states on disk:") for line in progress.lines)
    # Every entry of the law is kept: the same loss, by another road.
    whole = train(
        make_request(target, tmp_path, learn="kd", max_steps=6, cache_states=True, teacher_top_k=4096),
        Quiet(),
        corpus=make_corpus(),
    )
    assert _losses(tmp_path, whole.run_id) == pytest.approx(_losses(tmp_path, online.run_id), rel=1e-5)
    cut = train(
        make_request(target, tmp_path, learn="kd", max_steps=6, cache_states=True, teacher_top_k=8),
        Quiet(),
        corpus=make_corpus(),
    )
    assert cut.state == "finished" and _losses(tmp_path, cut.run_id)[0] < _losses(tmp_path, online.run_id)[0]


def test_seeds_that_share_their_data_share_its_states_and_read_the_rows_in_another_order(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECBENCH_CACHE", str(tmp_path / "cache"))
    options: dict[str, Any] = {"learn": "kd", "max_steps": 6, "cache_states": True, "data_seed": 7}
    losses, folders = [], []
    for seed in (1, 2):
        done = train(make_request(target, tmp_path, seed=seed, **options), Quiet(), corpus=make_corpus())
        losses.append(_losses(tmp_path, done.run_id))
        folders.append(sorted(path.name for path in (tmp_path / "cache" / "states").iterdir()))
    assert losses[0] != losses[1]
    assert folders[0] == folders[1] and len(folders[0]) == 1


def test_patience_ends_a_training_that_no_longer_improves(target: Path, tmp_path: Path) -> None:
    request = make_request(target, tmp_path, lr=1e-12, eval_every=1, eval_prompts=2, patience=2, max_steps=50)
    outcome = train(request, Quiet(), corpus=make_corpus())
    assert outcome.why == "patience" and outcome.steps == 3
    assert outcome.best["step"] == 1


def test_a_training_that_lost_its_patience_has_ended_for_good(target: Path, tmp_path: Path) -> None:
    request = make_request(target, tmp_path, lr=1e-12, eval_every=2, eval_prompts=2, patience=2, max_steps=50)
    first = train(request, Quiet(), corpus=make_corpus())
    progress = Quiet()
    again = train(_resume(tmp_path, first.run_id), progress, corpus=make_corpus())
    assert (again.why, again.steps, again.state) == ("patience", first.steps, "finished") and progress.losses == []


def test_documents_as_long_as_the_context_leave_room_for_their_continuations(target: Path, tmp_path: Path) -> None:
    """The target was built for 128 tokens; two depths are taught by three tokens behind every place."""
    plain = make_documents(24)
    start = plain.start_of[::12]
    sizes = np.diff(start)
    long = replace(plain, start_of=start, prompt_length_of=sizes // 3, answer_length_of=sizes - sizes // 3)
    assert min(sizes) > 128
    corpus = Corpus(name="long", train=long, held_out=make_documents(4, seed=1000))
    changed = {"learn": "seq", "max_length": 128, "max_steps": 2, "micro_batch": 1, "eval_prompts": 0}
    outcome = train(make_request(target, tmp_path, **changed), Quiet(), corpus=corpus)
    assert outcome.state == "finished" and outcome.plan is not None and outcome.plan.row_tokens == 125
    with pytest.raises(UsageError, match="continuations of 9 tokens leave no room") as refused:
        train(
            make_request(_shorter(target, tmp_path), tmp_path, learn="seq", options={"depth": 8}),
            Quiet(),
            corpus=corpus,
        )
    assert "--max-len" not in refused.value.try_


def test_the_plan_counts_the_mask_of_continuations(target: Path, tmp_path: Path) -> None:
    found = {}
    for learn in ("gt", "seq"):
        request = make_request(target, tmp_path, learn=learn, dry_run=True)
        outcome = train(request, Quiet(), corpus=make_corpus())
        assert outcome.plan is not None
        found[learn] = outcome.plan.memory_bytes
    # 4 rows, 48 tokens, 2 depths: the last forward reads 4 times the slots; a bool and a float32 for each pair.
    assert found["seq"] - found["gt"] >= 4 * 48**2 * (4**2 - 1) * 5


def test_an_evaluation_reads_the_target_in_its_own_precision(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bf16 is the drafter's arithmetic alone, in steps and in evaluations."""
    seen: list[bool] = []
    real = features.packed_states

    def spy(*args: Any) -> torch.Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return real(*args)

    monkeypatch.setattr(features, "packed_states", spy)
    request = make_request(target, tmp_path, precision="bf16", max_steps=1, eval_prompts=0)
    train(request, Quiet(), corpus=make_corpus())
    assert len(seen) >= 2 and not any(seen)


def test_what_a_kill_between_two_renames_left_is_put_right_on_resume(target: Path, tmp_path: Path) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    stopped = train(make_request(target, tmp_path, eval_every=2), _Interrupting(), corpus=make_corpus())
    folder = tmp_path / "runs" / stopped.run_id
    [state] = (folder / "state").iterdir()
    state.rename(state.with_name(f".{state.name}.{gone.pid}.old"))
    (folder / "best").rename(folder / f".best.{gone.pid}.old")
    (folder / f".best.{gone.pid}.part").mkdir()
    finished = train(_resume(tmp_path, stopped.run_id), Quiet(), corpus=make_corpus())
    assert finished.state == "finished"
    assert [step.step for step in read_training(folder).steps] == list(range(1, 13))
    assert not [path for path in folder.rglob(".*") if str(gone.pid) in path.name]


def test_the_finished_drafter_drafts_what_the_live_one_did(target: Path, tmp_path: Path) -> None:
    """Save, load, draft: the same simulated acceptance."""
    from specbench.training.measure import evaluate

    parts = make_written(target, 40).split(8, seed=0)
    corpus = Corpus(name="written", train=parts.train, held_out=parts.held_out)
    outcome = train(make_request(target, tmp_path, max_steps=60, eval_every=60), Quiet(), corpus=corpus)
    request = make_request(target, tmp_path, options={"weights": str(outcome.folder)})
    found = evaluate(request, Quiet(), documents=corpus.held_out)
    assert found.acceptance_length == outcome.best["tau"] and found.acceptance_length > 1
    assert len(found.accuracy) == 2 and found.num_labels[0] >= found.num_labels[1] > 0


def test_a_drafter_made_before_an_option_existed_is_evaluated_with_its_default(target: Path, tmp_path: Path) -> None:
    from specbench.training.measure import evaluate

    outcome = train(make_request(target, tmp_path, max_steps=2), Quiet(), corpus=make_corpus())
    assert outcome.folder is not None
    request = make_request(target, tmp_path, options={"weights": str(outcome.folder)})
    documents = make_corpus().held_out
    now = evaluate(request, Quiet(), documents=documents)
    config = outcome.folder / "config.json"
    body = json.loads(config.read_text())
    assert body["training"]["options"], "the shallow method has options to forget"
    body["training"]["options"] = {}
    config.write_text(json.dumps(body))
    assert evaluate(request, Quiet(), documents=documents) == now


def test_without_prompts_the_best_is_by_loss(target: Path, tmp_path: Path) -> None:
    outcome = train(make_request(target, tmp_path, eval_prompts=0), Quiet(), corpus=make_corpus())
    assert outcome.best["tau"] is None and outcome.folder is not None
    evals = read_training(tmp_path / "runs" / outcome.run_id).evals
    assert outcome.best["step"] == min(evals, key=lambda each: sum(each.loss)).step


def test_bf16_arithmetic_keeps_float32_parameters(target: Path, tmp_path: Path) -> None:
    progress = Quiet()
    outcome = train(make_request(target, tmp_path, precision="bf16", learn="kd"), progress, corpus=make_corpus())
    assert outcome.folder is not None and progress.losses[-1] < progress.losses[0]
    assert all(tensor.dtype == torch.float32 for tensor in _weights(outcome.folder).values())


def test_a_training_without_duckdb_keeps_its_journal_and_says_how_to_ingest_it(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    quiet = Quiet()
    outcome = train(make_request(target, tmp_path, max_steps=2), quiet, corpus=make_corpus())
    assert outcome.state == "finished"
    assert any("DuckDB is not installed" in said and f"ingest {outcome.run_id}" in said for said in quiet.lines)
    assert not list(tmp_path.glob("*.duckdb")) and (tmp_path / "runs" / outcome.run_id / "train.json").exists()
