"""`specbench eval` of methods that nobody trains: what a run would count, without its clock."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training.small import Quiet, make_request, make_written

from specbench import registry
from specbench.bench.request import Setting
from specbench.engine.decode import Engine
from specbench.engine.recorded import RecordedGraphs
from specbench.engine.stop import Stop
from specbench.errors import UsageError
from specbench.lm.load import load_lm
from specbench.lm.stops import stop_ids_of
from specbench.method import Request
from specbench.sampling import Sampling
from specbench.training import evaluate as training_evaluate
from specbench.training.evaluate import Simulator
from specbench.training.measure import evaluate


def test_a_method_that_is_not_trained_is_simulated_as_a_run_would_count_it(target: Path, tmp_path: Path) -> None:
    """The same prompts decoded by the engine: the same steps, tokens and nodes."""
    documents = make_written(target, 6)
    request = replace(
        make_request(target, tmp_path, method="prompt_lookup", eval_prompts=6, eval_new_tokens=24), methods_dirs=()
    )
    found = evaluate(request, Quiet(), documents=documents)
    assert found.num_prompts == 6 and not found.num_labels and found.weights == ""
    lm = load_lm(str(target), device=torch.device("cpu"), dtype=torch.float32)
    engine = Engine(lm, sampling=Sampling(), max_len=96, max_nodes=16, stop=Stop(ids=stop_ids_of(lm)))
    drafter = registry.load("prompt_lookup")(registry.check_options(registry.card("prompt_lookup"), {}), engine.view())
    steps = [
        step
        for document in documents
        for generation in engine.generate(
            drafter, [Request(key=0, prompt=document.prompt, max_new_tokens=24)]
        ).generations
        for step in generation.steps
    ]
    kept = sum(step.num_committed - step.num_truncated for step in steps)
    assert found.num_steps == len(steps)
    assert found.acceptance_length == pytest.approx(kept / len(steps))


def test_texts_to_judge_by_are_written_through_captured_steps_that_are_then_let_go(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = make_written(target, 6)
    lm = load_lm(str(target), device=torch.device("cpu"), dtype=torch.float64)
    plain = Simulator(lm, documents, num=6, max_new_tokens=20)
    plain.write_answers(None)
    monkeypatch.setattr(training_evaluate, "graphs_for", lambda _: RecordedGraphs())
    captured = Simulator(lm, documents, num=6, max_new_tokens=20)
    graphs = captured._engine.graphs
    assert graphs is not None
    captured.write_answers(None)
    assert captured._texts == plain._texts
    assert isinstance(graphs.backend, RecordedGraphs) and graphs.backend._last is not None, "steps were replayed"
    assert not graphs._kept, "a training has use for their memory"


def test_a_wrapped_method_is_simulated_with_its_own_settings(target: Path, tmp_path: Path) -> None:
    request = replace(
        make_request(target, tmp_path, method="hybrid", eval_prompts=3, eval_new_tokens=16),
        methods_dirs=(),
        settings=(Setting("hybrid", "inner", "prompt_lookup"),),
    )
    wrapped = (Setting("prompt_lookup", "num_tokens", "2"),)
    found = evaluate(request, Quiet(), wrapped=wrapped, documents=make_written(target, 3))
    assert found.acceptance_length is not None and found.acceptance_length >= 1
    with pytest.raises(UsageError, match="neither the method nor wrapped by it"):
        evaluate(request, Quiet(), wrapped=(Setting("lstm", "num_tokens", "2"),), documents=make_written(target, 3))
    oracle = replace(request, method="oracle", settings=())
    with pytest.raises(UsageError, match="replays the known answer"):
        evaluate(oracle, Quiet(), documents=make_written(target, 3))
