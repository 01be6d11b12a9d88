"""Pictures of classes that differ in shape and colour, so that a head on random features can tell them apart.

Places, sizes and backgrounds are alike in all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw

from tests.trainer.dataset.drawn import Drawn, write_dataset
from tests.trainer.dataset.making import noise
from trainer.protocol.report import DatasetReport, Split, read_report

_COLOURS = {"circle": "red", "square": "blue"}


def draw_shape(shape: str, seed: int) -> Image.Image:
    """A `circle`, a `square` or (any other name) a `bar`, about the middle of a picture that is wider than high."""
    random = Random(f"{shape} {seed}")
    # Nobody hands in the same background each time: such pictures would count as near duplicates.
    picture = Image.blend(noise(random.getrandbits(30), 96, 80), Image.new("RGB", (96, 80), "white"), 0.5)
    draw = ImageDraw.Draw(picture)
    side = random.randint(32, 44)
    x, y = 48 - side // 2 + random.randint(-6, 6), 40 - side // 2 + random.randint(-6, 6)
    colour = _COLOURS.get(shape, "green")
    if shape == "circle":
        draw.ellipse((x, y, x + side, y + side), fill=colour)
    elif shape == "square":
        draw.rectangle((x, y, x + side, y + side), fill=colour)
    else:
        draw.rectangle((x, y + side // 3, x + side, y + side // 2), fill=colour)
    return picture


def draw_class_folders(folder: Path, counts: Mapping[str, int]) -> Path:
    """One folder of pictures for each class, as people hand them in."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            draw_shape(name, number).save(folder / name / f"{number:02d}.png")
    return folder


def write_classes(folder: Path, counts: Mapping[Split, Mapping[str, int]]) -> Path:
    """A prepared dataset folder: so many pictures of each class in each split."""
    pictures: list[Drawn] = []
    names: list[str] = []
    for split, of_class in counts.items():
        for name, count in of_class.items():
            for _ in range(count):
                pictures.append(Drawn(picture=draw_shape(name, len(pictures)), split=split, caption="a shape"))
                names.append(name)
    write_dataset(folder, pictures)
    report = read_report(folder)
    images = tuple(
        image.model_copy(update={"class_name": name}) for image, name in zip(report.images, names, strict=True)
    )
    _write(folder, report.model_copy(update={"images": images}))
    return folder


def _write(folder: Path, report: DatasetReport) -> None:
    (folder / "report.json").write_text(report.model_dump_json(), encoding="utf-8")
