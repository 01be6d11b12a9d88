"""The pages tell all of a report, open from disk, and no stranger's word breaks out of its place."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.trainer.report.making import bucket, count, found, picture, report_of, statistics, words
from trainer.protocol.report import DatasetReport, FindingKind, RefusalKind, Refused, Split
from trainer.report.pages import code, escape_markdown, write_pages
from trainer.report.strangers import plain

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onload='alert(1)",
    "javascript:alert(1)",
    "`code` ``more``",
    "a|b|c",
    "line\nbreak\r\n# heading\n- item",
    "[link](https://evil.example) ![picture](https://evil.example/x.png)",
    "https://evil.example www.evil.example",
    "\u202egnp.exe\u2066",
    "{{ 7 * 7 }} {% raw %}",
    "</style></title></script><!--",
    "**bold** _slanted_ ~~gone~~ &amp; &lt;",
    "@everyone <@1234>",
    "\x1b[31mred\x00",
)


@dataclass
class Page(HTMLParser):
    """What a browser makes of a page."""

    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    text: str = ""
    _open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self._open.append(tag)
        self.text += " "

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] not in {"style", "script"}:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def ids(self) -> set[str]:
        return {attributes["id"] for _, attributes in self.tags if "id" in attributes}

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def page_of(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    return page


def tokens_of(path: Path) -> list[Token]:
    """As GitHub reads it: tables, and bare addresses made links."""
    flat: list[Token] = []
    for token in MarkdownIt("gfm-like", {"html": True, "linkify": False}).parse(path.read_text(encoding="utf-8")):
        flat += [token, *(token.children or [])]
    return flat


def full_report() -> DatasetReport:
    near = (found(FindingKind.NEAR_DUPLICATE, measure=12.0, threshold=26.0, other="a.zip!folder/1.png"),)
    images = [
        picture(1, group=1, cropped=0.12),
        picture(2, group=1, findings=near, class_name="cat"),
        picture(3, Split.VALIDATION, findings=(found(FindingKind.BLUR, measure=1.31, threshold=1.0),), repeats=4),
        picture(4, Split.TEST, findings=(found(FindingKind.UPSCALED, measure=2.0, threshold=1.0),), cropped=0.375),
        picture(
            5, None, findings=(found(FindingKind.EXACT_DUPLICATE, "dropped", other="a.zip!folder/1.png"),), group=1
        ),
        picture(6, None, thumbnail=None),
        picture(7, is_caption_automatic=True, caption="seen by a model", decision="keep", width=800, height=500),
    ]
    return report_of(
        images,
        counts=count(images, refused=1),
        refused=(Refused(source="a.zip!notes.pdf", kind=RefusalKind.UNSUPPORTED, reason="it is no picture"),),
        buckets=(bucket(512, 512, 4, 0.031), bucket(768, 320, 1, 0.2)),
        captions=statistics(trigger="momo", with_trigger=4, words=words(("yellow", 4), ("hat", 2))),
        diverse=(1, 4),
        isolated=(7,),
        advised_folds=5,
        sheets=("sheets/kept-1.png", "sheets/dropped-1.png"),
    )


def test_the_page_tells_everything_in_a_report(tmp_path: Path) -> None:
    assert [path.name for path in write_pages(full_report(), tmp_path)] == ["report.md", "report.html"]
    said = page_of(tmp_path / "report.html").words
    for part in (
        "In words.",
        "Perhaps blurred 1 kept",
        "measured 1.31, threshold 1",
        "no. 5 like no. 1 dropped",
        "Exact duplicates 1 dropped",
        "cannot be shown",
        "5-fold cross-validation",
        "cat 1 1 0 0",
        "768×320",
        "−3.1%",
        "38% cropped",
        "7.50 tokens, median",
        "4 of 5 hold “ momo”",
        "yellow 4 hat 2",
        "The most alone",
        "a.zip!notes.pdf unsupported it is no picture",
        "automatic caption",
        "kept by hand",
        "×4",
    ):
        assert part in said


def test_pictures_are_small_ones_beside_the_page_and_links_lead_somewhere(tmp_path: Path) -> None:
    write_pages(full_report(), tmp_path)
    page = page_of(tmp_path / "report.html")
    pictures = page.all("img")
    assert {image["src"] for image in pictures} == {f"thumbnails/{number:04}.jpg" for number in (1, 2, 3, 4, 5, 7)}
    assert all(image["loading"] == "lazy" and image["alt"] for image in pictures)
    for link in page.all("a"):
        name, _, anchor = link["href"].partition("#")
        if anchor:
            assert name in {"", "report.html"}
            assert anchor in page.ids()
        else:
            assert re.fullmatch(r"(images|thumbnails)/\d{4}\.\w{3}", name)


def test_a_duplicate_stands_beside_what_it_is_a_copy_of(tmp_path: Path) -> None:
    write_pages(full_report(), tmp_path)
    html = (tmp_path / "report.html").read_text()
    (pair,) = re.findall(r'<div class="pair">(.*?)</div>', html, re.DOTALL)
    assert re.findall(r'src="([^"]+)"', pair) == ["thumbnails/0005.jpg", "thumbnails/0001.jpg"]


def test_what_is_cut_off_is_shown_on_the_side_where_it_is_cut(tmp_path: Path) -> None:
    for width, height, side in ((1024, 512, "across"), (512, 1024, "down")):
        images = [picture(1, cropped=0.5, width=width, height=height)]
        write_pages(report_of(images, buckets=(bucket(512, 512),)), tmp_path)
        classes = [each.get("class", "") for each in page_of(tmp_path / "report.html").all("span")]
        assert f"picture {side}" in classes
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


@pytest.mark.parametrize("evil", HOSTILE)
def test_hostile_words_are_shown_and_change_nothing_in_the_page(tmp_path: Path, evil: str) -> None:
    pages = []
    for name, word in (("tame", "tame"), ("evil", evil)):
        (tmp_path / name).mkdir()
        write_pages(_report_that_says(word), tmp_path / name)
        pages.append(page_of(tmp_path / name / "report.html"))
    tame, hurt = pages
    assert [tag for tag, _ in hurt.tags] == [tag for tag, _ in tame.tags]
    assert [set(attributes) for _, attributes in hurt.tags] == [set(attributes) for _, attributes in tame.tags]
    assert plain(evil) in hurt.words
    for one, other in zip(hurt.all("a") + hurt.all("img"), tame.all("a") + tame.all("img"), strict=True):
        assert (one.get("href"), one.get("src")) == (other.get("href"), other.get("src"))
    assert "\u202e" not in hurt.text
    assert "\x1b" not in hurt.text


@pytest.mark.parametrize("evil", HOSTILE)
def test_hostile_words_are_shown_and_change_nothing_in_the_markdown(tmp_path: Path, evil: str) -> None:
    shapes = []
    for name, word in (("tame", "tame"), ("evil", evil)):
        (tmp_path / name).mkdir()
        write_pages(_report_that_says(word), tmp_path / name)
        shapes.append(tokens_of(tmp_path / name / "report.md"))
    tame, hurt = (
        [token.type for token in tokens if token.type not in {"text", "text_special", "softbreak"}] for tokens in shapes
    )
    assert hurt == tame
    assert not {"html_inline", "html_block", "link_open"} & set(hurt)
    assert plain(evil) in "".join(token.content for token in shapes[1] if not token.children)


def _report_that_says(word: str) -> DatasetReport:
    """Whatever a stranger may write, written by one."""
    blur = found(FindingKind.BLUR, measure=1.5, threshold=1.0, other=f"a.zip!{word}").model_copy(
        update={"message": f"its name is {word}"}
    )
    same = found(FindingKind.CAPTION_IDENTICAL)
    images = [
        picture(1, source=f"a.zip!{word}", caption=word, class_name=f"c {word}", findings=(blur, same)),
        picture(2, None, source=f"{word}!{word}", findings=(blur.model_copy(update={"action": "dropped"}),)),
        picture(3, Split.TEST, caption_source=word, group=1),
    ]
    return report_of(
        images,
        counts=count(images, 1),
        summary=f"Summary of {word}.",
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
    write_pages(report_of([picture(1, class_name="a | b\\| c"), picture(2)]), tmp_path)
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


def test_more_than_500_pictures_take_several_pages_that_link_to_each_other(tmp_path: Path) -> None:
    blurred = (found(FindingKind.BLUR),)
    images = [picture(number, findings=blurred if number == 1150 else ()) for number in range(1, 1201)]
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


def test_long_lists_are_cut_and_say_so(tmp_path: Path) -> None:
    blurred, small = (found(FindingKind.BLUR),), (found(FindingKind.UPSCALED),)
    images = [picture(number, findings=blurred if number <= 400 else small) for number in range(1, 801)]
    refused = tuple(Refused(source=f"{n}", kind=RefusalKind.LINK, reason="it is a link") for n in range(1000))
    write_pages(report_of(images, refused=refused), tmp_path)
    said = page_of(tmp_path / "report.html").words
    assert "and 52 more, in report.json" in said
    assert "and 100 more, in report.json" in said
    assert "and 800 more, in report.json" in said
    assert "and 800 more, in report.json" in (tmp_path / "report.md").read_text()


def test_pictures_of_one_caption_are_listed_under_it(tmp_path: Path) -> None:
    same = (found(FindingKind.CAPTION_IDENTICAL),)
    images = [picture(n, caption="a cat" if n < 4 else "a dog", findings=same) for n in range(1, 6)]
    write_pages(report_of(images), tmp_path)
    assert "“a cat” 1 2 3 “a dog” 4 5" in page_of(tmp_path / "report.html").words
    assert "- “a cat”: no. 1, 2, 3\n- “a dog”: no. 4, 5\n" in (tmp_path / "report.md").read_text()


def test_the_markdown_reads_as_plain_text(tmp_path: Path) -> None:
    write_pages(full_report(), tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# Dataset report: a.zip\n\nIn words.\n\n| pictures |")
    assert "### Perhaps blurred (1 kept)" in text
    assert "- **no. 3** `a.zip!folder/3.png`: it is blur (measured 1.31, threshold 1), kept\n" in text
    assert "- train: no. 1, 2\n" in text
    assert "- The most diverse: no. 1, 4\n" in text
    assert "![sheets/kept-1.png](sheets/kept-1.png)" in text
    assert "\n\n\n" not in text


def test_a_report_with_nothing_in_it_is_a_page_all_the_same(tmp_path: Path) -> None:
    files = write_pages(report_of([]), tmp_path)
    assert [path.name for path in files] == ["report.md", "report.html"]
    said = page_of(files[1]).words
    assert "What was found" not in said
    assert "Captions" not in said


def test_a_thumbnail_in_any_path_is_linked_by_its_address(tmp_path: Path) -> None:
    write_pages(report_of([picture(1, thumbnail="small ones/a#1?.jpg")]), tmp_path)
    (source,) = {image["src"] for image in page_of(tmp_path / "report.html").all("img")}
    assert source == "small%20ones/a%231%3F.jpg"
    assert unquote(source) == "small ones/a#1?.jpg"
