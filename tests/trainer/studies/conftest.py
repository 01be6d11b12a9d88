"""Fixtures of the tests of studies."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.report import charts


@pytest.fixture(autouse=True)
def _quick_charts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no charts, which take 0.2 s at each step, unless the test asks for `real_charts`."""
    if "real_charts" not in request.fixturenames:
        monkeypatch.setattr(charts, "draw_study_chart", lambda path, **_drawn: _touch(path))


@pytest.fixture
def real_charts() -> None:
    """Let the test draw its charts."""


def _touch(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.touch()
