"""Draws images with a known defect, and images without one that a simple measure would flag."""

from __future__ import annotations

import random

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]
_TEXT = "the quick brown fox jumps over a lazy dog while folders of pictures from March hold 1,204 files"
_WORDS = _TEXT.split()


def scene(seed: int, width: int = 640, height: int = 512) -> Image.Image:
    """Sharp and grainy, like a photograph."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (width, height), _color(rng))
    draw = ImageDraw.Draw(image)
    for _ in range(60):
        x, y = rng.integers(0, width), rng.integers(0, height)
        corners = [(int(x + dx), int(y + dy)) for dx, dy in rng.integers(-90, 90, (3, 2))]
        draw.polygon(corners, fill=_color(rng))
    grain = rng.normal(0, 4, (height, width, 1))
    return _image(np.asarray(image) + grain)


def drawing(seed: int, side: int = 160) -> Image.Image:
    """A smiling face in varying colors and positions: similar, like images of one character."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (side, side), _color(rng))
    draw = ImageDraw.Draw(image)
    x, y = (int(value) for value in rng.integers(side // 4, side // 2, 2))
    radius = side // 4
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(150, 90, 200), outline=(40, 20, 60), width=4)
    for eye in (-radius // 2, radius // 4):
        draw.ellipse((x + eye, y - radius // 2, x + eye + radius // 4, y - radius // 5), fill=(255, 255, 255))
    draw.arc((x - radius // 2, y - radius // 4, x + radius // 2, y + radius // 2), 20, 160, fill=(40, 20, 60), width=3)
    return image


def sky(width: int = 640, height: int = 512) -> Image.Image:
    """A smooth color gradient."""
    fall = np.linspace(0, 1, height)[:, None, None] * np.ones((1, width, 1))
    return _image(fall * np.array([140, 110, 60]) + np.array([60, 110, 190]))


def pixel_art(seed: int = 0, cells: int = 16, cell_px: int = 24) -> Image.Image:
    rng = np.random.default_rng(seed)
    half = rng.integers(0, 4, (cells, cells // 2))
    palette = rng.integers(0, 256, (4, 3), dtype=np.uint8)
    small = Image.fromarray(palette[np.concatenate([half, half[:, ::-1]], axis=1)])
    return small.resize((cells * cell_px, cells * cell_px), Image.Resampling.NEAREST)


def blurred(image: Image.Image, sigma_px: float) -> Image.Image:
    return Image.fromarray(np.asarray(cv2.GaussianBlur(np.asarray(image), (0, 0), sigma_px), dtype=np.uint8))


def moved(image: Image.Image, length_px: int) -> Image.Image:
    """As if the camera had moved sideways."""
    return Image.fromarray(np.asarray(cv2.blur(np.asarray(image), (length_px, 1)), dtype=np.uint8))


def portrait(image: Image.Image) -> Image.Image:
    """In focus only in the middle."""
    width, height = image.size
    mask = Image.new("L", image.size, 0)
    ImageDraw.Draw(mask).ellipse((width // 4, height // 4, width * 3 // 4, height * 3 // 4), fill=255)
    return Image.composite(image, blurred(image, 5.0), mask)


def levels(image: Image.Image, gain: float, offset: float) -> Image.Image:
    return _image(np.asarray(image) * gain + offset)


def page(
    seed: int = 0, width: int = 800, height: int = 600, size_px: int = 15, *, is_dark: bool = False
) -> Image.Image:
    """Paragraphs of text."""
    rng, paper, ink = random.Random(seed), *_paper(is_dark)
    image = Image.new("RGB", (width, height), paper)
    for y in range(2 * size_px, height - 2 * size_px, size_px * 3 // 2):
        _write(image, (2 * size_px, y), _sentence(rng, width // size_px // 4), size_px, ink)
    return image


def file_manager(seed: int = 0, width: int = 900, height: int = 640, *, is_dark: bool = False) -> Image.Image:
    """A side bar, and icons with file names."""
    rng, paper, ink = random.Random(seed), *_paper(is_dark)
    image = Image.new("RGB", (width, height), paper)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 170, height), fill=tuple(channel ^ 12 for channel in paper))
    for y in range(20, 320, 30):
        _write(image, (16, y), _sentence(rng, 2), 14, ink)
    for x in range(200, width - 90, 110):
        for y in range(20, height - 100, 110):
            draw.rectangle((x + 20, y, x + 70, y + 55), fill=(90, 150, 230), outline=(60, 60, 60))
            _write(image, (x, y + 64), f"IMG_{rng.randrange(9999):04d}.jpg", 14, ink)
    return image


def city(seed: int = 0, width: int = 800, height: int = 600) -> Image.Image:
    """Flat houses with rows of small windows: aligned and even, but no text."""
    rng = random.Random(seed)
    image = Image.new("RGB", (width, height), (150, 190, 230))
    draw = ImageDraw.Draw(image)
    for x in range(0, width, 110):
        top = rng.randrange(80, 350)
        draw.rectangle((x, top, x + 100, height), fill=tuple(rng.randrange(60, 140) for _ in range(3)))
        for y in range(top + 10, height - 12, 20):
            for window in range(x + 8, x + 90, 11):
                draw.rectangle((window, y, window + 5, y + 9), fill=rng.choice([(250, 230, 120), (40, 40, 60)]))
    return image


def poster(width: int = 600, height: int = 900) -> Image.Image:
    """A large flat motif with a title and small print."""
    image = Image.new("RGB", (width, height), (240, 90, 60))
    draw = ImageDraw.Draw(image)
    draw.ellipse((100, 200, 500, 600), fill=(250, 220, 120))
    draw.polygon([(300, 150), (520, 700), (80, 700)], fill=(40, 60, 120))
    for y, size_px, text in ((40, 90, "SUMMER"), (740, 44, "music festival"), (810, 22, "12 to 14 August 2026")):
        _write(image, (60, y), text, size_px, (255, 255, 255))
    return image


def map_with_names(seed: int = 0, side: int = 900) -> Image.Image:
    """Roads and scattered names."""
    rng = random.Random(seed)
    image = Image.new("RGB", (side, side), (240, 236, 225))
    draw = ImageDraw.Draw(image)
    for _ in range(40):
        draw.line([rng.randrange(side) for _ in range(4)], fill=(250, 200, 90), width=5)
    for _ in range(25):
        _write(image, (rng.randrange(side - 100), rng.randrange(side - 20)), _sentence(rng, 2), 15, (60, 60, 60))
    return image


def _paper(is_dark: bool) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    return ((30, 30, 34), (220, 220, 220)) if is_dark else ((255, 255, 255), (20, 20, 20))


def _sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(_WORDS) for _ in range(words))


def _write(image: Image.Image, at: tuple[int, int], text: str, size_px: int, ink: tuple[int, int, int]) -> None:
    ImageDraw.Draw(image).text(at, text, ink, ImageFont.load_default(size_px))


def _color(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in rng.integers(0, 256, 3))
    return red, green, blue


def _image(values: NDArray[np.floating]) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
