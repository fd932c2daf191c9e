"""One tiny target for all tests of a session."""

from __future__ import annotations

from pathlib import Path

import pytest
from training.small import make_target


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_target(tmp_path_factory.mktemp("target"))
