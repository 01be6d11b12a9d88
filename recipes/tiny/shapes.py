"""Owns how a figure looks: each kind as closed outlines, and the brush that paints them shaded and outlined."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from PIL import Image, ImageChops, ImageDraw

Point: TypeAlias = tuple[float, float]
Loop: TypeAlias = list[Point]
Rgb: TypeAlias = tuple[int, int, int]

#: Colors of parts that do not follow the caption, such as a tree's trunk.
FIXED_TINTS: dict[str, Rgb] = {
    "wood": (133, 94, 66),
    "cream": (250, 240, 215),
    "gold": (245, 200, 70),
    "ink": (38, 30, 52),
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """A closed region in unit coordinates (x right, y down, the figure within -1..1)."""

    outer: Loop
    #: A region cut out of this part.
    hole: Loop = field(default_factory=list)
    #: ``main`` takes the caption's color, ``deep`` a darker shade of it; else a key of FIXED_TINTS.
    tint: str = "main"


@dataclass(frozen=True, kw_only=True)
class Pose:
    """Position and size of a figure, in pixels of the canvas."""

    x_px: float
    y_px: float
    radius_px: float
    tilt_rad: float = 0.0

    def place(self, loop: Loop) -> Loop:
        """Map the loop from unit coordinates to canvas pixels."""
        cos, sin = math.cos(self.tilt_rad) * self.radius_px, math.sin(self.tilt_rad) * self.radius_px
        return [(self.x_px + x * cos - y * sin, self.y_px + x * sin + y * cos) for x, y in loop]


def ellipse(x: float, y: float, rx: float, ry: float | None = None, *, steps: int = 40) -> Loop:
    ry = rx if ry is None else ry
    turns = (2 * math.pi * step / steps for step in range(steps))
    return [(x + rx * math.cos(turn), y + ry * math.sin(turn)) for turn in turns]


def box(left: float, top: float, right: float, bottom: float) -> Loop:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def polar(radii: list[float], *, start_rad: float = -math.pi / 2) -> Loop:
    """Return a polygon whose corners lie at equal angles, at the given distances from the center."""
    return [
        (
            radius * math.cos(start_rad + 2 * math.pi * i / len(radii)),
            radius * math.sin(start_rad + 2 * math.pi * i / len(radii)),
        )
        for i, radius in enumerate(radii)
    ]


def _heart() -> list[Part]:
    turns = [2 * math.pi * step / 60 for step in range(60)]
    loop = [
        (
            math.sin(t) ** 3 * 1.0,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 15.5,
        )
        for t in turns
    ]
    return [Part(outer=loop)]


def _moon() -> list[Part]:
    """Return a crescent: most of a unit circle, closed by a shallower arc."""
    outer = [(math.cos(a), math.sin(a)) for a in (math.radians(d) for d in range(-50, -311, -8))]
    inner = [(0.42 + 0.8 * math.cos(a), 0.8 * math.sin(a)) for a in (math.radians(d) for d in range(74, 287, 8))]
    return [Part(outer=outer + inner)]


def _cross() -> list[Part]:
    a = 0.34
    loop = [
        (-a, -1.0),
        (a, -1.0),
        (a, -a),
        (1.0, -a),
        (1.0, a),
        (a, a),
        (a, 1.0),
        (-a, 1.0),
        (-a, a),
        (-1.0, a),
        (-1.0, -a),
        (-a, -a),
    ]
    return [Part(outer=loop)]


def _house() -> list[Part]:
    return [
        Part(outer=box(-0.72, -0.15, 0.72, 0.95)),
        Part(outer=[(-1.0, -0.1), (0.0, -1.0), (1.0, -0.1)], tint="deep"),
        Part(outer=box(-0.2, 0.35, 0.2, 0.95), tint="wood"),
    ]


def _tree() -> list[Part]:
    return [
        Part(outer=box(-0.17, 0.2, 0.17, 1.0), tint="wood"),
        Part(outer=ellipse(-0.42, -0.08, 0.46)),
        Part(outer=ellipse(0.42, -0.08, 0.46)),
        Part(outer=ellipse(0.0, -0.48, 0.54)),
    ]


def _fish() -> list[Part]:
    return [
        Part(outer=[(0.35, 0.0), (1.0, -0.55), (0.85, 0.0), (1.0, 0.55)], tint="deep"),
        Part(outer=[(-0.45, -0.3), (-0.05, -0.8), (0.3, -0.25)], tint="deep"),
        Part(outer=ellipse(-0.22, 0.0, 0.78, 0.5)),
    ]


def _mushroom() -> list[Part]:
    cap = [(math.cos(a), 0.05 + 0.95 * math.sin(a)) for a in (math.radians(d) for d in range(180, 361, 9))]
    dots = [(-0.5, -0.3, 0.17), (0.05, -0.58, 0.2), (0.52, -0.25, 0.15)]
    return [
        Part(outer=box(-0.32, 0.0, 0.32, 0.95), tint="cream"),
        Part(outer=[*cap, (0.9, 0.2), (-0.9, 0.2)]),
        *(Part(outer=ellipse(x, y, r), tint="cream") for x, y, r in dots),
    ]


def _cloud() -> list[Part]:
    puffs = [(-0.58, 0.15, 0.42), (0.58, 0.15, 0.4), (-0.12, -0.18, 0.5), (0.3, -0.05, 0.42), (0.0, 0.25, 0.4)]
    return [Part(outer=ellipse(x, y, r)) for x, y, r in puffs]


def _flower() -> list[Part]:
    turns = [math.radians(60 * i - 90) for i in range(6)]
    petals = [Part(outer=ellipse(0.58 * math.cos(a), 0.58 * math.sin(a), 0.4)) for a in turns]
    return [*petals, Part(outer=ellipse(0.0, 0.0, 0.36), tint="gold")]


def _boat() -> list[Part]:
    return [
        Part(outer=box(-0.08, -0.95, 0.06, 0.4), tint="wood"),
        Part(outer=[(0.1, -0.95), (0.85, 0.2), (0.1, 0.2)], tint="cream"),
        Part(outer=[(-1.0, 0.32), (1.0, 0.32), (0.62, 0.92), (-0.62, 0.92)]),
    ]


def _star() -> list[Part]:
    return [Part(outer=polar([1.05, 0.48] * 5))]


#: Every kind of figure that the base model learns, by its word in captions.
FIGURES: dict[str, Callable[[], list[Part]]] = {
    "circle": lambda: [Part(outer=ellipse(0, 0, 0.92))],
    "square": lambda: [Part(outer=box(-0.82, -0.82, 0.82, 0.82))],
    "triangle": lambda: [Part(outer=[(0.0, -0.95), (1.0, 0.8), (-1.0, 0.8)])],
    "diamond": lambda: [Part(outer=[(0.0, -1.05), (0.75, 0.0), (0.0, 1.05), (-0.75, 0.0)])],
    "star": _star,
    "heart": _heart,
    "ring": lambda: [Part(outer=ellipse(0, 0, 0.95), hole=ellipse(0, 0, 0.52))],
    "moon": _moon,
    "cross": _cross,
    "house": _house,
    "tree": _tree,
    "fish": _fish,
    "mushroom": _mushroom,
    "cloud": _cloud,
    "flower": _flower,
    "boat": _boat,
}


def mix(a: Rgb, b: Rgb, share_b: float) -> Rgb:
    """Interpolate between the colors `a` and `b`."""
    red, green, blue = (round(x + (y - x) * share_b) for x, y in zip(a, b, strict=True))
    return (red, green, blue)


def lighten(color: Rgb, share: float) -> Rgb:
    return mix(color, (255, 255, 255), share)


def darken(color: Rgb, share: float) -> Rgb:
    return mix(color, (20, 16, 32), share)


def ramp(size_px: int, top: Rgb, bottom: Rgb) -> Image.Image:
    """Draw a square image that fades from `top` to `bottom`."""
    column = Image.new("RGB", (1, 2))
    column.putdata([top, bottom])
    return column.resize((size_px, size_px), Image.Resampling.BILINEAR, box=(0, 0.5, 1, 1.5))


def _mask(size_px: int, parts: list[Part], pose: Pose, stroke_px: int = 0) -> Image.Image:
    mask = Image.new("L", (size_px, size_px), 0)
    pen = ImageDraw.Draw(mask)
    for part in parts:
        pen.polygon(pose.place(part.outer), fill=255)
        if part.hole:
            pen.polygon(pose.place(part.hole), fill=0)
        for loop in (part.outer, part.hole):
            if stroke_px and loop:
                placed = pose.place(loop)
                pen.line([*placed, placed[0], placed[1]], fill=255, width=stroke_px, joint="curve")
    return mask


def _runs_of_one_tint(parts: list[Part]) -> list[list[Part]]:
    runs: list[list[Part]] = []
    for part in parts:
        if runs and runs[-1][0].tint == part.tint:
            runs[-1].append(part)
        else:
            runs.append([part])
    return runs


def _tinted(tint: str, color: Rgb) -> Rgb:
    if tint == "main":
        return color
    return darken(color, 0.28) if tint == "deep" else FIXED_TINTS[tint]


def paint_figure(canvas: Image.Image, parts: list[Part], color: Rgb, pose: Pose) -> None:
    """Paint a figure onto a square `canvas`: a ground shadow, an outline, shaded fills and a highlight."""
    size_px = canvas.width
    stroke_px = max(2, round(size_px / 40))
    shadow = Part(outer=ellipse(0.08, 1.02, 0.8, 0.16))
    upright = Pose(x_px=pose.x_px, y_px=pose.y_px, radius_px=pose.radius_px)
    shade = _mask(size_px, [shadow], upright).point(lambda value: value * 0.16)
    canvas.paste((20, 16, 32), (0, 0), shade)
    canvas.paste(darken(color, 0.62), (0, 0), _mask(size_px, parts, pose, stroke_px))
    glow = _mask(size_px, [Part(outer=ellipse(-0.38, -0.42, 0.42, 0.34))], pose)
    for run in _runs_of_one_tint(parts):
        fill = _tinted(run[0].tint, color)
        mask = _mask(size_px, run, pose)
        canvas.paste(ramp(size_px, lighten(fill, 0.12), darken(fill, 0.1)), (0, 0), mask)
        lit = ImageChops.darker(glow, mask).point(lambda value: value * 0.3)
        canvas.paste((255, 255, 255), (0, 0), lit)
