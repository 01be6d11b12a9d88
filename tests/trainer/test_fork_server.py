"""The server of forked test processes outlives its clients, and holds nothing of theirs."""

from __future__ import annotations

import os
import socket

from tests.trainer.fork_server import ForkServer


def test_a_client_that_is_killed_as_it_writes_leaves_no_open_pipe() -> None:
    # Whoever started the client reads this pipe to its end.
    reader, writer = os.pipe()
    with ForkServer("builtins:len") as server:
        path = server.command[-1]
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.connect(path)
            socket.send_fds(client, [(100).to_bytes(8, "big")], [writer])
        os.close(writer)
        # The next client is served after the server is done with the one before.
        assert server.run("one", "two").returncode == 2
        os.set_blocking(reader, False)
        assert os.read(reader, 1) == b""
    os.close(reader)
