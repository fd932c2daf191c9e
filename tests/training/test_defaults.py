"""What a training takes for the options nobody typed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from specbench import registry
from specbench.errors import UsageError
from specbench.training import setup
from specbench.training.defaults import settle, with_defaults
from specbench.training.request import TrainRequest
from specbench.training.setup import with_precision


@pytest.mark.parametrize("method", ["redrafter", "lstm"])
def test_the_embedded_target_is_learnt_at_the_rate_of_the_methods_card(method: str) -> None:
    own = registry.card(method).demo_lr
    assert own is not None and own > 1e-3, "the published rate belongs to targets a thousand times as large"
    assert with_defaults(TrainRequest(method=method)).lr == own
    assert with_defaults(TrainRequest(method=method, lr=1e-4)).lr == 1e-4, "what is typed is taken"
    assert with_defaults(TrainRequest(method=method, target="elsewhere", dataset="alpaca")).lr == 1e-3


def test_the_precision_nobody_typed_is_that_of_the_device_it_comes_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU is a CPU, whether it was named or found; and a plan says nothing of a device that only torch knows."""

    def precision(device: str | None, **said: Any) -> str | None:
        elsewhere = {"target": "elsewhere", "dataset": "alpaca", "device": device}
        found = with_precision(settle(TrainRequest(method="lstm", **{**elsewhere, **said})))
        assert found.request.precision == found.precision, "train.json says the same"
        return found.precision

    assert settle(TrainRequest(method="lstm", target="elsewhere", dataset="alpaca")).precision is None
    for device in ("cpu", "cuda", "mps"):
        monkeypatch.setattr(setup, "pick_device", lambda name, device=device: torch.device(device))
        wanted = "fp32" if device == "cpu" else "bf16"
        assert precision(None) == precision("auto") == precision(device) == wanted
        assert precision(None, target="demo", dataset=None) == "fp32"
        assert precision(None, precision="bf16") == "bf16" and precision(None, precision="fp32") == "fp32"


@pytest.mark.parametrize(
    ("said", "loss"),
    [
        ({"kd_temperature": 2.0}, {"learn": "gt"}),
        ({"kd_temperature": 2.0}, {"learn": "seq"}),
        ({"kd_temperature": 2.0}, {"loss": "tv"}),
        ({"kd_alpha": 0.5}, {"loss": "lk"}),
        ({"kd_alpha": 0.5}, {"learn": "gt"}),
    ],
    ids=str,
)
def test_options_of_distillation_are_refused_under_a_loss_that_reads_none(
    said: dict[str, Any], loss: dict[str, Any]
) -> None:
    """A training whose options do nothing is not the one that was asked for."""
    request = TrainRequest(method="redrafter", **said, **loss)
    with pytest.raises(UsageError, match="reads it nowhere") as refused:
        settle(request)
    [name] = said
    assert refused.value.where == "--" + name.replace("_", "-") and "--loss kd" in refused.value.try_
    assert settle(request, is_resumed=True).request is not None, "what was begun is gone on with"
    settle(TrainRequest(method="redrafter", **said))
    settle(TrainRequest(method="redrafter", **dict.fromkeys(said, 1.0), **loss))
