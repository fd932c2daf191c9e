"""The times of a stream in which a draft model learns: rates, what learning is charged, and paired intervals."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.adaptive_times import Stream, parts_of, table


def _stream(seconds: np.ndarray) -> Stream:
    return Stream(
        plain_N=2 * seconds,
        off_N=seconds,
        on_N=seconds / 1.25,
        tokens_N=10 * seconds,
        taken_NK=np.stack([seconds, 2 * seconds, 1.5 * seconds, 2 * seconds], axis=1),
        learn_N=np.asarray([0.0, 2.2, 0.0, 0.0]),
    )


def test_learning_is_charged_to_the_part_it_stood_in_and_ratios_are_paired() -> None:
    """Answers differ tenfold, on is faster by the same factor in every one of them: the interval is a point."""
    seconds = np.asarray([1.0, 10.0, 2.0, 7.0])
    stream = _stream(seconds)
    first, second, whole = parts_of([stream], 2)
    assert (first.answers, second.answers, whole.answers) == (2, 2, 4)
    assert (first.learn_s, second.learn_s, whole.learn_s) == (2.2, 0.0, 2.2)
    assert (whole.plain_rate, whole.off_rate, whole.on_rate) == pytest.approx((5, 10, 12.5))
    assert first.charged_rate == pytest.approx(110 / (8.8 + 2.2)) and second.charged_rate == second.on_rate
    assert whole.ratio == pytest.approx((1.25, 1.25, 1.25)) and whole.gain == pytest.approx((0.25, 0.25, 0.25))
    assert first.charged[0] == pytest.approx(1.0) and first.charged[1] < 1 < first.charged[2], "dear answers weigh more"
    assert (whole.acceptance_off, whole.acceptance_on) == pytest.approx((0.5, 0.75))
    assert (first.positions, second.positions, whole.positions) == (22, 40, 40)


def test_streams_of_several_seeds_are_pooled_part_by_part() -> None:
    seconds = np.asarray([1.0, 10.0, 2.0, 7.0])
    one, other = _stream(seconds), _stream(3 * seconds)
    first, second, whole = parts_of([one, other], 2)
    assert (first.answers, second.answers, whole.answers) == (4, 4, 8)
    assert first.positions == 44 and whole.positions == 80, "the mean of 22 and 66, of 40 and 120"
    assert first.learn_s == 4.4 and whole.ratio == pytest.approx((1.25, 1.25, 1.25))
    rows = table([first, second, whole], 2).splitlines()
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["1 to 2", "3 to 4", "all"], "of each stream"
    assert len({row.count("|") for row in rows}) == 1
