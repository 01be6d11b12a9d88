"""`run_bot.py` for a `ForkServer`: what `python -m bot run` imports is imported before the fork (1.4 s each time).

Three pauses are shorter than in a fresh process, for which most of these tests would do nothing but wait. Nor does it
wait for the disk: only processes die here, not the machine.

Arguments: http://127.0.0.1:PORT run --config FILE
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partialmethod

import yarl
from discord.gateway import DiscordWebSocket
from discord.http import Route
from discord.state import ConnectionState

import bot.__main__
import bot.app.connection
import bot.cogs.replies
import bot.db.database
import bot.log
import bot.outbox.sender
from tests.wire.run_bot import api_url, gateway_url

#: How long discord.py waits at each start for one more server: 2 s, and on loopback they come at once.
_SERVERS_WITHIN_S = 0.3
#: The sender's first pause after a failure, in place of 2 s.
FIRST_BACKOFF_S = 0.2
#: The first pause between two tries to answer a person, in place of 1 s.
_LATER_PAUSE_S = 0.2


def main(arguments: Sequence[str]) -> int:
    url, *sys.argv[1:] = arguments
    Route.BASE = api_url(url)
    DiscordWebSocket.DEFAULT_GATEWAY = yarl.URL(gateway_url(url))
    setattr(  # noqa: B010 - mypy knows no method that is replaced by a `partialmethod`
        ConnectionState, "__init__", partialmethod(ConnectionState.__init__, guild_ready_timeout=_SERVERS_WITHIN_S)
    )
    setattr(bot.db.database, "_PRAGMAS", (*bot.db.database._PRAGMAS, "synchronous=OFF"))  # noqa: B010 - for mypy
    bot.outbox.sender._FIRST_BACKOFF_S = FIRST_BACKOFF_S
    bot.cogs.replies._LATER_PAUSE_S = _LATER_PAUSE_S
    return bot.__main__.main()
