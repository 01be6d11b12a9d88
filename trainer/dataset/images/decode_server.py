"""The server whose forks decode and compare images: it has loaded what they need, and nothing else."""

from __future__ import annotations

import multiprocessing
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

_LOADED = ("trainer.dataset.images.decode_workers", "trainer.dataset.images.near_duplicates")


def server_context() -> ForkServerContext:
    """Return the context whose processes are forks of the server.

    A fork of this process would copy all that it has loaded and could deadlock on its threads. A fork of the server
    takes 10 ms.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_LOADED))
    return context


def start_server() -> None:
    """Let the server load its libraries while this process loads its own; else it starts when it is first needed."""
    server_context()
    forkserver.ensure_running()
