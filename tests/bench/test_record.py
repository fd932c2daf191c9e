"""What a row's record says about its drafter."""

from __future__ import annotations

import pytest

from specbench.bench.record import notes_on
from tests.helpers import NoDrafter


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
