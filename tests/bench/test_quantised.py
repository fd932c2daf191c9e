"""Whole runs of quantised targets on the CPU: own reference, own baseline, own bytes, said wherever rows are shown."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from specbench import paths, registry
from specbench.api import Silent, generate, load
from specbench.bench.request import RunOutcome, RunRequest, Setting
from specbench.bench.runner import run
from specbench.bench.session import Session
from specbench.errors import UsageError
from specbench.manifest import read_manifest
from specbench.method import TargetView
from specbench.report import board, text
from specbench.report.table import to_text
from specbench.store.records import MethodRow
from specbench.suite import load_suite
from tests.bench.runs import request_for
from tests.lm.test_quantise import needs_bitsandbytes, needs_torchao


def rows_of(outcome: RunOutcome) -> dict[str, MethodRow]:
    assert outcome.summary is not None
    return {row.method: row for row in outcome.summary.rows}


@needs_torchao
@pytest.mark.parametrize(
    ("quantisation", "dtype"), [("int8", "float32"), ("fp8", "float64"), ("fp8", "float32"), ("int8", "bfloat16")]
)
def test_every_method_writes_what_the_quantised_target_writes_alone(
    tiny_suite: Path, tiny_target: Path, tmp_path: Path, quantisation: str, dtype: str
) -> None:
    """A trie, and a draft model that is quantised itself. In float64 token for token; in float32 and bfloat16 by class,
    with no `bug`."""
    outcome = run(
        request_for(
            tiny_suite,
            tiny_target,
            tmp_path / "results",
            methods=("autoregressive", "prompt_lookup", "draft_model"),
            settings=(
                Setting("draft_model", "model", str(tiny_target)),
                Setting("draft_model", "quantisation", quantisation),
            ),
            quantisation=quantisation,
            dtype=dtype,
            repeats=1,
        ),
        Silent(),
    )
    assert outcome.state == "finished" and not outcome.failed_checks and outcome.summary is not None
    assert outcome.summary.quantisation == quantisation
    for row in rows_of(outcome).values():
        assert row.num_failed == 0 and row.equality is not None and row.equality.bug == 0, row.notes
        assert row.equality.identical == 5 or dtype != "float64"
    assert f"its draft model's weights are {quantisation}" in rows_of(outcome)["draft_model"].notes
    if dtype == "float64":
        # A draft that is the target itself, quantised alike, is always right: 11 tokens in steps of 5, 5 and 1.
        assert rows_of(outcome)["draft_model"].acceptance_length == pytest.approx(11 / 3)


@needs_torchao
def test_a_quantised_target_has_its_own_reference_and_bytes_and_stands_in_every_heading(
    tiny_suite: Path, tiny_target: Path, tmp_path: Path
) -> None:
    store = tmp_path / "results"
    plain = run(request_for(tiny_suite, tiny_target, store, repeats=1), Silent()).summary
    own = run(request_for(tiny_suite, tiny_target, store, repeats=1, quantisation="int8"), Silent()).summary
    assert plain is not None and own is not None
    run(request_for(tiny_suite, tiny_target, store, repeats=1, quantisation="fp8"), Silent())
    assert len(list((paths.cache_dir() / "references").iterdir())) == 3
    bytes_of = {
        each.run_id: read_manifest(paths.run_dir(store, each.run_id)).target.weight_bytes_per_token
        for each in (plain, own)
    }
    # 259 x 32 of head stay float32 beside 2 x 7680 weights that do not.
    assert bytes_of[own.run_id] < 0.65 * bytes_of[plain.run_id]
    assert "int8" in text.settings(own) and "int8" not in text.settings(plain)
    assert "float32 · int8" in to_text(own).splitlines()[2]
    assert board._setting_key(plain) != board._setting_key(own)
    # On different keys, so no table ever ranks one against the other.
    assert board._setting_key(own) != board._setting_key(dataclasses.replace(own, quantisation="bnb-int8"))


@needs_torchao
def test_a_run_cannot_be_resumed_under_another_quantisation(
    tiny_suite: Path, tiny_target: Path, tmp_path: Path
) -> None:
    """It is in the manifest, and may not be said again."""
    store = tmp_path / "results"
    outcome = run(request_for(tiny_suite, tiny_target, store, repeats=1, quantisation="int8"), Silent())
    with pytest.raises(UsageError, match="--quantisation cannot be changed"):
        RunRequest(resume=outcome.run_id, store=store, quantisation="none")
    again = run(RunRequest(resume=outcome.run_id, store=store), Silent())
    assert again.summary is not None and again.summary.quantisation == "int8"


@needs_torchao
def test_a_drafter_of_the_unquantised_target_is_noted_on_its_row(tmp_path: Path) -> None:
    """The embedded drafters learnt from plain weights."""
    outcome = run(
        RunRequest(
            suite="demo",
            target="demo",
            methods=("redrafter",),
            limit=1,
            repeats=1,
            max_new_tokens=12,
            quantisation="int8",
            store=tmp_path,
        ),
        Silent(),
    )
    rows = rows_of(outcome)
    assert any("trained on the unquantised target" in note for note in rows["redrafter"].notes)
    assert not any("unquantised" in note for note in rows["autoregressive"].notes)
    equality = rows["redrafter"].equality
    assert equality is not None and equality.bug == 0


@needs_bitsandbytes
def test_every_row_of_a_bitsandbytes_target_says_that_it_ran_eagerly(
    tiny_suite: Path, tiny_target: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"repeats": 1, "quantisation": "bnb-int8", "dtype": "bfloat16"}
    outcome = run(request_for(tiny_suite, tiny_target, tmp_path / "results", **changes), Silent())
    for row in rows_of(outcome).values():
        assert any("without CUDA graphs" in note for note in row.notes)
        assert row.equality is not None and row.equality.bug == 0


@needs_torchao
def test_answers_are_kept_apart_by_the_library_that_rounded_the_weights(
    tiny_suite: Path, tiny_target: Path, tmp_path: Path
) -> None:
    from specbench.bench.defaults import with_defaults

    def versions(quantisation: str) -> list[str | None]:
        loaded = load_suite(str(tiny_suite))
        request = request_for(tiny_suite, tiny_target, tmp_path, quantisation=quantisation)
        session = Session(with_defaults(request, loaded.defaults).request, loaded)
        found: list[str | None] = session.reference_identity()["versions"]
        return found

    import torchao

    assert len(versions("none")) == 2 and torchao.__version__ in versions("int8")


# --- drafters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "reason"), [("redrafter", "laid out"), ("prompt_lookup", "no weights")])
def test_other_drafters_are_not_quantised_and_the_refusal_says_why(method: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        registry.check_options(registry.card(method), {"quantisation": "int8"})
    assert "draft_model.quantisation" in caught.value.try_


def test_a_draft_model_that_cannot_be_quantised_is_refused_in_its_own_options_words() -> None:
    """Not by the target's --quantisation, which nobody typed."""
    import importlib.util

    if importlib.util.find_spec("torchao") is None:
        pytest.skip("needs torchao: pip install 'specbench[quant]'")
    build = registry.choose("draft_model", {"draft_model": {"quantisation": "int4"}}, target_is_demo=True)
    lm = load("demo")
    view = view_of(lm)
    with pytest.raises(UsageError, match="no 4-bit product for CPUs") as caught:
        registry.build(build, view)
    assert caught.value.where == "--set draft_model.quantisation=int4"
    assert caught.value.try_ == "--set draft_model.quantisation=int8"


def view_of(lm: Any) -> TargetView:
    from specbench.engine.decode import Engine
    from specbench.engine.stop import Stop
    from specbench.sampling import Sampling

    return Engine(lm, sampling=Sampling(temperature=0.0), max_len=32, stop=Stop(ids=frozenset())).view()


# --- the command ---------------------------------------------------------------------------------------------------


def test_an_unknown_quantisation_is_refused_before_torch_is_loaded() -> None:
    with pytest.raises(UsageError, match="'int3' is not a choice") as caught:
        RunRequest(suite="demo", quantisation="int3")
    assert "int4" in caught.value.try_


@needs_torchao
def test_generate_answers_with_a_quantised_target() -> None:
    alone = generate("What is 12 times 7?", max_new_tokens=16, quantisation="int8")
    drafted = generate("What is 12 times 7?", max_new_tokens=16, method="draft_model", quantisation="int8")
    assert alone.tokens == drafted.tokens and drafted.num_steps < alone.num_steps
