"""Starting a process that outlives us, in a session of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from bot.errors import LaunchFailed


def spawn(argv: Sequence[str], env: Mapping[str, str], actions: Sequence[tuple[Any, ...]]) -> int:
    """Start a process in a new session and return its pid; `actions` are posix_spawn's file actions.

    `posix_spawn` and no `subprocess.Popen`: a Popen (or asyncio's transport) that is let go while its process runs
    complains, or even kills it; this child must outlive us.

    Raises:
        LaunchFailed: it cannot be started.
    """
    try:
        return os.posix_spawnp(argv[0], tuple(argv), env, file_actions=actions, setsid=True)
    except OSError as error:
        raise LaunchFailed(command=" ".join(argv), why=error.strerror or str(error)) from error
