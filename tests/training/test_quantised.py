"""Drafters of quantised targets: recorded as such, their states kept apart, their command complete."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path
from typing import Any

import pytest

from specbench import checkpoint
from specbench.errors import UsageError
from specbench.quantisation import CHOICES
from specbench.training import train
from specbench.training.experiment_axes import TRAIN_OPTIONS
from specbench.training.request import TrainRequest
from tests.training.small import Quiet, make_corpus, make_request, make_target

needs_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="needs torchao: pip install 'specbench[quant]'"
)


@needs_torchao
def test_a_drafter_of_a_quantised_target_says_so_and_its_states_are_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPECBENCH_CACHE", str(tmp_path / "cache"))
    target = make_target(tmp_path / "target")
    options: dict[str, Any] = {"learn": "kd", "max_steps": 2, "eval_every": 2, "cache_states": True}
    said = []
    for quantisation in ("none", "int8"):
        out = tmp_path / quantisation
        done = train(
            make_request(target, tmp_path, out=out, quantisation=quantisation, **options),
            Quiet(),
            corpus=make_corpus(),
        )
        words = shlex.split(done.command)
        said.append(words[words.index("--quantisation") + 1] if "--quantisation" in words else None)
        assert checkpoint.load(out, method="shallow").target.quantisation == quantisation
    assert said == [None, "int8"]
    assert len(list((tmp_path / "cache" / "states").iterdir())) == 2


def test_an_unknown_quantisation_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="'int5' is not a choice") as caught:
        TrainRequest(method="redrafter", quantisation="int5")
    assert all(name in caught.value.try_ for name in CHOICES)


def test_experiments_have_no_quantised_trainings() -> None:
    """Their benches would run the plain target."""
    assert "quantisation" not in TRAIN_OPTIONS and "dtype" in TRAIN_OPTIONS
