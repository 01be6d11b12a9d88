"""`run_bot.py` for a `ForkServer`: what `python -m bot run` imports is imported before the fork (1.4 s each time).

Arguments: http://127.0.0.1:PORT run --config FILE
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import yarl
from discord.gateway import DiscordWebSocket
from discord.http import Route

import bot.__main__
import bot.app.connection
import bot.log
from tests.wire.run_bot import api_url, gateway_url


def main(arguments: Sequence[str]) -> int:
    url, *sys.argv[1:] = arguments
    Route.BASE = api_url(url)
    DiscordWebSocket.DEFAULT_GATEWAY = yarl.URL(gateway_url(url))
    return bot.__main__.main()
