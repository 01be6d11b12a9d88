"""Renders the pages: templates whose values are sanitized and escaped, and the files that they all share."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib import resources

from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from bot.web.site import SITE
from trainer.protocol.text import _, current_language, duration, ngettext, sanitize, size

_CONTENT_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


def render(request: web.Request, template: str, *, status: int = 200, **values: object) -> web.Response:
    """Render a page in the language that is spoken; templates get `static`, for the address of a shared file."""
    return web.Response(text=render_text(request, template, **values), content_type="text/html", status=status)


def render_text(request: web.Request, template: str, **values: object) -> str:
    """Render a page, or a part of one that a script puts in its place."""
    base_path = request.app[SITE].base_path
    return _template(template).render(
        language=current_language().replace("_", "-"),
        static=lambda name: f"{base_path}/static/{name}?v={_static_file(name)[1]}",
        **values,
    )


def json_block(value: object) -> Markup:
    """Return a value for a `<script type="application/json">`, which a browser does not run."""
    return Markup(json.dumps(value).replace("<", "\\u003c"))


async def static_file(request: web.Request) -> web.Response:
    """Answer `/static/{name}`: style sheets and scripts; their addresses change with their content."""
    name = request.match_info["name"]
    if name not in _static_names():
        raise web.HTTPNotFound
    return web.Response(
        body=_static_file(name)[0],
        content_type=_CONTENT_TYPES[name.rpartition(".")[2]],
        charset="utf-8",
        headers={"Cache-Control": "public, max-age=31536000, immutable"},
    )


@cache
def _static_names() -> frozenset[str]:
    return frozenset(file.name for file in (resources.files(__package__) / "static").iterdir())


@cache
def _static_file(name: str) -> tuple[bytes, str]:
    """The content of a shared file, and a hash of it."""
    content = (resources.files(__package__) / "static" / name).read_bytes()
    return content, hashlib.sha256(content).hexdigest()[:12]


@cache
def _template(name: str) -> Template:
    environment = Environment(
        loader=PackageLoader("bot.web"),
        autoescape=True,
        finalize=_sanitized,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(_=_, ngettext=ngettext)
    environment.filters.update(duration=duration, size=size)
    return environment.get_template(name)


def _sanitized(value: object) -> object:
    return value if isinstance(value, Markup) or not isinstance(value, str) else sanitize(value)
