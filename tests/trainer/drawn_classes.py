"""Images of classes that differ in shape and color, so that a head on random features can separate them.

Positions, sizes and backgrounds have the same distribution in all classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw

from tests.trainer.dataset.image_files import noise
from tests.trainer.dataset.prepared_folders import Drawn, write_dataset
from trainer.exchange.dataset_dir import read_report
from trainer.protocol.report import DatasetReport, Split

_COLORS = {"circle": "red", "square": "blue"}


def draw_shape(shape: str, seed: int) -> Image.Image:
    """Draw a `circle`, a `square` or (any other name) a `bar` near the center of a landscape image."""
    random = Random(f"{shape} {seed}")
    # Backgrounds differ, or the images would count as near duplicates.
    image = Image.blend(noise(random.getrandbits(30), 96, 80), Image.new("RGB", (96, 80), "white"), 0.5)
    draw = ImageDraw.Draw(image)
    side = random.randint(32, 44)
    x, y = 48 - side // 2 + random.randint(-6, 6), 40 - side // 2 + random.randint(-6, 6)
    color = _COLORS.get(shape, "green")
    if shape == "circle":
        draw.ellipse((x, y, x + side, y + side), fill=color)
    elif shape == "square":
        draw.rectangle((x, y, x + side, y + side), fill=color)
    else:
        draw.rectangle((x, y + side // 3, x + side, y + side // 2), fill=color)
    return image


def draw_class_folders(folder: Path, counts: Mapping[str, int]) -> Path:
    """Write one folder of images per class, as users upload them."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            draw_shape(name, number).save(folder / name / f"{number:02d}.png")
    return folder


def write_classes(folder: Path, counts: Mapping[Split, Mapping[str, int]]) -> Path:
    """Write a prepared dataset folder with the given number of images per split and class."""
    drawn: list[Drawn] = []
    names: list[str] = []
    for split, of_class in counts.items():
        for name, count in of_class.items():
            for _ in range(count):
                drawn.append(Drawn(image=draw_shape(name, len(drawn)), split=split, caption="a shape"))
                names.append(name)
    write_dataset(folder, drawn)
    report = read_report(folder)
    images = tuple(replace(image, class_name=name) for image, name in zip(report.images, names, strict=True))
    _write(folder, report.model_copy(update={"images": images}))
    return folder


def _write(folder: Path, report: DatasetReport) -> None:
    (folder / "report.json").write_text(report.model_dump_json(), encoding="utf-8")
