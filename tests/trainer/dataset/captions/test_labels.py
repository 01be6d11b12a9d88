"""Each image gets the caption that was written for it, or none, and what found no image is told."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.dataset.labeled_images import Labeled
from trainer.dataset.captions.caption_text import clean_caption
from trainer.protocol.report import RefusalKind


def jsonl(rows: Mapping[str, object], column: str = "text") -> str:
    return "".join(json.dumps({"file_name": file, column: caption}) + "\n" for file, caption in rows.items())


# -- rows and their images --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
def test_a_row_of_an_image_that_is_gone_gives_its_caption_to_no_other(reverse: bool) -> None:
    rows = {f"{kind}s/00{n}.png": f"a {kind}, number {n}" for kind in ("cat", "dog") for n in range(6)}
    gone = {"cats/002.png", "cats/004.png"}
    ordered = dict(reversed(rows.items())) if reverse else rows

    found = Labeled([path for path in rows if path not in gone], {"metadata.jsonl": jsonl(ordered)})

    assert found.captions == {path: caption for path, caption in rows.items() if path not in gone}
    assert {error.kind for error in found.refused.values()} == {RefusalKind.WITHOUT_IMAGE}
    assert sorted(error.reason.split()[2] for error in found.refused.values()) == ["cats/002.png,", "cats/004.png,"]


@pytest.mark.parametrize(
    ("file", "image"),
    [
        ("a/cat.png", "a/cat.png"),
        ("./a/cat.png", "a/cat.png"),
        ("a\\cat.png", "a/cat.png"),
        ("a/cat", "a/cat.png"),
        ("a/cat.jpg", "a/cat.png"),
        ("a/CAT.PNG", "a/cat.png"),
        ("a/my%20cat.png", "a/my cat.png"),
        ("a/cafe\u0301.png", "a/caf\u00e9.png"),
        ("a/b/../cat.png", "a/cat.png"),
        ("a/photo.v2", "a/photo.v2.png"),
        ("/home/me/set/a/cat.png", "a/cat.png"),
        ("C:\\set\\a\\cat.png", "a/cat.png"),
        ("/home/me/cat.png", "img/cat.png"),
        ("cat.png", "deep/down/cat.png"),
        ("cat", "deep/down/cat.png"),
        ("a/cat.png", "set/a/cat.png"),
        ("a/cat.png#0", "a/cat.png"),
    ],
)
def test_a_row_names_its_image_in_many_ways(file: str, image: str) -> None:
    found = Labeled([image, "zzz/other.png"], {"metadata.jsonl": jsonl({file: "a cat"})})
    assert found.captions == {image: "a cat", "zzz/other.png": ""}
    assert not found.refused


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("cats/2.png", ["dogs/2.png"]),
        ("cats/2.png", ["dogs/2.png", "dogs/3.png"]),
        ("cat", ["cat.png", "cat.jpg"]),
        ("cat.webp", ["cat.png", "cat.jpg"]),
        ("2.png", ["cats/2.png", "dogs/2.png"]),
        ("a/cat.png", ["b/a2/cat.png"]),
    ],
)
def test_a_row_that_may_mean_another_image_is_lost_and_told(file: str, images: Sequence[str]) -> None:
    found = Labeled(images, {"metadata.jsonl": jsonl({file: "a cat"})})
    assert set(found.captions.values()) == {""}
    assert list(found.refused) == ["metadata.jsonl:1"]


def test_an_exact_row_counts_more_than_a_guess_whatever_the_order() -> None:
    rows = [("cat.jpg", "guessed"), ("cat.png", "exact"), ("CAT.png", "guessed too")]
    for ordered in (rows, rows[::-1]):
        found = Labeled(["cat.png"], {"metadata.jsonl": jsonl(dict(ordered))})
        assert found.captions == {"cat.png": "exact"}
        assert not any(found.others.values())
        assert len(found.refused) == 2


def test_images_that_differ_in_case_have_their_own_rows_and_texts() -> None:
    images = ["IMG_0.png", "img_0.png"]
    rows = {"img_0.png": "small", "IMG_0.png": "large"}
    assert Labeled(images, {"metadata.jsonl": jsonl(rows)}).captions == {"IMG_0.png": "large", "img_0.png": "small"}
    texts = {"IMG_0.txt": "large", "img_0.txt": "small"}
    assert Labeled(images, texts).captions == {"IMG_0.png": "large", "img_0.png": "small"}
    assert Labeled(images, {"IMG_0.txt": "large"}).captions == {"IMG_0.png": "large", "img_0.png": ""}
    assert Labeled(["IMG_0.PNG"], {"img_0.TXT": "large"}).captions == {"IMG_0.PNG": "large"}


def test_lost_rows_are_counted_and_the_first_are_named() -> None:
    rows = {f"{n}.png": "x" for n in range(30)}
    found = Labeled(["0.png"], {"metadata.jsonl": jsonl(rows)})
    assert len(found.refused) == 21
    assert found.refused["metadata.jsonl"].reason.startswith("9 more")


# -- columns ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["sentence", "additional_feature", "описание", "说明", "Bildtext"])
def test_an_unambiguous_column_of_text_is_used_and_named(column: str) -> None:
    rows = [
        {"file_name": f"{n}.png", "width": 512, "url": f"https://a.b/{n}", column: f"a red thing {n}"} for n in (1, 2)
    ]
    table = "".join(json.dumps(row) + "\n" for row in rows)
    found = Labeled(["1.png", "2.png"], {"metadata.jsonl": table})
    assert found.captions == {"1.png": "a red thing 1", "2.png": "a red thing 2"}
    assert [(each.table, each.column) for each in found.index.caption_columns] == [("metadata.jsonl", column)]


def test_several_columns_of_text_are_refused_until_one_is_chosen() -> None:
    table = (
        "file,english,deutsch\n1.png,a red cat asleep,eine rote Katze schläft\n2.png,a small dog runs,ein Hund läuft\n"
    )
    found = Labeled(["1.png", "2.png"], {"metadata.csv": table})
    assert set(found.captions.values()) == {""}
    reason = found.refused["metadata.csv"].reason
    assert all(word in reason for word in ("english", "deutsch", "--caption-column"))

    chosen = Labeled(["1.png", "2.png"], {"metadata.csv": table}, "Deutsch")
    assert chosen.captions == {"1.png": "eine rote Katze schläft", "2.png": "ein Hund läuft"}
    missing = Labeled(["1.png", "2.png"], {"metadata.csv": table}, "français")
    assert "français" in missing.refused["metadata.csv"].reason


def test_a_column_of_categories_is_no_caption() -> None:
    table = "file_name,Part\n" + "".join(f"{n}.png,{'north' if n % 2 else 'south'}\n" for n in range(8))
    found = Labeled([f"{n}.png" for n in range(8)], {"metadata.csv": table})
    assert set(found.captions.values()) == {""}
    assert "metadata.csv" in found.refused


def test_a_list_of_captions_is_several_captions_and_a_list_of_tags_is_one() -> None:
    rows = {"1.png": ["a red cat", "some animal", "a red cat"], "2.png": ["1girl", "solo", "long hair"]}
    found = Labeled(["1.png", "2.png"], {"metadata.jsonl": jsonl(rows)})
    assert found.captions == {"1.png": "a red cat", "2.png": "1girl, solo, long hair"}
    assert found.others == {"1.png": ("some animal",), "2.png": ()}


def test_several_rows_of_an_image_are_several_captions() -> None:
    table = "1.jpg#0\ta red cat\n1.jpg#1\tan animal\n2.jpg#0\ta dog\n"
    found = Labeled(["1.jpg", "2.jpg"], {"captions.txt": table})
    assert found.captions == {"1.jpg": "a red cat", "2.jpg": "a dog"}
    assert found.others == {"1.jpg": ("an animal",), "2.jpg": ()}


def test_cocos_annotations_are_captions() -> None:
    coco = {
        "images": [{"id": 7, "file_name": "1.png"}, {"id": 8, "file_name": "2.png"}],
        "annotations": [
            {"image_id": 7, "caption": "a cat"},
            {"image_id": 8, "caption": "a dog"},
            {"image_id": 7, "caption": "x y"},
        ],
    }
    found = Labeled(["1.png", "2.png"], {"captions.json": json.dumps(coco)})
    assert (found.captions, found.others["1.png"]) == ({"1.png": "a cat", "2.png": "a dog"}, ("x y",))


def test_kohyas_metadata_is_read() -> None:
    meta = {
        f"/content/train/10_zkz/00{n}": {"caption": f"a cat {n}", "tags": "red", "train_resolution": [512, 512]}
        for n in range(3)
    }
    for name in ("meta_cap.json", "meta_lat.json", "10_zkz/meta_lat.json"):
        found = Labeled([f"10_zkz/00{n}.png" for n in range(3)], {name: json.dumps(meta)})
        assert found.captions == {f"10_zkz/00{n}.png": f"a cat {n}, red" for n in range(3)}


# -- sidecars ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "caption"),
    [
        ("1.txt", "a red cat\r\n", "a red cat"),
        ("1.png.txt", "a red cat", "a red cat"),
        ("1.caption", "\ufeffa red cat", "a red cat"),
        ("1.tags", "1girl, solo", "1girl, solo"),
        ("1.txt", "a\rred\rcat", "a red cat"),
        ("1.txt", "Tom &amp; Jerry &quot;x&#039;", "Tom & Jerry \"x'"),
        ("1.txt", "a cat, best\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, Seed: 1", "a cat, best"),
        ("1.txt", "Steps: 20, Sampler: Euler a, Seed: 1", ""),
        ("1.txt", "climbing Steps: 20, in the sun", "climbing Steps: 20, in the sun"),
        ("1.json", '{"tag_string": "1girl red_hair", "id": 3}', "1girl, red_hair"),
        ("1.png.json", '{"tags": {"general": ["solo", "hat"], "species": ["cat"]}}', "solo, hat, cat"),
        ("1.json", '{"caption": ""}', ""),
        ("1.txt", " \n\t ", ""),
        ("1.txt", "", ""),
    ],
)
def test_texts_beside_images_are_captions(name: str, text: str, caption: str) -> None:
    found = Labeled(["1.png"], {name: text})
    assert found.captions == {"1.png": caption}
    assert not found.refused


def test_texts_of_one_folder_are_decoded_together() -> None:
    captions = ["кот", "рыжая кошка", "девушка в красном платье", "кит", "zkz дом"]
    texts = {f"{n}.txt": caption.encode("cp1251") for n, caption in enumerate(captions)}
    found = Labeled([f"{n}.png" for n in range(5)], texts)
    assert list(found.captions.values()) == captions


def test_a_text_of_unknown_encoding_is_no_caption_and_told() -> None:
    found = Labeled(["1.png", "2.png"], {"1.txt": "кот".encode("cp1251"), "2.txt": b"\xe9a cat\0\0"})
    assert set(found.captions.values()) == {""}
    assert "UTF-8" in found.problems["1.png"]
    assert found.problems["2.png"]


@pytest.mark.parametrize("encoding", ["cp1251", "gb18030", "utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_tables_are_read_in_legacy_encodings(encoding: str) -> None:
    caption = {"cp1251": "девушка в красном платье на фоне моря"}.get(encoding, "一只可爱的猫坐在草地上")
    table = f"file_name,text\r\n1.png,{caption}\r\n".encode(encoding)
    assert Labeled(["1.png"], {"metadata.csv": table}).captions == {"1.png": caption}


# -- any table --------------------------------------------------------------------------------------------------------

CAPTIONS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30).filter(lambda text: clean_caption(text) != ""),
    min_size=1,
    max_size=6,
)


def written(form: str, rows: Sequence[tuple[str, str]]) -> str:
    if form == "jsonl":
        return "".join(json.dumps({"file_name": f, "text": c}, ensure_ascii=False) + "\n" for f, c in rows)
    if form == "json":
        return json.dumps(dict(rows), ensure_ascii=False)
    file = io.StringIO(newline="")
    delimiter = {"semicolon.csv": ";", "tsv": "\t"}.get(form, ",")
    writer = csv.writer(
        file,
        delimiter=delimiter,
        quoting=csv.QUOTE_ALL if form in ("all.csv", "single.csv") else csv.QUOTE_MINIMAL,
        quotechar="'" if form == "single.csv" else '"',
    )
    writer.writerows([("file_name", "text"), *rows])
    return file.getvalue()


@given(CAPTIONS, st.sampled_from(["csv", "all.csv", "single.csv", "semicolon.csv", "tsv", "jsonl", "json"]))
def test_any_table_round_trips(captions: Sequence[str], form: str) -> None:
    rows = [(f"a/{n}.png", caption) for n, caption in enumerate(captions)]
    found = Labeled([file for file, _caption in rows], {f"metadata.{form.rpartition('.')[2]}": written(form, rows)})
    assert found.captions == {file: clean_caption(caption) for file, caption in rows}
    assert not found.refused


def test_a_text_in_markdown_without_a_table_of_images_is_no_damaged_table() -> None:
    found = Labeled(["cat.png"], {"README.md": "# Cats\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"})
    assert found.refused["README.md"].kind is RefusalKind.UNSUPPORTED
