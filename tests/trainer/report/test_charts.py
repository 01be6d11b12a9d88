"""The charts show what they are given; looked at, too, in two sizes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from PIL import Image

from trainer.report.charts import draw_bands_chart, draw_loss_chart

VALIDATION, PROBES, BEST, STOP = "#5bb5f5", "#c58af9", "#f0b232", "#f47b67"
PLAIN: Mapping[str, Any] = {
    "title": "momo: epoch 4 of 8",
    "epochs": [1, 2, 3, 4],
    "train_losses": [0.08, 0.07, 0.06, 0.05],
    "ratios": [0.9, 0.8, 0.75, 0.78],
    "best_epoch": 3,
    "total_epochs": 8,
}


def read(path: Path) -> NDArray[np.int64]:
    """Its pixels, [H, W, 3]."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(np.int64)


def pixels_of(path: Path, colour: str) -> int:
    """How many pixels of the picture have just this colour."""
    wanted = [round(255 * part) for part in to_rgb(colour)]
    return int((read(path) == wanted).all(axis=2).sum())


def test_the_chart_is_about_800_pixels_wide_and_written_whole(tmp_path: Path) -> None:
    path = draw_loss_chart(tmp_path / "charts" / "loss.png", **PLAIN)

    assert 780 <= read(path).shape[1] <= 800
    assert [file.name for file in path.parent.iterdir()] == ["loss.png"]


def test_the_best_epoch_has_a_star(tmp_path: Path) -> None:
    without = draw_loss_chart(tmp_path / "without.png", **{**PLAIN, "best_epoch": 0})

    assert pixels_of(draw_loss_chart(tmp_path / "with.png", **PLAIN), BEST) > 50
    assert pixels_of(without, BEST) == 0


def test_the_training_pictures_have_a_curve_of_their_own_where_they_are_measured(tmp_path: Path) -> None:
    measured = draw_loss_chart(tmp_path / "measured.png", **PLAIN, train_ratios=[0.88, 0.77, None, 0.6])
    unknown = draw_loss_chart(tmp_path / "unknown.png", **PLAIN, train_ratios=[None] * 4)

    assert pixels_of(measured, PROBES) > 100
    assert pixels_of(unknown, PROBES) == 0


def test_the_interval_is_shaded(tmp_path: Path) -> None:
    def shaded(width: float) -> int:
        intervals = [None, *((ratio - width, ratio + width) for ratio in (0.8, 0.75, 0.78))]
        path = draw_loss_chart(tmp_path / f"{width}.png", **PLAIN, intervals=intervals)
        picture = read(path)
        # Between the background and the curve's blue.
        return int(((picture[:, :, 2] > 65) & (picture[:, :, 2] < 90) & (picture[:, :, 0] < 60)).sum())

    assert shaded(0.05) > 2 * shaded(0.01) > 200


def test_points_between_epochs_are_drawn(tmp_path: Path) -> None:
    plain = read(draw_loss_chart(tmp_path / "plain.png", **PLAIN))
    dotted = read(draw_loss_chart(tmp_path / "dotted.png", **PLAIN, between=[(0.5, 0.85), (1.5, 0.97), (2.5, 0.9)]))

    changed = (plain != dotted).any(axis=2)
    # Three small dots, each where nothing was.
    assert 3 * 5 <= changed.sum() <= 3 * 60


def test_an_early_stop_is_marked(tmp_path: Path) -> None:
    assert pixels_of(draw_loss_chart(tmp_path / "stopped.png", **PLAIN, stopped_at=4), STOP) > 100
    assert pixels_of(draw_loss_chart(tmp_path / "running.png", **PLAIN), STOP) == 0


def test_stages_part_the_chart_and_a_single_one_does_not(tmp_path: Path) -> None:
    def picture(name: str, stages: list[tuple[int, str]]) -> bytes:
        return draw_loss_chart(tmp_path / f"{name}.png", **PLAIN, stages=stages).read_bytes()

    none, one = picture("none", []), picture("one", [(1, "all of it")])
    two = picture("two", [(1, "head only"), (3, "everything with a name that is much too long to fit" * 3)])

    assert none == one
    assert two != none


@pytest.mark.parametrize("ratio", [0.98, 1.0, 7.0])
def test_a_single_epoch_can_be_drawn_whatever_its_ratio(tmp_path: Path, ratio: float) -> None:
    path = draw_loss_chart(
        tmp_path / "first.png",
        title="t",
        epochs=[1],
        train_losses=[0.1],
        ratios=[ratio],
        best_epoch=1,
        total_epochs=1,
        intervals=[(0.5, 9.0)],
        train_ratios=[ratio],
    )

    assert pixels_of(path, BEST) > 50


@pytest.mark.parametrize(("bands", "stars"), [(1, 1), (4, 4), (5, 5), (100, 12)])
def test_each_band_has_a_panel_and_more_than_twelve_are_grouped(tmp_path: Path, bands: int, stars: int) -> None:
    path = draw_bands_chart(
        tmp_path / "bands.png",
        title="momo, by timestep",
        bands=[(band * 1000 // bands, (band + 1) * 1000 // bands - 1) for band in range(bands)],
        epochs=[1, 2],
        ratios=[[0.9] * bands, [0.8] * bands],
        best_epoch=2,
        total_epochs=4,
    )

    assert _blobs(path, BEST) == stars
    assert 780 <= read(path).shape[1] <= 800


def _blobs(path: Path, colour: str) -> int:
    """How many separate patches of a colour there are."""
    wanted = np.array([round(255 * part) for part in to_rgb(colour)])
    mask = (np.abs(read(path) - wanted).max(axis=2) < 40).astype(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask)
    return int((stats[1:, cv2.CC_STAT_AREA] > 20).sum())
