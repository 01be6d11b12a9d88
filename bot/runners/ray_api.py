"""The HTTP interface of a Ray cluster's head, as far as jobs need it (Ray 2.60); the bot itself never imports ray."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from http import HTTPStatus
from typing import Any

import aiohttp
from pydantic import BaseModel, ConfigDict, Field

from bot.errors import RunnerUnreachable


class JobStatus(StrEnum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"


class _Answer(BaseModel):
    #: Other releases of Ray may say more.
    model_config = ConfigDict(frozen=True, extra="ignore")


class RayJob(_Answer):
    """What the cluster knows of a submitted job."""

    status: JobStatus
    #: A sentence of Ray's; after a failure with the end of the log.
    message: str | None = None
    #: Why Ray itself ended it: `JOB_SUPERVISOR_ACTOR_DIED`, …
    error_type: str | None = None


class RayNode(_Answer):
    """One machine, or one that was there."""

    state: str
    #: `CPU`, `GPU`, `memory` (bytes), …
    resources_total: dict[str, float] = Field(default_factory=dict)

    @property
    def is_alive(self) -> bool:
        return self.state == "ALIVE"


class RayApi:
    """Asks the head; one connection for each question, since there is one every second or so."""

    def __init__(self, address: str, *, token: str | None = None, timeout_s: float = 30.0) -> None:
        self._address = address.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)

    def __repr__(self) -> str:
        return f"<RayApi {self._address}>"

    async def submit(self, request: Mapping[str, Any]) -> None:
        """Hand a job over. One whose `submission_id` is known already is the same job: nothing is done.

        Raises:
            RunnerUnreachable: the cluster does not answer, or has no agent that could take it yet.
        """
        status, body = await self._ask("POST", "/api/jobs/", request)
        # Ray says it by a 500 with a traceback; whether the job is there is the better question.
        if status != HTTPStatus.OK and await self.job(str(request["submission_id"])) is None:
            raise self._refused(status, body)

    async def job(self, submission_id: str) -> RayJob | None:
        """A job, None if the cluster knows no such (any more).

        Raises:
            RunnerUnreachable: the cluster does not answer.
        """
        status, body = await self._ask("GET", f"/api/jobs/{submission_id}")
        if status == HTTPStatus.NOT_FOUND:
            return None
        if status != HTTPStatus.OK:
            raise self._refused(status, body)
        return RayJob.model_validate_json(body)

    async def stop(self, submission_id: str) -> None:
        """SIGTERM to all its processes, SIGKILL after RAY_JOB_STOP_WAIT_TIME_S; one that is gone is no error.

        Raises:
            RunnerUnreachable: the cluster does not answer.
        """
        status, body = await self._ask("POST", f"/api/jobs/{submission_id}/stop")
        if status not in {HTTPStatus.OK, HTTPStatus.NOT_FOUND}:
            raise self._refused(status, body)

    async def logs(self, submission_id: str) -> str:
        """What a job printed, as far as it was not redirected; nothing once its machine is gone, which keeps it.

        Raises:
            RunnerUnreachable: the cluster does not answer.
        """
        status, body = await self._ask("GET", f"/api/jobs/{submission_id}/logs")
        return _Logs.model_validate_json(body).logs if status == HTTPStatus.OK else ""

    async def nodes(self) -> list[RayNode]:
        """All machines, those that were lost as well.

        Raises:
            RunnerUnreachable: the cluster does not answer.
        """
        status, body = await self._ask("GET", "/api/v0/nodes?detail=1&limit=10000")
        if status != HTTPStatus.OK:
            raise self._refused(status, body)
        return _Nodes.model_validate_json(body).data.result.result

    async def _ask(self, method: str, path: str, content: Mapping[str, Any] | None = None) -> tuple[int, str]:
        try:
            async with (
                aiohttp.ClientSession(headers=self._headers, timeout=self._timeout) as session,
                session.request(method, self._address + path, json=content) as answer,
            ):
                return answer.status, await answer.text()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise RunnerUnreachable(where=self._name, why=str(error) or type(error).__name__) from error

    @property
    def _name(self) -> str:
        return f"The Ray cluster at {self._address}"

    def _refused(self, status: int, body: str) -> RunnerUnreachable:
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            return RunnerUnreachable(where=self._name, why=f"it refuses the token: {status}")
        lines = body.strip().splitlines()
        return RunnerUnreachable(where=self._name, why=f"it answers {status}: {lines[-1] if lines else 'nothing'}")


class _Logs(_Answer):
    logs: str


class _NodeList(_Answer):
    result: list[RayNode]


class _NodeData(_Answer):
    result: _NodeList


class _Nodes(_Answer):
    data: _NodeData
