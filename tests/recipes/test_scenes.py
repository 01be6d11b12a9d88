"""The drawn world: the same seed draws the same picture, and captions tell what is drawn."""

import random

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from recipes.tiny.scenes import (
    COLOURS,
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


def _scene(*, kind: str = "circle", colour: str = "red", size: Size = Size.MIDDLING, place: str = "middle") -> Scene:
    return Scene(things=(Thing(kind=kind, colour=colour, size=size, place=place),), background="white")


def _nearness(picture: Image.Image, colour: Rgb) -> npt.NDArray[np.bool_]:
    """Which pixels look like ``colour``."""
    distances: npt.NDArray[np.int_] = np.abs(np.asarray(picture).astype(int) - np.array(colour)).sum(axis=-1)
    return distances < 100


def test_a_seed_always_draws_the_same_picture() -> None:
    assert draw_seed(7).tobytes() == draw_seed(7).tobytes()
    assert draw_doodle(7).tobytes() == draw_doodle(7).tobytes()
    assert draw_seed(7).tobytes() != draw_seed(8).tobytes()
    assert caption_seed(7, variant=2) == caption_seed(7, variant=2)


def test_pictures_are_64_px_rgb() -> None:
    assert (draw_seed(3).size, draw_seed(3).mode) == ((64, 64), "RGB")
    assert draw_doodle(3).size == (64, 64)


@pytest.mark.parametrize("kind", FIGURES)
def test_every_kind_shows_its_colour_inside_the_frame(kind: str) -> None:
    seen = _nearness(draw(_scene(kind=kind, colour="blue"), random.Random(0)), COLOURS["blue"])
    assert 40 < seen.sum() < 1500
    assert not seen[0].any()
    assert not seen[-1].any()


@pytest.mark.parametrize("place", [place for place in PLACES if place != "middle"])
def test_a_thing_stands_where_its_place_says(place: str) -> None:
    seen = _nearness(draw(_scene(size=Size.SMALL, place=place), random.Random(1)), COLOURS["red"])
    rows, columns = np.nonzero(seen)
    (dx, dy), _ = PLACES[place]
    assert (columns.mean() - 32) * dx > 8 or dx == 0
    assert (rows.mean() - 32) * dy > 8 or dy == 0


def test_a_big_thing_covers_more_than_a_small_one() -> None:
    small, big = (
        _nearness(draw(_scene(size=size), random.Random(2)), COLOURS["red"]).sum() for size in (Size.SMALL, Size.BIG)
    )
    assert big > 3 * small


@pytest.mark.parametrize("layout", Layout)
def test_two_things_stand_as_their_layout_says(layout: Layout) -> None:
    things = tuple(
        Thing(kind=kind, colour=colour, size=Size.SMALL) for kind, colour in (("circle", "red"), ("square", "blue"))
    )
    picture = draw(Scene(things=things, background="white", layout=layout), random.Random(3))
    red_y, red_x = (axis.mean() for axis in np.nonzero(_nearness(picture, COLOURS["red"])))
    blue_y, blue_x = (axis.mean() for axis in np.nonzero(_nearness(picture, COLOURS["blue"])))
    match layout:
        case Layout.LEFT_OF:
            assert red_x < blue_x - 10
        case Layout.RIGHT_OF:
            assert red_x > blue_x + 10
        case Layout.ABOVE:
            assert red_y < blue_y - 10
        case Layout.BELOW:
            assert red_y > blue_y + 10


def test_captions_name_the_things_and_nothing_false() -> None:
    for seed in range(300):
        scene, words = scene_of_seed(seed), caption_seed(seed).replace("grey", "gray").replace(",", " ").split()
        allowed = {thing.colour for thing in scene.things} | {scene.background}
        assert {thing.kind for thing in scene.things} <= set(words)
        assert {word for word in words if word in COLOURS} <= allowed
        assert not {kind for kind in FIGURES if kind in words} - {thing.kind for thing in scene.things}


def test_attributes_are_sometimes_left_out() -> None:
    scene = _scene(size=Size.BIG, place="top left")
    captions = {caption(scene, random.Random(seed)) for seed in range(200)}
    assert any("top left" in text for text in captions)
    assert any("top left" not in text for text in captions)
    assert any("background" not in text for text in captions)
    assert any("red" not in text for text in captions)
    assert len(captions) > 40
