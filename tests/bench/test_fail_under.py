"""What `--fail-under` fails, what it lets pass, and what it says of a row that it cannot judge."""

from __future__ import annotations

import dataclasses

from specbench.bench.outcome import too_slow, undecided
from tests.report.samples import method_row, summary


def test_fail_under_judges_ranked_rows_and_those_that_only_lack_a_quiet_machine():
    """The control's failure says that ranks would be noise; that a method misses a bound by far it does not excuse."""
    slow = method_row("slow", speedup=1.1, rank=2)
    withheld = method_row("withheld", speedup=1.2, rank=None, control_failed=True)
    noisy = method_row("noisy", speedup=1.2, half=0.35, rank=None, too_noisy=True)
    both = method_row("both", speedup=1.2, half=0.35, rank=None, control_failed=True)
    found = summary(method_row("fast", speedup=1.6), slow, withheld, noisy, both)
    assert too_slow(found, least=1.5) == [
        "slow: speed-up 1.100 is under 1.5",
        "withheld: speed-up 1.200 is under 1.5",
    ]
    assert too_slow(found, least=1.0) == [] and too_slow(found, least=None) == []


def test_fail_under_is_not_passed_by_a_method_without_a_number_or_wholly_below_it():
    """No rank is no excuse: neither every answer failing nor a noisy machine makes a slow method fast."""
    baseline = method_row("autoregressive", speedup=None, kind="baseline", rank=None)
    failed = method_row("failed", speedup=None, rank=None, num_failed=8)
    unpaired = method_row("unpaired", speedup=None, rank=None)
    noisy = method_row("noisy", speedup=0.5, half=0.3, rank=None, too_noisy=True)
    lossy = method_row("lossy", speedup=1.4, half=0.05, rank=None, lossless=False)
    single = dataclasses.replace(method_row("single", speedup=0.9, rank=None), speedup_ci=None)
    assert too_slow(summary(baseline, failed, unpaired, noisy, lossy, single), least=1.5) == [
        "failed: no speed-up was measured (8 generations failed), so it cannot be said to reach 1.5",
        "unpaired: no speed-up was measured, so it cannot be said to reach 1.5",
        "noisy: speed-up 0.500 is not ranked, and its whole interval, 0.200 to 0.800, is under 1.5",
        "lossy: speed-up 1.400 is not ranked, and its whole interval, 1.350 to 1.450, is under 1.5",
        "single: speed-up 0.900 is under 1.5",
    ]


def test_what_passes_below_fail_under_for_its_noise_alone_is_said():
    noisy = method_row("noisy", speedup=1.2, half=0.35, rank=None, too_noisy=True)
    shaken = method_row("shaken", speedup=1.2, half=0.35, rank=None, control_failed=True)
    lossy = method_row("lossy", speedup=1.4, half=0.2, rank=None, reasons=("not ranked: the rule is lossy",))
    clear = method_row("clear", speedup=1.4, half=0.2, rank=1)
    judged = method_row("judged", speedup=1.45, half=0.1, rank=None, control_failed=True)
    faster = method_row("faster", speedup=1.6, half=0.4, rank=None, too_noisy=True)
    below = method_row("below", speedup=1.0, half=0.3, rank=None, too_noisy=True)
    found = summary(noisy, shaken, lossy, clear, judged, faster, below)
    assert undecided(found, least=1.5) == (
        "noisy: speed-up 1.200 is under 1.5, but its interval, 0.850 to 1.550, reaches it: "
        "too noisy to judge; more questions (--limit) or --repeats can tell",
        "shaken: speed-up 1.200 is under 1.5, but its interval, 0.850 to 1.550, reaches it: "
        "too noisy to judge; more questions (--limit) or --repeats can tell",
        "lossy: speed-up 1.400 is under 1.5, but its interval, 1.200 to 1.600, reaches it: "
        "passed without a rank to judge by: not ranked: the rule is lossy",
    )
    assert [sentence.split(":")[0] for sentence in too_slow(found, least=1.5)] == ["clear", "judged", "below"]
    assert undecided(found, least=None) == ()


def test_fail_under_is_a_failed_check(go, monkeypatch):
    said = ["prompt_lookup: speed-up 1.000 is under 1000"]
    monkeypatch.setattr("specbench.bench.outcome.too_slow", lambda summary, *, least: said if least == 1000.0 else [])
    assert go(fail_under=1000.0)[0].failed_checks == tuple(said)
    assert go()[0].failed_checks == ()
