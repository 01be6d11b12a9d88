"""A parser of HTML pages, and hostile text for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

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
    """The tags and the text of an HTML page."""

    tags: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    #: The text between two tags.
    lines: list[str] = field(default_factory=list)
    _open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] not in {"style", "script"}:
            self.lines.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.lines)

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
