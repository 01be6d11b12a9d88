"""Names of files that are added to a dataset: they are free, and captions stay with their images."""

from __future__ import annotations

import pytest

from bot.datasets.dataset_files import free_names
from bot.errors import DatasetRefused


@pytest.mark.parametrize(
    ("new", "taken", "names"),
    [
        (["b.png"], ["a.png"], ["b.png"]),
        (["a.png", "a.txt"], ["a.png", "a.txt"], ["a-2.png", "a-2.txt"]),
        (["a.png", "a.txt"], ["a.txt"], ["a-2.png", "a-2.txt"]),
        # It would pair with a caption that was written for another image.
        (["a.jpg"], ["a.png", "a.txt"], ["a-2.jpg"]),
        (["a.png", "A.TXT"], ["A.PNG"], ["a-2.png", "A-2.TXT"]),
        (["a.png"], ["a.png", "a-2.png"], ["a-3.png"]),
        (["a.png", "a-2.png"], ["a.png"], ["a-2.png", "a-2-2.png"]),
        # A caption for an image that has none, and for one that has one.
        (["a.txt"], ["a.png"], ["a.txt"]),
        (["a.txt"], ["a.png", "a.txt"], ["a-2.txt"]),
        (["fox.zip"], ["fox.zip"], ["fox-2.zip"]),
        (["metadata.jsonl", "b.png"], ["a.png"], ["metadata.jsonl", "b.png"]),
    ],
)
def test_an_image_and_its_caption_get_the_same_free_name(new: list[str], taken: list[str], names: list[str]) -> None:
    assert list(free_names(new, taken).values()) == names


def test_a_second_table_of_captions_is_refused() -> None:
    with pytest.raises(DatasetRefused, match=r"metadata\.jsonl"):
        free_names(["metadata.jsonl", "b.png"], ["metadata.jsonl", "a.png"])
