"""`specbench run`: options reach the bench typed and whole; what comes back becomes table, JSON, exit code.

The bench itself is a small fake here; what it does is tested in tests/bench.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specbench import bench
from specbench.bench.request import GridAxis, PlanSummary, Progress, RunOutcome, RunRequest, Setting, Variant
from specbench.store.db import open_store
from specbench.store.ingest import ingest
from specbench.store.records import RunSummary
from specbench.store.summary import summarise
from tests.store.synthetic import write_synthetic

PROMISED = """
method num_questions num_repeats num_failed num_new_tokens tokens_per_s speedup speedup_ci speedup_decode
acceptance_length acceptance_by_position efficiency phase_s equality accuracy lossless carry ranked notes
"""
"""Fields of a row that scripts may rely on."""


class FakeBench:
    """Remembers the request and gives back one outcome."""

    def __init__(self) -> None:
        self.requests: list[RunRequest] = []
        self.outcome = RunOutcome(run_id="run-a", state="finished")

    def run(self, request: RunRequest, progress: Progress) -> RunOutcome:
        progress.say("warming up")
        self.requests.append(request)
        return self.outcome


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeBench:
    made = FakeBench()
    monkeypatch.setattr(bench, "run", made.run)
    return made


@pytest.fixture(scope="session")
def summary(tmp_path_factory: pytest.TempPathFactory) -> RunSummary:
    results = tmp_path_factory.mktemp("results")
    folder = write_synthetic(results / "runs" / "run-a", run_id="run-a")
    ingest(results / "specbench.duckdb", folder)
    with open_store(results / "specbench.duckdb", read_only=True) as connection:
        return summarise(connection, "run-a")


def test_every_option_reaches_the_bench(specbench: Callable[..., Any], fake: FakeBench) -> None:
    ran = specbench(
        *(
            "run",
            "demo",
            "--target",
            "org/model",
            "--methods",
            "autoregressive,draft_model",
            "--methods",
            "prompt_lookup",
        ),
        *("--limit", "3", "--max-new-tokens", "9", "--temperature", "0.5", "--top-k", "7", "--top-p", "0.9"),
        *("--min-p", "0.1", "--repetition-penalty", "1.1", "--rule", "rejection", "--seed", "5", "--batch-size", "2"),
        *(
            "--repeats",
            "4",
            "--carry",
            "stream",
            "--dtype",
            "float64",
            "--quantisation",
            "int8",
            "--device",
            "cuda:1",
            "--threads",
            "2",
        ),
        *("--attention", "reference", "--graphs", "on", "--compile", "off"),
        *("--set", "draft_model.model=org/small", "--set", "prompt_lookup.num_tokens=3"),
        *("--grid", "draft_model.num_tokens=1,2", "--fail-under", "1.5", "--data", "d", "--store", "s"),
        *("--variant", "draft_model:adaptive=true"),
        *("--template", "plain", "--trust-remote-code", "--max-len", "99", "--stop", "\n\n"),
    )
    assert ran.code == 0, ran.err
    [request] = fake.requests
    assert request == RunRequest(
        suite="demo",
        target="org/model",
        methods=("autoregressive", "draft_model", "prompt_lookup"),
        limit=3,
        max_new_tokens=9,
        temperature=0.5,
        top_k=7,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.1,
        rule="rejection",
        seed=5,
        batch_size=2,
        repeats=4,
        carry="stream",
        dtype="float64",
        quantisation="int8",
        device="cuda:1",
        threads=2,
        attention="reference",
        graphs="on",
        compile="off",
        settings=(Setting("draft_model", "model", "org/small"), Setting("prompt_lookup", "num_tokens", "3")),
        grid=(GridAxis("draft_model", "num_tokens", ("1", "2")),),
        variants=(Variant("draft_model", (("adaptive", "true"),)),),
        fail_under=1.5,
        data=(Path("d"),),
        store=Path("s"),
        template="plain",
        trust_remote_code=True,
        max_len=99,
        stop=("\n\n",),
        command=request.command,
    )


def test_the_first_line_on_stderr_says_the_command_in_full_when_defaults_were_taken(
    specbench: Callable[..., Any], fake: FakeBench
) -> None:
    first = specbench("run", "suites/mtbench.yaml", "--limit", "2").err.splitlines()[0]
    assert "specbench run suites/mtbench.yaml --methods autoregressive," in first
    for said in ("--target demo", "--limit 2", "--max-new-tokens", "--repeats"):
        assert said in first
    [request] = fake.requests
    assert request.target == "demo" and request.methods is not None and "prompt_lookup" in request.methods


def test_nothing_is_said_about_defaults_when_everything_was_typed(
    specbench: Callable[..., Any], fake: FakeBench
) -> None:
    ran = specbench(
        *("run", "demo", "--target", "demo", "--methods", "prompt_lookup", "--max-new-tokens", "8"),
        *("--temperature", "0", "--repeats", "1", "--threads", "1"),
    )
    assert ran.err.splitlines()[0] == "warming up"


def test_methods_left_out_are_named_with_the_reason(specbench: Callable[..., Any], fake: FakeBench) -> None:
    err = specbench("run", "demo", "--target", "org/other").err
    assert "left out: draft_model: needs --set draft_model.model=…" in err


def test_resume_needs_nothing_else(specbench: Callable[..., Any], fake: FakeBench) -> None:
    assert specbench("run", "--resume", "run-a").code == 0
    assert fake.requests[0].resume == "run-a"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("run",), "no suite was named"),
        (("run", "demmo"), "did you mean 'demo'"),
        (("run", "demo", "--methods", "promt_lookup", "--set", "prompt_lookup.k=1"), "not among the methods"),
        (("run", "demo", "--set", "draft_model.modle=x"), "did you mean 'model'"),
        (("run", "demo", "--rule", "couple"), "did you mean 'coupled'"),
        (("run", "demo", "--set", "x"), "METHOD.OPTION=VALUE"),
        (("run", "demo", "--temperature", "warm"), "--temperature"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_options_are_refused_before_torch_is_loaded(
    specbench: Callable[..., Any], fake: FakeBench, args: tuple[str, ...], said: str
) -> None:
    ran = specbench(*args)
    assert ran.code == 2 and said in ran.err and fake.requests == []


def test_the_table_goes_to_stdout_and_the_narration_to_stderr(
    specbench: Callable[..., Any], fake: FakeBench, summary: RunSummary
) -> None:
    fake.outcome = RunOutcome(run_id="run-a", state="finished", summary=summary)
    ran = specbench("run", "demo", "--store", "elsewhere")
    assert ran.code == 0
    assert summary.rows[1].method in ran.out and "speed-up" in ran.out
    assert "specbench results show run-a --store elsewhere" in ran.err and "warming up" in ran.err


def test_json_is_one_object_with_the_promised_fields(
    specbench: Callable[..., Any], fake: FakeBench, summary: RunSummary
) -> None:
    fake.outcome = RunOutcome(run_id="run-a", state="finished", summary=summary)
    found = json.loads(specbench("run", "demo", "--json").out)
    assert {"schema", "run_id", "suite", "target", "device", "dtype", "threads", "batch_size", "rows"} <= set(found)
    assert {"temperature", "rule", "seed"} <= set(found)
    for row in found["rows"]:
        assert set(PROMISED.split()) <= set(row)


def test_a_failed_check_exits_1_and_the_json_stays_one_object(
    specbench: Callable[..., Any], fake: FakeBench, summary: RunSummary
) -> None:
    fake.outcome = RunOutcome(
        run_id="run-a", state="finished", summary=summary, failed_checks=("prompt_lookup: 1 answer differs",)
    )
    ran = specbench("run", "demo", "--json")
    assert ran.code == 1 and json.loads(ran.out)["run_id"] == "run-a"
    assert "✗ prompt_lookup: 1 answer differs" in ran.err


def test_what_fail_under_cannot_judge_is_told_and_passes(specbench: Callable[..., Any], fake: FakeBench) -> None:
    sentence = "prompt_lookup: speed-up 1.170 is under 5, but too noisy"
    fake.outcome = RunOutcome(run_id="run-a", state="finished", undecided=(sentence,))
    ran = specbench("run", "demo", "--fail-under", "5")
    assert ran.code == 0 and f"⚠ {sentence}" in ran.err


def test_an_interrupted_run_exits_130_and_says_how_to_go_on(specbench: Callable[..., Any], fake: FakeBench) -> None:
    fake.outcome = RunOutcome(run_id="run-a", state="interrupted")
    ran = specbench("run", "demo", "--store", "s")
    assert ran.code == 130 and "specbench run --resume run-a --store s" in ran.err
    assert ran.err.count("interrupted") == 1


def test_a_dry_run_prints_the_plan_and_its_time(specbench: Callable[..., Any], fake: FakeBench) -> None:
    plan = PlanSummary(
        suite="demo",
        target="demo",
        device="cpu",
        dtype="float32",
        quantisation="int8",
        methods=("autoregressive", "autoregressive#2", "prompt_lookup"),
        num_questions=12,
        num_repeats=3,
        num_groups=108,
        max_new_tokens=96,
        estimated_s=185.0,
        estimate_basis="one question timed",
    )
    fake.outcome = RunOutcome(run_id="", state="planned", plan=plan)
    out = specbench("run", "demo", "--dry-run").out
    for said in (
        "float32, int8 on cpu",
        "12 questions",
        "autoregressive#2",
        "108 timed generations",
        "3 min 5 s",
        "one question timed",
    ):
        assert said in out
    found = json.loads(specbench("run", "demo", "--dry-run", "--json").out)
    assert found["dry_run"] is True and found["num_groups"] == 108
