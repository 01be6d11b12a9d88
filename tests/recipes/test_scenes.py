"""Drawn scenes: images depend on the seed only, and captions are true."""

import random

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from recipes.tiny.scenes import (
    COLORS,
    PLACES,
    Layout,
    Scene,
    Size,
    Thing,
    caption,
    caption_seed,
    draw,
    draw_doodle,
    draw_seed,
    scene_of_seed,
)
from recipes.tiny.shapes import FIGURES, Rgb


def _scene(*, kind: str = "circle", color: str = "red", size: Size = Size.MEDIUM, place: str = "middle") -> Scene:
    return Scene(things=(Thing(kind=kind, color=color, size=size, place=place),), background="white")


def _is_near(image: Image.Image, color: Rgb) -> npt.NDArray[np.bool_]:
    """Return a mask of the pixels whose color is near `color`."""
    distances: npt.NDArray[np.int_] = np.abs(np.asarray(image).astype(int) - np.array(color)).sum(axis=-1)
    return distances < 100


def test_images_and_captions_depend_on_the_seed_only() -> None:
    assert draw_seed(7).tobytes() == draw_seed(7).tobytes()
    assert draw_doodle(7).tobytes() == draw_doodle(7).tobytes()
    assert draw_seed(7).tobytes() != draw_seed(8).tobytes()
    assert caption_seed(7, variant=2) == caption_seed(7, variant=2)


def test_images_are_64_px_rgb() -> None:
    assert (draw_seed(3).size, draw_seed(3).mode) == ((64, 64), "RGB")
    assert draw_doodle(3).size == (64, 64)


@pytest.mark.parametrize("kind", FIGURES)
def test_each_kind_of_figure_has_its_color_and_lies_inside_the_frame(kind: str) -> None:
    mask = _is_near(draw(_scene(kind=kind, color="blue"), random.Random(0)), COLORS["blue"])
    assert 40 < mask.sum() < 1500
    assert not mask[0].any()
    assert not mask[-1].any()


@pytest.mark.parametrize("place", [place for place in PLACES if place != "middle"])
def test_a_thing_is_drawn_at_its_position(place: str) -> None:
    mask = _is_near(draw(_scene(size=Size.SMALL, place=place), random.Random(1)), COLORS["red"])
    rows, columns = np.nonzero(mask)
    (dx, dy), _ = PLACES[place]
    assert (columns.mean() - 32) * dx > 8 or dx == 0
    assert (rows.mean() - 32) * dy > 8 or dy == 0


def test_a_big_thing_covers_more_than_a_small_one() -> None:
    small, big = (
        _is_near(draw(_scene(size=size), random.Random(2)), COLORS["red"]).sum() for size in (Size.SMALL, Size.BIG)
    )
    assert big > 3 * small


@pytest.mark.parametrize("layout", Layout)
def test_two_things_are_drawn_in_their_layout(layout: Layout) -> None:
    things = tuple(
        Thing(kind=kind, color=color, size=Size.SMALL) for kind, color in (("circle", "red"), ("square", "blue"))
    )
    image = draw(Scene(things=things, background="white", layout=layout), random.Random(3))
    red_y, red_x = (axis.mean() for axis in np.nonzero(_is_near(image, COLORS["red"])))
    blue_y, blue_x = (axis.mean() for axis in np.nonzero(_is_near(image, COLORS["blue"])))
    match layout:
        case Layout.LEFT_OF:
            assert red_x < blue_x - 10
        case Layout.RIGHT_OF:
            assert red_x > blue_x + 10
        case Layout.ABOVE:
            assert red_y < blue_y - 10
        case Layout.BELOW:
            assert red_y > blue_y + 10


def test_captions_name_the_things_of_their_scene_only() -> None:
    for seed in range(300):
        scene, words = scene_of_seed(seed), caption_seed(seed).replace("grey", "gray").replace(",", " ").split()
        allowed = {thing.color for thing in scene.things} | {scene.background}
        assert {thing.kind for thing in scene.things} <= set(words)
        assert {word for word in words if word in COLORS} <= allowed
        assert not {kind for kind in FIGURES if kind in words} - {thing.kind for thing in scene.things}


def test_captions_sometimes_leave_attributes_out() -> None:
    scene = _scene(size=Size.BIG, place="top left")
    captions = {caption(scene, random.Random(seed)) for seed in range(200)}
    assert any("top left" in text for text in captions)
    assert any("top left" not in text for text in captions)
    assert any("background" not in text for text in captions)
    assert any("red" not in text for text in captions)
    assert len(captions) > 40
