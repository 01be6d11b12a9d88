"""Runs a program in a fork of a `ForkServer` on behalf of this process: passes on signals, and exits like it.

    python -S -E fork_client.py PROGRAM SOCKET ARGUMENT…

Imports C modules and little else: it starts in 16 ms of CPU, where `json`, `signal` and `socket` would make it 31, and
the program would take 0.3 s (pydantic) or 7 s (torch).
"""

from __future__ import annotations

import marshal
import os
import sys
from _signal import SIG_DFL, SIGINT, SIGTERM, pause, signal  # type: ignore[import-not-found]
from _socket import AF_UNIX, SCM_RIGHTS, SOCK_STREAM, SOL_SOCKET, socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    # `typing` would take a third of the start.
    from collections.abc import Sequence
    from typing import Any


def send(connection: socket, path: str, request: dict[str, Any], descriptors: Sequence[int]) -> None:
    """Request a fork. The answer is two lines: its process ID, and later its exit status."""
    connection.connect(path)
    body = marshal.dumps(request)
    rights = b"".join(each.to_bytes(4, sys.byteorder) for each in descriptors)
    connection.sendmsg([len(body).to_bytes(8, "big")], [(SOL_SOCKET, SCM_RIGHTS, rights)])
    connection.sendall(body)


def main(program: str, path: str, argv: list[str]) -> int:
    """Return the exit status of the fork; end by the signal that ended it."""
    request = {"program": program, "argv": argv, "env": dict(os.environ), "hook": None, "is_client": True}
    request["cwd"] = os.getcwd()  # noqa: PTH109
    connection = socket(AF_UNIX, SOCK_STREAM)
    send(connection, path, request, [0, 1, 2])
    pid = _read_number(connection)

    def relay(number: int, _: object) -> None:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return

    for number in (SIGTERM, SIGINT):
        signal(number, relay)
    code = _read_number(connection)
    if code < 0:
        signal(-code, SIG_DFL)
        os.kill(os.getpid(), -code)
        pause()
    return code


def _read_number(connection: socket) -> int:
    line = b""
    # The second line comes only when the fork has ended, long after the first: one of them is read at a time.
    while not line.endswith(b"\n"):
        if not (part := connection.recv(1)):
            raise EOFError
        line += part
    return int(line)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
