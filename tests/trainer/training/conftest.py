"""Fixtures of the tests of trainings."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def _quick_charts(request: pytest.FixtureRequest) -> None:
    """Draw no charts but in test_recipe.py, which looks at all files of a training."""
    if request.path.name != "test_recipe.py":
        request.getfixturevalue("quick_charts")
