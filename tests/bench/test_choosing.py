"""Which options `specbench tune` names: those a paired run ranks first, with every condition it found them under."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from specbench.bench import tuning
from specbench.bench.candidates import Candidate, Confirmed, choose, confirmed_by, in_order
from specbench.bench.defaults import with_defaults
from specbench.bench.request import GridAxis, RunRequest, Setting
from specbench.bench.tuning import _command
from specbench.errors import EnvironmentFailed
from specbench.store.records import Equality, MethodRow
from specbench.suite import Defaults
from tests.conftest import Ran
from tests.report.samples import method_row

BASELINE = "autoregressive"


def candidate(value: str, predicted: float) -> Candidate:
    return Candidate(
        options=(("n", value),), max_nodes=1, acceptance_length=2.0, num_nodes=1.0, verify_s=1.0, draft_s=1.0,
        rest_s=1.0, predicted=predicted,
    )  # fmt: skip


A, B, C = CANDIDATES = (candidate("a", 2.0), candidate("b", 1.9), candidate("c", 1.8))


def measured(**rows: MethodRow | None) -> tuple[Confirmed, ...]:
    by_value = {each.options[0][1]: each for each in CANDIDATES}
    return in_order(confirmed_by(row, by_value[value]) for value, row in rows.items())


def unranked(note: str, speedup: float, **changes: Any) -> MethodRow:
    return dataclasses.replace(method_row("x", speedup=speedup, rank=None, **changes), notes=(note,))


def test_the_fastest_ranked_row_is_chosen_and_its_ties_are_named() -> None:
    confirmed = measured(
        a=method_row("a", speedup=1.5, rank=1, tied_with=("m[n=b]",)),
        b=method_row("b", speedup=1.6, rank=1, tied_with=("m[n=a]",)),
        c=unranked("too noisy here: the interval is ±30% wide", 2.5, too_noisy=True),
    )
    assert [each.options[0][1] for each in confirmed] == ["b", "a", "c"]
    choice = choose(CANDIDATES, confirmed, baseline=BASELINE)
    assert choice.options == B.options and choice.why == "the fastest measured; tied with m[n=a]"


@pytest.mark.parametrize(
    ("speedup", "tied_with", "why"),
    [
        (1.02, (BASELINE,), "the fastest measured, but not told from autoregressive"),
        (0.8, (), "the fastest measured, but slower than autoregressive"),
        (1.02, (BASELINE, "m[n=b]"), "the fastest measured, but not told from autoregressive; tied with m[n=b]"),
    ],
)
def test_options_that_gain_nothing_are_not_called_a_gain(speedup: float, tied_with: tuple[str, ...], why: str) -> None:
    confirmed = measured(a=method_row("a", speedup=speedup, tied_with=tied_with))
    assert choose(CANDIDATES, confirmed, baseline=BASELINE).why == why


def test_where_nothing_may_be_ranked_measured_differences_decide_nothing() -> None:
    """A failed control says that they are the machine's."""
    why = "control failed: autoregression against itself gives [1.020, 1.041], which excludes 1"
    rows = {name: unranked(why, speedup, control_failed=True) for name, speedup in (("a", 1.5), ("b", 1.9), ("c", 1.7))}
    confirmed = measured(**rows)
    assert [each.rank for each in confirmed] == [None] * 3
    choice = choose(CANDIDATES, confirmed, baseline=BASELINE)
    assert choice.options == A.options and why in choice.why


def test_options_whose_answers_differ_are_not_chosen_however_fast() -> None:
    note = "not ranked: 3 answers differ from the reference beyond rounding (bug)"
    wrong = unranked(note, 3.0, equality=Equality(identical=9, tie=0, numeric=0, bug=3))
    sound = method_row("b", speedup=1.1)
    assert choose(CANDIDATES, measured(a=wrong, b=sound), baseline=BASELINE).options == B.options
    failed = dataclasses.replace(method_row("b", speedup=None, rank=None), notes=("not ranked: nothing finished",))
    choice = choose(CANDIDATES, measured(a=wrong, b=failed), baseline=BASELINE)
    assert choice.options == C.options and choice.why.startswith("the best prediction that was not refuted")


def test_without_a_measurement_the_best_prediction_is_named_as_one() -> None:
    choice = choose(CANDIDATES, (), baseline=BASELINE)
    assert choice == (A.options, "the best prediction; nothing was measured")
    choice = choose(CANDIDATES, measured(b=None), baseline=BASELINE)
    assert choice.options == A.options and "no figures" in choice.why


def test_the_command_says_all_that_was_tuned_for() -> None:
    """Without one of these the options are run on another machine's arithmetic, or on other text."""
    request = RunRequest(
        suite="mine.yaml", target="T", methods=(BASELINE, "prompt_lookup"), temperature=0.0, top_p=0.9, top_k=40,
        dtype="bfloat16", device="cuda:1", attention="sdpa", graphs="off", compile="off", seed=7, limit=12,
        max_new_tokens=128, repeats=3, rule="coupled", quantisation="none", batch_size=1, max_len=900, template="x",
        settings=(Setting("prompt_lookup", "min_ngram", "2"),),
        grid=(GridAxis("prompt_lookup", "num_tokens", ("1", "5")),), trust_remote_code=True, store=Path("s"),
    )  # fmt: skip
    filled = with_defaults(request, Defaults()).request
    words = shlex.split(_command(filled, "prompt_lookup", (("num_tokens", "5"),)))
    assert words[:5] == ["specbench", "run", "mine.yaml", "--methods", "autoregressive,prompt_lookup"]
    line = shlex.join(words)
    for part in (
        "--temperature 0", "--top-k 40", "--top-p 0.9", "--seed 7", "--dtype bfloat16", "--device cuda:1",
        "--attention sdpa", "--graphs off", "--compile off", "--max-len 900", "--template x", "--trust-remote-code",
        "--store s", "--set prompt_lookup.min_ngram=2", "--set prompt_lookup.num_tokens=5",
    ):  # fmt: skip
        assert part in line
    # How much is asked is the suite's to say, and what would be filled in the same again need not be said.
    for part in ("--limit", "--max-new-tokens", "--repeats", "--grid", "--rule", "--min-p"):
        assert part not in line


SHORT = ("--limit", "2", "--max-new-tokens", "8", "--repeats", "1", "--threads", "1", "--top", "1")


@pytest.mark.parametrize("as_json", [False, True])
def test_predictions_are_shown_where_the_confirming_run_fails(
    specbench: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    """They took minutes, and do not depend on it. Under --json stdout is the error's."""

    def full(*_: object) -> None:
        raise EnvironmentFailed("the disk is full")

    monkeypatch.setattr(tuning, "run", full)
    words = ("tune", "--method", "prompt_lookup", "--grid", "prompt_lookup.num_tokens=2", *SHORT)
    ran = specbench(*words, "--store", str(tmp_path), *(["--json"] if as_json else []))
    assert ran.code == 3
    if as_json:
        assert json.loads(ran.out)["what"] == "the disk is full"
        assert re.search(r"predicted \d\.\d\d×: num_tokens=2", ran.err)
    else:
        assert "predicted" in ran.out and "nothing was measured" in ran.out and "the disk is full" in ran.err


def test_a_place_that_cannot_be_written_is_refused_before_the_target_is_loaded(
    specbench: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "Session", lambda *_: pytest.fail("the target was loaded"))
    (tmp_path / "runs").write_text("no folder")
    words = ("tune", "--method", "prompt_lookup", "--grid", "prompt_lookup.num_tokens=2", *SHORT)
    ran = specbench(*words, "--store", str(tmp_path))
    assert ran.code == 3 and str(tmp_path / "runs") in ran.err and "--store DIR" in ran.err


@pytest.mark.parametrize(
    ("changed", "code", "said"),
    [
        ({"failed_checks": ("prompt_lookup: 2 answers differ",)}, 1, "✗ prompt_lookup: 2 answers differ"),
        ({"state": "interrupted"}, 130, "interrupted; what was finished is kept. Continue: specbench run --resume"),
    ],
)
def test_what_the_confirming_run_failed_the_tuning_fails(
    specbench: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], code: int,
    said: str,
) -> None:  # fmt: skip
    right = tuning.run
    monkeypatch.setattr(tuning, "run", lambda *given: dataclasses.replace(right(*given), **changed))
    words = ("tune", "--method", "prompt_lookup", "--grid", "prompt_lookup.num_tokens=2", *SHORT, "--json")
    ran = specbench(*words, "--store", str(tmp_path))
    assert ran.code == code and said in ran.err
    found = json.loads(ran.out)
    assert found["failed_checks"] == list(changed.get("failed_checks", ())) and found["choice"]
