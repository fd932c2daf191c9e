"""What a training takes for the options nobody typed."""

from __future__ import annotations

import pytest

from specbench import registry
from specbench.training.defaults import with_defaults
from specbench.training.request import TrainRequest


@pytest.mark.parametrize("method", ["redrafter", "lstm"])
def test_the_embedded_target_is_learnt_at_the_rate_of_the_methods_card(method: str) -> None:
    own = registry.card(method).demo_lr
    assert own is not None and own > 1e-3, "the published rate belongs to targets a thousand times as large"
    assert with_defaults(TrainRequest(method=method)).lr == own
    assert with_defaults(TrainRequest(method=method, lr=1e-4)).lr == 1e-4, "what is typed is taken"
    assert with_defaults(TrainRequest(method=method, target="elsewhere", dataset="alpaca")).lr == 1e-3
