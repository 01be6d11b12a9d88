"""Caption tables are read in every format that people and programs write."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.golden import check_sentences
from trainer.dataset.captions.caption_tables import CaptionRow, TableError, is_table_name, read_json, read_table


def fields(rows: tuple[CaptionRow, ...]) -> list[tuple[str, str, str]]:
    return [(row.file, row.caption, row.class_name) for row in rows]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", "file_name,text\na.png,a red cat\nb.png,a dog"),
        ("captions.csv", "\ufefffilename;caption\r\na.png;a red cat\r\nb.png;a dog\r\n"),
        ("captions.tsv", "Image\tPrompt\na.png\ta red cat\nb.png\ta dog"),
        ("captions.csv", 'path,caption\n\n"a.png","a red cat"\n"b.png","a dog"\n'),
        ("captions.csv", "a.png,a red cat\nb.png,a dog"),
        ("captions.txt", "a.png\ta red cat\nb.png\ta dog"),
        ("captions.txt", "a.png|a red cat\nb.png|a dog"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": "a red cat"}\n\n{"file_name": "b.png", "text": "a dog"}\n'),
        ("metadata.jsonl", '{"image": "a.png", "blip_caption": "a red cat"}\r\n{"file": "b.png", "prompt": "a dog"}'),
    ],
)
def test_tables_are_read_in_every_format(name: str, text: str) -> None:
    assert is_table_name(name)
    assert fields(read_table(name, text)) == [("a.png", "a red cat", ""), ("b.png", "a dog", "")]


def test_a_caption_may_contain_delimiters_and_line_ends() -> None:
    text = 'file_name,text\na.png,"a cat, red"\nb.png,a dog, brown\nc.png,"two\nlines"\n'
    assert [row.caption for row in read_table("metadata.csv", text)] == ["a cat, red", "a dog, brown", "two lines"]
    assert [row.line for row in read_table("metadata.csv", text)] == [2, 3, 5]
    assert fields(read_table("captions.txt", "a.png,a cat, red")) == [("a.png", "a cat, red", "")]


def test_classes_and_tags_are_read() -> None:
    text = "file_name,label,caption,tags\na.png,cat,asleep,red fur\nb.png,3,,standing\n"
    assert fields(read_table("metadata.csv", text)) == [("a.png", "asleep, red fur", "cat"), ("b.png", "standing", "3")]
    line = json.dumps({"file_name": "a.png", "tags": ["red", "cat"], "class": 0})
    assert fields(read_table("metadata.jsonl", line)) == [("a.png", "red, cat", "0")]


def test_an_unreadable_table_is_an_error_with_its_line() -> None:
    tables = [
        ("metadata.jsonl", '{"file_name": "a.png"}\n{oops}'),
        ("metadata.jsonl", '{"file_name": "a.png"}\n[1]'),
        ("metadata.jsonl", '{"text": "a cat"}'),
        ("metadata.jsonl", "[" * 100_000),
        ("metadata.csv", "one,two\na,b"),
        ("metadata.csv", ""),
        ("metadata.csv", "file_name,text\na.png,x\n,a cat"),
        ("metadata.csv", 'file_name,text\na.png,"' + "x" * 200_000),
    ]
    sentences = {}
    for name, text in tables:
        with pytest.raises(TableError) as error:
            read_table(name, text)
        sentences[f"{name} {text[:60]!r}"] = error.value
    check_sentences(Path(__file__).parent / "golden" / "unreadable_tables.txt", sentences)


@pytest.mark.parametrize(
    ("value", "caption"),
    [
        ({"caption": "a red cat"}, "a red cat"),
        ({"Prompt": " a  red cat "}, "a red cat"),
        ({"tags": ["cat", "red", 3]}, "cat, red"),
        ({"tags": "cat, red", "rating": "safe"}, "cat, red"),
        ({"caption": "a cat", "tags": ["red"]}, "a cat, red"),
        ({"tags": {"cat": 0.99, "red": 0.7}}, "cat, red"),
        ({"caption": ""}, ""),
    ],
)
def test_json_sidecars_are_read(value: object, caption: str) -> None:
    assert read_json(json.dumps(value)) == caption


@pytest.mark.parametrize(
    "value",
    [
        {"a": {"caption": "a cat", "tags": "red"}, "b": {"tags": "dog"}},
        [{"file_name": "a", "caption": "a cat, red"}, {"image": "b", "text": "dog"}],
        {"a": {"caption": "a cat", "tags": "red", "train_resolution": [512, 512]}, "b": {"caption": "dog"}},
    ],
)
def test_json_tables_are_read(value: object) -> None:
    rows = read_json(json.dumps(value))
    assert isinstance(rows, tuple)
    assert fields(rows) == [("a", "a cat, red", ""), ("b", "dog", "")]


def test_a_json_object_of_names_and_captions_is_a_table() -> None:
    rows = read_json('{"a.png": "a cat", "b.jpg": "a dog"}')
    assert isinstance(rows, tuple)
    assert fields(rows) == [("a.png", "a cat", ""), ("b.jpg", "a dog", "")]


@pytest.mark.parametrize("text", ['{"steps": 20}', "3", "{}", '{"a": {}, "b": 1}', "{", "[" * 99_999, '"caption"'])
def test_json_without_captions_is_refused(text: str) -> None:
    with pytest.raises(TableError):
        read_json(text)


@given(st.text(max_size=80), st.sampled_from(["a.csv", "a.tsv", "a.jsonl", "captions.txt"]))
def test_any_text_is_read_or_refused(text: str, name: str) -> None:
    with suppress(TableError):
        assert all(row.file and row.caption.isprintable() for row in read_table(name, "file_name,text\n" + text))
    with suppress(TableError):
        read_json(text)
