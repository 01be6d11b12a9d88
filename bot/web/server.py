"""The server of the pages: its routes, the headers of each answer, errors as pages, and limits for slow clients."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from bot.config import WebSettings
from bot.datasets.decisions import EditConflict
from bot.db.errors import DatabaseUnwritable
from bot.errors import DarkroomError, DatasetRefused, NotAllowed, NotFound, TooOften
from bot.web.links import LinkEnded
from bot.web.rendering import render, static_file
from bot.web.site import GUILD, SITE, Handler, Site, accepted_language
from bot.web.visitors import NotAMember, PagesNotReady
from trainer.protocol.text import _, speak

log = logging.getLogger(__name__)

#: No page has scripts or styles in it, loads anything from elsewhere, or may be shown in another page. `blob:` are
#: thumbnails that the browser draws of files that are about to be uploaded.
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    # The address of a page opens it: it goes nowhere else.
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "X-Robots-Tag": "noindex, nofollow",
    "Cache-Control": "no-store",
}
_STATUS: tuple[tuple[type[DarkroomError], int], ...] = (
    (EditConflict, 409),
    (LinkEnded, 410),
    (NotFound, 404),
    (NotAllowed, 403),
    (NotAMember, 403),
    (TooOften, 429),
    (PagesNotReady, 503),
    (DatasetRefused, 422),
    # As of a full disk (`bot.web.tus`): senders try again.
    (DatabaseUnwritable, 507),
)
#: For a form with text; files come by `bot.web.tus`, which reads them in pieces.
_MAX_FORM_BYTES = 1024 * 1024
#: From a connection to the end of its first request's headers, and between two requests.
_FIRST_REQUEST_S, _IDLE_S = 20.0, 75.0
_WATCH_S = 5.0
#: Until open requests are cut off when the bot ends.
_SHUTDOWN_S = 5.0

#: Connections whose first request has arrived.
_ASKED = web.AppKey("asked", set[object])


def make_application(site: Site, routes: Iterable[web.RouteDef]) -> web.Application:
    """Make the application of the pages; its handlers find `site` in it."""
    application = web.Application(middlewares=[_explain_errors, _refuse_foreign_pages], client_max_size=_MAX_FORM_BYTES)
    application[SITE] = site
    application[_ASKED] = set()
    application.on_response_prepare.append(_add_headers)
    application.router.add_get("/static/{name}", static_file)
    application.router.add_routes(list(routes))
    return application


@asynccontextmanager
async def serve_pages(settings: WebSettings, application: web.Application) -> AsyncIterator[int | None]:
    """Answer requests while the body runs; yield the port, None if there are no pages or the port is in use.

    A port in use is logged, and the bot runs without pages.
    """
    if not settings.is_on:
        yield None
        return
    runner = web.AppRunner(
        application,
        # Addresses open pages: they are in no log.
        access_log=None,
        # A compressed body could inflate to anything.
        auto_decompress=False,
        keepalive_timeout=_IDLE_S,
        shutdown_timeout=_SHUTDOWN_S,
    )
    await runner.setup()
    watch = asyncio.create_task(_close_silent(runner, application[_ASKED]), name="silent connections")
    try:
        yield await listen(runner, settings.host, settings.port, what="pages")
    finally:
        watch.cancel()
        await runner.cleanup()


async def listen(runner: web.AppRunner, host: str, port: int, *, what: str) -> int | None:
    """Begin to answer requests; return the port, or None if it cannot be used, which is logged."""
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        log.warning("no %s: %s:%d cannot be used (%s)", what, host, port, error.strerror or error)
        return None
    log.info("%s on http://%s:%d", what, host, port)
    return port


async def _close_silent(runner: web.AppRunner, asked: set[object]) -> None:
    """Close connections that send no complete request; aiohttp itself waits for ever."""
    loop = asyncio.get_running_loop()
    since: dict[RequestHandler, float] = {}
    while True:
        await asyncio.sleep(_WATCH_S)
        server = runner.server
        connections = [] if server is None else server.connections
        asked.intersection_update(connections)
        since = {each: since.get(each, loop.time()) for each in connections}
        for connection, first_seen in since.items():
            if connection not in asked and loop.time() - first_seen > _FIRST_REQUEST_S and connection.transport:
                connection.transport.close()


@web.middleware
async def _explain_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer errors with a page, or with a line of text for programs; none names an address or a path."""
    request.app[_ASKED].add(request.protocol)
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        speak(accepted_language(request))
        response = _error(request, error.status, _http_words(error.status))
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    except DarkroomError as error:
        status = next((status for kind, status in _STATUS if isinstance(error, kind)), 400)
        sentence = await request.app[SITE].visitors.spelled(request.get(GUILD, 0), str(error))
        new_link_at = await _new_link_at(request.app[SITE], error) if isinstance(error, LinkEnded) else ""
        response = _error(request, status, sentence, new_link_at)
        if isinstance(error, TooOften):
            response.headers["Retry-After"] = str(max(1, round(error.wait_s)))
        if isinstance(error, PagesNotReady):
            response.headers["Retry-After"] = "10"
        return response
    except ConnectionError as error:
        log.debug("a visitor has left: %r", error)
        # The body is not read.
        return web.Response(status=400)
    except Exception:
        log.exception("a page could not be answered (%s)", getattr(handler, "__name__", handler))
        return _error(request, 500, _("Something broke on my side. Try again; its operators can see why in the log."))


async def _new_link_at(site: Site, ended: LinkEnded) -> str:
    """The place in Discord with a button for a new link. Only there is it known who presses."""
    card = None if ended.job_id is None else await site.outbox.cards.of(ended.job_id)
    channel_id = "" if card is None else card.thread_id or card.channel_id
    return f"https://discord.com/channels/{ended.guild_id}/{channel_id}"


def _error(request: web.Request, status: int, sentence: str, new_link_at: str = "") -> web.Response:
    if "text/html" in request.headers.get("Accept", ""):
        return render(request, "error.html.j2", status=status, sentence=sentence, new_link_at=new_link_at)
    return web.Response(status=status, text=f"{sentence}\n")


def _http_words(status: int) -> str:
    if status == 404:
        return _("There is no such page. Copy the whole link from Discord, or ask for a new one there.")
    if status == 413:
        return _("This is more text than a form takes.")
    return _("This page cannot be used in this way (HTTP status {status}).", status=status)


@web.middleware
async def _refuse_foreign_pages(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what another site's page sends. It would have to know the address, which is secret: this comes on top."""
    if request.method not in {"GET", "HEAD", "OPTIONS"}:
        fetch_site = request.headers.get("Sec-Fetch-Site")
        origin = request.headers.get("Origin", "null")
        # A form of a page without a referrer has the origin "null"; programs send neither header.
        is_foreign = origin not in ("null", request.app[SITE].origin)
        if is_foreign or fetch_site not in (None, "same-origin", "none"):
            raise web.HTTPForbidden
    return await handler(request)


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    if request.app[SITE].origin.startswith("https:"):
        response.headers.setdefault("Strict-Transport-Security", "max-age=31536000")
    response.headers.pop("Server", None)
