"""The numbers on the page, against fingers, closed forms and coverage."""

from __future__ import annotations

import math
import subprocess
import sys
import time

import numpy as np
import pytest
from scipy import stats

from specbench import metrics
from specbench.metrics import Bootstrap, FloatArray, Interval


def speedups_of(ratios_UK: FloatArray, *, seed: int = 0) -> list[metrics.Speedup]:
    """Speed-ups of methods that need 1/ratio seconds for the baseline's one second, one token each."""
    ones = np.where(np.isnan(ratios_UK), np.nan, 1.0)
    return metrics.speedups(
        seconds_UK=1 / ratios_UK,
        tokens_UK=ones,
        base_seconds_UK=ones,
        base_tokens_UK=ones,
        bootstrap=Bootstrap(len(ratios_UK), seed=seed),
    )


def test_the_worked_example() -> None:
    """Two questions. Baseline 10 s / 10 tokens and 40 s / 20 tokens; method 5 s / 10 tokens and 10 s / 20 tokens.

    Per question 1 / 0.5 = 2 and 2 / 0.5 = 4: geometric mean sqrt 8. Totals: (50 / 30) / (15 / 30) = 10 / 3.
    """
    (found,) = metrics.speedups(
        seconds_UK=np.array([[5.0], [10.0]]),
        tokens_UK=np.array([[10.0], [20.0]]),
        base_seconds_UK=np.array([[10.0], [40.0]]),
        base_tokens_UK=np.array([[10.0], [20.0]]),
        bootstrap=Bootstrap(2, seed=0),
    )
    assert found.geometric_mean == pytest.approx(math.sqrt(8))
    assert found.ratio_of_totals == pytest.approx(10 / 3)
    assert found.num_units == 2
    # Resamples of two are {2, 2}, {2, 4}, {4, 4} with 1/4, 1/2, 1/4: both ends lie inside the central 95 %.
    # and of two the interval is widened by 9.17.
    factor = math.sqrt(2) * stats.t.ppf(0.975, 1) / stats.norm.ppf(0.975)
    ends = [math.sqrt(8) * math.sqrt(2) ** sign for sign in (-factor, factor)]
    assert factor == pytest.approx(9.168, abs=0.001) and found.interval == pytest.approx(ends, rel=1e-4)


def test_every_question_weighs_the_same_however_long_its_answer() -> None:
    (found,) = metrics.speedups(
        seconds_UK=np.array([[500.0], [1.0]]),
        tokens_UK=np.array([[1000.0], [1.0]]),
        base_seconds_UK=np.array([[1000.0], [1.0]]),
        base_tokens_UK=np.array([[1000.0], [1.0]]),
        bootstrap=Bootstrap(2, seed=0),
    )
    assert found.geometric_mean == pytest.approx(math.sqrt(2))


def test_a_missing_pair_is_left_out_and_never_a_zero() -> None:
    ratios = np.array([[2.0, 2.0], [2.0, math.nan], [2.0, 2.0]])
    whole, gappy = speedups_of(ratios)
    assert gappy.geometric_mean == whole.geometric_mean == pytest.approx(2.0)
    assert (whole.num_units, gappy.num_units) == (3, 2)
    assert gappy.interval == pytest.approx((2.0, 2.0))


def test_no_pair_at_all_has_no_interval() -> None:
    _, absent = speedups_of(np.array([[2.0, math.nan], [2.0, math.nan]]))
    assert absent.num_units == 0 and absent.interval is None and math.isnan(absent.geometric_mean)


def test_one_question_has_no_interval() -> None:
    (found,) = speedups_of(np.array([[2.0]]))
    assert found.interval is None and found.geometric_mean == pytest.approx(2.0)


def test_the_seed_decides_the_interval() -> None:
    ratios = np.exp(np.random.default_rng(5).normal(0.5, 0.3, (20, 1)))
    assert speedups_of(ratios, seed=1) == speedups_of(ratios, seed=1)
    assert speedups_of(ratios, seed=1) != speedups_of(ratios, seed=2)


def test_the_bootstrap_agrees_with_scipys() -> None:
    logs = np.random.default_rng(7).normal(0.4, 0.5, 60)
    (found,) = speedups_of(np.exp(logs)[:, None])
    theirs = stats.bootstrap(
        (logs,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(11)
    ).confidence_interval
    assert found.interval is not None
    middle, factor = float(logs.mean()), metrics.widening(60)
    wider = [middle + factor * (end - middle) for end in (theirs.low, theirs.high)]
    assert np.log(found.interval) == pytest.approx(wider, abs=0.005)


def test_every_resample_draws_as_many_units_as_there_are() -> None:
    sums = Bootstrap(7, seed=3, resamples=1500).sums(np.ones((7, 1)))
    assert sums.shape == (1500, 1) and (sums == 7).all()


@pytest.mark.parametrize("num_units", [2, 3, 4, 6, 12, 80])
def test_the_interval_covers_the_truth_about_ninety_five_times_in_a_hundred(num_units: int) -> None:
    """500 data sets, skewed as real speed-ups are; few questions are no excuse. 3 sigma of a binomial around 0.95 is
    0.029; a skew costs two or three hundredths of a small sample."""
    truth, num_covered = 0.6, 0
    for seed in range(500):
        rng = np.random.default_rng(1000 + seed)
        logs = truth + 0.25 * (rng.gamma(4.0, 0.5, num_units) - 2.0)
        means = Bootstrap(num_units, seed=seed, resamples=500).means(logs[:, None])[:, 0]
        interval = metrics.percentile_interval(means, num_units)
        assert interval is not None
        num_covered += interval.contains(truth)
    assert 0.91 <= num_covered / 500 <= 0.98


@pytest.mark.parametrize("num_units", [2, 3, 5, 10, 11, 12, 30, 80, 1319])
def test_an_interval_is_widened_by_students_quantile_and_by_what_resampling_leaves_out(num_units: int) -> None:
    due = stats.t.ppf(0.975, num_units - 1) / stats.norm.ppf(0.975) * math.sqrt(num_units / (num_units - 1))
    assert metrics.widening(num_units) == pytest.approx(due, rel=1e-4)


def test_a_ratio_of_few_questions_has_no_end_below_zero() -> None:
    ratios = np.array([0.5, 1.0, 8.0] * 100)
    plain, found = metrics.percentile_interval(ratios, 3), metrics.ratio_interval(ratios, 3)
    assert plain is not None and plain.low < 0
    assert found is not None and 0 < found.low < 0.5 and found.high > 8


def test_a_difference_within_noise_is_a_tie_and_a_paired_one_is_not() -> None:
    """Questions differ by far more than the methods: only pairing sees that b beats a on every one."""
    rng = np.random.default_rng(3)
    question = rng.normal(0.5, 0.5, 60)
    a = question + rng.normal(0, 0.01, 60)
    b = question + 0.05 + rng.normal(0, 0.01, 60)
    c = question + 0.05 + rng.normal(0, 0.01, 60)
    places = metrics.standings(np.stack([a, b, c], axis=1), Bootstrap(60, seed=0))
    assert [place.rank for place in places] == [3, 1, 1]
    assert [place.tied_with for place in places] == [(), (2,), (1,)]
    unpaired = stats.ttest_ind(a, b)
    assert unpaired.pvalue > 0.05


def test_ties_need_not_be_transitive() -> None:
    """a and b tie, b and c tie, a beats c: ranks count only who is told apart as faster."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.1, (40, 3))
    noise -= noise.mean(axis=0)
    logs = noise + np.array([0.05, 0.02, -0.01])
    places = metrics.standings(logs, Bootstrap(40, seed=0))
    assert [place.tied_with for place in places] == [(1,), (0, 2), (1,)]
    assert [place.rank for place in places] == [1, 1, 2]


def test_a_single_method_is_first() -> None:
    assert metrics.standings(np.ones((5, 1)), Bootstrap(5, seed=0)) == [metrics.Standing(1, ())]


def test_too_noisy_is_more_than_fifteen_percent_either_way() -> None:
    assert not metrics.is_too_noisy(2.0, Interval(1.71, 2.29))
    assert metrics.is_too_noisy(2.0, Interval(1.69, 2.31))


def test_implausible_is_an_interval_wholly_above_the_limit() -> None:
    assert metrics.is_implausible(Interval(1.06, 1.2))
    assert not metrics.is_implausible(Interval(1.04, 1.2))


def test_efficiency_is_the_step_against_the_baselines() -> None:
    """Every step costs two baseline steps: eta is 1/2 on every resample."""
    seconds = np.array([4.0, 8.0, 2.0])
    interval = metrics.efficiency_interval(
        seconds_U=seconds,
        num_steps_U=seconds / 2,
        base_seconds_U=np.array([10.0, 20.0, 30.0]),
        base_tokens_U=np.array([10.0, 20.0, 30.0]),
        bootstrap=Bootstrap(3, seed=0),
    )
    assert interval == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize(
    ("alpha", "gamma", "c", "expected"),
    [
        (0.0, 4, 0.0, 1.0),  # every draft is refused: one token a step
        (1.0, 4, 0.0, 5.0),  # none is: gamma + 1
        (0.5, 1, 0.0, 1.5),
        (0.5, 2, 0.5, 1.75 / 2.0),
        (0.8, 5, 0.1, (1 - 0.8**6) / 0.2 / 1.5),
    ],
)
def test_leviathans_formula_on_fingers(alpha: float, gamma: float, c: float, expected: float) -> None:
    assert metrics.leviathan(alpha=alpha, gamma=gamma, c=c) == pytest.approx(expected)


def test_expected_tokens_agree_with_simulation() -> None:
    accepted = np.random.default_rng(0).random((200_000, 4)) < 0.7
    simulated = 1 + np.cumprod(accepted, axis=1).sum(axis=1).mean()
    assert metrics.expected_tokens(0.7, 4) == pytest.approx(simulated, rel=0.005)


def test_805_questions_and_8_methods_take_half_a_second() -> None:
    """Processor time, so that a busy machine does not decide; twice the budget, so that a slow one passes."""
    ratios = np.exp(np.random.default_rng(1).normal(0.5, 0.3, (805, 8)))
    began = time.process_time()
    speedups_of(ratios)
    assert time.process_time() - began < 1.0


def test_metrics_load_no_torch() -> None:
    code = "import sys, specbench.metrics; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
