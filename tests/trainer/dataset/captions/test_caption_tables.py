"""Caption tables are read in every format that people and programs write."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.golden import check_sentences
from trainer.dataset.captions.caption_tables import CaptionTable, is_table_name, read_json, read_table
from trainer.dataset.captions.caption_text import clean_text
from trainer.dataset.captions.table_columns import TableError


def fields(table: object) -> list[tuple[str, str, str]]:
    assert isinstance(table, CaptionTable)
    return [(row.file, " / ".join(row.captions), row.class_name) for row in table.rows]


def skipped_lines(table: CaptionTable) -> list[int]:
    return [skipped.line for skipped in table.skipped]


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
    table = read_table("metadata.csv", text)
    assert [row.captions for row in table.rows] == [("a cat, red",), ("a dog, brown",), ("two lines",)]
    assert [row.line for row in table.rows] == [2, 3, 4]
    assert fields(read_table("captions.txt", "a.png,a cat, red")) == [("a.png", "a cat, red", "")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "sep=;\r\nDatei;Beschreibung\r\na.png;a red cat\r\nb.png;a dog\r\n"),
        ("a.csv", "图片,说明\na.png,a red cat\nb.png,a dog"),
        ("a.csv", "картинка;подпись\na.png;a red cat\nb.png;a dog"),
        ("a.csv", "a.png;a red cat\nb.png;a dog\n"),
        ("a.csv", "a.png|a red cat\rb.png|a dog\r"),
        ("a.csv", "a red cat,a.png\na dog,b.png"),
        ("a.csv", 'caption,file_name\n"a\nred cat",a.png\na dog,b.png'),
        ("a.tsv", "a.png\ta red cat\r\n\r\nb.png\ta dog\r\n"),
        ("a.csv", '"file_name", "text"\n"a.png", "a red cat"\n"b.png", "a dog"'),
        ("a.csv", "\ufeff\ufefffile_name,text\na.png,a red cat\nb.png,a dog"),
        ("a.csv", "id,text,image\n1,a red cat,a.png\n2,a dog,b.png"),
        ("captions.txt", "\\hline\na.png & a red cat \\\\\nb.png & a dog \\\\ \\hline\n"),
        ("a.csv", "file_name,caption,caption\na.png,,a red cat\nb.png,a dog,\n"),
        ("captions.txt", "File: a.png\nCaption: a red cat\n\nFile: b.png\nCaption: a dog\n"),
        ("captions.txt", "文件：a.png\n描述：a red cat\n文件：b.png\n描述：a dog\n"),
        ("a.jsonl", '[{"file_name": "a.png", "text": "a red cat"}, {"file_name": "b.png", "text": "a dog"}]'),
        ("a.jsonl", '\ufeff{"file_name": "a.png", "text": "a red cat"}\r{"file_name": "b.png", "text": "a dog"}'),
    ],
)
def test_tables_are_read_whatever_their_header_and_delimiter(name: str, text: str) -> None:
    table = read_table(name, text)
    assert fields(table) == [("a.png", "a red cat", ""), ("b.png", "a dog", "")]
    assert table.skipped == ()


@pytest.mark.parametrize(
    ("line", "caption"),
    [
        ('b.png,"5 inches of ribbon', "5 inches of ribbon"),
        ('b.png,5" ribbon', '5" ribbon'),
        ('b.png,"a cat" on a mat', '"a cat" on a mat'),
        ('b.png,a "red" cat', 'a "red" cat'),
        ('"b.png","a cat', "a cat"),
        ('b.png,"a cat, red', "a cat, red"),
        ('b.png,"a \\"red\\" cat"', 'a "red" cat'),
        ('b.png,"a ""red"" cat"', 'a "red" cat'),
        ('b.png,a "red" cat, asleep', 'a "red" cat, asleep'),
    ],
)
@pytest.mark.parametrize("header", ["file_name,text\n", ""])
def test_a_quote_that_is_never_closed_takes_no_other_line(line: str, caption: str, header: str) -> None:
    table = read_table("a.csv", f"{header}a.png,x\n{line}\nc.png,a cat\nd.png,a dog sitting\n")
    assert [row.file for row in table.rows] == ["a.png", "b.png", "c.png", "d.png"]
    assert [row.captions for row in table.rows][::2] == [("x",), ("a cat",)]
    assert table.rows[1].captions == (caption,)
    assert table.rows[3].captions == ("a dog sitting",)


def test_in_tsv_quotes_are_part_of_the_text_unless_the_program_quoted_cells() -> None:
    plain = read_table("a.tsv", 'a.png\t"a cat" on a mat\nb.png\t"Rex"\nc.png\t5" ribbon\n')
    assert [row.captions[0] for row in plain.rows] == ['"a cat" on a mat', '"Rex"', '5" ribbon']
    quoted = read_table("a.tsv", 'file\ttext\na.png\t"a ""red"" cat"\nb.png\t"two\nlines"\nc.png\t"a\tb"\n')
    assert [row.captions[0] for row in quoted.rows] == ['a "red" cat', "two lines", "a b"]


def test_one_bad_line_costs_one_line() -> None:
    lines = [
        '{"file_name": "a.png", "text": "x"}',
        "{oops",
        "[1]",
        '{"text": "y"}',
        '{"file_name": "b.png", "text": "z"}',
    ]
    table = read_table("a.jsonl", "\n".join(lines))
    assert [row.file for row in table.rows] == ["a.png", "b.png"]
    assert skipped_lines(table) == [2, 3, 4]

    table = read_table("a.csv", "file_name,text,label\na.png,x,1\n,lost,1\nc.png,a cat, red,1\nd.png,y,2\n")
    assert [row.file for row in table.rows] == ["a.png", "d.png"]
    assert skipped_lines(table) == [3, 4]


def test_classes_and_tags_are_read() -> None:
    text = "file_name,label,caption,tags\na.png,cat,asleep,red fur\nb.png,3,,standing\n"
    assert fields(read_table("metadata.csv", text)) == [("a.png", "asleep, red fur", "cat"), ("b.png", "standing", "3")]
    line = json.dumps({"file_name": "a.png", "tags": ["red", "cat"], "class": 0})
    assert fields(read_table("metadata.jsonl", line)) == [("a.png", "red, cat", "0")]


def test_an_unreadable_table_is_an_error_with_its_line() -> None:
    tables = [
        ("metadata.jsonl", "{oops}"),
        ("metadata.jsonl", "3"),
        ("metadata.jsonl", '{"file_name": "a.png"}'),
        ("metadata.jsonl", '{"text": "a cat"}'),
        ("metadata.jsonl", "[" * 100_000),
        ("metadata.csv", "one,two\na,b"),
        ("metadata.csv", ""),
        ("metadata.csv", "file_name,width\na.png,512\nb.png,768"),
        ("metadata.csv", "file_name,title,note\na.png,red,blue\nb.png,one,two"),
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
    assert read_json(json.dumps(value)) == (caption,)


@pytest.mark.parametrize(
    "value",
    [
        {"a": {"caption": "a cat", "tags": "red"}, "b": {"tags": "dog"}},
        [{"file_name": "a", "caption": "a cat, red"}, {"image": "b", "text": "dog"}],
        {"a": {"caption": "a cat", "tags": "red", "train_resolution": [512, 512]}, "b": {"caption": "dog"}},
    ],
)
def test_json_tables_are_read(value: object) -> None:
    table = read_json(json.dumps(value), names_image=lambda name: name in "ab")
    assert fields(table) == [
        ("a", "a cat, red", ""),
        ("b", "dog", ""),
    ]


def test_a_json_object_of_names_and_captions_is_a_table() -> None:
    assert fields(read_json('{"a.png": "a cat", "b.jpg": "a dog"}')) == [("a.png", "a cat", ""), ("b.jpg", "a dog", "")]


@pytest.mark.parametrize("text", ['{"steps": 20}', "3", "{}", '{"a": {}, "b": 1}', "{", "[" * 99_999, '"caption"'])
def test_json_without_captions_is_refused(text: str) -> None:
    with pytest.raises(TableError):
        read_json(text)


@given(st.text(max_size=80), st.sampled_from(["a.csv", "a.tsv", "a.jsonl", "captions.txt"]))
def test_any_text_is_read_or_refused(text: str, name: str) -> None:
    with suppress(TableError):
        rows = read_table(name, "file_name,text\n" + text).rows
        assert all(row.file and all(caption == clean_text(caption) for caption in row.captions) for row in rows)
    with suppress(TableError):
        read_json(text)
