"""A browser for the tests of pages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from browser import Browser, find


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if find() is None:
        pytest.skip("no Chromium is installed, in which the page could be opened")
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened
