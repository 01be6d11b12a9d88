"""What jobs have in the object store that they go through, and how it is taken away."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from bot.config import RaySettings
from bot.errors import ConfigError
from trainer.protocol.objects import Objects
from trainer.protocol.store import JOBS_FOLDER, Begin, JobPlace, attempts_of, job_folder


def owner_of(data_dir: Path) -> str:
    """This bot's name: two may share a cluster and a store, and their jobs have the same numbers."""
    return hashlib.sha256(os.fsencode(data_dir.absolute())).hexdigest()[:8]


def open_store(settings: RaySettings, data_dir: Path) -> Objects | None:
    """This bot's part of the store, None where job folders do not go through one.

    Raises:
        ConfigError: nothing here can open such an address.
    """
    if not settings.address or not settings.store:
        return None
    try:
        return Objects(f"{settings.store.rstrip('/')}/{owner_of(data_dir)}")
    except (ImportError, ValueError) as error:
        raise ConfigError(
            path=Path("ray.store"),
            problems=[f"{settings.store} cannot be opened ({error}). Try pip install 'darkroom[ray]'."],
        ) from error


class StoredJobs:
    """Blocking; call it in a thread. To take away what is gone already is no error. Errors are OSErrors.

    Each way of taking away answers how many objects went.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def ids(self) -> set[int]:
        """Jobs that have anything in the store."""
        return set(self._objects.numbers(JOBS_FOLDER))

    def delete(self, job_id: int) -> int:
        """Take away all that a job has; datasets are shared with others and stay."""
        number = len(self._objects.names(job_folder(job_id)))
        self._objects.delete_folder(job_folder(job_id))
        return number

    def delete_checkpoints(self, job_id: int) -> int:
        """Take away all checkpoints of a job: nobody can go on from it."""
        return sum(self._delete_all(attempt, kept=frozenset()) for attempt in self._attempts(job_id))

    def delete_stale_checkpoints(self, job_id: int) -> int:
        """Take away what no later attempt would begin with: neither the last one's own, nor what that began with.

        What an attempt that lost its job sent late, and what was kept until a newer one was there.
        """
        attempts = self._attempts(job_id)
        last = next((each for each in reversed(attempts) if self._objects.exists(each.begin)), None)
        if last is None:
            return 0
        kept = frozenset(Begin.model_validate_json(self._objects.read(last.begin) or b"{}").checkpoints)
        return sum(self._delete_all(attempt, kept=kept) for attempt in attempts if attempt != last)

    def _attempts(self, job_id: int) -> list[JobPlace]:
        return [JobPlace(job_id=job_id, attempt=number) for number in self._objects.numbers(attempts_of(job_id))]

    def _delete_all(self, attempt: JobPlace, *, kept: frozenset[str]) -> int:
        names = [name for name in self._objects.names(attempt.checkpoints) if name not in kept]
        for name in names:
            self._objects.delete(name)
        return len(names)
