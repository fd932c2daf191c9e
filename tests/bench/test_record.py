"""What a row's record says about its drafter."""

from __future__ import annotations

import pytest

from specbench.bench.record import drafters_changed, notes_on
from specbench.method import Drafter
from tests.helpers import NoDrafter, tiny_lm
from tests.store.synthetic import make_manifest


@pytest.mark.parametrize(
    ("trained_on", "said"),
    [("", None), ("a" * 64, None), ("b" * 64, "another target"), ("unknown", "not recorded")],
)
def test_a_drafter_that_learnt_from_another_target_says_so(trained_on: str, said: str | None) -> None:
    """Its text is right all the same; its acceptance is not that of a drafter made for this target."""
    drafter = NoDrafter()
    drafter.trained_on = trained_on
    notes = notes_on(drafter, target_hash="a" * 64, quantisation="none")
    assert (said in notes[0]) if said else notes == ()


@pytest.mark.parametrize(
    ("learnt", "now", "said"),
    [
        ("none", "none", None),
        ("int8", "int8", None),
        ("", "int8", None),
        ("none", "int8", "trained on the unquantised target"),
        ("int8", "none", "trained on this target quantised as int8"),
    ],
)
def test_a_drafter_that_learnt_from_another_quantisation_says_so(learnt: str, now: str, said: str | None) -> None:
    drafter = NoDrafter()
    drafter.trained_on, drafter.trained_quantisation = "a" * 64, learnt
    notes = notes_on(drafter, target_hash="a" * 64, quantisation=now)
    assert (said in notes[0]) if said else notes == ()


def test_a_drafter_that_was_trained_anew_since_the_run_began_is_named() -> None:
    """An adapter store that learnt on from this run's own questions would answer the rest of them better."""
    manifest = make_manifest(run_id="r")
    methods = tuple(each.model_copy(update={"weights_hash": "a" * 64}) for each in manifest.methods)
    manifest = manifest.model_copy(update={"methods": methods})

    same, other = NoDrafter(), NoDrafter()
    same.weights_hash, other.weights_hash = "a" * 64, "b" * 64
    drafters: dict[str, Drafter] = {each.label: same for each in methods}
    assert drafters_changed(manifest, drafters) == []
    drafters[methods[-1].label] = other
    [said] = drafters_changed(manifest, drafters)
    assert methods[-1].label in said and "aaaaaaaaaaaa then, bbbbbbbbbbbb now" in said


def test_a_draft_model_that_was_compiled_when_the_run_began_is_compiled_when_it_goes_on() -> None:
    """Under `--compile auto` what was faster decides, and a busy minute may decide otherwise."""
    manifest = make_manifest(run_id="r")
    methods = tuple(each.model_copy(update={"num_compiled": 1}) for each in manifest.methods)
    drafter = NoDrafter()
    drafter.models = (tiny_lm("llama"),)
    drafters: dict[str, Drafter] = {each.label: drafter for each in methods}
    found = drafters_changed(manifest.model_copy(update={"methods": methods}), drafters)
    assert len(found) == len(methods) and "compiled draft models" in found[0] and "(1 then, 0 now)" in found[0]
    drafter.models[0].compile(backend="eager")
    assert drafters_changed(manifest.model_copy(update={"methods": methods}), drafters) == []
    assert drafters_changed(manifest, drafters), "and the other way round"
