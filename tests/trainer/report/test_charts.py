"""The pixels of a chart show its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from PIL import Image

from trainer.protocol.events import BandLoss, EpochEnded, ValidationLoss
from trainer.report.charts import draw_bands_chart, draw_loss_chart

VALIDATION, TRAIN_IMAGES, BEST, STOP = "#5bb5f5", "#c58af9", "#f0b232", "#f47b67"
PLAIN: Mapping[str, Any] = {"title": "momo: epoch 4 of 8", "best_epoch": 3, "total_epochs": 8}


@dataclass(frozen=True)
class Point:
    """One epoch of a chart."""

    epoch: int
    ratio: float
    train_loss: float = 0.07
    interval: tuple[float, float] | None = None
    train_ratio: float | None = None


RATIOS = (0.9, 0.8, 0.75, 0.78)
POINTS = [Point(epoch, ratio) for epoch, ratio in enumerate(RATIOS, 1)]


def read(path: Path) -> NDArray[np.int64]:
    """Return the pixels of an image, [H, W, 3]."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(np.int64)


def pixels_of(path: Path, color: str) -> int:
    """Count the pixels of exactly this color."""
    wanted = [round(255 * part) for part in to_rgb(color)]
    return int((read(path) == wanted).all(axis=2).sum())


def test_the_chart_is_about_800_pixels_wide_and_leaves_no_other_file(tmp_path: Path) -> None:
    path = draw_loss_chart(tmp_path / "charts" / "loss.png", POINTS, **PLAIN)

    assert 780 <= read(path).shape[1] <= 800
    assert [file.name for file in path.parent.iterdir()] == ["loss.png"]


def test_the_best_epoch_has_a_star(tmp_path: Path) -> None:
    without = draw_loss_chart(tmp_path / "without.png", POINTS, **{**PLAIN, "best_epoch": 0})

    assert pixels_of(draw_loss_chart(tmp_path / "with.png", POINTS, **PLAIN), BEST) > 50
    assert pixels_of(without, BEST) == 0


def test_the_training_images_have_their_own_curve_if_they_are_measured(tmp_path: Path) -> None:
    points = [replace(point, train_ratio=ratio) for point, ratio in zip(POINTS, (0.88, 0.77, None, 0.6), strict=True)]
    measured = draw_loss_chart(tmp_path / "measured.png", points, **PLAIN)
    unknown = draw_loss_chart(tmp_path / "unknown.png", POINTS, **PLAIN)

    assert pixels_of(measured, TRAIN_IMAGES) > 100
    assert pixels_of(unknown, TRAIN_IMAGES) == 0


def test_the_interval_is_shaded(tmp_path: Path) -> None:
    def shaded(width: float) -> int:
        later = [replace(point, interval=(point.ratio - width, point.ratio + width)) for point in POINTS[1:]]
        path = draw_loss_chart(tmp_path / f"{width}.png", [POINTS[0], *later], **PLAIN)
        image = read(path)
        # Between the background and the curve's blue.
        return int(((image[:, :, 2] > 65) & (image[:, :, 2] < 90) & (image[:, :, 0] < 60)).sum())

    assert shaded(0.05) > 2 * shaded(0.01) > 200


def test_points_between_epochs_are_drawn(tmp_path: Path) -> None:
    plain = read(draw_loss_chart(tmp_path / "plain.png", POINTS, **PLAIN))
    dotted = read(
        draw_loss_chart(tmp_path / "dotted.png", POINTS, **PLAIN, between=[(0.5, 0.85), (1.5, 0.97), (2.5, 0.9)])
    )

    changed = (plain != dotted).any(axis=2)
    # Three small dots, each where nothing was.
    assert 3 * 5 <= changed.sum() <= 3 * 60


def test_an_early_stop_is_marked(tmp_path: Path) -> None:
    assert pixels_of(draw_loss_chart(tmp_path / "stopped.png", POINTS, **PLAIN, stopped_at=4), STOP) > 100
    assert pixels_of(draw_loss_chart(tmp_path / "running.png", POINTS, **PLAIN), STOP) == 0


def test_stages_divide_the_chart_and_a_single_one_does_not(tmp_path: Path) -> None:
    def image(name: str, stages: list[tuple[int, str]]) -> bytes:
        return draw_loss_chart(tmp_path / f"{name}.png", POINTS, **PLAIN, stages=stages).read_bytes()

    none, one = image("none", []), image("one", [(1, "all of it")])
    two = image("two", [(1, "head only"), (3, "everything with a name that is much too long to fit" * 3)])

    assert none == one
    assert two != none


@pytest.mark.parametrize("ratio", [0.98, 1.0, 7.0])
def test_a_single_epoch_can_be_drawn_whatever_its_ratio(tmp_path: Path, ratio: float) -> None:
    point = Point(epoch=1, ratio=ratio, interval=(0.5, 9.0), train_ratio=ratio)
    path = draw_loss_chart(tmp_path / "first.png", [point], title="t", best_epoch=1, total_epochs=1)

    assert pixels_of(path, BEST) > 50


@pytest.mark.parametrize(("bands", "stars"), [(1, 1), (4, 4), (5, 5), (100, 12)])
def test_each_band_has_a_panel_and_more_than_twelve_are_grouped(tmp_path: Path, bands: int, stars: int) -> None:
    path = draw_bands_chart(
        tmp_path / "bands.png",
        [_epoch(1, 0.9, bands), _epoch(2, 0.8, bands)],
        title="momo, by timestep",
        total_epochs=4,
    )

    assert _blobs(path, BEST) == stars
    assert 780 <= read(path).shape[1] <= 800


def _epoch(number: int, ratio: float, bands: int) -> EpochEnded:
    return EpochEnded(
        seq=number,
        time=0.0,
        epoch=number,
        step=number,
        train_loss=0.1,
        validation=ValidationLoss(
            loss=0.1,
            ratio=ratio,
            bands=tuple(
                BandLoss(
                    first_timestep=band * 1000 // bands,
                    last_timestep=(band + 1) * 1000 // bands - 1,
                    loss=0.1,
                    ratio=ratio,
                )
                for band in range(bands)
            ),
        ),
        learning_rate=1e-4,
        seconds=1.0,
        is_best=True,
        best_epoch=number,
        chart="charts/loss.png",
    )


def _blobs(path: Path, color: str) -> int:
    """Count the separate patches of a color."""
    wanted = np.array([round(255 * part) for part in to_rgb(color)])
    mask = (np.abs(read(path) - wanted).max(axis=2) < 40).astype(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask)
    return int((stats[1:, cv2.CC_STAT_AREA] > 20).sum())
