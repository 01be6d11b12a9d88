"""Runs a program in a fork of a `ForkServer` on behalf of this process: passes on signals, and exits like it.

    python -S -E fork_client.py PROGRAM SOCKET ARGUMENT…

Imports little: it starts in 30 ms, where the program would take 0.3 s (pydantic) or 7 s (torch).
"""

from __future__ import annotations

import os
import signal
import sys
from json import dumps
from socket import AF_UNIX, SOCK_STREAM, send_fds, socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    # `typing` would take a third of the start.
    from collections.abc import Mapping


def send(path: str, request: Mapping[str, object], descriptors: list[int]) -> socket:
    """Request a fork. The answer is two lines: its process ID, and later its exit status."""
    connection = socket(AF_UNIX, SOCK_STREAM)
    connection.connect(path)
    body = dumps(request).encode()
    send_fds(connection, [len(body).to_bytes(8, "big")], descriptors)
    connection.sendall(body)
    return connection


def main(program: str, path: str, argv: list[str]) -> int:
    """Return the exit status of the fork; end by the signal that ended it."""
    request = {"program": program, "argv": argv, "env": dict(os.environ), "hook": None, "is_client": True}
    request["cwd"] = os.getcwd()  # noqa: PTH109
    with send(path, request, [0, 1, 2]).makefile("r", encoding="ascii") as lines:
        pid = int(lines.readline())

        def relay(number: int, _: object) -> None:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                return

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, relay)
        code = int(lines.readline())
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
        signal.pause()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
