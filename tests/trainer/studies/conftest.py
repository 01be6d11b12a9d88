"""Fixtures of the tests of studies."""

from __future__ import annotations

import pytest

from tests.trainer.studies.fake_study import draw_nothing
from trainer.report import charts


@pytest.fixture(autouse=True)
def _quick_charts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no charts, which take 0.2 s at each step, unless the test asks for `real_charts`."""
    if "real_charts" not in request.fixturenames:
        monkeypatch.setattr(charts, "draw_study_chart", draw_nothing)


@pytest.fixture
def real_charts() -> None:
    """Let the test draw its charts."""
