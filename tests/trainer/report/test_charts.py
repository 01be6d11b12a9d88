"""The pixels of a chart show its data, and its letters can be read on a phone."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray
from PIL import Image

from trainer.protocol.events import BandLoss, EpochEnded, ValidationLoss
from trainer.report import charts
from trainer.report.charts import DARK, LIGHT, Theme, draw_levels_chart, draw_loss_chart, draw_study_chart
from trainer.report.study_page import MeanCurve, RunCurve

VALIDATION, TRAIN_IMAGES, BEST, STOP = DARK.validation, DARK.training, DARK.best, DARK.stop
PLAIN: Mapping[str, Any] = {"best_epoch": 3, "total_epochs": 8}
#: How wide a phone shows an image, px, and the height of letters that can be read there.
PHONE_PX, LETTER_PX = 285, 11


@dataclass(frozen=True)
class Point:
    """One epoch of a chart."""

    epoch: int
    ratio: float
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


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart to compare others with."""
    return draw_loss_chart(tmp_path_factory.mktemp("plain") / "charts" / "loss.png", POINTS, **PLAIN)


def test_a_chart_leaves_no_other_file(plain: Path) -> None:
    assert [file.name for file in plain.parent.iterdir()] == ["loss.png"]


def test_the_best_epoch_has_a_star(tmp_path: Path, plain: Path) -> None:
    without = draw_loss_chart(tmp_path / "without.png", POINTS, **{**PLAIN, "best_epoch": 0})

    assert pixels_of(plain, BEST) > 50
    assert pixels_of(without, BEST) == 0


def test_the_training_images_have_their_own_curve_if_they_are_measured(tmp_path: Path, plain: Path) -> None:
    points = [replace(point, train_ratio=ratio) for point, ratio in zip(POINTS, (0.88, 0.77, None, 0.6), strict=True)]
    measured = draw_loss_chart(tmp_path / "measured.png", points, **PLAIN)

    assert pixels_of(measured, TRAIN_IMAGES) > 100
    assert pixels_of(plain, TRAIN_IMAGES) == 0


def test_the_interval_is_shaded(tmp_path: Path) -> None:
    def shaded(width: float) -> int:
        later = [replace(point, interval=(point.ratio - width, point.ratio + width)) for point in POINTS[1:]]
        path = draw_loss_chart(tmp_path / f"{width}.png", [POINTS[0], *later], **PLAIN)
        image = read(path)
        # Gray, a little lighter than the background; the curve that runs through it is blue.
        return int((np.abs(image - (67, 70, 74)).max(axis=2) <= 3).sum())

    assert shaded(0.05) > 2 * shaded(0.01) > 200


def test_points_between_epochs_are_drawn(tmp_path: Path, plain: Path) -> None:
    dotted = read(
        draw_loss_chart(tmp_path / "dotted.png", POINTS, **PLAIN, between=[(0.5, 0.85), (1.5, 0.97), (2.5, 0.9)])
    )

    changed = (read(plain) != dotted).any(axis=2)
    # Three small dots, each where nothing was.
    assert 3 * 15 <= changed.sum() <= 3 * 250


def test_an_early_stop_is_marked(tmp_path: Path, plain: Path) -> None:
    assert pixels_of(draw_loss_chart(tmp_path / "stopped.png", POINTS, **PLAIN, stopped_at=4), STOP) > 100
    assert pixels_of(plain, STOP) == 0


def test_stages_divide_the_chart_and_a_single_one_does_not(tmp_path: Path, plain: Path) -> None:
    def image(name: str, stages: list[tuple[int, str]]) -> bytes:
        return draw_loss_chart(tmp_path / f"{name}.png", POINTS, **PLAIN, stages=stages).read_bytes()

    one = image("one", [(1, "all of it")])
    two = image("two", [(1, "head only"), (3, "everything with a name that is much too long to fit" * 3)])

    assert one == plain.read_bytes()
    assert two != one


@pytest.mark.parametrize("ratio", [0.98, 1.0, 7.0])
def test_a_single_epoch_can_be_drawn_whatever_its_ratio(tmp_path: Path, ratio: float) -> None:
    point = Point(epoch=1, ratio=ratio, interval=(0.5, 9.0), train_ratio=ratio)
    path = draw_loss_chart(tmp_path / "first.png", [point], best_epoch=1, total_epochs=1)

    assert pixels_of(path, BEST) > 50


@pytest.mark.parametrize("bands", [3, 4, 100])
def test_layout_shapes_and_detail_have_a_panel_each(tmp_path: Path, bands: int) -> None:
    path = draw_levels_chart(tmp_path / "levels.png", [_epoch(1, 0.9, bands), _epoch(2, 0.8, bands)], total_epochs=4)

    assert _blobs(path, BEST) == 3


def test_a_loss_that_is_no_number_leaves_a_gap(tmp_path: Path) -> None:
    points = [*POINTS, Point(5, float("nan"))]

    assert pixels_of(draw_loss_chart(tmp_path / "nan.png", points, **PLAIN), VALIDATION) > 100


@pytest.mark.parametrize("chart", ["loss", "levels", "study", "folds"])
def test_letters_can_be_read_on_a_phone_and_lie_inside_the_padding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chart: str
) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(charts, "save_figure", lambda figure, path: figures.append(figure))
    curves = [RunCurve(name=f"rank {n}, learning rate 0.00{n}", ratios=(0.9, 0.8), best_epoch=2) for n in range(12)]
    match chart:
        case "loss":
            measured = [replace(each, interval=(0.6, 1.0), train_ratio=0.7) for each in POINTS]
            stages = [(1, "head only"), (3, "everything")]
            draw_loss_chart(tmp_path / "x.png", measured, **PLAIN, stages=stages, stopped_at=4)
        case "levels":
            draw_levels_chart(tmp_path / "x.png", [_epoch(1, 1.234, 4)], total_epochs=4)
        case "study":
            draw_study_chart(tmp_path / "x.png", title="momo: rank and learning rate, compared", curves=curves)
        case _:
            mean = MeanCurve(ratios=(0.9, 0.8), epoch=2, label="median best epoch: 2")
            draw_study_chart(tmp_path / "x.png", title="momo: 3 folds", curves=curves[:3], mean=mean)

    (figure,) = figures
    figure.draw_without_rendering()
    width, height = figure.bbox.size
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    assert len(texts) > 8
    for text in texts:
        assert float(text.get_fontsize()) * figure.dpi / 72 * PHONE_PX / width >= LETTER_PX, text.get_text()
    drawn, margin = figure.get_tightbbox(), 0.03
    assert drawn.x0 >= margin
    assert drawn.y0 >= margin
    assert drawn.x1 <= width / figure.dpi - margin
    assert drawn.y1 <= height / figure.dpi - margin


@pytest.mark.parametrize("theme", [DARK, LIGHT])
def test_text_and_curves_stand_out_from_the_background(theme: Theme) -> None:
    for color in (theme.text, theme.validation):
        assert _contrast(color, theme.background) >= 4.5, color
    for color in (theme.training, theme.best, theme.stop, theme.further_runs, *theme.runs):
        assert _contrast(color, theme.background) >= 3, color


def _contrast(one: str, other: str) -> float:
    """The contrast ratio of two colors (WCAG 2.1)."""

    def luminance(color: str) -> float:
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(color)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


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


def test_a_font_that_was_installed_after_the_first_chart_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = font_manager.fontManager.ttflist
    new, broken = tmp_path / "new.ttf", tmp_path / "broken.ttf"
    shutil.copyfile(font_manager.findfont("DejaVu Sans"), new)
    broken.write_bytes(b"no font")
    monkeypatch.setattr(font_manager.fontManager, "ttflist", list(known))
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(broken), str(new)])
    charts._families.cache_clear()
    charts.new_figure(1.0)
    assert str(new) in {font.fname for font in font_manager.fontManager.ttflist}
    charts._families.cache_clear()
