"""All pages: their addresses and handlers."""

from __future__ import annotations

from aiohttp import web

from bot.web.dataset_editor import dataset_routes
from bot.web.job_results import job_routes
from bot.web.shared_gallery import gallery_routes
from bot.web.tus import tus_routes
from bot.web.upload_page import upload_routes


def page_routes() -> list[web.RouteDef]:
    """Return the routes of all pages; each module has its own."""
    return [*upload_routes(), *tus_routes(), *dataset_routes(), *gallery_routes(), *job_routes()]
