"""The report for people: `report.md`, and `report.html` with pictures, which opens from disk and asks nothing of a net.

File names, classes and captions are strangers' words: each is cleaned and escaped on its way into a page, whatever a
template says, and a policy in the page itself forbids all scripts but its own.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from trainer.protocol.report import DatasetReport
from trainer.report.contents import MOST_ROWS, contents_of
from trainer.report.strangers import plain

_HTML, _MARKDOWN, _STYLE, _SCRIPT = "report.html.j2", "report.md.j2", "report.css", "report.js"
_MARKDOWN_SIGNS = re.compile(r"([\\`*_\[\]<>#|~&@$])")
#: GitHub and Discord make links of bare addresses.
_LINK = re.compile(r"(?i)(https?|ftp|mailto|xmpp)(?=:)|\bwww(?=\.)")


def write_pages(report: DatasetReport, folder: Path) -> list[Path]:
    """Write `report.md`, `report.html` and, past 500 pictures, `report-2.html` and on into the dataset folder.

    Sheets and thumbnails are linked by their paths in the report, relative to `folder`. Returns the files.
    """
    contents = contents_of(report)
    files = [folder / "report.md"]
    files[0].write_text(_markdown().render(contents=contents, most_rows=MOST_ROWS), encoding="utf-8")
    style, script = (_source(name) for name in (_STYLE, _SCRIPT))
    for index, page in enumerate(contents.pages):
        html = html_template(_HTML).render(
            contents=contents,
            page=page,
            is_first=index == 0,
            most_rows=MOST_ROWS,
            style=Markup(style),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
        files.append(folder / page.name)
        files[-1].write_text(html, encoding="utf-8")
    return files


def escape_markdown(value: object) -> str:
    """Any value as text that Markdown leaves alone: no markup, no link, no table border, no line break."""
    if isinstance(value, Markup):
        return str(value)
    escaped = _MARKDOWN_SIGNS.sub(r"\\\1", plain(value))
    # A backslash before the colon or the dot: still the same text, and no address any more.
    return _LINK.sub(lambda match: f"{match.group()}\\", escaped)


def code(text: object) -> Markup:
    """A file name as Markdown code, fenced by more backticks than it holds."""
    shown = plain(text)
    fence = "`" * (max((len(run) for run in re.findall("`+", shown)), default=0) + 1)
    pad = " " if "`" in shown[:1] + shown[-1:] else ""
    return Markup(f"{fence}{pad}{shown}{pad}{fence}")


def _path(path: str) -> Markup:
    """A path as the target of a Markdown link."""
    return Markup(quote(path))


def _percent(share: float) -> str:
    return f"{share:.1%}" if 0 < share < 0.0995 else f"{share:.0%}"


def _number(value: float) -> str:
    """A measure with as many places as tell something: 0.027, 1.31, 26, 12,400."""
    if value == round(value):
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3g}"


def _source(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


@cache
def html_template(name: str) -> Template:
    """A page whose values are cleaned and escaped, whatever it says; numbers and paths have filters."""
    return _template(name, autoescape=True, finalize=_clean)


@cache
def _markdown() -> Template:
    return _template(_MARKDOWN, autoescape=False, finalize=escape_markdown)


def _template(name: str, *, autoescape: bool, finalize: Callable[[object], object]) -> Template:
    environment = Environment(
        loader=PackageLoader("trainer.report"),
        autoescape=autoescape,
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": _percent, "number": _number, "href": quote, "path": _path, "code": code}
    return environment.get_template(name)


def _clean(value: object) -> object:
    """What autoescape then escapes."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else plain(value)
