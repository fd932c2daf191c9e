"""One browser for all tests of the page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import find_chromium
from tests.report.browser import Browser


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = find_chromium()
    assert found is not None, "a test with this marker is skipped where there is no browser"
    with Browser(found, tmp_path_factory.mktemp("profile")) as opened:
        yield opened
