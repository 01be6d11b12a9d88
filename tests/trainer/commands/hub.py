"""A stand-in for the Hugging Face hub: the part of its HTTP API by which `huggingface_hub` uploads a model.

It is as strict as the hub where that is documented: each call of the API needs the token, the front matter of a card
must be YAML of known fields, and a commit may only name LFS objects whose content has arrived.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from huggingface_hub import ModelCard

TOKEN = "hf_secret0123456789"


@dataclass
class Hub:
    """What the hub has, and what it was asked."""

    url: str = ""
    namespace: str = "ana"
    repositories: dict[str, dict[str, Any]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    #: Method and path of each request.
    requests: list[str] = field(default_factory=list)
    #: Called before an LFS object is stored, with how many there are.
    before_object: Callable[[int], None] = lambda _count: None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def files(self, repository: str) -> dict[str, bytes]:
        found: dict[str, bytes] = self.repositories[repository]["files"]
        return found

    # -- answers: status and JSON ----------------------------------------------------------------------------------

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        if method == "PUT":
            with self._lock:
                return self._store(path.rpartition("/")[2], body)
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path == "/api/validate-yaml":
            return self._validate(json.loads(body)["content"])
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/main)?", path):
            return self._info(found[1])
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            return self._preupload(found[1], json.loads(body)["files"])
        if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._batch(json.loads(body)["objects"])
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            return self._commit(found[1], [json.loads(line) for line in body.splitlines()])
        return 404, {"error": f"no such call: {method} {path}"}

    def _store(self, oid: str, body: bytes) -> tuple[int, Any]:
        self.before_object(len(self.objects))
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, {"error": "the content has another hash"}
        self.objects[oid] = body
        return 200, {}

    def _create(self, wanted: dict[str, Any]) -> tuple[int, Any]:
        if wanted["organization"] != self.namespace:
            return 403, {"error": "You don't have the rights to create a model under this namespace"}
        name = f"{wanted['organization']}/{wanted['name']}"
        if name in self.repositories:
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"}
        is_private = wanted.get("visibility") == "private" or wanted.get("private") is True
        self.repositories[name] = {"private": is_private, "files": {}, "sha": "0" * 40}
        return 200, {"url": f"{self.url}/{name}", "name": name}

    def _validate(self, content: str) -> tuple[int, Any]:
        try:
            values = ModelCard(content).data.to_dict() if content.startswith("---\n") else {}
        except ValueError:
            values = {}
        if not isinstance(values.get("license"), str):
            return 400, {"errors": [{"message": "the front matter is no mapping, or has no license"}], "warnings": []}
        return 200, {"errors": [], "warnings": []}

    def _info(self, name: str) -> tuple[int, Any]:
        if name not in self.repositories:
            return 404, {"error": "Repository not found"}
        known = self.repositories[name]
        return 200, {"id": name, "modelId": name, "private": known["private"], "sha": known["sha"], "siblings": []}

    def _preupload(self, name: str, files: list[dict[str, Any]]) -> tuple[int, Any]:
        known = self.files(name)
        return 200, {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": _oid(file["path"], known[file["path"]]) if file["path"] in known else None,
                }
                for file in files
            ]
        }

    def _batch(self, objects: list[dict[str, Any]]) -> tuple[int, Any]:
        answers: list[dict[str, Any]] = []
        for each in objects:
            upload = {"upload": {"href": f"{self.url}/objects/{each['oid']}"}}
            answers.append(each if each["oid"] in self.objects else {**each, "actions": upload})
        return 200, {"transfer": "basic", "objects": answers}

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> tuple[int, Any]:
        header, *changes = lines
        assert header["key"] == "header"
        for change in changes:
            value = change["value"]
            if change["key"] == "lfsFile":
                if value["oid"] not in self.objects:
                    return 400, {"error": f"LFS object {value['oid']} was not uploaded"}
                self.files(name)[value["path"]] = self.objects[value["oid"]]
            else:
                assert change["key"] == "file"
                self.files(name)[value["path"]] = base64.b64decode(value["content"])
        sha = hashlib.sha1(repr(sorted(self.files(name).items())).encode()).hexdigest()
        self.repositories[name]["sha"] = sha
        return 200, {"commitUrl": f"{self.url}/{name}/commit/{sha}", "commitOid": sha, "pullRequestUrl": None}


def _oid(path: str, content: bytes) -> str:
    if path.endswith(".safetensors"):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Serve a hub on a free port."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b"".join(self._chunks())
            path = self.path.partition("?")[0]
            hub.requests.append(f"{self.command} {path}")
            is_allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}" or self.command == "PUT"
            status, answer = hub.answer(self.command, path, body) if is_allowed else (401, {"error": "Invalid token"})
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _chunks(self) -> Iterator[bytes]:
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()

        do_GET = do_POST = do_PUT = do_HEAD = _handle  # noqa: N815 - the names of `http.server`

        def log_message(self, *_arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_arguments: object) -> None:
            """A client that was killed answers no more."""

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
