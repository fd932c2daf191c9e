"""The picture of an adaptation's curve: places that every seed has come to, gains over the draft model itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.adaptive_picture import figure, places, read


def _folder(path: Path, seed: int, accepted: dict[int, list[int]]) -> Path:
    rows = [
        {"seed": seed, "answers": answers, "positions": 10 * answers + seed, "set": "maths", "accepted": counts,
         "tried": [10, 20, 10]}
        for answers, counts in accepted.items()
    ]  # fmt: skip
    path.mkdir()
    (path / "curve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_curve_is_of_all_seeds_where_every_one_of_them_was(tmp_path: Path) -> None:
    folders = [
        _folder(tmp_path / "one", 0, {0: [5, 10, 5], 100: [6, 12, 6], 200: [9, 18, 9]}),
        _folder(tmp_path / "two", 1, {0: [5, 10, 5], 100: [8, 16, 8]}),
    ]
    rows = read(folders)
    assert {row["answers"] for row in rows} == {0, 100}
    first, last = places(rows, "maths")
    assert (first.rate, first.low, first.high) == (0.5, 0.5, 0.5), "nothing is learnt yet"
    assert last.positions == 1000.5 and last.rate == pytest.approx(0.7)
    # Every answer gained the same share, so that resampling them changes nothing.
    assert last.low == pytest.approx(0.7) and last.high == pytest.approx(0.7)
    made = figure(rows, {"maths": "The domain"})
    assert made.layout.annotations[0].text == "The domain"
    assert list(made.data[-1].y) == pytest.approx([0.5, 0.7]) and list(made.data[-1].x) == [0.5, 1000.5]
