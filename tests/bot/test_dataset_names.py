"""Names of files that are added to a dataset: free ones, and a caption keeps its picture."""

from __future__ import annotations

import pytest

from bot.datasets.merging import free_names
from bot.errors import DatasetRefused


@pytest.mark.parametrize(
    ("new", "taken", "names"),
    [
        (["b.png"], ["a.png"], ["b.png"]),
        (["a.png", "a.txt"], ["a.png", "a.txt"], ["a-2.png", "a-2.txt"]),
        (["a.png", "a.txt"], ["a.txt"], ["a-2.png", "a-2.txt"]),
        # Would pair with a caption that was written for another picture.
        (["a.jpg"], ["a.png", "a.txt"], ["a-2.jpg"]),
        (["a.png", "A.TXT"], ["A.PNG"], ["a-2.png", "A-2.TXT"]),
        (["a.png"], ["a.png", "a-2.png"], ["a-3.png"]),
        (["a.png", "a-2.png"], ["a.png"], ["a-2.png", "a-2-2.png"]),
        # A caption for a picture that has none, and for one that has.
        (["a.txt"], ["a.png"], ["a.txt"]),
        (["a.txt"], ["a.png", "a.txt"], ["a-2.txt"]),
        (["fox.zip"], ["fox.zip"], ["fox-2.zip"]),
        (["metadata.jsonl", "b.png"], ["a.png"], ["metadata.jsonl", "b.png"]),
    ],
)
def test_a_picture_and_its_caption_get_a_free_name_together(new: list[str], taken: list[str], names: list[str]) -> None:
    assert list(free_names(new, taken).values()) == names


def test_a_second_table_of_captions_is_refused() -> None:
    with pytest.raises(DatasetRefused, match=r"has a metadata\.jsonl already"):
        free_names(["metadata.jsonl", "b.png"], ["metadata.jsonl", "a.png"])
