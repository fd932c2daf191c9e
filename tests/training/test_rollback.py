"""An adapter that does worse live than the one before it is taken back; until then no other takes its place."""

from __future__ import annotations

import random
from pathlib import Path

from specbench.adapt.adaptation import InUse, Live
from specbench.training.rounds import learn, rolled_back
from tests.adapt.adapted import drafts_with, learns, noisy_weights, same, taught


def test_a_live_fall_below_the_adapter_before_rolls_back(draft: Path, tmp_path: Path) -> None:
    adaptation = learns(taught(draft, num=4, watch_positions=100))
    parent = InUse(number=1, weights=noisy_weights(adaptation.layers, seed=1, size=0.1))
    child = InUse(number=2, weights=noisy_weights(adaptation.layers, seed=2, size=0.1), parent=parent)
    adaptation.swap("", parent)
    before = drafts_with(adaptation)
    adaptation.domain("").live = Live(num_tried=100, num_accepted=60)
    adaptation.swap("", child)
    adaptation.saw("", tried=99, accepted=10)
    assert rolled_back(adaptation, "") is None, "too few positions to judge"
    adaptation.saw("", tried=1, accepted=0)
    found = rolled_back(adaptation, "")
    assert found is not None and found.outcome == "rolled back" and found.version == 1
    assert same(drafts_with(adaptation), before)
    assert rolled_back(adaptation, "") is None


def test_a_live_acceptance_within_noise_keeps_the_adapter(draft: Path) -> None:
    adaptation = learns(taught(draft, num=4, watch_positions=100))
    adaptation.domain("").live = Live(num_tried=100, num_accepted=60)
    adaptation.swap("", InUse(number=1, weights=noisy_weights(adaptation.layers), parent=InUse()))
    adaptation.saw("", tried=100, accepted=55)
    assert rolled_back(adaptation, "") is None and adaptation.domain("").in_use.number == 1


def test_a_few_positions_under_the_adapter_before_are_no_ground_to_go_back_to_it(draft: Path) -> None:
    """Three of three accepted before a swap say nothing against 80 of 100 after it; 300 of 300 do."""
    for num_before, goes_back in ((3, False), (300, True)):
        adaptation = learns(taught(draft, num=4, watch_positions=100))
        adaptation.domain("").live = Live(num_tried=num_before, num_accepted=0.95 * num_before)
        adaptation.swap("", InUse(number=1, weights=noisy_weights(adaptation.layers), parent=InUse()))
        adaptation.saw("", tried=100, accepted=80)
        assert (rolled_back(adaptation, "") is not None) is goes_back


def test_a_text_that_repeats_itself_is_no_ground_to_go_back(draft: Path) -> None:
    """As in a stream of GSM8K: ten answers around 0.65, one of which goes round in a circle. The positions of one
    answer stand and fall together; counted singly they would speak against the adapter five standard errors strong."""
    rng = random.Random(3)
    for goes_back, rates in ((False, [0.7, 0.75, 0.6, 0.7, 0.65, 0.7, 0.01, 0.65, 0.3, 0.6]), (True, [0.3] * 10)):
        adaptation = learns(taught(draft, num=4, watch_positions=1000))
        for _ in range(200):
            adaptation.saw("", tried=100, accepted=round(100 * min(1.0, max(0.0, rng.gauss(0.65, 0.12)))))
        adaptation.swap("", InUse(number=1, weights=noisy_weights(adaptation.layers), parent=InUse()))
        for rate in rates:
            adaptation.saw("", tried=100, accepted=round(100 * rate))
        assert (rolled_back(adaptation, "") is not None) is goes_back


def test_nothing_is_promoted_over_an_adapter_that_has_yet_to_be_judged_live(draft: Path, tmp_path: Path) -> None:
    """The one before it would be out of reach; what was learnt meanwhile is learnt on from."""
    drafter = taught(draft, num=40, temperature=1.0, steps=40, lr=3e-3, rank=8, store=str(tmp_path), pull=0.0)
    adaptation = learns(drafter)
    domain = adaptation.domain("")
    domain.live = Live(num_tried=1000, num_accepted=500)
    adaptation.swap("", InUse(number=0, weights=None, parent=InUse()))
    found = learn(adaptation)
    assert found.outcome == "kept" and "version 0 has drafted 0 of 1000 positions" in found.why
    assert found.gain is not None and found.gain.low > 0 and domain.candidate is not None
    adaptation.saw("", tried=1000, accepted=500)
    domain.memory.renew()
    assert learn(adaptation).outcome == "promoted"
