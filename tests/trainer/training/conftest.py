"""Fixtures of the tests of trainings."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import pytest

from tests.trainer.quick_charts import never_align


@pytest.fixture(scope="module", autouse=True)
def _quick_charts(request: pytest.FixtureRequest) -> Iterator[None]:
    """Draw no charts and align no samples but in test_recipe.py, which looks at all files of a training."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.name != "test_recipe.py":
            request.getfixturevalue("quick_charts")
            patch.setattr(cv2, "findTransformECC", never_align)
        yield
