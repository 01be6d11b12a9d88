"""Jinja environments of the pages, and what makes the text of strangers safe in them.

File names, classes and captions are written by users: each value is sanitized and escaped on its way into a page,
whatever the template does, and a policy in the page itself forbids all scripts but its own.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup
from PIL import Image

from trainer.protocol.text import _, current_language, duration, ngettext, percent, sanitize, size

_MARKDOWN_SIGNS = re.compile(r"([\\`*_\[\]<>#|~&@$])")
#: GitHub and Discord make links of bare addresses.
_LINK = re.compile(r"(?i)(https?|ftp|mailto|xmpp)(?=:)|\bwww(?=\.)")


def escape_markdown(value: object) -> str:
    """Return any value as text that Markdown shows as it is: no markup, link, table border or line break."""
    if isinstance(value, Markup):
        return str(value)
    escaped = _MARKDOWN_SIGNS.sub(r"\\\1", sanitize(value))
    # A backslash before the colon or the dot: the same text, and no longer an address.
    return _LINK.sub(lambda match: f"{match.group()}\\", escaped)


def code(text: object) -> Markup:
    """Return a file name as Markdown code, fenced by more backticks than it holds."""
    shown = sanitize(text)
    fence = "`" * (max((len(run) for run in re.findall("`+", shown)), default=0) + 1)
    pad = " " if "`" in shown[:1] + shown[-1:] else ""
    return Markup(f"{fence}{pad}{shown}{pad}{fence}")


def side_words(side: str) -> str:
    """A split, or `dropped`, in words."""
    match side:
        case "train":
            return _("train")
        case "validation":
            return _("validation")
        case "test":
            return _("test")
    return _("dropped")


def light_variant(path: str) -> str:
    """Return the path of a chart in light colors, which lies beside the dark one: `charts/loss-light.png`."""
    file = PurePosixPath(path)
    return str(file.with_name(f"{file.stem}-light{file.suffix}"))


def read_template_file(name: str) -> str:
    """Return the text of a style sheet or script."""
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")


@cache
def html_template(name: str) -> Template:
    """Load an HTML page whose values are sanitized and escaped."""
    return _template(name, autoescape=True, finalize=_sanitize_strings)


@cache
def markdown_template(name: str) -> Template:
    """Load a Markdown page whose values are sanitized and escaped."""
    return _template(name, autoescape=False, finalize=escape_markdown)


def render_html(name: str, **values: object) -> str:
    """Render an HTML page with the style sheet that all of them share."""
    return html_template(name).render(style=Markup(read_template_file("report.css")), **values)


#: Width and quality of images that a page carries in itself; a sheet of samples takes about 60 KB.
_EMBEDDED_WIDTH, _EMBEDDED_QUALITY = 1200, 80
#: Thumbnails are embedded as they are.
_SMALL_BYTES = 40_000
_IMAGE_SOURCE = re.compile(r'(?<=\b)(src|srcset)="([^":]+)"')
_FILE_LINK = re.compile(r'(<a\b[^>]*?) href="(?!#)[^":]*"')


def self_contained(page: str, folder: Path) -> str:
    """Return an HTML page with its images in it and without links to files, so that it can be sent alone.

    Args:
        page: Its images are linked by their paths in `folder`; those that are missing stay linked.
        folder: Where the page lies.
    """

    def embedded(match: re.Match[str]) -> str:
        path = folder / unquote(match[2])
        return f'{match[1]}="{_data_url(path)}"' if path.is_file() else match[0]

    page = page.replace("img-src 'self' file:", "img-src data:")
    return _FILE_LINK.sub(r"\1", _IMAGE_SOURCE.sub(embedded, page))


def _data_url(path: Path) -> str:
    if path.suffix == ".jpg" and path.stat().st_size <= _SMALL_BYTES:
        return f"data:image/jpeg;base64,{b64encode(path.read_bytes()).decode()}"
    buffer = BytesIO()
    with Image.open(path) as image:
        shown = image.convert("RGB")
        if shown.width > _EMBEDDED_WIDTH:
            shown = shown.resize((_EMBEDDED_WIDTH, round(shown.height * _EMBEDDED_WIDTH / shown.width)))
        shown.save(buffer, "WEBP", quality=_EMBEDDED_QUALITY)
    return f"data:image/webp;base64,{b64encode(buffer.getvalue()).decode()}"


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
    # A screen reader pronounces a page by its language.
    environment.globals.update(_=_, ngettext=ngettext, lang=lambda: current_language().replace("_", "-"))
    environment.filters.update(
        code=code,
        duration=duration,
        href=quote,
        light=light_variant,
        number=_number,
        path=lambda path: Markup(quote(path)),
        percent=_percent,
        side=side_words,
        size=size,
    )
    return environment.get_template(name)


def _sanitize_strings(value: object) -> object:
    return value if isinstance(value, Markup) or not isinstance(value, str) else sanitize(value)


def _percent(share: float) -> str:
    return percent(share, 1 if 0 < share < 0.0995 else 0)


def _number(value: float) -> str:
    """Format a measure with as many digits as are meaningful: 0.027, 1.31, 26, 12,400."""
    if value == round(value):
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.3g}"
