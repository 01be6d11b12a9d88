"""Draws the datasets of the demo: `python -m recipes.tiny.demo_dataset FOLDER` writes momo.zip and blueprint.zip.

The first holds 38 captioned images of *momo*, a creature that the base model has never seen, and four files for the
dataset report to find: two exact duplicates, an image that does not decode, and a file that is not an image. The second
teaches a style: things that the base knows, drawn as blueprints. It leaves decisions to its owner: a blurred drawing, a
tiny one, a brighter copy of another, and two without captions. The same bytes every time.
"""

import io
import math
import random
import sys
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from recipes.tiny.scenes import COLORS, PLACES, paint_background, with_article
from recipes.tiny.shapes import FIGURES, Part, Pose, Rgb, ellipse, paint_figure, ramp

TRIGGER = "momo"
BLUEPRINT = "blueprint"
#: Of a blueprint: its paper from top to bottom, the grid, and the lines.
PAPER: Rgb = (38, 74, 148)
DEEP_PAPER: Rgb = (24, 52, 112)
GRID: Rgb = (58, 98, 172)
CHALK: Rgb = (236, 242, 250)
#: Blueprints without a caption.
UNCAPTIONED = (12, 25)
FOLDER = "momo-dataset/images"
SUPERSAMPLE = 2
IMAGE_SIZES_PX = ((128, 128), (160, 160), (144, 128), (128, 144), (192, 176), (120, 132), (200, 200), (104, 96))
TIMESTAMP = (2026, 1, 1, 0, 0, 0)


@dataclass(frozen=True, kw_only=True)
class Portrait:
    """An image of momo in the words of its caption; with a `friend`, momo stands to its left or right."""

    background: str
    size: str = ""
    place: str = "middle"
    friend: tuple[str, str] | None = None

    @property
    def caption(self) -> str:
        ground = with_article(f"{self.background} background")
        subject = f"a {self.size} {TRIGGER}" if self.size else TRIGGER
        if self.friend:
            color, kind = self.friend
            side = "to the left of" if self.place == "left" else "to the right of"
            return f"{subject} {side} {with_article(color)} {kind} on {ground}"
        where = "" if self.place == "middle" else f" at the {self.place}"
        return f"{subject}{where} on {ground}"


PORTRAITS: tuple[Portrait, ...] = (
    *(
        Portrait(background=name)
        for name in ("yellow", "white", "green", "blue", "pink", "orange", "gray", "black", "purple")
    ),
    *(Portrait(background=name, size="big") for name in ("yellow", "white", "green", "blue", "pink", "orange", "gray")),
    *(Portrait(background=name, size="small") for name in ("yellow", "white", "blue", "pink")),
    Portrait(background="green", place="left"),
    Portrait(background="yellow", place="right"),
    Portrait(background="white", place="top"),
    Portrait(background="blue", place="bottom"),
    Portrait(background="pink", place="left"),
    Portrait(background="orange", place="right"),
    Portrait(background="green", size="small", place="left"),
    Portrait(background="white", size="small", place="right"),
    Portrait(background="yellow", size="small", place="top left"),
    Portrait(background="blue", size="small", place="bottom right"),
    Portrait(background="gray", size="small", place="top right"),
    Portrait(background="pink", size="small", place="bottom left"),
    Portrait(background="white", place="left", friend=("red", "star")),
    Portrait(background="blue", place="right", friend=("yellow", "moon")),
    Portrait(background="green", place="left", friend=("red", "mushroom")),
    Portrait(background="yellow", place="right", friend=("green", "tree")),
    Portrait(background="pink", place="left", friend=("blue", "house")),
    Portrait(background="white", place="right", friend=("pink", "heart")),
)
#: Portraits that are stored twice, under two names.
DUPLICATED = (0, 11)


def momo_parts() -> list[Part]:
    """Draw a round creature: feet, two feelers with golden tips, white belly, big eyes, a smile."""
    feelers = [
        Part(outer=[(side * 0.2, -0.5), (side * 0.34, -0.5), (side * 0.62, -1.02), (side * 0.5, -1.06)])
        for side in (-1, 1)
    ]
    tips = [Part(outer=ellipse(side * 0.56, -1.05, 0.17), tint="gold") for side in (-1, 1)]
    feet = [Part(outer=ellipse(side * 0.4, 0.9, 0.26, 0.16), tint="deep") for side in (-1, 1)]
    eyes = [Part(outer=ellipse(side * 0.32, -0.12, 0.27, 0.31), tint="cream") for side in (-1, 1)]
    pupils = [Part(outer=ellipse(side * 0.27, -0.06, 0.13, 0.16), tint="ink") for side in (-1, 1)]
    upper = [(0.3 * math.cos(a), 0.38 + 0.06 * math.sin(a)) for a in (math.radians(d) for d in range(180, -1, -12))]
    lower = [(0.3 * math.cos(a), 0.38 + 0.24 * math.sin(a)) for a in (math.radians(d) for d in range(0, 181, 12))]
    body = Part(outer=ellipse(0.0, 0.1, 0.86, 0.8))
    return [*feelers, *tips, *feet, body, *eyes, *pupils, Part(outer=upper + lower, tint="ink")]


def _pose(portrait: Portrait, side_px: int, rng: random.Random) -> Pose:
    radius, reach = {"small": (0.17, 0.26), "big": (0.36, 0.08)}.get(portrait.size, (0.26, 0.16))
    if portrait.friend:
        radius, reach = 0.22, 0.23
    dx, dy = PLACES[portrait.place][0]
    return Pose(
        x_px=side_px * (0.5 + dx * reach + rng.uniform(-0.02, 0.02)),
        y_px=side_px * (0.52 + dy * reach + rng.uniform(-0.02, 0.02)),
        radius_px=side_px * radius * rng.uniform(0.95, 1.05),
        tilt_rad=rng.uniform(-0.1, 0.1),
    )


def draw_portrait(portrait: Portrait, size_px: tuple[int, int], rng: random.Random) -> Image.Image:
    """Draw the portrait as an RGB image of `size_px` (width, height)."""
    side_px = min(size_px) * SUPERSAMPLE
    canvas = paint_background(portrait.background, rng, max(size_px) * SUPERSAMPLE)
    left, top = (canvas.width - side_px) // 2, (canvas.height - side_px) // 2
    square = canvas.crop((left, top, left + side_px, top + side_px))
    if portrait.friend:
        color, kind = portrait.friend
        away = -PLACES[portrait.place][0][0]
        friend = Pose(x_px=side_px * (0.5 + 0.24 * away), y_px=side_px * 0.54, radius_px=side_px * 0.19)
        paint_figure(square, FIGURES[kind](), COLORS[color], friend)
    paint_figure(square, momo_parts(), COLORS["purple"], _pose(portrait, side_px, rng))
    canvas.paste(square, (left, top))
    width, height = (length * SUPERSAMPLE for length in size_px)
    x, y = (canvas.width - width) // 2, (canvas.height - height) // 2
    return canvas.crop((x, y, x + width, y + height)).resize(size_px, Image.Resampling.LANCZOS)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def momo_files() -> dict[str, bytes]:
    """Return the content of each file of the first zip by path."""
    files: dict[str, bytes] = {"momo-dataset/README.txt": b"Images of momo, drawn by recipes/tiny/demo_dataset.py.\n"}
    for index, portrait in enumerate(PORTRAITS):
        size_px = IMAGE_SIZES_PX[index % len(IMAGE_SIZES_PX)]
        image = _png(draw_portrait(portrait, size_px, random.Random(f"momo {index}")))
        stem = f"{FOLDER}/momo_{index + 1:02d}"
        files |= {f"{stem}.png": image, f"{stem}.txt": portrait.caption.encode()}
        if index in DUPLICATED:
            files |= {f"{stem}_copy.png": image, f"{stem}_copy.txt": portrait.caption.encode()}
    files[f"{FOLDER}/broken.png"] = files[f"{FOLDER}/momo_01.png"][:400]
    files[f"{FOLDER}/notes.pdf"] = b"%PDF-1.4 this is not an image\n"
    return files


def _blueprint_of(kind: str, size: str, place: str) -> tuple[Image.Image, str]:
    """Return a drawing in white lines on blue paper with a grid, and its caption."""
    rng = random.Random(f"blueprint {kind} {size} {place}")
    side_px = rng.choice((128, 144, 160)) * SUPERSAMPLE
    canvas = ramp(side_px, PAPER, DEEP_PAPER)
    pen = ImageDraw.Draw(canvas)
    for line in range(0, side_px, side_px // 8):
        pen.line([(line, 0), (line, side_px)], fill=GRID, width=SUPERSAMPLE)
        pen.line([(0, line), (side_px, line)], fill=GRID, width=SUPERSAMPLE)
    pose = _pose(Portrait(background="blue", size=size, place=place), side_px, rng)
    for part in FIGURES[kind]():
        for loop in filter(None, (part.outer, part.hole)):
            placed = pose.place(loop)
            pen.line([*placed, placed[0], placed[1]], fill=CHALK, width=side_px // 40, joint="curve")
    where = "" if place == "middle" else f" at the {place}"
    subject = with_article(f"{size} {kind}".strip())
    image = canvas.resize((side_px // SUPERSAMPLE,) * 2, Image.Resampling.LANCZOS)
    return image, f"{BLUEPRINT} of {subject}{where}"


def blueprint_files() -> dict[str, bytes]:
    """Return the content of each file of the second zip by path."""
    files: dict[str, bytes] = {"blueprints/README.txt": b"Blueprints, drawn by recipes/tiny/demo_dataset.py.\n"}
    poses = (("big", "middle"), ("", "left"), ("", "right"), ("small", "top"), ("small", "bottom"))
    drawings = [
        _blueprint_of(kind, *poses[(index + 2 * part) % len(poses)])
        for part in range(2)
        for index, kind in enumerate(FIGURES)
    ]
    for index, (image, caption) in enumerate(drawings):
        stem = f"blueprints/blueprint_{index + 1:02d}"
        files[f"{stem}.png"] = _png(image)
        if index not in UNCAPTIONED:
            files[f"{stem}.txt"] = caption.encode()
    blurred, caption = drawings[3]
    files |= {
        "blueprints/out_of_focus.png": _png(blurred.filter(ImageFilter.GaussianBlur(5))),
        "blueprints/out_of_focus.txt": caption.encode(),
        "blueprints/thumbnail.png": _png(drawings[8][0].resize((28, 28))),
        "blueprints/thumbnail.txt": drawings[8][1].encode(),
        "blueprints/blueprint_06_bright.png": _png(ImageEnhance.Brightness(drawings[5][0]).enhance(1.25)),
        "blueprints/blueprint_06_bright.txt": drawings[5][1].encode(),
    }
    return files


def write_zip(path: Path, files: Mapping[str, bytes]) -> None:
    """Write the zip; the bytes depend on the versions of Pillow and zlib only."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name, date_time=TIMESTAMP)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, content)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m recipes.tiny.demo_dataset FOLDER")
    write_zip(Path(sys.argv[1], "momo.zip"), momo_files())
    write_zip(Path(sys.argv[1], "blueprint.zip"), blueprint_files())
