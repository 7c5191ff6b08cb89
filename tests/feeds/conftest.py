"""A price service to ask."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.feeds.price_server import Answers, serving


@pytest.fixture
def service() -> Iterator[Answers]:
    with serving() as answers:
        yield answers
