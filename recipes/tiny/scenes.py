"""Owns the training data of the tiny base model: scenes drawn from a seed, and their captions.

`python -m recipes.tiny.scenes sheet.png` draws a sheet of captioned scenes.
"""

import random
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from PIL import Image, ImageDraw

from recipes.tiny.shapes import FIGURES, Pose, Rgb, darken, lighten, paint_figure, ramp

IMAGE_PX = 64
#: Scenes are drawn this many times larger and scaled down: cheap anti-aliasing.
SUPERSAMPLE = 4

COLORS: dict[str, Rgb] = {
    "red": (222, 48, 48),
    "orange": (245, 140, 35),
    "yellow": (250, 214, 50),
    "green": (62, 168, 78),
    "blue": (54, 104, 220),
    "purple": (142, 72, 190),
    "pink": (245, 132, 178),
    "brown": (140, 92, 56),
    "black": (48, 46, 54),
    "white": (246, 246, 242),
    "gray": (142, 146, 154),
}
BACKGROUNDS: dict[str, Rgb] = {
    "white": (248, 246, 240),
    "yellow": (252, 232, 136),
    "orange": (250, 192, 128),
    "green": (170, 222, 156),
    "blue": (158, 204, 246),
    "purple": (206, 178, 238),
    "pink": (252, 202, 218),
    "gray": (196, 200, 206),
    "black": (62, 62, 78),
}


class Size(StrEnum):
    """Size of a figure; captions never name `MEDIUM`."""

    SMALL = "small"
    MEDIUM = "medium"
    BIG = "big"


class Layout(StrEnum):
    """Position of the first-named figure relative to the second."""

    LEFT_OF = "to the left of"
    RIGHT_OF = "to the right of"
    ABOVE = "above"
    BELOW = "below"


RADIUS_PX = {Size.SMALL: 9.0, Size.MEDIUM: 14.0, Size.BIG: 20.0}
#: Distance from the middle at which a figure of each size is placed.
REACH_PX = {Size.SMALL: 19.0, Size.MEDIUM: 15.0, Size.BIG: 10.0}
SIZE_WORDS = {Size.SMALL: ("small", "small", "little", "tiny"), Size.BIG: ("big", "big", "large", "huge")}
#: Direction from the middle, and the words for it in a caption.
PLACES: dict[str, tuple[tuple[int, int], tuple[str, ...]]] = {
    "middle": ((0, 0), ("in the middle", "in the centre", "in the center")),
    "left": ((-1, 0), ("at the left", "on the left")),
    "right": ((1, 0), ("at the right", "on the right")),
    "top": ((0, -1), ("at the top",)),
    "bottom": ((0, 1), ("at the bottom",)),
    "top left": ((-1, -1), ("at the top left", "in the top left corner")),
    "top right": ((1, -1), ("at the top right", "in the top right corner")),
    "bottom left": ((-1, 1), ("at the bottom left", "in the bottom left corner")),
    "bottom right": ((1, 1), ("at the bottom right", "in the bottom right corner")),
}
LAYOUT_STEPS = {Layout.LEFT_OF: (-1, 0), Layout.RIGHT_OF: (1, 0), Layout.ABOVE: (0, -1), Layout.BELOW: (0, 1)}
OPENINGS = ("a picture of ", "a drawing of ", "an image of ", "a painting of ")


@dataclass(frozen=True, kw_only=True)
class Thing:
    """A figure of a scene, in the words of its caption."""

    kind: str
    color: str
    size: Size
    #: A key of PLACES; the layout positions the things of a scene of two.
    place: str = "middle"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One or two things on a background."""

    things: tuple[Thing, ...]
    background: str
    layout: Layout | None = None


def random_scene(rng: random.Random) -> Scene:
    """Return a random scene of one thing (70 %) or two; no thing has the color of the background."""
    background = rng.choice(list(BACKGROUNDS))
    colors = [name for name in COLORS if name != background]
    if rng.random() < 0.7:
        thing = Thing(
            kind=rng.choice(list(FIGURES)),
            color=rng.choice(colors),
            size=rng.choice(list(Size)),
            place=rng.choice(list(PLACES)),
        )
        return Scene(things=(thing,), background=background)
    kinds = rng.sample(list(FIGURES), 2)
    things = tuple(
        Thing(kind=kind, color=rng.choice(colors), size=rng.choice([Size.SMALL, Size.MEDIUM])) for kind in kinds
    )
    return Scene(things=things, background=background, layout=rng.choice(list(Layout)))


def scene_of_seed(seed: int) -> Scene:
    return random_scene(random.Random(f"scene {seed}"))


def with_article(noun_phrase: str) -> str:
    return ("an " if noun_phrase[0] in "aeiou" else "a ") + noun_phrase


def _noun_phrase(thing: Thing, rng: random.Random, *, size_share: float) -> str:
    words = [thing.kind]
    if rng.random() < 0.92:
        words.insert(0, "grey" if thing.color == "gray" and rng.random() < 0.5 else thing.color)
    if thing.size in SIZE_WORDS and rng.random() < size_share:
        words.insert(0, rng.choice(SIZE_WORDS[thing.size]))
    return " ".join(words)


def _pair_phrase(scene: Scene, rng: random.Random, phrases: list[str]) -> str:
    first, second = (with_article(phrase) for phrase in phrases)
    roll = rng.random()
    if roll < 0.15:
        return f"{first} and {second}"
    if scene.layout in (Layout.LEFT_OF, Layout.RIGHT_OF) and roll < 0.35:
        return f"{first} {rng.choice(['beside', 'next to'])} {second}"
    return f"{first} {scene.layout} {second}"


def caption(scene: Scene, rng: random.Random) -> str:
    """Return a caption that is true of `scene`; it may leave attributes out."""
    phrases = [_noun_phrase(thing, rng, size_share=0.7 if scene.layout is None else 0.4) for thing in scene.things]
    place = rng.choice(PLACES[scene.things[0].place][1]) if scene.layout is None and rng.random() < 0.6 else ""
    ground = f"{scene.background} background" if rng.random() < 0.8 else ""
    style = rng.random()
    if scene.layout is None and style < 0.12:
        return ", ".join(filter(None, (phrases[0], place, ground)))
    body = with_article(phrases[0]) if scene.layout is None else _pair_phrase(scene, rng, phrases)
    body = f"{body} {place}".rstrip()
    if ground and style > 0.85:
        return f"on {with_article(ground)}, {body}"
    opening = rng.choice(OPENINGS) if style < 0.24 else ""
    return f"{opening}{body}{' on ' + with_article(ground) if ground else ''}"


def _pose(x: float, y: float, radius_px: float, rng: random.Random) -> Pose:
    return Pose(
        x_px=(IMAGE_PX / 2 + x + rng.uniform(-1.5, 1.5)) * SUPERSAMPLE,
        y_px=(IMAGE_PX / 2 + y + rng.uniform(-1.5, 1.5)) * SUPERSAMPLE,
        radius_px=radius_px * rng.uniform(0.93, 1.07) * SUPERSAMPLE,
        tilt_rad=rng.uniform(-0.12, 0.12),
    )


def poses(scene: Scene, rng: random.Random) -> list[Pose]:
    """Return the pose of each thing, with some random jitter."""
    if scene.layout is None:
        (thing,) = scene.things
        (dx, dy), reach = PLACES[thing.place][0], REACH_PX[thing.size]
        return [_pose(dx * reach, dy * reach, RADIUS_PX[thing.size], rng)]
    dx, dy = LAYOUT_STEPS[scene.layout]
    along, across = 16.0, rng.uniform(-6, 6)
    return [
        _pose(sign * dx * along + abs(dy) * across, sign * dy * along + abs(dx) * across, RADIUS_PX[thing.size], rng)
        for sign, thing in zip((1, -1), scene.things, strict=True)
    ]


def _shade(color: Rgb, rng: random.Random, spread: int = 8) -> Rgb:
    red, green, blue = (min(255, max(0, value + rng.randint(-spread, spread))) for value in color)
    return (red, green, blue)


def paint_background(name: str, rng: random.Random, size_px: int = IMAGE_PX * SUPERSAMPLE) -> Image.Image:
    color = _shade(BACKGROUNDS[name], rng, spread=5)
    return ramp(size_px, lighten(color, 0.25), darken(color, 0.06))


def draw(scene: Scene, rng: random.Random) -> Image.Image:
    """Draw the scene as an RGB image of 64 × 64 px."""
    canvas = paint_background(scene.background, rng)
    for thing, pose in zip(scene.things, poses(scene, rng), strict=True):
        paint_figure(canvas, FIGURES[thing.kind](), _shade(COLORS[thing.color], rng), pose)
    return canvas.resize((IMAGE_PX, IMAGE_PX), Image.Resampling.BOX)


def draw_seed(seed: int) -> Image.Image:
    return draw(scene_of_seed(seed), random.Random(f"picture {seed}"))


def caption_seed(seed: int, variant: int = 0) -> str:
    return caption(scene_of_seed(seed), random.Random(f"caption {seed} {variant}"))


def draw_doodle(seed: int) -> Image.Image:
    """Draw random overlapping ellipses, polygons and strokes: more variety for the VAE than the scenes have."""
    rng = random.Random(f"doodle {seed}")
    size_px = IMAGE_PX * SUPERSAMPLE

    def color() -> Rgb:
        return (rng.randrange(256), rng.randrange(256), rng.randrange(256))

    def spot() -> tuple[float, float]:
        return (rng.uniform(-20, size_px + 20), rng.uniform(-20, size_px + 20))

    canvas = ramp(size_px, color(), color()).rotate(rng.choice([0, 90, 180, 270]))
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.randint(2, 14)):
        (x, y), radius = spot(), 4 + 70 * rng.random() ** 2
        match rng.randrange(3):
            case 0:
                squash = rng.uniform(0.5, 1)
                edge = color() if rng.random() < 0.4 else None
                pen.ellipse(
                    (x - radius, y - radius * squash, x + radius, y + radius * squash),
                    fill=color(),
                    outline=edge,
                    width=6,
                )
            case 1:
                corners = [
                    (x + rng.uniform(-1, 1) * radius, y + rng.uniform(-1, 1) * radius) for _ in range(rng.randint(3, 6))
                ]
                pen.polygon(corners, fill=color())
            case _:
                pen.line([spot(), spot(), spot()], fill=color(), width=rng.randint(4, 14), joint="curve")
    return canvas.resize((IMAGE_PX, IMAGE_PX), Image.Resampling.BOX)


def contact_sheet(images: list[Image.Image], labels: list[str], columns: int = 8, scale: int = 2) -> Image.Image:
    """Arrange images in a grid, each with its caption below."""
    cell_px, line_px = IMAGE_PX * scale, 34
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (cell_px + 6), rows * (cell_px + line_px)), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        x, y = index % columns * (cell_px + 6), index // columns * (cell_px + line_px)
        sheet.paste(image.resize((cell_px, cell_px), Image.Resampling.LANCZOS), (x, y))
        letters_per_line = cell_px // 6
        lines = [label[at : at + letters_per_line] for at in range(0, len(label), letters_per_line)]
        pen.multiline_text((x, y + cell_px + 1), "\n".join(lines[:3]), fill="black", font_size=9.5, spacing=1)
    return sheet


if __name__ == "__main__":
    seeds = range(48)
    contact_sheet([draw_seed(seed) for seed in seeds], [caption_seed(seed) for seed in seeds]).save(Path(sys.argv[1]))
