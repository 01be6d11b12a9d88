"""A web server on this machine that serves what a test gives it, well or badly behaved."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


def body(data: bytes, status: int = 200, **headers: str) -> Answer:
    """An answer with a body; header names have `_` for `-`."""

    def send(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in {"Content_Length": str(len(data)), **headers}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(data)

    return send


def unsaid(data: bytes) -> Answer:
    """A body whose length is not said before."""

    def send(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(data)

    return send


def redirect(target: str) -> Answer:
    return body(b"", 302, Location=target)


def drip(data: bytes, pause_s: float) -> Answer:
    """One byte now and then, without an end in sight."""

    def send(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        for byte in data:
            request.wfile.write(bytes([byte]))
            request.wfile.flush()
            time.sleep(pause_s)

    return send


def endless(request: http.server.BaseHTTPRequestHandler) -> None:
    """A body of unknown length that does not end."""
    request.send_response(200)
    request.end_headers()
    while True:
        request.wfile.write(bytes(2**16))


def as_json(value: Any, status: int = 200, **headers: str) -> Answer:
    return body(json.dumps(value).encode(), status, Content_Type="application/json", **headers)


@contextmanager
def serving(answers: dict[str, Answer]) -> Iterator[tuple[str, list[str]]]:
    """The server's address, and the paths that were asked for so far."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            try:
                answers.get(self.path.partition("?")[0], body(b"nothing here", 404))(self)
            except OSError:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
