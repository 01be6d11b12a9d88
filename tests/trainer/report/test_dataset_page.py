"""The pages show a whole report, open from disk, and hostile text in them stays text."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from PIL import Image as PillowImage

from tests.golden import check_golden
from tests.trainer.report.html_page import HOSTILE, page_of
from tests.trainer.report.sample_reports import count, found, report_image, report_of, statistics, words
from trainer.exchange.dataset_dir import SHARED_PAGE
from trainer.protocol.report import DatasetReport, FindingKind, Image, RefusalKind, Refused, Split
from trainer.protocol.text import sanitize, speaking
from trainer.report.dataset_page import write_pages
from trainer.report.templating import code, escape_markdown


def tokens_of(path: Path) -> list[Token]:
    """As GitHub reads it: tables, and bare addresses made links."""
    flat: list[Token] = []
    for token in MarkdownIt("gfm-like", {"html": True, "linkify": False}).parse(path.read_text(encoding="utf-8")):
        flat += [token, *(token.children or [])]
    return flat


GOLDEN = Path(__file__).parent / "golden"


def full_report() -> DatasetReport:
    near = (found(FindingKind.NEAR_DUPLICATE, measure=12.0, threshold=26.0, other="a.zip!folder/1.png"),)
    images = [
        report_image(1, group=1, width=1000, height=780),
        report_image(2, group=1, findings=near, class_name="cat"),
        report_image(3, Split.VALIDATION, findings=(found(FindingKind.BLUR, measure=1.31, threshold=1.0),), repeats=4),
        report_image(4, Split.TEST, findings=(found(FindingKind.BLUR, measure=2.0, threshold=1.0),), width=3200),
        report_image(
            5, None, findings=(found(FindingKind.EXACT_DUPLICATE, "dropped", other="a.zip!folder/1.png"),), group=1
        ),
        report_image(6, None, thumbnail=None, pixels_sha256=None),
        report_image(7, is_caption_automatic=True, caption="seen by a model", decision="keep", width=800, height=500),
    ]
    return report_of(
        images,
        counts=count(images, refused=1),
        refused=(Refused(source="a.zip!notes.pdf", kind=RefusalKind.UNSUPPORTED, reason="it is no image"),),
        captions=statistics(trigger="momo", with_trigger=4, words=words(("yellow", 4), ("hat", 2))),
        diverse=(1, 4),
        isolated=(7,),
        advised_folds=5,
        sheets=("sheets/kept-1.png", "sheets/dropped-1.png"),
    )


def test_the_pages_of_a_report(tmp_path: Path) -> None:
    assert [path.name for path in write_pages(full_report(), tmp_path)] == ["report.md", "report.html"]
    lines = (line.strip() for line in page_of(tmp_path / "report.html").lines)
    check_golden(GOLDEN / "dataset_page.txt", "\n".join(filter(None, lines)))
    check_golden(GOLDEN / "dataset_page.md", (tmp_path / "report.md").read_text(encoding="utf-8"))


def test_the_pages_in_chinese_have_no_english_words_of_ours(tmp_path: Path) -> None:
    with speaking("zh_CN"):
        write_pages(full_report(), tmp_path)
    shown = (" ".join(page_of(tmp_path / "report.html").lines), (tmp_path / "report.md").read_text(encoding="utf-8"))
    for text in shown:
        assert re.findall(r"\b(no\.|train|validation|test|dropped)\b", re.sub(r"\S*[./]\S+", "", text)) == []


def test_images_are_thumbnails_beside_the_page_and_all_links_exist(tmp_path: Path) -> None:
    write_pages(full_report(), tmp_path)
    page = page_of(tmp_path / "report.html")
    images = page.all("img")
    assert {image["src"] for image in images} == {f"thumbnails/{number:04}.jpg" for number in (1, 2, 3, 4, 5, 7)}
    assert all(image["loading"] == "lazy" and image["alt"] for image in images)
    for link in page.all("a"):
        name, _, anchor = link["href"].partition("#")
        if anchor:
            assert name in {"", "report.html"}
            assert anchor in page.ids()
        else:
            assert re.fullmatch(r"(images|thumbnails)/\d{4}\.\w{3}", name)


def test_one_page_has_its_images_in_it_so_that_it_can_be_sent_alone(tmp_path: Path) -> None:
    report = full_report()
    for image in report.images:
        if image.thumbnail:
            (tmp_path / image.thumbnail).parent.mkdir(parents=True, exist_ok=True)
            PillowImage.new("RGB", (64, 48), "red").save(tmp_path / image.thumbnail)
    assert tmp_path / SHARED_PAGE not in write_pages(report, tmp_path)

    page = page_of(tmp_path / SHARED_PAGE)

    assert len(page.all("img")) >= 12
    assert all(link["src"].startswith("data:image/") for link in page.all("img"))
    assert all(link.get("href", "#").startswith("#") for link in page.all("a"))
    (policy,) = (meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert "img-src data:;" in policy


def test_a_duplicate_is_shown_beside_the_image_that_it_copies(tmp_path: Path) -> None:
    write_pages(full_report(), tmp_path)
    html = (tmp_path / "report.html").read_text()
    (pair,) = re.findall(r'<div class="pair">(.*?)</div>', html, re.DOTALL)
    assert re.findall(r'src="([^"]+)"', pair) == ["thumbnails/0005.jpg", "thumbnails/0001.jpg"]


def test_the_crop_is_shown_at_the_sides_where_it_is(tmp_path: Path) -> None:
    for width, height, side in ((6000, 512, "across"), (512, 6000, "down")):
        write_pages(report_of([report_image(1, width=width, height=height)]), tmp_path)
        classes = [each.get("class", "") for each in page_of(tmp_path / "report.html").all("span")]
        assert f"image {side}" in classes
        assert "cut a" in classes


def test_the_page_loads_nothing_from_elsewhere_and_runs_its_own_script_only(tmp_path: Path) -> None:
    write_pages(full_report(), tmp_path)
    html = (tmp_path / "report.html").read_text()
    page = page_of(tmp_path / "report.html")
    assert "://" not in html
    assert not page.all("link")
    (policy,) = (each["content"] for each in page.all("meta") if "http-equiv" in each)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


@pytest.fixture(scope="module")
def plain_pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    write_pages(_report_with("plain"), folder)
    return folder


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_text_is_shown_and_changes_nothing_in_the_pages(
    plain_pages: Path, tmp_path: Path, hostile: str
) -> None:
    write_pages(_report_with(hostile), tmp_path)

    plain, changed = (page_of(folder / "report.html") for folder in (plain_pages, tmp_path))
    assert [tag for tag, _ in changed.tags] == [tag for tag, _ in plain.tags]
    assert [set(attributes) for _, attributes in changed.tags] == [set(attributes) for _, attributes in plain.tags]
    assert sanitize(hostile) in changed.words
    for one, other in zip(changed.all("a") + changed.all("img"), plain.all("a") + plain.all("img"), strict=True):
        assert (one.get("href"), one.get("src")) == (other.get("href"), other.get("src"))
    assert "\u202e" not in changed.text
    assert "\x1b" not in changed.text

    shapes = [tokens_of(folder / "report.md") for folder in (plain_pages, tmp_path)]
    was, now = (
        [token.type for token in tokens if token.type not in {"text", "text_special", "softbreak"}] for tokens in shapes
    )
    assert now == was
    assert not {"html_inline", "html_block", "link_open"} & set(now)
    assert sanitize(hostile) in "".join(token.content for token in shapes[1] if not token.children)


def _report_with(word: str) -> DatasetReport:
    """A report with `word` in every text that a user may write."""
    message = f"its name is {word}"
    blur = found(FindingKind.BLUR, measure=1.5, threshold=1.0, other=f"a.zip!{word}", message=message)
    same = found(FindingKind.CAPTION_IDENTICAL)
    images = [
        report_image(1, source=f"a.zip!{word}", caption=word, class_name=f"c {word}", findings=(blur, same)),
        report_image(2, None, source=f"{word}!{word}", findings=(replace(blur, action="dropped"),)),
        report_image(3, Split.TEST, caption_source=word, group=1),
    ]
    return report_of(
        images,
        counts=count(images, 1),
        summary=f"Summary of {' '.join(word.split())}.\nAnd more.",
        refused=(Refused(source=word, kind=RefusalKind.LINK, reason=f"it leads to {word}"),),
        captions=statistics(trigger=word, with_trigger=1, words=words((word, 1))),
        diverse=(1,),
        isolated=(1,),
    )


def test_no_address_in_a_caption_becomes_a_link_anywhere() -> None:
    assert escape_markdown("see https://evil.example/a") == r"see https\://evil.example/a"
    assert escape_markdown("WWW.evil.example") == r"WWW\.evil.example"
    assert escape_markdown("awww. so http") == "awww. so http"


def test_a_class_is_one_cell_whatever_it_is_called(tmp_path: Path) -> None:
    write_pages(report_of([report_image(1, class_name="a | b\\| c"), report_image(2)]), tmp_path)
    assert "a | b\\| c" in [token.content for token in _cells(tmp_path / "report.md")]


def _cells(path: Path) -> list[Token]:
    """Text of the tables, a token a cell."""
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(path.read_text(encoding="utf-8"))
    inside = [token for before, token in pairwise(tokens) if before.type == "td_open"]
    for token in inside:
        token.content = "".join(child.content for child in token.children or [])
    return inside


@pytest.mark.parametrize("name", ["a.png", "`", "``a``", "a`b``c", "- [x] |", "\\"])
def test_a_file_name_is_code_whatever_it_holds(name: str) -> None:
    (inline,) = [token for token in MarkdownIt().parse(f"- {code(name)}") if token.type == "inline"]
    assert [(token.type, token.content) for token in inline.children or []] == [("code_inline", name)]


def test_more_than_500_images_take_several_pages_that_link_to_each_other(tmp_path: Path) -> None:
    blurred = (found(FindingKind.BLUR),)
    images = [report_image(number, findings=blurred if number == 1150 else ()) for number in range(1, 1201)]
    files = write_pages(report_of(images), tmp_path)
    assert [path.name for path in files] == ["report.md", "report.html", "report-2.html", "report-3.html"]
    pages = {path.name: page_of(path) for path in files[1:]}
    shown = [id_ for page in pages.values() for id_ in sorted(page.ids()) if re.fullmatch(r"no-\d+", id_)]
    assert len(shown) == len(set(shown)) == 1200
    linked = {link["href"] for page in pages.values() for link in page.all("a") if "#" in link["href"]}
    assert "report-3.html#no-1150" in linked
    for href in linked:
        name, _, anchor = href.partition("#")
        assert anchor in pages[name or "report.html"].ids()
    assert "500 on this page" in pages["report-2.html"].words
    assert "In words." not in pages["report-2.html"].words


def test_long_lists_are_cut_and_the_rest_is_counted(tmp_path: Path) -> None:
    blurred, bare = (found(FindingKind.BLUR),), (found(FindingKind.CAPTION_MISSING),)
    images = [report_image(number, findings=blurred if number <= 400 else bare) for number in range(1, 801)]
    refused = tuple(Refused(source=f"{n}", kind=RefusalKind.LINK, reason="it is a link") for n in range(1000))
    write_pages(report_of(images, refused=refused), tmp_path)
    text = page_of(tmp_path / "report.html").words
    assert "and 52 more, in report.json" in text
    assert "and 100 more, in report.json" in text
    assert "and 800 more, in report.json" in text
    assert "and 800 more, in report.json" in (tmp_path / "report.md").read_text()


def test_images_with_the_same_caption_are_listed_below_it(tmp_path: Path) -> None:
    same = (found(FindingKind.CAPTION_IDENTICAL),)
    images = [report_image(n, caption="a cat" if n < 4 else "a dog", findings=same) for n in range(1, 6)]
    write_pages(report_of(images), tmp_path)
    assert "“a cat” 1 2 3 “a dog” 4 5" in page_of(tmp_path / "report.html").words
    assert "- “a cat”: no. 1, 2, 3\n- “a dog”: no. 4, 5\n" in (tmp_path / "report.md").read_text()


def test_an_empty_report_has_a_page(tmp_path: Path) -> None:
    files = write_pages(report_of([]), tmp_path)
    assert [path.name for path in files] == ["report.md", "report.html"]
    text = page_of(files[1]).words
    assert "What was found" not in text
    assert "Captions" not in text


def test_the_path_of_a_thumbnail_is_quoted(tmp_path: Path) -> None:
    write_pages(report_of([report_image(1, thumbnail="small ones/a#1?.jpg")]), tmp_path)
    (source,) = {image["src"] for image in page_of(tmp_path / "report.html").all("img")}
    assert source == "small%20ones/a%231%3F.jpg"
    assert unquote(source) == "small ones/a#1?.jpg"


def test_an_image_counts_once_and_what_needs_a_decision_comes_first(tmp_path: Path) -> None:
    blur, dark = found(FindingKind.BLUR), found(FindingKind.TOO_DARK)
    images = [
        report_image(1, None, findings=(found(FindingKind.TOO_SMALL, "dropped"), blur)),
        report_image(2, findings=(found(FindingKind.CAPTION_MISSING), dark, blur)),
        report_image(3, findings=(blur,)),
        report_image(4, findings=(found(FindingKind.CAPTION_MISSING),)),
    ]
    write_pages(report_of(images), tmp_path)
    headings = re.findall(r"^### (.*)$", (tmp_path / "report.md").read_text(), re.MULTILINE)
    assert headings == [
        "Too dark (1 to decide)",
        "Perhaps blurred (1 to decide)",
        "Too small (1 dropped)",
        "Without a caption (2)",
    ]


def test_what_cannot_be_decoded_is_not_offered_to_be_kept(tmp_path: Path) -> None:
    broken = [report_image(number, None, thumbnail=None, pixels_sha256=None) for number in (1, 2)]
    small = (found(FindingKind.TOO_SMALL, "dropped"),)
    write_pages(report_of([*broken, *(report_image(n, None, findings=small) for n in (3, 4))]), tmp_path)
    assert page_of(tmp_path / "report.html").words.count("to keep or drop together") == 1
    assert "to keep or drop together: 3,4" in page_of(tmp_path / "report.html").words


def test_a_pair_is_shown_once_and_both_can_be_decided_together(tmp_path: Path) -> None:
    def contradicting(number: int, other: int) -> Image:
        finding = found(FindingKind.CAPTION_CONTRADICTORY, other=f"a.zip!folder/{other}.png")
        return report_image(number, findings=(finding,))

    write_pages(report_of([contradicting(1, 2), contradicting(2, 1)]), tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert html.count('class="pair"') == 1
    assert "to keep or drop together: 1,2" in page_of(tmp_path / "report.html").words
