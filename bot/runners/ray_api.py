"""The HTTP interface of a Ray cluster's head, as far as jobs need it (Ray 2.60).

The bot does not import ray: its JobSubmissionClient would bring 60 packages into the bot's process for four requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from http import HTTPStatus
from typing import Any

import aiohttp
from pydantic import BaseModel, ConfigDict, Field

from bot.errors import RunnerUnreachable
from trainer.protocol.text import _


class JobStatus(StrEnum):
    """States of a Ray job."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"


class _Response(BaseModel):
    #: Other releases of Ray may have more fields.
    model_config = ConfigDict(frozen=True, extra="ignore")


class RayJob(_Response):
    """A submitted job."""

    status: JobStatus
    #: Ray's message; after a failure with the end of the output.
    message: str | None = None
    #: Why Ray itself ended it: `JOB_SUPERVISOR_ACTOR_DIED`, …
    error_type: str | None = None


class RayNode(_Response):
    """A machine of the cluster, alive or lost."""

    state: str
    #: `CPU`, `GPU`, `memory` (bytes), …
    resources_total: dict[str, float] = Field(default_factory=dict)

    @property
    def is_alive(self) -> bool:
        return self.state == "ALIVE"


class RayApi:
    """Client of the head. It opens a connection per request, since there is about one per second.

    Every method raises RunnerUnreachable if the cluster does not answer or refuses the request.
    """

    def __init__(self, address: str, *, token: str | None = None, timeout_s: float = 30.0) -> None:
        self._address = address.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)

    def __repr__(self) -> str:
        return f"<RayApi {self._address}>"

    async def submit(self, request: Mapping[str, Any]) -> None:
        """Submit a job; do nothing if its `submission_id` is known already."""
        status, body = await self._send("POST", "/api/jobs/", request)
        # Ray answers a known id by a 500 with a traceback, so look whether the job exists.
        if status != HTTPStatus.OK and await self.job(str(request["submission_id"])) is None:
            raise self._refusal(status, body)

    async def job(self, submission_id: str) -> RayJob | None:
        """Return a job, None if the cluster does not know it."""
        status, body = await self._send("GET", f"/api/jobs/{submission_id}")
        if status == HTTPStatus.NOT_FOUND:
            return None
        if status != HTTPStatus.OK:
            raise self._refusal(status, body)
        return RayJob.model_validate_json(body)

    async def stop(self, submission_id: str) -> None:
        """Send SIGTERM to a job's processes, and SIGKILL after RAY_JOB_STOP_WAIT_TIME_S; an unknown job is no error."""
        status, body = await self._send("POST", f"/api/jobs/{submission_id}/stop")
        if status not in {HTTPStatus.OK, HTTPStatus.NOT_FOUND}:
            raise self._refusal(status, body)

    async def nodes(self) -> list[RayNode]:
        """Return all machines, lost ones included."""
        status, body = await self._send("GET", "/api/v0/nodes?detail=1&limit=10000")
        if status != HTTPStatus.OK:
            raise self._refusal(status, body)
        return _NodesResponse.model_validate_json(body).data.result.result

    async def _send(self, method: str, path: str, content: Mapping[str, Any] | None = None) -> tuple[int, str]:
        """Send a request and return the status and the body of the response."""
        try:
            async with (
                aiohttp.ClientSession(headers=self._headers, timeout=self._timeout) as session,
                session.request(method, self._address + path, json=content) as response,
            ):
                return response.status, await response.text()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise RunnerUnreachable(where=self._name, why=str(error) or type(error).__name__) from error

    @property
    def _name(self) -> str:
        return _("The Ray cluster at {address}", address=self._address)

    def _refusal(self, status: int, body: str) -> RunnerUnreachable:
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            return RunnerUnreachable(where=self._name, why=_("it refuses the token: {status}", status=status))
        last_line = (body.strip().splitlines() or [_("nothing")])[-1]
        return RunnerUnreachable(where=self._name, why=_("it answers {status}: {line}", status=status, line=last_line))


class _NodeList(_Response):
    result: list[RayNode]


class _NodeData(_Response):
    result: _NodeList


class _NodesResponse(_Response):
    data: _NodeData
