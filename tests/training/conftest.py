"""One tiny target for all tests of a session."""

from __future__ import annotations

from pathlib import Path

import pytest
from training.small import make_target

from tests.adapt.adapted import save_draft


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_target(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="session")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A draft model that adapters are learnt for."""
    return save_draft(tmp_path_factory.mktemp("draft"))
