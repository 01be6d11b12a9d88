"""The web pages: uploads of any size, results, datasets and the gallery; off unless they are configured."""

from bot.web.links import Link, LinkKind, WebLinks

__all__ = ["Link", "LinkKind", "WebLinks"]
