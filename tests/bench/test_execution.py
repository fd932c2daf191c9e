"""How steps are run is chosen in the open: what cannot be done is refused or said, never done otherwise in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from specbench.api import Silent
from specbench.bench import execution, session
from specbench.bench.execution import compile_target, describe, pick_graphs
from specbench.bench.request import RunRequest, Setting
from specbench.bench.runner import run
from specbench.engine import graphs
from specbench.engine.decode import Engine
from specbench.engine.graphs import Graph, Step
from specbench.engine.recorded import RecordedGraphs
from specbench.errors import EnvironmentFailed, UsageError
from specbench.lm.cached_lm import CachedLM
from specbench.lm.chain import ChainDrafter
from specbench.manifest import read_manifest
from specbench.sampling import Sampling
from tests.bench.runs import CHAIN_HEAD, request_for
from tests.helpers import requests_for, tiny_lm


def test_graphs_are_refused_on_a_cpu_and_auto_does_without() -> None:
    lm = tiny_lm("llama")
    assert pick_graphs("auto", lm) is None
    assert pick_graphs("off", lm) is None
    with pytest.raises(EnvironmentFailed, match="need a CUDA device"):
        pick_graphs("on", lm)


def test_what_a_row_says_of_its_execution() -> None:
    lm = tiny_lm("llama")
    assert describe(lm, None) == "operators"
    assert describe(lm, RecordedGraphs()) == "graphs"
    lm.compile(backend="eager", is_whole=True)
    assert describe(lm, None) == "operators, compiled"
    lm.compile(backend="eager")
    assert describe(lm, None) == "operators, compiled by layers"
    lm.run_uncompiled()
    assert describe(lm, None) == "operators"


def _steps_take(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    """Whatever is asked to make one takes these, one after the other."""
    left = iter(seconds)

    def step_s(lm: CachedLM, max_len: int, graphs: object) -> float:
        if lm._compiled is not None:
            lm._compiled.compile_s += 1.0
        return next(left)

    monkeypatch.setattr(execution, "_step_s", step_s)


def test_auto_keeps_a_compiled_target_only_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    for before, after, is_kept in ((1.0, 0.5, True), (0.5, 1.0, False)):
        lm = tiny_lm("llama")
        monkeypatch.setattr(type(lm), "device", property(lambda _: torch.device("cuda")), raising=False)
        _steps_take(monkeypatch, before, after)
        object.__setattr__(lm, "compile", lambda lm=lm, **how: type(lm).compile(lm, **how, backend="eager"))
        compile_target("auto", lm, say=said.append, max_len=32)
        assert lm.is_compiled is is_kept
        monkeypatch.undo()
    assert "is compiled layer by layer" in said[0]
    assert "runs as it is" in said[1] and "1000.00 ms instead of 500.00" in said[1]


def test_a_step_is_timed_as_the_run_will_run_it() -> None:
    """Replayed where it is captured: what launches cost decides nothing there."""

    class Counting(RecordedGraphs):
        num_replays = num_forgotten = 0

        def run_and_capture(self, step: Step) -> tuple[Any, Graph | None, str]:
            returned, graph, why = super().run_and_capture(step)
            assert graph is not None
            replay = graph.replay

            def counted() -> Any:
                self.num_replays += 1
                return replay()

            object.__setattr__(graph, "replay", counted)
            return returned, graph, why

        def forget(self) -> None:
            self.num_forgotten += 1

    backend = Counting()
    assert execution._step_s(tiny_lm("llama"), 32, backend) > 0
    assert backend.num_replays == 30 and backend.num_forgotten == 1
    assert execution._step_s(tiny_lm("llama"), 32, None) > 0


def test_on_a_cpu_auto_does_not_compile() -> None:
    lm = tiny_lm("llama")
    compile_target("auto", lm, say=lambda text: None, max_len=32)
    assert not lm.is_compiled


def test_a_target_that_cannot_be_compiled_is_refused_where_it_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama", dtype=torch.float32)

    def fails(lm: object, max_len: int, graphs: object) -> float:
        raise RuntimeError("graph break in the model\nmore")

    monkeypatch.setattr(execution, "_step_s", fails)
    with pytest.raises(
        EnvironmentFailed, match=r"cannot be compiled: graph break in the model\n  where.*\n.*--compile auto"
    ):
        compile_target("on", lm, say=lambda text: None, max_len=32)
    assert not lm.is_compiled


def test_a_target_whose_forwards_pass_the_compiler_by_is_not_called_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_lm("llama")
    plain = lm.model.model.forward
    compiles = CachedLM.compile

    def passed_by(lm: CachedLM, *, is_whole: bool) -> None:
        compiles(lm, is_whole=is_whole, backend="eager")
        lm.model.model.forward = plain

    monkeypatch.setattr(CachedLM, "compile", passed_by)
    with pytest.raises(EnvironmentFailed, match="went past the compiler"):
        compile_target("on", lm, say=lambda text: None, max_len=32)
    assert not lm.is_compiled


def test_a_split_target_is_not_compiled() -> None:
    lm = tiny_lm("llama")
    lm.num_processes = 2
    with pytest.raises(UsageError, match="split over processes"):
        compile_target("on", lm, say=lambda text: None, max_len=32)


def _as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draft models are compiled, traced alone."""
    compiles = CachedLM.compile
    monkeypatch.setattr(execution, "_is_cuda", lambda lm: True)
    monkeypatch.setattr(
        CachedLM, "compile", lambda lm, is_whole=False: compiles(lm, is_whole=is_whole, backend="eager")
    )


@pytest.mark.parametrize(
    ("switch", "times", "is_kept", "note"),
    [
        ("on", (1.0,), True, ""),
        ("auto", (1.0, 0.5), True, ""),
        ("auto", (0.5, 1.0), False, "compiled, a step takes 1000.00 ms instead of 500.00"),
    ],
)
def test_a_draft_model_is_compiled_as_its_target_is(
    monkeypatch: pytest.MonkeyPatch, switch: str, times: tuple[float, ...], is_kept: bool, note: str
) -> None:
    target, draft = tiny_lm("llama"), tiny_lm("llama", seed=1)
    engine = Engine(target, sampling=Sampling(), max_batch=2, max_len=64, max_nodes=4)
    drafter = ChainDrafter(draft, engine.view(), num_tokens=3, num_shared=target.vocab_size)
    answers = [each.tokens for each in engine.generate(drafter, requests_for()[:2]).generations]
    assert execution.compile_models(switch, target, drafter, max_len=32) == [], "the target is as it is"
    assert not draft.is_compiled
    target.compile(backend="eager")
    assert execution.compile_models(switch, target, drafter, max_len=32) == [], "on a CPU it is not worth it"
    assert not draft.is_compiled
    _as_on_cuda(monkeypatch)
    _steps_take(monkeypatch, *times)
    notes = execution.compile_models(switch, target, drafter, max_len=32)
    assert draft.is_compiled is is_kept
    assert [each.endswith(note) for each in notes] == ([True] if note else [])
    assert [each.tokens for each in engine.generate(drafter, requests_for()[:2]).generations] == answers
    assert (draft.compile_s > 1) is is_kept, "what the forwards took is counted as well"
    if switch == "on":
        _steps_take(monkeypatch, 1.0)
        assert execution.compile_models("whole", target, drafter, max_len=32) == [] and draft.is_compiled_whole


def test_a_draft_model_that_cannot_be_compiled_is_refused_where_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target, draft = tiny_lm("llama"), tiny_lm("llama", seed=1)
    engine = Engine(target, sampling=Sampling(), max_batch=1, max_len=64, max_nodes=4)
    drafter = ChainDrafter(draft, engine.view(), num_tokens=3, num_shared=target.vocab_size)
    target.compile(backend="eager")
    _as_on_cuda(monkeypatch)

    def fails(lm: object, max_len: int, graphs: object) -> float:
        if lm is draft and draft.is_compiled:
            raise RuntimeError("graph break")
        return 1.0

    monkeypatch.setattr(execution, "_step_s", fails)
    with pytest.raises(EnvironmentFailed, match="cannot be compiled: graph break"):
        execution.compile_models("on", target, drafter, max_len=32)
    [note] = execution.compile_models("auto", target, drafter, max_len=32)
    assert "beside a compiled target: it cannot be compiled (graph break)" in note and not draft.is_compiled


def test_a_run_compiles_draft_models_beside_its_target_and_those_behind_another_method(
    tiny_suite: Path, tiny_target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _as_on_cuda(monkeypatch)
    compiled: list[str] = []
    compiles = CachedLM.compile

    def counted(lm: CachedLM, *, is_whole: bool) -> None:
        compiled.append("whole" if is_whole else "by layers")
        compiles(lm, is_whole=is_whole)

    monkeypatch.setattr(CachedLM, "compile", counted)
    asked = request_for(
        tiny_suite,
        tiny_target,
        tmp_path,
        methods=("autoregressive", "draft_model", "hybrid", "adaptive_lora"),
        settings=(
            Setting("draft_model", "model", str(tiny_target)),
            Setting("hybrid", "inner", "draft_model"),
            Setting("adaptive_lora", "model", str(tiny_target)),
        ),
        compile="on",
        dtype="float64",
        limit=2,
        repeats=1,
    )
    outcome = run(asked, Silent())
    assert outcome.summary is not None and outcome.summary.execution == "operators, compiled by layers"
    assert compiled == ["by layers"] * 4, "the target and three methods' models"
    [folder] = (tmp_path / "runs").iterdir()
    manifest = read_manifest(folder)
    found = {each.label: each.num_compiled for each in manifest.methods if not each.is_control}
    assert found == {"autoregressive": 0, "draft_model": 1, "hybrid(draft_model)": 1, "adaptive_lora": 1}
    for row in outcome.summary.rows:
        assert row.num_failed == 0 and row.equality is not None and row.equality.bug == 0, row.method
        assert not any("runs as it is" in note for note in row.notes)


class Noted(Silent):
    """Keeps what a run narrates."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize(("batch_size", "why_phased"), [(1, ""), (3, "Triton is not installed")])
def test_a_run_with_captured_steps_measures_the_same_text_and_says_so(
    tiny_suite: Path,
    tiny_target: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    batch_size: int,
    why_phased: str,
) -> None:
    """Whole runs, with graphs that replay operators in place of CUDA's; one per step, and one per phase."""
    monkeypatch.setattr(session, "pick_graphs", lambda switch, lm: RecordedGraphs(why_phased=why_phased))
    asked = request_for(
        tiny_suite,
        tiny_target,
        tmp_path / "results",
        methods=("autoregressive", "prompt_lookup", "draft_model", "suffix"),
        settings=(Setting("draft_model", "model", str(tiny_target)),),
        dtype="float64",
        batch_size=batch_size,
        repeats=1,
    )
    noted = Noted()
    outcome = run(asked, noted)
    assert outcome.state == "finished" and not outcome.failed_checks and outcome.summary is not None
    assert outcome.summary.execution == ("graphs, one per phase" if why_phased else "graphs")
    told = "a step is one graph per phase, timed by events: Triton is not installed"
    assert (told in noted.said) == bool(why_phased)
    for row in outcome.summary.rows:
        assert row.num_failed == 0 and row.equality is not None
        assert (row.equality.identical, row.equality.bug) == (5, 0), row.method
        assert row.phase_s.verify > 0 and row.phase_s.commit > 0
    [folder] = (tmp_path / "results" / "runs").iterdir()
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    made = {each["method"]: each["value"] for each in events if each.get("name") == "num_graphs"}
    assert made and min(made.values()) > 0, "every method's steps were captured before anything was timed"
    assert not any(each.get("name") == "single_steps" for each in events), "every timed step met a graph"
    timer = {each["name"]: each["value"] for each in events if each.get("name", "").startswith("timer_")}
    assert set(timer) == (set() if why_phased else {"timer_resolution_ns", "timer_stamp_ns"})
    assert all(value > 0 for value in timer.values()), "what phase times are worth is stored with them"
    manifest = read_manifest(folder)
    monkeypatch.undo()
    with pytest.raises(EnvironmentFailed, match="how steps are run"):
        run(RunRequest(resume=manifest.run_id, store=tmp_path / "results"), Silent())


def test_timed_steps_that_meet_no_graph_are_counted_on_the_row(
    tiny_suite: Path, tiny_target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where more shapes are wanted than are kept."""
    monkeypatch.setattr(session, "pick_graphs", lambda switch, lm: RecordedGraphs())
    monkeypatch.setattr(graphs, "MOST_GRAPHS", 0)
    asked = request_for(
        tiny_suite, tiny_target, tmp_path, methods=("autoregressive", "prompt_lookup"), dtype="float64", repeats=1
    )
    outcome = run(asked, Silent())
    assert outcome.summary is not None and not outcome.failed_checks
    notes = {row.method: " ".join(row.notes) for row in outcome.summary.rows}
    assert "operator by operator" in notes["prompt_lookup"]
    assert not any(row.ranked for row in outcome.summary.rows), "nothing of it was run as the run says"
    # Counted answer by answer: a run that is killed keeps what it saw.
    [folder] = (tmp_path / "runs").iterdir()
    told = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    single = [each for each in told if each.get("name") == "single_steps" and each["method"] == "prompt_lookup"]
    finished = [each for each in told if each["e"] == "generation_finished" and each["method"] == "prompt_lookup"]
    assert [each["value"] for each in single] == [each["num_steps"] for each in finished]


def test_what_compiling_took_is_told_apart_with_what_later_shapes_took(
    tiny_suite: Path, tiny_target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def traced_only(lm: CachedLM, *, is_whole: bool) -> None:
        compiles(lm, is_whole=is_whole, backend="eager")

    compiles = CachedLM.compile
    monkeypatch.setattr(CachedLM, "compile", traced_only)
    asked = request_for(
        tiny_suite, tiny_target, tmp_path, methods=("autoregressive",), compile="on", limit=2, repeats=1
    )
    outcome = run(asked, Silent())
    assert outcome.summary is not None and outcome.summary.execution == "operators, compiled"
    assert any(note.startswith("compiling took ") for note in outcome.summary.notes)
    [folder] = (tmp_path / "runs").iterdir()
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    named = [each["name"] for each in events if "name" in each]
    assert named.index("compile_s") > max(place for place, name in enumerate(named) if name == "warm_up_s")


class Refusing(RecordedGraphs):
    """Captures nothing."""

    def run_and_capture(self, step: Step) -> tuple[Any, Graph | None, str]:
        return step(), None, "operator `nonzero` reads a value on the host"


def test_a_row_whose_steps_could_not_be_captured_says_so_and_why(
    tiny_suite: Path, tiny_target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "pick_graphs", lambda switch, lm: Refusing())
    asked = request_for(
        tiny_suite, tiny_target, tmp_path, methods=("autoregressive", "prompt_lookup"), dtype="float64", repeats=1
    )
    outcome = run(asked, Silent())
    assert outcome.summary is not None and outcome.summary.execution == "graphs"
    for row in outcome.summary.rows:
        assert any("operator by operator" in note and "`nonzero` reads" in note for note in row.notes), row.method


def test_a_row_says_in_how_many_generations_the_drafter_s_own_numbers_were_none(go, plant) -> None:
    code = CHAIN_HEAD + (
        "class D(Drafter):\n"
        "    def begin(self, requests):\n        self.length = len(requests[0].prompt)\n"
        "    def draft(self, noise):\n        return empty(1, torch.device('cpu'))\n"
        "    def is_finite(self):\n        return self.length != 5\n"
        "def build(options, target, inner=None):\n    return D()\n"
    )
    outcome, _ = go(methods=("overflowing",), methods_dirs=(plant("overflowing", code),), repeats=2)
    assert outcome.summary is not None
    rows = {each.method: each for each in outcome.summary.rows}
    row = rows["overflowing"]
    assert row.equality is not None and row.equality.identical > 0 and row.lossless
    assert [note for note in row.notes if "NaN" in note and " in 2 generations" in note], row.notes
    assert not any("NaN" in note for note in rows["autoregressive"].notes)
