"""The server whose forks decode and compare images: it has loaded what they need, and little else."""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver, util
from multiprocessing.context import ForkServerContext

_LOADED = ("trainer.dataset.images.decode_workers", "trainer.dataset.images.near_duplicates")


def server_context() -> ForkServerContext:
    """Return the context whose processes are forks of the server; it starts when it is first needed.

    A fork of this process would copy all that it has loaded and could deadlock on its threads. A fork of the server
    takes 10 ms.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_LOADED))
    return context


def start_server() -> None:
    """Start the server as a fork of this process, which loads the libraries of both first.

    Call it early: what this process has loaded, the server has. Else it is a new Python, which loads all of them once
    more: 0.4 s of CPU.
    """
    for name in _LOADED:
        importlib.import_module(name)
    server_context()
    with _new_pythons_are_forks():
        forkserver.ensure_running()


@contextmanager
def _new_pythons_are_forks() -> Iterator[None]:
    """Let `multiprocessing` start its helpers as forks of this process while the body runs."""
    spawn = util.spawnv_passfds
    # As in Python 3.11 to 3.13; one that starts them by another function starts new Pythons.
    util.spawnv_passfds = _fork
    try:
        yield
    finally:
        util.spawnv_passfds = spawn


def _fork(path: bytes, args: Sequence[object], passfds: Sequence[int]) -> int:
    """Run the code of a command `python … -c CODE` in a fork that has these files open; return its process id.

    Has the parameters of `multiprocessing.util.spawnv_passfds`.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # What was imported stays in the memory that both share: neither looks through it again.
    gc.freeze()
    if pid := os.fork():
        return pid
    status = 1
    try:
        _close_all_but(passfds)
        exec(str(args[-1]), {})
        status = 0
    finally:
        os._exit(status)


def _close_all_but(kept: Iterable[int]) -> None:
    """Close the files of this process, but for its standard streams: the server ends once its clients' are closed."""
    start = 3
    for descriptor in sorted({*kept, os.sysconf("SC_OPEN_MAX")}):
        # An empty range would close all files.
        if start < descriptor:
            os.closerange(start, descriptor)
        start = max(start, descriptor + 1)
